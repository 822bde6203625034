"""Ranking metrics on raw scores: exact, from one sort, every distinct score one threshold.

Notation: n normal and m anomalous samples (images or pixels), T distinct scores among the anomalous ones.
A sample is called anomalous iff its score >= threshold.

Between two neighbouring anomalous scores only false positives are added: F1 falls, recall and PRO stay. So every
metric here needs the normal samples only through their counts above and at each of the T scores. The normal samples are
sorted without their positions, which numpy does with vector instructions, and everything after that is of length T.

Scores are never clamped, rescaled or squashed: that would tie or reorder them. float32 and float64 are ranked as they
are; float16 is refused, because its 11 bits have tied different scores before they get here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from detectors.errors import InputError, NumericalError

Floats = NDArray[np.floating[Any]]
"""float32 or float64, as the detector gave it."""
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_BOOTSTRAP_CELLS = 2**21
"""Weights held at a time, replicates x images: about 80 MB at work."""


class UndefinedMetricError(InputError):
    """The samples at hand do not define this metric, e.g. an AUROC without a single defective image."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """AUROC of b minus AUROC of a on the same images."""

    difference: float
    """The point estimate, from the images as they are."""
    interval: Interval
    """Two-sided interval at the level asked for."""
    upper: float
    """One-sided upper bound at the same level: below 0 means that b is worse."""


@dataclass(frozen=True)
class PixelMetrics:
    """Metrics over all pixels of a set, each in [0, 1]."""

    auroc: float
    ap: float
    f1_max: float
    aupro: float
    """Up to a false positive rate of 0.3."""
    aupro_05: float
    """Up to a false positive rate of 0.05."""
    f1_threshold: float
    """The pixel score at which `f1_max` is reached."""


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of scores [N] against labels [N] (1 anomalous); a tie counts half.

    Raises:
        UndefinedMetricError: only one of the two classes is there.
        InputError: shapes differ, labels other than 0 and 1, scores in half precision.
        NumericalError: NaN or infinite scores.
    """
    return _auroc(_image_sweep(scores, labels))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision, sum over thresholds of (R_k - R_{k-1}) P_k, without interpolation. Raises as `auroc` does."""
    return _average_precision(_image_sweep(scores, labels))


def f1_max(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Largest F1 over all thresholds, and the threshold: the highest score that reaches it. Raises as `auroc` does."""
    return _f1_max(_image_sweep(scores, labels))


def roc_curve_points(scores: ArrayLike, labels: ArrayLike, *, limit: int | None = None) -> Curve:
    """False and true positive rate at the corners of the ROC curve, from (0, 0) to (1, 1), both [K].

    With `limit`, at most that many of them, spaced evenly along the curve: the line through them strays from it by no
    more than its length (2 here) / (limit - 1). Raises as `auroc` does.
    """
    sweep = _image_sweep(scores, labels)
    fp, tp = _corners(sweep, sweep.tp)
    return _thinned(fp / sweep.normals, tp / sweep.anomalous, limit)


def pr_curve_points(scores: ArrayLike, labels: ArrayLike, *, limit: int | None = None) -> Curve:
    """Recall and precision at the corners of the precision-recall curve, recall rising from 0 to 1, both [K].

    Starts at (0, 1), the convention for the empty set of alarms. `limit` as in `roc_curve_points`; raises as `auroc`.
    """
    sweep = _image_sweep(scores, labels)
    fp, tp = _corners(sweep, sweep.tp)
    alarms = fp + tp
    precision = np.divide(tp, alarms, out=np.ones(len(tp)), where=alarms > 0)
    return _thinned(tp / sweep.anomalous, precision, limit)


def pixel_metrics(maps: ArrayLike, masks: ArrayLike) -> PixelMetrics:
    """AUROC, average precision, maximal F1 and AUPRO of maps [N, H, W] against bool masks [N, H, W].

    AUPRO is the per-region overlap of Bergmann et al., "The MVTec Anomaly Detection Dataset" (IJCV 2021), section 5.2:
    the mean over all regions (8-connected components of each mask) of the share of the region that is found, integrated
    over the false positive rate from 0 to a limit and divided by it, linear between thresholds. The limits are 0.3, and the 0.05
    of MVTec AD 2 (arXiv 2503.21622), which weighs what a line can use. The rate is over all normal pixels of the set; an image
    with an empty mask adds normal pixels and no region.

    Beyond its arguments it holds 5 bytes per normal and about 50 per anomalous pixel: 0.5 GB for 300 maps of
    512 x 512 with 2 % anomalous pixels.

    Raises:
        UndefinedMetricError: no anomalous or no normal pixel.
        InputError: shapes differ, masks not bool, maps in half precision.
        NumericalError: NaN or infinite scores.
    """
    sweep, covered = _pixel_sweep(maps, masks)
    best, threshold = _f1_max(sweep)
    return PixelMetrics(
        auroc=_auroc(sweep),
        ap=_average_precision(sweep),
        f1_max=best,
        aupro=_area_under_pro(sweep, covered, 0.3),
        aupro_05=_area_under_pro(sweep, covered, 0.05),
        f1_threshold=threshold,
    )


