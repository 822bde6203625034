"""Readers: MVTec AD's layout and a person's own folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.data.folder import read_folder
from detectors.data.mvtec import categories, read_mvtec
from detectors.data.samples import GOOD, Dataset, ImageSet, Sample
from detectors.errors import InputError


def image(path: Path, level: int | None = None) -> Path:
    """A 12 x 16 image whose gray levels depend on its path, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if level is None:
        seed = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:8], "big")
        pixels = np.random.default_rng(seed).integers(0, 251, (12, 16), dtype=np.uint8)
    else:
        pixels = np.full((12, 16), level, dtype=np.uint8)
    pixels[:3, :3] = 255
    Image.fromarray(pixels).save(path)
    return path


def images(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    return [image(folder / f"{index:03}{suffix}") for index in range(count)]


def make_category(root: Path, *, defect: str = "scratch") -> Path:
    images(root / "train" / "good", 5)
    images(root / "test" / "good", 3)
    for path in images(root / "test" / defect, 4):
        image(root / "ground_truth" / defect / f"{path.stem}_mask.png")
    return root


def keys(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.key for sample in samples]


def types(dataset: Dataset) -> dict[str, int]:
    return ImageSet("test", dataset.test).counts


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- MVTec AD's layout


def test_mvtec_layout(tmp_path):
    root = make_category(tmp_path / "bottle")
    dataset = read_mvtec(tmp_path, "bottle")
    assert (dataset.name, dataset.category, dataset.root) == ("mvtec", "bottle", root)
    assert keys(dataset.train) == [f"train/good/{index:03}.png" for index in range(5)]
    assert types(dataset) == {GOOD: 3, "scratch": 4}
    assert dataset.defect_types == ("scratch",)
    assert all(sample.file == root / sample.key for sample in (*dataset.train, *dataset.test))
    masks = {sample.key: sample.mask_file for sample in dataset.test}
    assert masks["test/good/000.png"] is None
    assert masks["test/scratch/002.png"] == root / "ground_truth" / "scratch" / "002_mask.png"


def test_order_is_that_of_the_keys_whatever_the_file_system_says(tmp_path, monkeypatch):
    make_category(tmp_path / "bottle")
    expected = read_mvtec(tmp_path, "bottle")
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    shuffled = read_mvtec(tmp_path, "bottle")
    assert shuffled == expected
    assert keys(shuffled.test) == sorted(keys(shuffled.test))


def test_any_format_and_any_case_of_suffix(tmp_path):
    root = make_category(tmp_path / "bottle")
    image(root / "train" / "good" / "a.JPG")
    image(root / "test" / "scratch" / "b.bmp")
    mask = image(root / "ground_truth" / "scratch" / "b_mask.tiff")
    dataset = read_mvtec(tmp_path, "bottle")
    assert "train/good/a.JPG" in keys(dataset.train)
    assert {sample.key: sample.mask_file for sample in dataset.test}["test/scratch/b.bmp"] == mask


def test_mask_named_like_its_image(tmp_path):
    root = make_category(tmp_path / "bottle")
    image(root / "test" / "dent" / "img.2024.png")
    mask = image(root / "ground_truth" / "dent" / "img.2024.bmp")
    image(root / "test" / "dent" / "no_mask_here.png")
    masks = {sample.key: sample.mask_file for sample in read_mvtec(tmp_path, "bottle").test}
    assert masks["test/dent/img.2024.png"] == mask
    assert masks["test/dent/no_mask_here.png"] is None


def test_marked_mask_wins_over_the_plain_name(tmp_path):
    root = make_category(tmp_path / "bottle")
    image(root / "ground_truth" / "scratch" / "000.png")
    masks = {sample.key: sample.mask_file for sample in read_mvtec(tmp_path, "bottle").test}
    assert masks["test/scratch/000.png"] == root / "ground_truth" / "scratch" / "000_mask.png"


def test_hidden_files_and_others_are_not_images(tmp_path):
    root = make_category(tmp_path / "bottle")
    for name in ("Thumbs.db", ".DS_Store", "readme.txt", "._000.png"):
        (root / "train" / "good" / name).write_bytes(b"x")
    (root / "test" / ".cache").mkdir()
    image(root / "test" / ".cache" / "000.png")
    (root / "test" / "notes.txt").write_text("x")
    dataset = read_mvtec(tmp_path, "bottle")
    assert len(dataset.train) == 5
    assert types(dataset) == {GOOD: 3, "scratch": 4}


def test_category_folder_as_root(tmp_path):
    root = make_category(tmp_path / "bottle")
    assert read_mvtec(root, "bottle") == read_mvtec(tmp_path, "bottle")
    with pytest.raises(InputError, match=r"no category 'cable'.*bottle"):
        read_mvtec(root, "cable")


def test_categories(tmp_path):
    for name in ("screw", "bottle"):
        make_category(tmp_path / name)
    (tmp_path / "zip files").mkdir()
    (tmp_path / "license.txt").write_text("x")
    assert categories(tmp_path) == ["bottle", "screw"]
    assert categories(tmp_path / "screw") == ["screw"]


def test_category_without_test_images(tmp_path):
    images(tmp_path / "bottle" / "train" / "good", 3)
    dataset = read_mvtec(tmp_path, "bottle")
    assert dataset.test == ()
    assert len(dataset.train) == 3


def test_links_to_other_places_are_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    images(elsewhere, 3)
    good = tmp_path / "data" / "bottle" / "train" / "good"
    good.mkdir(parents=True)
    (good / "batch").symlink_to(elsewhere)
    (good / "loop").symlink_to(good)
    (good / "one.png").symlink_to(elsewhere / "000.png")
    (good / "gone.png").symlink_to(elsewhere / "gone.png")
    dataset = read_mvtec(tmp_path / "data", "bottle")
    expected = ["batch/000.png", "batch/001.png", "batch/002.png", "gone.png", "one.png"]
    assert keys(dataset.train) == [f"train/good/{name}" for name in expected]


def test_missing_root_names_the_ways_out(tmp_path):
    with pytest.raises(InputError) as error:
        read_mvtec(tmp_path / "nowhere", "screw")
    text = message(error)
    for part in (str(tmp_path / "nowhere"), "study data fetch mvtec", "--demo", "MVTEC_AD_ROOT"):
        assert part in text


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("x")])
def test_root_without_categories(tmp_path, make):
    make(tmp_path / "root")
    with pytest.raises(InputError, match="study data fetch mvtec") as error:
        read_mvtec(tmp_path / "root", "screw")
    assert str(tmp_path / "root") in message(error)


