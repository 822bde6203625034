"""What is kept of a detector's scores, and which images are shown of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectors.base import Prediction
from detectors.data.folder import read_folder
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet
from detectors.runtime.overlays import OUTLINE
from studies.worker.scores import GALLERY, MOST, SCORES_FILE, SIDE, choose, read_scores, write_scores


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def i8(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int8)


@pytest.fixture(scope="module")
def labelled(tiny_mvtec: Path) -> ImageSet:
    return ImageSet("test", read_mvtec(tiny_mvtec, "widget").test, (64, 64))


def predict(image_set: ImageSet, size: tuple[int, int] = (64, 64)) -> Prediction:
    """Scores that rise from image to image, over noise as maps."""
    maps = torch.rand(len(image_set), *size, generator=torch.Generator().manual_seed(0))
    return Prediction(torch.arange(len(image_set), dtype=torch.float32), maps)


def test_the_worst_come_first_and_hits_are_typical():
    scores = f32(*range(10), *range(5, 15))
    labels = i8(*[0] * 10, *[1] * 10)
    chosen = choose(scores, labels, threshold=7.0)
    groups = {group: [index for index, own in chosen if own == group] for group in MOST}
    assert groups["defective"] == [10, 11, 12, 13, 14, 15]  # 5 and 6 are missed
    assert groups["good"] == [9, 8, 7, 6, 5, 4]  # 9, 8 and 7 are alarms
    assert groups["typical"] == [16, 17, 18, 19]  # of the hits that are not shown yet


def test_without_a_threshold_the_typical_lie_around_the_median():
    chosen = choose(f32(*range(21)), i8(*[1] * 21), threshold=None)
    assert [index for index, group in chosen if group == "typical"] == [10, 9, 11, 8]


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 1)), max_size=40), st.none() | st.floats(-6, 6))
def test_no_image_is_shown_twice(pairs, threshold):
    scores, labels = f32(*(score for score, _ in pairs)), i8(*(label for _, label in pairs))
    chosen = choose(scores, labels, threshold=threshold)
    indices = [index for index, _ in chosen]
    assert len(set(indices)) == len(indices)
    for group, most in MOST.items():
        own = [index for index, found in chosen if found == group]
        assert len(own) <= most
        assert all(bool(labels[index]) == (group != "good") for index in own)


def test_what_is_written_is_read(labelled, tmp_path):
    written = write_scores(predict(labelled), labelled, tmp_path, threshold=11.5)
    assert read_scores(tmp_path) == written
    assert [image.verdict for image in written.images] == ["good"] * 12 + ["defective"] * 12
    assert written.values.tolist() == list(range(24))
    assert written.labels.tolist() == labelled.labels.tolist()
    assert write_scores(predict(labelled), labelled, tmp_path, threshold=None).images[0].verdict is None


def test_a_score_at_the_threshold_is_an_alarm(labelled, tmp_path):
    written = write_scores(predict(labelled), labelled, tmp_path, threshold=7.0)
    assert [image.verdict for image in written.images][6:8] == ["good", "defective"]


def test_images_stand_side_by_side(labelled, tmp_path):
    written = write_scores(predict(labelled), labelled, tmp_path, threshold=11.5)
    assert len(written.gallery) == len(list((tmp_path / GALLERY).iterdir()))
    for shown in written.gallery:
        has_defect = written.images[shown.image].label == 1
        assert shown.panels == (["image", "mask", "heat map"] if has_defect else ["image", "heat map"])
        with Image.open(tmp_path / shown.file) as sheet:
            assert sheet.format == "JPEG"
            assert sheet.size == (len(shown.panels) * 64 + 4 * (len(shown.panels) - 1), 64)
            if has_defect:
                middle = np.asarray(sheet.convert("RGB"), dtype=int)[:, 68:132]
                # Compression changes a colour a little.
                marked = np.abs(middle - np.array(OUTLINE)).sum(axis=2) < 60
                assert 0 < marked.mean() < 0.5


def test_where_a_mask_is_not_known_there_is_none(tiny_mvtec, tmp_path):
    image_set = ImageSet("test", read_folder(tiny_mvtec / "widget" / "test").test, (64, 64))
    assert image_set.labels.any()
    written = write_scores(predict(image_set), image_set, tmp_path, threshold=None)
    assert {tuple(shown.panels) for shown in written.gallery} == {("image", "heat map")}


def test_large_images_are_made_smaller(tiny_mvtec, tmp_path):
    size = (2 * SIDE, SIDE)
    image_set = ImageSet("test", read_mvtec(tiny_mvtec, "widget").test[:2], size)
    written = write_scores(predict(image_set, size), image_set, tmp_path, threshold=None)
    with Image.open(tmp_path / written.gallery[0].file) as sheet:
        assert sheet.height == SIDE
        assert sheet.width < 2 * SIDE


def test_what_is_damaged_counts_as_absent(labelled, tmp_path):
    assert read_scores(tmp_path / "nowhere") is None
    write_scores(predict(labelled), labelled, tmp_path, threshold=None)
    path = tmp_path / SCORES_FILE
    text = path.read_text()
    for damaged in (
        "",
        text[:-30],
        "[]",
        text.replace("gallery/", "../gallery/"),
        text.replace('"label": 1', '"label": 2'),
    ):
        path.write_text(damaged)
        assert read_scores(tmp_path) is None