def aupro(maps: ArrayLike, masks: ArrayLike, *, fpr_limit: float = 0.3) -> float:
    """The AUPRO of `pixel_metrics` alone, up to `fpr_limit` in (0, 1]; raises as it does."""
    check_fraction("fpr_limit", fpr_limit, above_zero=True, one=True)
    return _area_under_pro(*_pixel_sweep(maps, masks), fpr_limit)


def f1_at(maps: ArrayLike, masks: ArrayLike, threshold: float) -> float:
    """F1 over all pixels of maps [N, H, W] against bool masks [N, H, W] at a threshold that was fixed beforehand.

    The segmentation F1 of MVTec AD 2 (arXiv 2503.21622, section 4): unlike `f1_max` it needs no look at the masks.
    Raises as `pixel_metrics`.
    """
    maps, masks = _checked_pixels(maps, masks)
    marked = maps >= threshold
    hits, named, real = (int(np.count_nonzero(part)) for part in (marked & masks, marked, masks))
    return 2 * hits / (named + real)


def bootstrap_auroc(
    scores: ArrayLike, labels: ArrayLike, *, seed: int, replicates: int = 2000, level: float = 0.95
) -> Interval:
    """Percentile interval of the AUROC from a stratified bootstrap: good and defective images are drawn separately.

    It knows only the images it was given: where those are separated perfectly, it is [1, 1] however few they are.

    Raises as `auroc` does, and UndefinedMetricError for fewer than two images of a class: a single one is drawn again
    and again, so that its share of the uncertainty would go missing.
    """
    split = _split(scores, labels)
    return _percentiles(_bootstrap([split], seed, replicates)[0], level)


def paired_bootstrap_difference(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    seed: int,
    replicates: int = 2000,
    level: float = 0.95,
) -> PairedDifference:
    """How much better b ranks the same images than a: stratified bootstrap in which both see the same draws.

    The two score sets may have different scales; both are [N] in the order of labels [N]. Raises as `bootstrap_auroc`.
    """
    splits = [_split(scores_a, labels), _split(scores_b, labels)]
    replicate_a, replicate_b = _bootstrap(splits, seed, replicates)
    differences = replicate_b - replicate_a
    return PairedDifference(
        difference=auroc(scores_b, labels) - auroc(scores_a, labels),
        interval=_percentiles(differences, level),
        upper=float(np.quantile(differences, level)),
    )


def bootstrap_aurocs(
    scores: Sequence[ArrayLike], labels: ArrayLike, *, seed: int, replicates: int = 2000
) -> NDArray[np.float64]:
    """AUROC of K score sets of the same images in a stratified bootstrap in which all see the same draws: [K, replicates].

    The sets may have different scales; each is [N] in the order of labels [N]. Raises as `bootstrap_auroc`.
    """
    return _bootstrap([_split(one, labels) for one in scores], seed, replicates)


def check_finite(values: Floats, name: str) -> None:
    """Raise `NumericalError` naming how many of `values` (any shape) are NaN or infinite, and where the first is."""
    # NaN and infinity both reach the extremes, which cost no memory; only a failure pays for the search.
    if not values.size or (np.isfinite(values.min()) and np.isfinite(values.max())):
        return
    wrong = np.flatnonzero(~np.isfinite(values))
    first = [int(i) for i in np.unravel_index(wrong[0], values.shape)]
    raise NumericalError(
        f"{name}: {len(wrong)} of {values.size} values are not finite, the first ({values[tuple(first)]}) at index "
        f"{first[0] if len(first) == 1 else first}; look for a diverged training or an overflow in half precision"
    )


@dataclass(frozen=True)
class _Sweep:
    """Counts as the threshold falls through the T distinct anomalous scores, all [T]."""

    thresholds: Floats
    """Falling."""
    tp: NDArray[np.int64]
    """Anomalous samples at or above the threshold."""
    fp: NDArray[np.int64]
    """Normal samples at or above the threshold."""
    fp_above: NDArray[np.int64]
    """Normal samples above it: those at it share the step of its tie."""
    normals: int
    anomalous: int