def test_another_data_set_is_not_asked_to_fetch_mvtec(tmp_path):
    with pytest.raises(InputError, match=r"data\.root") as error:
        read_mvtec(tmp_path / "nowhere", "macaroni1", name="visa")
    assert "mvtec" not in message(error)


def test_missing_category_lists_those_there_and_guesses(tmp_path):
    for name in ("screw", "bottle", "metal_nut"):
        make_category(tmp_path / name)
    with pytest.raises(InputError, match=r"no category 'Scrw'; did you mean screw\?") as error:
        read_mvtec(tmp_path, "Scrw")
    assert "There are: bottle, metal_nut, screw" in message(error)
    with pytest.raises(InputError, match="no category 'zzz'") as error:
        read_mvtec(tmp_path, "zzz")
    assert "did you mean" not in message(error)


@pytest.mark.parametrize("category", ["", ".", "..", "../other", "a/b", "a\\b", "/etc", "a\0b"])
def test_category_must_be_a_name(tmp_path, category):
    make_category(tmp_path / "bottle")
    with pytest.raises(InputError, match="is not a folder name"):
        read_mvtec(tmp_path, category)


@pytest.mark.parametrize("make_empty", [True, False])
def test_category_without_good_training_images(tmp_path, make_empty):
    images(tmp_path / "bottle" / "test" / "good", 3)
    if make_empty:
        (tmp_path / "bottle" / "train" / "good").mkdir(parents=True)
    with pytest.raises(InputError, match="no good training images") as error:
        read_mvtec(tmp_path, "bottle")
    assert str(tmp_path / "bottle" / "train" / "good") in message(error)


