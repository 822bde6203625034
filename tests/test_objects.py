"""The drawn products that benchmarks compare on: the same every time, damaged where their masks say, read as MVTec AD is."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from detectors.data.mvtec import read_mvtec

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PRODUCTS = ("buttons", "tray", "weave", "board")
SIZE = 96


@pytest.fixture(scope="module")
def objects() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("objects")


@pytest.fixture(scope="module")
def drawn(objects: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("objects")
    for product in PRODUCTS:
        assert objects.draw(product, out, train=3, good=2, defective=5, size=SIZE) == out / product
    return out


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("product", PRODUCTS)
def test_it_is_read_like_mvtec(objects: ModuleType, drawn: Path, product: str) -> None:
    dataset = read_mvtec(drawn, product)
    assert len(dataset.train) == 3
    assert len(dataset.test) == 2 + 5
    assert {sample.defect_type for sample in dataset.test if sample.label} == set(objects.PRODUCTS[product].defects)
    assert all(sample.mask_file for sample in dataset.test if sample.label)
    assert sorted(path.name for path in drawn.iterdir()) == sorted(PRODUCTS), "nothing is left of the work"


@pytest.mark.parametrize("product", PRODUCTS)
def test_sound_ones_differ_and_come_back_the_same(objects: ModuleType, drawn: Path, product: str) -> None:
    images = [pixels(path) for path in sorted((drawn / product).glob("*/good/*.png"))]
    assert all(image.shape == (SIZE, SIZE, 3) for image in images)
    assert all(np.abs(a - b).mean() > 1 for i, a in enumerate(images) for b in images[:i])
    again = objects.good_image(product, "train", 1, size=SIZE)
    assert np.array_equal(again, pixels(drawn / product / "train" / "good" / "001.png"))
    assert not np.array_equal(again, objects.good_image(product, "train", 1, size=SIZE, seed=1))


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_mask_holds_what_the_defect_changed(objects: ModuleType, drawn: Path, product: str) -> None:
    for kind in objects.PRODUCTS[product].defects:
        mask = pixels(drawn / product / "ground_truth" / kind / "000_mask.png")
        assert mask.shape == (SIZE, SIZE)
        assert set(np.unique(mask)) == {0, 255}
        assert objects.LEAST <= (mask > 0).mean() < 0.2, kind
    image, same = objects.defective_image(product, kind, 0, size=SIZE)
    assert np.array_equal(same, mask)
    assert np.array_equal(image, pixels(drawn / product / "test" / kind / "000.png"))


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_kind_goes_from_faint_to_clear(objects: ModuleType, product: str) -> None:
    recipe, grid = objects.PRODUCTS[product], objects.Grid.of(SIZE)
    scene = recipe.sound(np.random.default_rng(0))
    sound = recipe.render(scene, grid)
    for kind, damage in recipe.defects.items():
        faint, clear = (
            np.abs(recipe.render(damage(scene, np.random.default_rng(0), amount), grid) - sound).mean()
            for amount in (0.0, 1.0)
        )
        assert clear > faint or (kind == "missing" and clear > 0), kind  # a capsule is there or it is not


def test_mistakes_are_told_and_leave_nothing(
    objects: ModuleType,
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="unknown product spoons; there are buttons"):
        objects.draw("spoons", tmp_path / "new")
    with pytest.raises(ValueError, match="train must be at least 1"):
        objects.draw("tray", tmp_path / "new", train=0)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("sys.argv", ["objects.py", "--out", str(drawn), "--product", "tray"])
    with pytest.raises(SystemExit) as end:
        objects.main()
    assert end.value.code == 2
    assert "tray exists: remove it or name another folder" in capsys.readouterr().err
