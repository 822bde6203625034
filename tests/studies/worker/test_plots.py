"""The images of a trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectors.base import Prediction
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet
from studies.worker.plots import worst_first, write_curves, write_heat_maps


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def i8(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int8)


@pytest.fixture(scope="module")
def labelled(tiny_mvtec: Path) -> ImageSet:
    return ImageSet("validation", read_mvtec(tiny_mvtec, "widget").test, (64, 64))


def test_curves(tmp_path):
    write_curves(f32(1, 2, 3, 4), i8(0, 1, 0, 1), tmp_path, title="trial 3, validation")
    for name in ("roc.png", "pr.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 300
            assert len(np.unique(np.asarray(image))) > 10


@pytest.mark.parametrize("label", [0, 1])
def test_no_curves_of_one_class(tmp_path, label):
    write_curves(f32(1, 2, 3), i8(label, label, label), tmp_path, title="x")
    assert list(tmp_path.iterdir()) == []


def test_worst_mistakes_come_first():
    scores = f32(5, 1, 9, 4, 3, 8, 2, 7)
    labels = i8(1, 1, 1, 1, 0, 0, 0, 0)
    assert worst_first(scores, labels, 6, threshold=4.5) == [
        (1, "miss"), (3, "miss"), (0, "hit"), (5, "false-alarm"), (7, "false-alarm"), (2, "hit"),
    ]  # fmt: skip


def test_a_threshold_names_what_is_shown():
    scores, labels = f32(1, 2, 3, 4), i8(0, 0, 1, 1)
    assert {verdict for _, verdict in worst_first(scores, labels, 4, threshold=0)} == {"hit", "false-alarm"}
    assert {verdict for _, verdict in worst_first(scores, labels, 4, threshold=9)} == {"miss", "good"}
    # By default the threshold of the best F1, here a perfect one.
    assert {verdict for _, verdict in worst_first(scores, labels, 4)} == {"hit", "good"}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone(label):
    found = worst_first(f32(1, 2, 3), i8(label, label, label), 6)
    assert found
    assert {verdict for _, verdict in found} == {"miss" if label else "good"}


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 1)), min_size=1, max_size=20), st.integers(1, 8))
def test_images_are_distinct_and_no_more_than_asked_for(pairs, most):
    scores, labels = f32(*(score for score, _ in pairs)), i8(*(label for _, label in pairs))
    found = worst_first(scores, labels, most)
    indices = [index for index, _ in found]
    assert len(set(indices)) == len(indices) <= most
    for index, verdict in found:
        assert (verdict in {"miss", "hit"}) == bool(labels[index])
    if (labels == 1).any():
        lowest = scores[labels == 1].min()
        assert scores[indices[0]] == lowest


def test_heat_maps_are_named_by_what_they_show(labelled, tmp_path):
    maps = torch.rand(len(labelled), 64, 64, generator=torch.Generator().manual_seed(0))
    scores = torch.from_numpy(labelled.labels.astype(np.float32)) + maps.amax(dim=(1, 2)) / 10
    scores[0] = -1.0  # the first dent is missed
    written = write_heat_maps(Prediction(scores, maps), labelled, tmp_path / "heatmaps", most=4, threshold=0.5)
    assert written == sorted((tmp_path / "heatmaps").iterdir())
    assert written[0].name == "01-miss-test-dent-000.png"
    assert [path.name.split("-")[0] for path in written] == ["01", "02", "03", "04"]
    with Image.open(written[0]) as sheet:
        assert sheet.size == (2 * 64 + 4, 64)


def test_the_outline_marks_the_defect_and_nothing_else(labelled, tmp_path):
    maps = torch.zeros(len(labelled), 64, 64)
    scores = torch.arange(len(labelled), dtype=torch.float32)
    written = write_heat_maps(Prediction(scores, maps), labelled, tmp_path, most=len(labelled), threshold=100.0)
    green = (0, 230, 118)
    for path in written:
        sheet = np.asarray(Image.open(path).convert("RGB"))
        marked = (sheet[:, :64] == green).all(axis=2).any()
        assert marked == ("-dent-" in path.name)


def test_synthetic_keys_make_file_names(labelled, tmp_path):
    from dataclasses import replace

    painted = replace(labelled.samples[0], key="train/good/007.png#scratch")
    image_set = ImageSet("validation", (painted, *labelled.samples[1:]), (64, 64))
    maps = torch.zeros(len(labelled), 64, 64)
    scores = torch.arange(len(labelled), dtype=torch.float32)
    written = write_heat_maps(Prediction(scores, maps), image_set, tmp_path, most=1, threshold=100.0)
    assert written[0].name.startswith("01-miss-train-good-007")
    assert "#" not in written[0].name