def test_file_name_that_is_not_unicode(tmp_path):
    make_category(tmp_path / "bottle")
    name = os.fsencode(tmp_path / "bottle" / "train" / "good") + b"/\xff.png"
    try:
        Path(os.fsdecode(name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    with pytest.raises(InputError, match="not valid Unicode") as error:
        read_mvtec(tmp_path, "bottle")
    json.dumps(message(error)).encode()


# --- a person's own folder


def test_flat_folder_is_all_good(tmp_path):
    root = tmp_path / "widgets"
    images(root, 6, ".jpg")
    (root / "notes.txt").write_text("x")
    dataset = read_folder(root)
    assert (dataset.name, dataset.category, dataset.root) == ("folder", "widgets", root)
    assert keys(dataset.train) == [f"{index:03}.jpg" for index in range(6)]
    assert dataset.test == ()


@pytest.mark.parametrize("name", ["good", "Good", "OK", "normal"])
def test_only_a_good_folder(tmp_path, name):
    images(tmp_path / name, 6)
    dataset = read_folder(tmp_path, category="widget")
    assert dataset.category == "widget"
    assert keys(dataset.train) == [f"{name}/{index:03}.png" for index in range(6)]
    assert dataset.test == ()


def test_folder_with_types_of_defects(tmp_path):
    images(tmp_path / "good", 20)
    images(tmp_path / "scratch" / "monday", 2)
    images(tmp_path / "scratch" / "tuesday", 2)
    images(tmp_path / "bad", 3)
    (tmp_path / "empty").mkdir()
    dataset = read_folder(tmp_path)
    assert types(dataset) == {GOOD: 4, "bad": 3, "scratch": 4}
    assert len(dataset.train) == 16
    assert "scratch/monday/000.png" in keys(dataset.test)
    assert len(set(keys(dataset.train)) | set(keys(dataset.test))) == 27


@pytest.mark.parametrize(("good", "in_test"), [(2, 1), (3, 1), (4, 2), (7, 2), (10, 2), (15, 3), (100, 20)])
def test_a_fifth_of_the_good_images_is_for_the_test(tmp_path, good, in_test):
    images(tmp_path / "good", good)
    images(tmp_path / "bad", 1)
    dataset = read_folder(tmp_path)
    assert types(dataset) == {GOOD: in_test, "bad": 1}
    assert len(dataset.train) == good - in_test


def test_copies_of_a_good_image_are_on_one_side_of_the_division(tmp_path):
    images(tmp_path / "bad", 2)
    for index, path in enumerate(images(tmp_path / "good", 20)):
        for copy in range(3):
            with Image.open(path) as original:
                original.save(path.with_name(f"copy {copy} of {index}.bmp"))
    dataset = read_folder(tmp_path)
    assert types(dataset) == {GOOD: 16, "bad": 2}  # a fifth of the 20, each four times
    contents = [{sample.file.read_bytes() for sample in part if sample.file.suffix == ".bmp"}
                for part in (dataset.train, dataset.test)]  # fmt: skip
    assert not contents[0] & contents[1]


def test_good_images_that_are_all_copies_of_one_leave_none_to_test_on(tmp_path):
    first, *others = images(tmp_path / "good", 6)
    for path in others:
        shutil.copy(first, path)
    images(tmp_path / "bad", 2)
    assert types(read_folder(tmp_path)) == {"bad": 2}


def test_division_does_not_depend_on_the_place(tmp_path):
    for place in ("a", "b/c"):
        images(tmp_path / place / "good", 30)
        images(tmp_path / place / "bad", 2)
    first, second = read_folder(tmp_path / "a"), read_folder(tmp_path / "b" / "c")
    assert keys(first.train) == keys(second.train)
    assert keys(first.test) == keys(second.test)


@pytest.mark.parametrize(
    "mask",
    [
        "masks/scratch/001.png",
        "masks/scratch/001_mask.bmp",
        "Mask/scratch/001.tif",
        "ground_truth/scratch/001_mask.png",
        "masks/001.png",
        "scratch/001_mask.png",
    ],
)
def test_masks_of_own_images(tmp_path, mask):
    images(tmp_path / "good", 5)
    images(tmp_path / "scratch", 3)
    path = image(tmp_path / mask)
    dataset = read_folder(tmp_path)
    assert types(dataset) == {GOOD: 2, "scratch": 3}
    found = {sample.key: sample.mask_file for sample in dataset.test if sample.label}
    assert found == {"scratch/000.png": None, "scratch/001.png": path, "scratch/002.png": None}


def test_masks_in_nested_folders_match_by_path(tmp_path):
    images(tmp_path / "good", 5)
    for day in ("monday", "tuesday"):
        images(tmp_path / "scratch" / day, 1)
        image(tmp_path / "masks" / "scratch" / day / "000.png")
    dataset = read_folder(tmp_path)
    found = {sample.key: sample.mask_file for sample in dataset.test if sample.label}
    assert found == {
        f"scratch/{day}/000.png": tmp_path / "masks" / "scratch" / day / "000.png" for day in ("monday", "tuesday")
    }


def test_flat_masks_are_not_guessed_among_several_types(tmp_path):
    images(tmp_path / "good", 5)
    images(tmp_path / "scratch", 1)
    images(tmp_path / "dent", 1)
    image(tmp_path / "masks" / "000.png")
    assert all(sample.mask_file is None for sample in read_folder(tmp_path).test)


def test_images_of_masks_are_images(tmp_path):
    # The mark alone does not make a mask: the product may be one.
    image(tmp_path / "good" / "_mask.png")
    image(tmp_path / "good" / "face_mask.png")
    image(tmp_path / "good" / "gas_mask.png")
    assert keys(read_folder(tmp_path).train) == ["good/_mask.png", "good/face_mask.png", "good/gas_mask.png"]


def test_mask_without_its_image_is_no_sample_among_other_masks(tmp_path):
    images(tmp_path / "good", 5)
    images(tmp_path / "scratch", 2)
    for stem in ("000", "001", "007"):
        image(tmp_path / "scratch" / f"{stem}_mask.png")
    assert types(read_folder(tmp_path)) == {GOOD: 2, "scratch": 2}


def test_mvtec_layout_in_an_own_folder(tmp_path):
    root = make_category(tmp_path / "bottle")
    dataset, official = read_folder(root), read_mvtec(tmp_path, "bottle")
    assert (dataset.name, dataset.category) == ("folder", "bottle")
    assert (dataset.train, dataset.test) == (official.train, official.test)
    assert read_folder(root, category="line 3").category == "line 3"


@pytest.mark.parametrize(("good", "bad", "masks"), [("ok", "ko", "ground_truth"), ("Normal_dir", "ng", "ground_truth")])
def test_mvtec_layout_with_other_names_for_good_images(tmp_path, good, bad, masks):
    images(tmp_path / "train" / good, 5)
    images(tmp_path / "test" / good, 3)
    for path in images(tmp_path / "test" / bad, 4):
        image(tmp_path / masks / bad / path.name)
    dataset = read_folder(tmp_path)
    assert (len(dataset.train), types(dataset)) == (5, {"good": 3, bad: 4})
    assert all(sample.mask_file for sample in dataset.test if sample.label)
    assert categories(tmp_path) == [tmp_path.name]


def test_images_called_ok_among_those_called_good_are_good(tmp_path):
    make_category(tmp_path)
    images(tmp_path / "test" / "OK", 2)
    assert types(read_folder(tmp_path)) == {"good": 5, "scratch": 4}


@pytest.mark.parametrize("masks", ["mask", "mask_dir/NG"])
def test_types_of_defects_may_lie_together(tmp_path, masks):
    images(tmp_path / "good", 10)
    for kind in ("colour", "crack"):
        for path in images(tmp_path / "NG" / kind, 3):
            image(tmp_path / masks / kind / path.name)
    dataset = read_folder(tmp_path)
    assert types(dataset) == {"colour": 3, "crack": 3, "good": 2}
    assert all(sample.mask_file for sample in dataset.test if sample.label)


def test_a_folder_of_defects_with_images_of_its_own_is_one_type(tmp_path):
    images(tmp_path / "normal_dir", 10)
    images(tmp_path / "abnormal_dir", 2)
    images(tmp_path / "abnormal_dir" / "later", 3)
    assert types(read_folder(tmp_path)) == {"abnormal_dir": 5, "good": 2}


def test_relative_folder_has_a_name(tmp_path, monkeypatch):
    images(tmp_path / "widgets", 2)
    monkeypatch.chdir(tmp_path / "widgets")
    assert read_folder(Path()).category == "widgets"


@pytest.mark.parametrize("files", [["a.png"], ["good/a.png"]])
def test_one_good_image_is_a_data_set(tmp_path, files):
    for name in files:
        image(tmp_path / name)
    dataset = read_folder(tmp_path)
    assert len(dataset.train) == 1
    assert dataset.test == ()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "no images in it"),
        (["notes.txt"], "no images in it"),
        (["scratch/a.png", "dent/a.png"], r"no good images, only dent, scratch; put .*good"),
        (["a.png", "b.png", "scratch/a.png"], r"no good images, only scratch; put .*good"),
        (["good/notes.txt", "scratch/a.png"], r"no good images, only scratch; put .*good"),
        (["good/notes.txt"], r"no good images; put .*good"),
        (["masks/a.png"], "no images in it"),
        (["screw/train/good/a.png", "nut/train/good/a.png"], r"name one product: .*nut, .*screw"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, files, expected):
    for name in files:
        if name.endswith(".png"):
            image(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=expected) as error:
        read_folder(tmp_path)
    assert str(tmp_path) in message(error)


def test_missing_folder_and_file_instead_of_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="a file, not a folder"):
        read_folder(image(tmp_path / "a.png"))


# --- real images


@pytest.mark.real_images
@pytest.mark.parametrize(
    ("place", "category", "train", "test"),
    [
        (
            "MVTecAD",
            "screw",
            320,
            {
                GOOD: 41,
                "manipulated_front": 24,
                "scratch_head": 24,
                "scratch_neck": 25,
                "thread_side": 23,
                "thread_top": 23,
            },
        ),
        ("VisA", "macaroni1", 160, {GOOD: 40, "anomaly": 40}),
        ("carpet_tiles", "carpet", 160, {GOOD: 40, "hole": 40}),
    ],
)
def test_real_categories(real_data, place, category, train, test):
    assert category in categories(real_data / place)
    dataset = read_mvtec(real_data / place, category)
    assert len(dataset.train) == train
    assert types(dataset) == test
    assert all((sample.mask_file is not None) == bool(sample.label) for sample in dataset.test)


@pytest.mark.real_images
def test_real_masks_load_with_their_images(real_data):
    dataset = read_mvtec(real_data / "MVTecAD", "screw")
    defective = ImageSet("test", tuple(sample for sample in dataset.test if sample.label)[::10])
    masks = defective.masks()
    assert masks is not None
    assert masks.any(axis=(1, 2)).all()
    assert masks.mean() < 0.05