def _sweep(normal: Floats, anomalous: Floats) -> _Sweep:
    """The sweep over two arrays of scores, both sorted ascending and not empty."""
    first = _first_of_ties(anomalous)
    thresholds = anomalous[first]
    return _Sweep(
        thresholds=thresholds[::-1],
        tp=(len(anomalous) - first)[::-1],
        fp=(len(normal) - np.searchsorted(normal, thresholds, side="left"))[::-1],
        fp_above=(len(normal) - np.searchsorted(normal, thresholds, side="right"))[::-1],
        normals=len(normal),
        anomalous=len(anomalous),
    )


def _first_of_ties(ascending: Floats) -> NDArray[np.int64]:
    """Index of the first of each run of equal values."""
    return np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))


def _image_sweep(scores: ArrayLike, labels: ArrayLike) -> _Sweep:
    normal, anomalous = _split(scores, labels)
    return _sweep(np.sort(normal), np.sort(anomalous))


def _pixel_sweep(maps: ArrayLike, masks: ArrayLike) -> tuple[_Sweep, NDArray[np.float64]]:
    """The sweep over all pixels, and the mean share of the regions found at each of its thresholds [T]."""
    maps, masks = _checked_pixels(maps, masks)
    anomalous = maps[masks]
    normal = maps[~masks]
    normal.sort()
    order = np.argsort(anomalous)
    anomalous = anomalous[order]
    share = np.cumsum(_pixel_shares(masks)[order[::-1]])
    share /= share[-1]
    last_of_ties = len(anomalous) - 1 - _first_of_ties(anomalous)[::-1]
    return _sweep(normal, anomalous), share[last_of_ties]


def _checked_pixels(maps: ArrayLike, masks: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Maps and masks [N, H, W] that fit each other, with anomalous and normal pixels among them."""
    maps = floats(maps, "anomaly maps", dimensions=3)
    masks = np.asarray(masks)
    if masks.dtype != np.bool_:
        raise InputError(f"masks must be bool, got {masks.dtype}; compare them with 0 first")
    if masks.shape != maps.shape:
        raise InputError(
            f"anomaly maps are {list(maps.shape)} but masks are {list(masks.shape)}; bring both to one size"
        )
    anomalous = int(np.count_nonzero(masks))
    if not anomalous:
        raise UndefinedMetricError(f"pixel metrics need anomalous pixels; there are none in {len(masks)} masks")
    if anomalous == maps.size:
        raise UndefinedMetricError(f"pixel metrics need normal pixels; there are none in {len(masks)} masks")
    return maps, masks


def _pixel_shares(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What share of its region each anomalous pixel is, in the order of ``maps[masks]``."""
    shares = []
    for mask in masks:
        if mask.any():
            regions = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)[0][mask]
            shares.append((1.0 / np.maximum(np.bincount(regions), 1))[regions])
    return np.concatenate(shares)


def _auroc(sweep: _Sweep) -> float:
    hits = np.diff(sweep.tp, prepend=0)
    # Twice the pairs won, in integers: 2 n m stays below 2**63 up to 4e9 pixels, so nothing is rounded before the end.
    twice_won = int(np.sum(hits * (2 * sweep.normals - sweep.fp - sweep.fp_above)))
    return twice_won / (2 * sweep.normals * sweep.anomalous)


def _average_precision(sweep: _Sweep) -> float:
    hits = np.diff(sweep.tp, prepend=0)
    return float(np.sum(hits * (sweep.tp / (sweep.tp + sweep.fp))) / sweep.anomalous)


def _f1_max(sweep: _Sweep) -> tuple[float, float]:
    f1 = 2 * sweep.tp / (sweep.anomalous + sweep.tp + sweep.fp)
    best = int(np.argmax(f1))
    return float(f1[best]), float(sweep.thresholds[best])


def _area_under_pro(sweep: _Sweep, covered: NDArray[np.float64], fpr_limit: float) -> float:
    fp, pro = _corners(sweep, covered)
    fpr = fp / sweep.normals
    inside = int(np.searchsorted(fpr, fpr_limit, side="right"))
    at_limit = np.interp(fpr_limit, fpr[inside - 1 : inside + 1], pro[inside - 1 : inside + 1])
    x = np.append(fpr[:inside], fpr_limit)
    y = np.append(pro[:inside], at_limit)
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)
    return min(area / fpr_limit, 1.0)  # the sum may round to just above 1


