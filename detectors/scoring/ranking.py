"""The ranking score: how far a detector's scores set painted defects apart from good images.

Painted defects are no real ones, so this ranks settings of detectors and says nothing of how many real defects one finds; it is
never called an AUROC. A painted image belongs to a cell, its kind of defect and grade of size and opacity. For each painted image
take the share of the good images that score lower (ties count half); the ranking score is the mean over the cells of the means
of their images. Faint and tiny defects are among them, so that it does not come to 1 for every setting that is any good.

Where good images are held out in turns (folds), painted and good images are compared within their fold only: the detectors of
two folds need not share a scale. A good image and what was painted into it are drawn together by the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from detectors.data.painting.painted_set import PaintedSet
from detectors.errors import InputError
from detectors.scoring.arrays import as_array
from detectors.scoring.metrics import Interval, PairedDifference, UndefinedMetricError, check_finite

REPLICATES = 1000
"""Of the bootstrap."""


def ranking_score(scores: ArrayLike | Tensor, painted: PaintedSet) -> float:
    """The ranking score, in [0, 1]; 0.5 is chance.

    Args:
        scores: image scores [N], larger is more anomalous.

    Raises:
        InputError: the numbers of scores and images differ.
        NumericalError: NaN or infinite scores.
        UndefinedMetricError: no good or no painted image, or a fold without a good one.
    """
    return float(painted.weights @ _shares(_checked(scores, painted), painted))


def ranking_scores_by_kind(scores: ArrayLike | Tensor, painted: PaintedSet) -> dict[str, float]:
    """The ranking score of each kind of defect alone, sorted by kind. Raises as `ranking_score` does."""
    shares, weights = _shares(_checked(scores, painted), painted), painted.weights
    kinds = np.asarray(painted.kinds)
    return {
        str(kind): float(weights[kinds == kind] @ shares[kinds == kind] / weights[kinds == kind].sum())
        for kind in np.unique(kinds)
    }


def bootstrap_ranking_scores(
    scores: Sequence[ArrayLike | Tensor], painted: PaintedSet, *, seed: int, replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Ranking scores of K score sets of the same images in a bootstrap over good images in which all see the same draws.

    A good image is drawn with everything that was painted into it, so that what they share is not taken for evidence twice.

    Args:
        scores: K times [N].

    Returns:
        [K, replicates]

    Raises as `ranking_score` does.
    """
    checked = [_checked(one, painted) for one in scores]
    sources = np.unique(painted.sources)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sources), np.full(len(sources), 1 / len(sources)), size=replicates).astype(np.float64)
    of_painted = drawn[:, np.searchsorted(sources, painted.sources[painted.painted])]
    of_good = drawn[:, np.searchsorted(sources, painted.sources[painted.good])]
    folds = painted.folds
    same_fold = (folds[painted.painted][:, None] == folds[painted.good][None]).astype(np.float64)
    good_in_fold = of_good @ same_fold.T
    weights = of_painted * painted.weights * (good_in_fold > 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    weights /= np.maximum(good_in_fold, 1.0)
    return np.stack([((weights @ (_comparisons(one, painted) * same_fold)) * of_good).sum(axis=1) for one in checked])


def ranking_interval(scores: ArrayLike | Tensor, painted: PaintedSet, *, seed: int, level: float = 0.95) -> Interval:
    """Percentile interval of the ranking score. Raises as `ranking_score` does."""
    replicates = bootstrap_ranking_scores([scores], painted, seed=seed)[0]
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_ranking_difference(
    scores_a: ArrayLike | Tensor, scores_b: ArrayLike | Tensor, painted: PaintedSet, *, seed: int, level: float = 0.95
) -> PairedDifference:
    """How much better b ranks the same images than a; both are drawn alike. Raises as `ranking_score` does."""
    first, second = bootstrap_ranking_scores([scores_a, scores_b], painted, seed=seed)
    low, high = np.quantile(second - first, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(
        difference=ranking_score(scores_b, painted) - ranking_score(scores_a, painted),
        interval=Interval(float(low), float(high)),
        upper=float(np.quantile(second - first, level)),
    )


def _checked(scores: ArrayLike | Tensor, painted: PaintedSet) -> NDArray[np.float64]:
    values = as_array(scores).astype(np.float64)
    if values.shape != (len(painted.cells),):
        raise InputError(f"there are scores {list(values.shape)} for {len(painted.cells)} images; give one per image")
    check_finite(values, "scores")
    if not len(painted.painted) or not len(painted.good):
        raise UndefinedMetricError("the ranking score needs good and painted images")
    lacking = set(painted.folds[painted.painted]) - set(painted.folds[painted.good])
    if lacking:
        raise UndefinedMetricError(f"the ranking score needs a good image in each fold; fold {min(lacking)} has none")
    return values


def _shares(scores: NDArray[np.float64], painted: PaintedSet) -> NDArray[np.float64]:
    """[P] share of the good images of its fold that score lower than each painted image; ties count half."""
    shares = np.empty(len(painted.painted))
    folds = painted.folds
    for fold in np.unique(folds[painted.painted]):
        own = folds[painted.painted] == fold
        good = np.sort(scores[painted.good[folds[painted.good] == fold]])
        values = scores[painted.painted[own]]
        below = np.searchsorted(good, values, side="left") + np.searchsorted(good, values, side="right")
        shares[own] = below / (2 * len(good))
    return shares


def _comparisons(scores: NDArray[np.float64], painted: PaintedSet) -> NDArray[np.float64]:
    """[P, G] 1 where the painted image scores higher, 0.5 where they tie."""
    high, low = scores[painted.painted][:, None], scores[painted.good][None]
    return (high > low) + 0.5 * (high == low)
