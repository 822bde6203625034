"""The check of a data set: it finds every bad file and every trap, and never fails itself."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.data import check
from detectors.data.check import CheckReport, Problem, check_dataset
from detectors.data.folder import read_folder
from detectors.data.images import open_image
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import Dataset

HEIGHT, WIDTH = 12, 16


class Builder:
    """A sound data set of one category, to be spoiled."""

    def __init__(self, root: Path) -> None:
        self.root = root / "widget"
        self.rng = np.random.default_rng(0)
        for index in range(20):
            self.image(f"train/good/{index:03}.png")
        for index in range(4):
            self.image(f"test/good/{index:03}.png")
            self.image(f"test/dent/{index:03}.png")
            self.mask(f"ground_truth/dent/{index:03}_mask.png")

    def image(self, key: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
        return self.save(key, self.rng.integers(0, 256, size, dtype=np.uint8))

    def mask(self, key: str, size: tuple[int, int] = (HEIGHT, WIDTH), *, marked: slice = slice(2, 5)) -> Path:
        pixels = np.zeros(size, dtype=np.uint8)
        pixels[marked, marked] = 255
        return self.save(key, pixels)

    def save(self, key: str, pixels: np.ndarray) -> Path:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    def read(self) -> Dataset:
        return read_mvtec(self.root.parent, "widget")

    def check(self) -> CheckReport:
        return check_dataset(self.read())


@pytest.fixture
def builder(tmp_path) -> Builder:
    return Builder(tmp_path)


def only(report: CheckReport) -> Problem:
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def test_sound_data_set(builder):
    report = builder.check()
    assert report.problems == ()
    assert report.ok
    assert report.counts == {"train": {"good": 20}, "test": {"good": 4, "dent": 4}}
    assert report.masks == 4
    assert report.sizes == {"16 x 12": 28}
    assert report.modes == {"L": 28}


def test_report_is_plain_json(builder):
    (builder.root / "test/good/001.png").write_bytes(b"")
    report = builder.check()
    plain = report.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["ok"] is False
    assert plain["counts"]["train"] == {"good": 20}
    assert plain["problems"][0]["subject"] == "test/good/001.png"
    assert plain["problems"][0]["severity"] == "error"


def test_all_unreadable_files_are_listed(builder):
    (builder.root / "train/good/003.png").write_bytes(b"")
    (builder.root / "test/dent/000.png").write_bytes(b"no image")
    cut = builder.root / "test/good/002.png"
    cut.write_bytes(cut.read_bytes()[:60])
    Image.new("L", (1, 1)).save(builder.root / "train/good/004.png")
    Image.fromarray(np.zeros((12, 16), dtype=np.float32)).save(builder.root / "train/good/x.tif")
    (builder.root / "train/good/gone.png").symlink_to(builder.root / "nowhere.png")
    (builder.root / "ground_truth/dent/001_mask.png").write_bytes(b"no image")
    report = builder.check()
    subjects = {problem.subject for problem in report.errors}
    assert subjects == {
        "train/good/003.png",
        "train/good/004.png",
        "train/good/gone.png",
        "train/good/x.tif",
        "test/dent/000.png",
        "test/dent/001.png",
        "test/good/002.png",
    }
    assert sum(report.sizes.values()) == 30 - 6
    for problem in report.problems:
        assert "\n" not in problem.message
        assert str(builder.root) not in problem.message


def test_file_that_vanishes_before_the_check(builder):
    dataset = builder.read()
    shutil.rmtree(builder.root)
    report = check_dataset(dataset)
    assert len([problem for problem in report.errors if "no such file" in problem.message]) == 28


def test_mask_of_another_size(builder):
    builder.mask("ground_truth/dent/002_mask.png", (WIDTH, HEIGHT))
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("error", "test/dent/002.png")
    assert "the mask is 12 x 16 but its image is 16 x 12" in problem.message


def test_empty_mask(builder):
    builder.mask("ground_truth/dent/002_mask.png", marked=slice(0, 0))
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("error", "test/dent/002.png")
    assert "marks nothing" in problem.message


def test_inverted_mask(builder):
    builder.mask("ground_truth/dent/002_mask.png", marked=slice(None))
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("warning", "test/dent/002.png")
    assert "inverted" in problem.message


def test_defective_image_without_a_mask(builder):
    (builder.root / "ground_truth/dent/002_mask.png").unlink()
    report = builder.check()
    problem = only(report)
    assert (problem.severity, problem.subject) == ("warning", "test/dent/002.png")
    assert "no mask" in problem.message
    assert report.masks == 3


def test_type_without_masks_is_one_line(builder):
    shutil.rmtree(builder.root / "ground_truth")
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("warning", "dent")
    assert "none of its 4 images" in problem.message


@pytest.mark.parametrize(
    "key", ["ground_truth/dent/009_mask.png", "ground_truth/other/000.png", "test/dent/009_mask.png"]
)
def test_mask_without_an_image(builder, key):
    builder.mask("test/dent/000_mask.png")  # makes the mark mean a mask in this folder; unused, the other one wins
    builder.mask(key)
    report = builder.check()
    assert {(problem.severity, problem.subject) for problem in report.problems} == {
        ("warning", key),
        ("warning", "test/dent/000_mask.png"),
    }
    assert all("a mask that no image uses" in problem.message for problem in report.problems)


def test_masks_of_good_images_are_empty(builder):
    builder.mask("ground_truth/good/000_mask.png", marked=slice(0, 0))
    assert builder.check().problems == ()
    builder.mask("ground_truth/good/001_mask.png")
    (builder.root / "ground_truth/good/002_mask.png").write_bytes(b"x")
    report = builder.check()
    assert report.ok
    assert {problem.subject for problem in report.warnings} == {
        "ground_truth/good/001_mask.png",
        "ground_truth/good/002_mask.png",
    }


def test_same_image_in_train_and_test(builder):
    shutil.copy(builder.root / "train/good/005.png", builder.root / "test/good/001.png")
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("warning", "test/good/001.png")
    assert "train/good/005.png: holdout leaves it out of train, paper tests on what it trained on" in problem.message


def test_same_pixels_in_another_format_are_the_same_image(builder):
    with Image.open(builder.root / "train/good/005.png") as image:
        image.convert("RGB").save(builder.root / "test/good/copy.bmp")
    report = builder.check()
    assert [problem.subject for problem in report.problems] == ["test/good/copy.bmp"]


@pytest.mark.parametrize("good", ["test/good/001.png", "train/good/001.png"])
def test_same_image_good_and_defective(builder, good):
    shutil.copy(builder.root / "test/dent/001.png", builder.root / good)
    problem = only(builder.check())
    assert problem.severity == "error"
    assert "once good and once defective" in problem.message
    # The official division stays as it is: it is told, and no reason to refuse a study.
    assert check_dataset(builder.read(), protocol="paper").ok


def test_copies_within_train_are_one_line(builder):
    for index in range(1, 7):
        shutil.copy(builder.root / "train/good/000.png", builder.root / f"train/good/{index:03}.png")
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("warning", "train/good/006.png")
    assert "train/good/000.png, train/good/001.png, train/good/002.png and 3 more" in problem.message


def structured(rng: np.random.Generator, size: int = 128) -> np.ndarray:
    """Gray levels with structure at several scales."""
    layers = [np.kron(rng.normal(size=(cells, cells)), np.ones((size // cells,) * 2)) for cells in (4, 16, 64)]
    return (128 + 20 * sum(layers)).clip(0, 255).astype(np.uint8)


def test_near_copies_are_reported_with_both_names(builder):
    pixels = structured(builder.rng)
    builder.save("train/good/003.png", pixels)
    Image.fromarray(pixels).save(builder.root / "test/good/saved_again.jpg", quality=75)
    report = builder.check()
    near = [problem for problem in report.problems if "nearly" in problem.message]
    assert [(problem.severity, problem.subject) for problem in near] == [("warning", "test/good/saved_again.jpg")]
    assert "in test, nearly the same image as train/good/003.png in train" in near[0].message


def test_of_many_near_copies_ten_pairs_are_named_and_those_of_train_and_test_first(builder):
    for index in range(12):
        pixels = structured(builder.rng)
        builder.save(f"train/good/1{index:02}.png", pixels)
        part = "test" if index >= 10 else "train"
        Image.fromarray(pixels).save(builder.root / part / "good" / f"saved_{index:02}.jpg", quality=90)
    messages = [problem.message for problem in builder.check().problems if "nearly" in problem.message]
    assert len(messages) == 11
    assert all(message.startswith("in test") for message in messages[:2])
    assert messages[-1] == "2 more pairs of nearly the same images"


def test_mixed_sizes(builder):
    builder.image("train/good/007.png", (20, 20))
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("warning", "widget")
    assert "2 sizes, most often 16 x 12 (27), 20 x 20 (1)" in problem.message


def test_image_of_one_color(builder):
    builder.save("train/good/007.png", np.full((HEIGHT, WIDTH), 90, dtype=np.uint8))
    problem = only(builder.check())
    assert (problem.severity, problem.subject) == ("warning", "train/good/007.png")
    assert "one colour" in problem.message


def test_12_bit_image_in_16_bits(builder):
    dark = builder.rng.integers(0, 2**12, (HEIGHT, WIDTH)).astype(np.uint16)
    builder.save("train/good/007.png", dark)
    full = builder.rng.integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    builder.save("train/good/008.png", full)
    report = builder.check()
    problem = only(report)
    assert (problem.severity, problem.subject) == ("warning", "train/good/007.png")
    assert "nearly black" in problem.message
    assert report.modes["L"] == 26


def test_few_normals(builder):
    (builder.root / "train/good/007.png").unlink()
    problem = only(builder.check())
    assert problem.severity == "warning"
    assert "only 19 good training images" in problem.message


def test_too_few_defects_for_holdout(builder):
    for index in range(1, 4):
        (builder.root / f"test/dent/{index:03}.png").unlink()
        (builder.root / f"ground_truth/dent/{index:03}_mask.png").unlink()
    problem = only(builder.check())
    assert problem.severity == "warning"
    assert "protocol holdout is not possible: no defective images are left for test" in problem.message


def test_errors_come_first(builder):
    builder.save("train/good/000.png", np.full((HEIGHT, WIDTH), 90, dtype=np.uint8))
    (builder.root / "test/good/003.png").write_bytes(b"")
    report = builder.check()
    assert [problem.severity for problem in report.problems] == ["error", "warning"]
    assert not report.ok


def test_own_folder_with_masks_beside_the_images(tmp_path):
    builder = Builder(tmp_path)
    builder.root = root = tmp_path / "own"
    for index in range(30):
        builder.image(f"good/{index}.png")
    for index in range(4):
        builder.image(f"bad/{index}.png")
        builder.mask(f"bad/{index}_mask.png")
    assert check_dataset(read_folder(root)).problems == ()
    (root / "bad/3.png").unlink()
    problem = only(check_dataset(read_folder(root)))
    assert problem.subject == "bad/3_mask.png"


def test_progress_is_reported_for_every_image(builder):
    calls: list[tuple[int, int]] = []
    check_dataset(builder.read(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 28) for done in range(1, 29)]


def test_interrupted_check_does_not_read_the_rest(builder, monkeypatch):
    opened: list[Path] = []

    def open_slowly(path: Path) -> Image.Image:
        opened.append(path)
        time.sleep(0.01)
        return open_image(path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "open_image", open_slowly)
    with pytest.raises(KeyboardInterrupt):
        check_dataset(builder.read(), progress=interrupt)
    assert 1 <= len(opened) < 20


@pytest.mark.real_images
@pytest.mark.parametrize(
    ("place", "category", "images", "masks"),
    [("MVTecAD", "screw", 480, 119), ("VisA", "macaroni1", 240, 40), ("carpet_tiles", "carpet", 240, 40)],
)
def test_real_sets_are_sound(real_data, place, category, images, masks):
    report = check_dataset(read_mvtec(real_data / place, category))
    # One screw was taken twice, the second time with another exposure.
    taken_twice = [("train/good/173.png", "train/good/053.png")] if category == "screw" else []
    assert [problem.subject for problem in report.problems] == [second for second, _ in taken_twice]
    assert all(first in problem.message for problem, (_, first) in zip(report.problems, taken_twice, strict=True))
    assert report.masks == masks
    assert sum(report.sizes.values()) == images