def _corners(sweep: _Sweep, height: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """False positives and `height` [T] (true positives, or the PRO) where the curve turns, both [2 T + 2].

    Each threshold adds two corners: the false positives between it and the one before come alone (a level stretch),
    those at it together with the hits of its tie (a slope).
    """
    fp = np.concatenate(([0], np.column_stack((sweep.fp_above, sweep.fp)).ravel(), [sweep.normals]))
    before = np.concatenate(([0], height[:-1]))
    return fp, np.concatenate(([0], np.column_stack((before, height)).ravel(), height[-1:]))


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64], limit: int | None) -> Curve:
    """The points where the curve turns, and at most `limit` of them, even in its length (L1), ends kept."""
    if limit is not None and limit < 2:
        raise InputError(f"a curve needs at least 2 points, got limit={limit}")
    moved = np.concatenate(([True], (np.diff(x) != 0) | (np.diff(y) != 0)))
    x, y = x[moved], y[moved]
    upright, level = np.diff(x) == 0, np.diff(y) == 0
    straight = (upright[:-1] & upright[1:]) | (level[:-1] & level[1:])
    turns = np.concatenate(([True], ~straight, [True]))
    x, y = x[turns], y[turns]
    if limit is None or len(x) <= limit:
        return x, y
    length = np.cumsum(np.concatenate(([0.0], np.abs(np.diff(x)) + np.abs(np.diff(y)))))
    chosen = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], limit)))
    return x[chosen], y[chosen]


def _bootstrap(splits: list[tuple[Floats, Floats]], seed: int, replicates: int) -> NDArray[np.float64]:
    """AUROC of every replicate for each (good, defective) pair of scores: [len(splits), replicates].

    No replicate is sorted. The draw gives each image a weight; in the order of the good scores a cumulative sum of
    the good weights says what each defective image wins: O(n + m) per replicate and no n x m matrix.
    """
    if replicates < 1:
        raise InputError(f"the bootstrap needs at least 1 replicate, got {replicates}")
    n, m = len(splits[0][0]), len(splits[0][1])
    if min(n, m) < 2:
        raise UndefinedMetricError(
            f"a bootstrap interval needs at least two good and two defective samples; there are {n} and {m}"
        )
    generator = np.random.default_rng(seed)
    ranks = [_ranks(normal, anomalous) for normal, anomalous in splits]
    aurocs = np.empty((len(splits), replicates))
    batch = max(1, _BOOTSTRAP_CELLS // (n + m))
    for start in range(0, replicates, batch):
        rows = min(batch, replicates - start)
        good, defective = _draw_weights(generator, rows, n), _draw_weights(generator, rows, m)
        for index, (order, below, up_to) in enumerate(ranks):
            won = np.zeros((rows, n + 1), dtype=np.int64)
            np.cumsum(good[:, order], axis=1, out=won[:, 1:])
            twice_won = np.einsum("bm,bm->b", won[:, below] + won[:, up_to], defective)
            aurocs[index, start : start + rows] = twice_won / (2 * n * m)
    return aurocs


def _ranks(normal: Floats, anomalous: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Order of the normal scores [n]; for each anomalous one how many of them are below it, and at or below it [m]."""
    order = np.argsort(normal)
    ascending = normal[order]
    return order, np.searchsorted(ascending, anomalous, "left"), np.searchsorted(ascending, anomalous, "right")


def _draw_weights(generator: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """How often each of `count` samples comes up in `rows` draws of `count` with replacement: [rows, count]."""
    drawn = generator.integers(count, size=(rows, count))
    drawn += np.arange(rows)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    check_fraction("the confidence level", level, above_zero=True)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _split(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of the normal and of the anomalous samples, checked, neither empty."""
    scores, labels = floats(scores, "scores", dimensions=1), np.asarray(labels)
    if labels.shape != scores.shape:
        raise InputError(
            f"scores are {list(scores.shape)} but labels are {list(labels.shape)}; give one label per score"
        )
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise InputError(f"labels must be 0 (good) or 1 (defective), got {labels[wrong[0]]} at index {wrong[0]}")
    anomalous = labels == 1
    for missing, there in (("defective", anomalous), ("good", ~anomalous)):
        if not there.any():
            raise UndefinedMetricError(f"ranking metrics need {missing} samples; there are none among {len(scores)}")
    return scores[~anomalous], scores[anomalous]


def floats(values: ArrayLike, name: str, *, dimensions: int) -> Floats:
    """As finite float32 or float64 array with that many dimensions; whole numbers become float64."""
    array = np.asarray(values)
    if array.dtype.kind in "biu" or not array.size:
        array = array.astype(np.float64)
    if array.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} must be float32 or float64, got {array.dtype}; half precision ties scores")
    if array.ndim != dimensions:
        expected = "[N]" if dimensions == 1 else "[N, H, W]"
        raise InputError(f"{name} must be {expected}, got shape {list(array.shape)}")
    check_finite(array, name)
    return array


def check_fraction(name: str, value: float, *, above_zero: bool = False, one: bool = False) -> None:
    """Refuse values outside [0, 1), or with the ends as asked for."""
    if (value > 0 or (value == 0 and not above_zero)) and (value < 1 or (value == 1 and one)):
        return
    raise InputError(f"{name} must lie in {'(' if above_zero else '['}0, 1{']' if one else ')'}, got {value}")
