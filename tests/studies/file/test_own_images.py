"""A folder of a person's own images in the place of a study: its name, and folders that hold several products."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from detectors.errors import InputError
from studies.file import own_images
from studies.file.config import StudyConfig
from studies.file.library import load


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)
    return path


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("parts", "parts"),
        ("my parts", "my_parts"),
        ("M4 x 20 (2024)", "M4_x_20_2024_"),
        ("café", "cafe"),
        ("_new", "new"),
        ("01", "01"),
        ("a/../b", "b"),
    ],
)
def test_a_study_has_its_folders_name(folder: str, name: str) -> None:
    assert own_images.study_name(Path(folder)) == name


def test_of_one_detector_it_is_named_before() -> None:
    assert own_images.study_name(Path("my parts"), detector="padim") == "padim_my_parts"
    assert own_images.former_study_name(Path("my parts"), detector="padim") == "padim_my_parts"


@pytest.mark.parametrize("detector", ["", "patchcore"])
@pytest.mark.parametrize(
    "folders", [("ねじ", "歯車"), ("M4ねじ", "M4歯車"), ("n" * 200 + "a", "n" * 200 + "b"), ("дeталь", "дeтаЛь")]
)
def test_names_that_lose_letters_differ_and_are_valid(folders: tuple[str, str], detector: str) -> None:
    names = [own_images.study_name(Path(folder), detector=detector) for folder in folders]
    assert len(set(names)) == 2
    raw = load("best").to_json()
    for name in names:
        assert StudyConfig.model_validate(raw | {"name": name}).name == name


def test_a_name_is_the_same_however_its_accents_are_stored() -> None:
    composed, taken_apart = (unicodedata.normalize(form, "ガラス") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    assert own_images.study_name(Path(composed)) == own_images.study_name(Path(taken_apart))


def test_a_folder_of_several_products_asks_which_with_the_command(tmp_path: Path) -> None:
    put(tmp_path / "line 3" / "screw" / "train" / "good" / "0.png")
    put(tmp_path / "line 3" / "nut" / "OK" / "0.png")
    put(tmp_path / "line 3" / "notes" / "0.png")
    folder = tmp_path / "line 3"
    assert [one.name for one in own_images.products_in(folder)] == ["nut", "screw"]
    with pytest.raises(InputError, match=r"of 2 products \(nut, screw\).*`study run '.*/line 3/nut'`"):
        own_images.require_one_product(folder)


@pytest.mark.parametrize("layout", [["0.png"], ["good/0.png", "scratch/0.png"], ["train/good/0.png", "test/cut/0.png"]])
def test_a_folder_of_one_product_asks_nothing(tmp_path: Path, layout: list[str]) -> None:
    for name in layout:
        put(tmp_path / name)
    assert own_images.products_in(tmp_path) == []
    own_images.require_one_product(tmp_path)


def test_an_image_is_no_folder_of_images(tmp_path: Path) -> None:
    image = put(tmp_path / "parts" / "0.png")
    with pytest.raises(InputError, match=f"`study run {image.parent}`"):
        own_images.require_folder_of_images(image)
    own_images.require_folder_of_images(image.parent)
