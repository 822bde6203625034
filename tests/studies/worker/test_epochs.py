"""Figures of a detector that trains over epochs: no image has a say in the epoch that it is scored with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet, Sample
from detectors.scoring.metrics import UndefinedMetricError, auroc
from studies.worker.epochs import FILE, CrossedEpochs, halves

LABELS = np.arange(40) >= 20
KEPT = (torch.linspace(-2, 5, 40), torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(0)))
"""Scores of the images in the epoch that is kept."""
HALF = (np.arange(40) % 2).astype(np.int8)


def value_of(scores: np.ndarray, labels: np.ndarray = LABELS) -> Callable[[list[int]], float]:
    def value(rows: list[int]) -> float:
        try:
            return auroc(scores[rows], labels[rows])
        except UndefinedMetricError:
            return math.nan

    return value


def see(crossed: CrossedEpochs, scores: np.ndarray, labels: np.ndarray = LABELS) -> None:
    crossed.see(*scores_of(scores), value_of(scores, labels))


def scores_of(scores: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(scores).float()
    return images, images[:, None, None].expand(-1, 2, 3)


def noise(seed: int, epochs: int = 30) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=40) for _ in range(epochs)]


def test_the_best_of_many_epochs_of_noise_is_worth_nothing(tmp_path: Path) -> None:
    best, judged = [], []
    for seed in range(30):
        crossed = CrossedEpochs(HALF, tmp_path / str(seed), identity="")
        for scores in (epochs := noise(seed)):
            see(crossed, scores)
        best.append(max(auroc(scores, LABELS) for scores in epochs))
        judged.append(auroc(crossed.scores(KEPT)[0].numpy(), LABELS))
    assert np.mean(best) > 0.65
    assert np.mean(judged) == pytest.approx(0.5, abs=0.04)


def test_each_half_is_scored_in_the_epoch_that_is_best_on_the_other(tmp_path: Path) -> None:
    good_on = [LABELS * np.where(side == HALF, 1.0, -1.0) for side in (0, 1)]
    spread = np.linspace(0, 0.1, 40)
    crossed = CrossedEpochs(HALF, tmp_path, identity="")
    assert crossed.is_empty
    # The first epoch is right on half 0 and wrong on half 1, the second the other way round: crossed, all are wrong.
    for scores in good_on:
        see(crossed, scores + spread)
    images, patches = crossed.scores(KEPT)
    assert not crossed.is_empty
    assert auroc(images.numpy(), LABELS) < 0.1
    assert patches.shape == (40, 2, 3)
    torch.testing.assert_close(patches[:, 0, 0].argsort(), images.argsort())


def test_epochs_of_other_scales_are_brought_to_one(tmp_path: Path) -> None:
    right = np.where(LABELS, 1.0, 0.0) + np.random.default_rng(0).normal(size=40) * 0.01
    first, second = right.copy(), 1000 + 500 * right
    # Each is spoilt on one half, so that the other chooses it there.
    first[HALF == 1], second[HALF == 0] = first[HALF == 1][::-1], second[HALF == 0][::-1]
    crossed = CrossedEpochs(HALF, tmp_path, identity="")
    see(crossed, first)
    see(crossed, second)
    images = crossed.scores(KEPT)[0].numpy()
    for label in (False, True):
        means = [images[(side == HALF) & (label == LABELS)].mean() for side in (0, 1)]
        assert means[0] == pytest.approx(means[1], abs=0.3)


def test_a_single_epoch_is_judged_as_it_is(tmp_path: Path) -> None:
    (scores,) = noise(3, epochs=1)
    crossed = CrossedEpochs(HALF, tmp_path, identity="")
    see(crossed, scores)
    for found, wanted in zip(crossed.scores(scores_of(scores)), scores_of(scores), strict=True):
        torch.testing.assert_close(found, wanted)


def test_halves_that_define_no_value_leave_the_last_epoch(tmp_path: Path) -> None:
    labels = np.zeros(40, dtype=bool)
    labels[0] = True  # half 1 has no defective image
    epochs = [np.arange(40.0), -np.arange(40.0)]
    crossed = CrossedEpochs(HALF, tmp_path, identity="")
    for scores in epochs:
        see(crossed, scores, labels)
    images = crossed.scores(KEPT)[0]
    # Half 0 is scored with what half 1 chose, which chooses nothing: the last one.
    assert bool((images[0::2].diff() < 0).all())


@pytest.mark.parametrize("cut", [1, 7, 29])
def test_what_goes_on_after_a_crash_ends_alike(tmp_path: Path, cut: int) -> None:
    epochs = noise(5)
    whole = CrossedEpochs(HALF, tmp_path / "whole", identity="a")
    for scores in epochs:
        see(whole, scores)
    first = CrossedEpochs(HALF, tmp_path / "cut", identity="a")
    for scores in epochs[:cut]:
        see(first, scores)
    second = CrossedEpochs(HALF, tmp_path / "cut", identity="a")
    # The epoch at which it was cut off may have been seen before its checkpoint was there.
    for scores in epochs[cut - 1 :]:
        see(second, scores)
    assert torch.equal(second.scores(KEPT)[0], whole.scores(KEPT)[0])
    assert torch.equal(second.scores(KEPT)[1], whole.scores(KEPT)[1])
    assert CrossedEpochs(HALF, tmp_path / "cut", identity="another").is_empty
    assert CrossedEpochs(HALF[:-4], tmp_path / "cut", identity="a").is_empty
    (tmp_path / "cut" / FILE).write_bytes(b"x" * 99)
    assert CrossedEpochs(HALF, tmp_path / "cut", identity="a").is_empty


def test_halves_are_even_whatever_the_types(tiny_mvtec: Path) -> None:
    samples = read_mvtec(tiny_mvtec, "widget").test
    half = halves(ImageSet("validation", samples, (64, 64)))
    good = np.array([sample.label == 0 for sample in samples])
    for members in (good, ~good):
        assert abs(int((half[members] == 0).sum()) - int((half[members] == 1).sum())) <= 1
    # One image of each of many types: they do not all come into the same half.
    single = tuple(Sample(key=f"{i}", file=samples[0].file, defect_type=f"type{i}") for i in range(8))
    assert sorted(halves(ImageSet("validation", single, (64, 64)))) == [0] * 4 + [1] * 4
    shuffled = ImageSet("validation", samples[::-1], (64, 64))
    assert halves(shuffled).tolist() == half[::-1].tolist()
