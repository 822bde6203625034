"""The ranking score: cells count alike, folds are not mixed, and what was painted into one image is drawn with it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from detectors.data.painting.painted_set import PaintedSet
from detectors.errors import InputError, NumericalError
from detectors.scoring.metrics import UndefinedMetricError
from detectors.scoring.ranking import (
    bootstrap_ranking_scores,
    paired_ranking_difference,
    ranking_interval,
    ranking_score,
    ranking_scores_by_kind,
)


def painted_set(good: int = 20, times: int = 4, *, folds: int = 1) -> PaintedSet:
    cells = ("stain/0-full", "stain/1-full", "blur/0-full", "blur/1-faint")
    sources = [*range(good), *(place for _ in range(times) for place in range(good))]
    return PaintedSet(
        cells=("",) * good + tuple(cells[turn % 4] for turn in range(times) for _ in range(good)),
        sources=np.array(sources),
        folds=np.array([source % folds + 1 for source in sources]),
    )


def scores_of(painted: PaintedSet, *, lift: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=len(painted.cells)) + lift * np.array([cell != "" for cell in painted.cells])


def test_with_equal_cells_it_is_the_auroc_of_all_painted_images():
    painted = painted_set()
    scores = scores_of(painted)
    labels = [cell != "" for cell in painted.cells]
    assert ranking_score(scores, painted) == pytest.approx(roc_auc_score(labels, scores))


def test_a_cell_of_one_image_counts_as_much_as_one_of_many():
    cells = ("", "", "stain/0-full", "stain/0-full", "stain/0-full", "blur/0-full")
    painted = PaintedSet(cells, np.arange(6), np.ones(6, dtype=int))
    scores = [0.0, 1.0, 2.0, 2.0, 2.0, -1.0]
    assert ranking_score(scores, painted) == pytest.approx(0.5)
    assert ranking_scores_by_kind(scores, painted) == {"blur": 0.0, "stain": 1.0}


def test_ties_count_half():
    painted = PaintedSet(("", "", "stain/0-full"), np.array([0, 1, 0]), np.ones(3, dtype=int))
    assert ranking_score([1.0, 0.0, 1.0], painted) == 0.75
    assert ranking_score([1.0, 1.0, 1.0], painted) == 0.5


def test_another_scale_in_another_fold_changes_nothing():
    painted = painted_set(folds=4)
    scores = scores_of(painted)
    moved = scores * 10.0**painted.folds + 1000.0 * painted.folds
    assert ranking_score(moved, painted) == pytest.approx(ranking_score(scores, painted))
    one_scale = painted_set(folds=1)
    assert ranking_score(moved, one_scale) != pytest.approx(ranking_score(scores, one_scale))


@pytest.mark.parametrize("folds", [1, 4])
def test_the_bootstrap_is_that_of_a_plain_loop(folds):
    painted = painted_set(8, 3, folds=folds)
    scores = scores_of(painted, seed=3)
    found = bootstrap_ranking_scores([scores], painted, seed=5, replicates=50)[0]
    sources = np.unique(painted.sources)
    drawn = np.random.default_rng(5).multinomial(len(sources), np.full(len(sources), 1 / len(sources)), size=50)
    for value, counts in zip(found, drawn, strict=True):
        total = weight = 0.0
        for place, index in enumerate(painted.painted):
            good = [one for one in painted.good if painted.folds[one] == painted.folds[index]]
            of_good = np.array([counts[painted.sources[one]] for one in good], dtype=float)
            if not of_good.sum():
                continue
            below = (scores[index] > scores[good]) + 0.5 * (scores[index] == scores[good])
            own = counts[painted.sources[index]] * painted.weights[place]
            total, weight = total + own * (of_good @ below) / of_good.sum(), weight + own
        assert value == pytest.approx(total / weight)


def test_the_interval_holds_the_score_and_is_wider_with_fewer_images():
    few, many = painted_set(10), painted_set(80)
    widths = []
    for painted in (few, many):
        scores = scores_of(painted)
        low, high = ranking_interval(scores, painted, seed=0)
        assert low < ranking_score(scores, painted) < high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_what_was_painted_into_one_image_is_drawn_with_it():
    """A hundred paintings of five images are the evidence of five images."""
    cells = ("",) * 5 + ("stain/0-full",) * 100
    sources = np.array([*range(5), *(place % 5 for place in range(100))])
    by_image = PaintedSet(cells, sources, np.ones(105, dtype=int))
    apart = PaintedSet(cells, np.arange(105), np.ones(105, dtype=int))
    levels = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    scores = np.concatenate([levels, levels[sources[5:]] + 0.5])
    bound, free = (np.ptp(ranking_interval(scores, painted, seed=1)) for painted in (by_image, apart))
    assert bound != pytest.approx(free)


def test_of_two_detectors_the_better_one_is_found_by_the_same_draws():
    painted = painted_set(40)
    difference = paired_ranking_difference(scores_of(painted, lift=0.3), scores_of(painted, lift=2.0), painted, seed=0)
    assert difference.difference > 0
    assert 0 < difference.interval.low < difference.difference < difference.interval.high
    same = paired_ranking_difference(scores_of(painted), scores_of(painted), painted, seed=0)
    assert (same.difference, *same.interval) == (0.0, 0.0, 0.0)


def test_what_it_is_not_defined_on():
    with pytest.raises(UndefinedMetricError, match="good and painted"):
        ranking_score([1.0], PaintedSet(("",), np.array([0]), np.array([1])))
    with pytest.raises(UndefinedMetricError, match="fold 2"):
        ranking_score([1.0, 2.0], PaintedSet(("", "stain/0-full"), np.array([0, 1]), np.array([1, 2])))
    with pytest.raises(InputError, match="one per image"):
        ranking_score([1.0], painted_set())
    with pytest.raises(NumericalError):
        ranking_score([np.nan] * 100, painted_set())
    with pytest.raises(InputError, match="sources"):
        PaintedSet(("",), np.array([0, 1]), np.array([1]))
