"""How far the difference of two detectors' metric on the same images may be chance: a paired bootstrap over images.

All detectors see the same draws, so that what an image does to all of them cancels. What is drawn with replacement are groups
of images, which by default are the images themselves; several defects that were painted into one good image depend on each other
and are one group with it. Groups are drawn separately by which labels are in them, so that every replicate has both. An image may
have a weight: then a metric is that of so many images like it. Where images are held out in turns (folds), an AUROC compares
good and defective images within their fold only, for the detectors of two folds need not share a scale.

No replicate is sorted anew: the draw gives each image a count, and the metrics are cumulative sums of these along the order of
the scores. All replicates of 200 images take a few milliseconds.

Notation: N images, B replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError
from detectors.scoring.metrics import UndefinedMetricError

REPLICATES = 500
"""The standard error that they give is itself known to about 3 %."""
RANKING_METRICS = ("image_auroc", "ranking_score", "image_ap", "image_f1_max")
"""Metrics that follow from the order of the scores. `ranking_score` is an image AUROC with weights."""
METRICS_BY_IMAGE = (*RANKING_METRICS, "image_recall", "false_alarm_rate", "seg_f1")
"""Metrics whose replicates follow from what is kept of each image. The other pixel metrics need every pixel's score."""
_CELLS = 2**16
"""Counts at work at a time, replicates x images: few enough for the cache."""

Floats = NDArray[np.float64]
Counts = NDArray[np.uint16]
"""How often each image comes up in each replicate [B, N]."""


@dataclass(frozen=True)
class ScoredImages:
    """What one detector made of the images of a labelled set, all in the same order."""

    scores: Floats
    """[N], raw, larger is more anomalous."""
    labels: NDArray[np.int8]
    """[N], 0 good, 1 defective."""
    weights: Floats | None = None
    """[N], above 0; None for 1 each."""
    groups: tuple[Hashable, ...] | None = None
    """[N] group of each image; None where each is its own."""
    folds: NDArray[np.int64] | None = None
    """[N] the fold in which each image is held out; None where they are all scored by one detector."""
    threshold: float | None = None
    """Score from which on an image raises an alarm. It is taken as given: its own uncertainty is left out."""
    pixels: NDArray[np.int64] | None = None
    """[N, 3] pixels of each image that are both marked and defective, that are marked, and that are defective."""

    def __post_init__(self) -> None:
        n = len(self.scores)
        for name in ("labels", "weights", "groups", "folds"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise InputError(f"there are {n} scores but {len(values)} {name}; give one per image")
        if not set(np.unique(self.labels).tolist()) <= {0, 1}:
            raise InputError("labels must be 0 (good) or 1 (defective)")
        if self.weights is not None and not (np.isfinite(self.weights) & (self.weights > 0)).all():
            raise InputError("weights must be finite and above 0")
        if not np.isfinite(self.scores).all():
            raise InputError("scores must be finite")
        if self.pixels is not None and self.pixels.shape != (n, 3):
            raise InputError(f"pixels must be [{n}, 3], got {list(self.pixels.shape)}")


@dataclass(frozen=True)
class Difference:
    """The metric of b minus that of a."""

    value: float
    """On the images as they are."""
    standard_error: float
    """Of it, over other images like these."""


def paired_difference(
    metric: str, a: ScoredImages, b: ScoredImages, *, seed: int, replicates: int = REPLICATES
) -> Difference:
    """How far b is above a, and how far that may be chance.

    Both have the same images in the same order; labels, weights and groups are those of `a`. Raises as `draw` and
    `metric_replicates`.
    """
    if len(a.scores) != len(b.scores) or not np.array_equal(a.labels, b.labels):
        raise InputError("the two sets of scores are not of the same images")
    counts = draw(a.labels, a.groups, seed=seed, replicates=replicates)
    differences = metric_replicates(metric, b, counts) - metric_replicates(metric, a, counts)
    value = metric_value(metric, b) - metric_value(metric, a)
    return Difference(value, float(differences.std()))


def draw(
    labels: NDArray[np.int8], groups: Sequence[Hashable] | None = None, *, seed: int, replicates: int = REPLICATES
) -> Counts:
    """Counts [B, N] of a bootstrap of groups of images. The same groups in the same order come up equally often for any labels.

    Args:
        labels: [N], 0 good, 1 defective.
        groups: [N], or None where each image is its own.

    Raises:
        UndefinedMetricError: there are not two groups with good images or not two with defective ones, so that a part of the
            uncertainty would go missing.
    """
    places = _places(len(labels) if groups is None else groups)
    total = int(places.max(initial=-1)) + 1
    has = np.zeros((2, total), dtype=bool)
    has[labels.astype(np.int64), places] = True
    for label, name in ((0, "good"), (1, "defective")):
        if (count := int(has[label].sum())) < 2:
            raise UndefinedMetricError(
                f"a bootstrap needs at least two {name} images or groups of them; there are {count}"
            )
    generator = np.random.default_rng(seed)
    counts = np.empty((replicates, total), dtype=np.uint16)
    for kind in ((True, False), (False, True), (True, True)):
        members = np.flatnonzero((has[0] == kind[0]) & (has[1] == kind[1]))
        if len(members):
            counts[:, members] = _draw_counts(generator, replicates, len(members))
    return counts[:, places]


def metric_value(metric: str, images: ScoredImages) -> float:
    """The metric on the images as they are, with their weights. Raises as `metric_replicates`."""
    return float(metric_replicates(metric, images, np.ones((1, len(images.scores)), dtype=np.uint16))[0])


def metric_replicates(metric: str, images: ScoredImages, counts: Counts) -> Floats:
    """The metric in each replicate [B].

    Args:
        metric: one of `METRICS_BY_IMAGE`.
        counts: [B, N], as `draw` gives them.

    Raises:
        UndefinedMetricError: these images do not define it: one of the two labels is missing, or the threshold, or the pixels.
        InputError: the metric does not follow from what is kept of each image.
    """
    of_rows = _computation(metric, images)
    weights = np.ones(len(images.scores)) if images.weights is None else images.weights
    values = [of_rows(rows * weights) for rows in _blocks(counts)]
    return np.concatenate(values) if values else np.empty(0)


def _computation(metric: str, images: ScoredImages) -> Callable[[Floats], Floats]:
    """What gives the metric [b] for weights [b, N]."""
    if metric not in METRICS_BY_IMAGE:
        raise InputError(f"{metric} does not follow from single images; those that do: {', '.join(METRICS_BY_IMAGE)}")
    if metric == "seg_f1":
        return _seg_f1(images)
    wanted = {"image_recall": (1,), "false_alarm_rate": (0,)}.get(metric, (0, 1))
    for label in wanted:
        if not (images.labels == label).any():
            raise UndefinedMetricError(f"{metric} needs {'defective' if label else 'good'} images; there are none")
    if metric in ("image_recall", "false_alarm_rate"):
        return _share_of_alarms(images, label=wanted[0])
    if metric in ("image_auroc", "ranking_score"):
        return _auroc(images)
    return _sweep(images, _average_precision if metric == "image_ap" else _f1_max)


def _auroc(images: ScoredImages) -> Callable[[Floats], Floats]:
    """Mean over the defective images of the share of the good ones of their fold that score lower; ties count half."""
    folds = np.zeros(len(images.scores), dtype=np.int64) if images.folds is None else images.folds
    parts = [_Comparison.of(images, folds == fold) for fold in np.unique(folds[images.labels == 1])]

    def auroc(weights: Floats) -> Floats:
        won, of = np.zeros(len(weights)), np.zeros(len(weights))
        for part in parts:
            won_here, of_here = part.sums(weights)
            won += won_here
            of += of_here
        return np.divide(won, of, out=np.full(len(weights), 0.5), where=of > 0)

    return auroc


@dataclass(frozen=True)
class _Comparison:
    """The good and the defective images of one fold."""

    order: NDArray[np.int64]
    """Indices of the good ones [n], their scores ascending."""
    defective: NDArray[np.int64]
    """[m]"""
    below: NDArray[np.int64]
    """How many good ones score lower than each defective one [m]."""
    up_to: NDArray[np.int64]
    """How many score lower or as high [m]."""

    @classmethod
    def of(cls, images: ScoredImages, chosen: NDArray[np.bool_]) -> _Comparison:
        good, defective = (np.flatnonzero(chosen & (images.labels == label)) for label in (0, 1))
        order = good[np.argsort(images.scores[good], kind="stable")]
        ascending, wanted = images.scores[order], images.scores[defective]
        below, up_to = (np.searchsorted(ascending, wanted, side) for side in ("left", "right"))
        return cls(order, defective, below, up_to)

    def sums(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weighted sum of the shares [b], and of the weights behind it; both 0 where no good image of the fold was drawn."""
        won = np.zeros((len(weights), len(self.order) + 1))
        np.cumsum(weights[:, self.order], axis=1, out=won[:, 1:])
        of_defective, of_good = weights[:, self.defective], won[:, -1]
        twice_won = np.einsum("bm,bm->b", won[:, self.below] + won[:, self.up_to], of_defective)
        share = np.divide(twice_won, 2 * of_good, out=np.zeros(len(weights)), where=of_good > 0)
        return share, of_defective.sum(axis=1) * (of_good > 0)


def _sweep(images: ScoredImages, summary: Callable[[Floats, Floats], Floats]) -> Callable[[Floats], Floats]:
    """A metric of the weights at or above each threshold, with the scores falling: of true and of false positives [b, T]."""
    order = np.argsort(-images.scores, kind="stable")
    falling, labels = images.scores[order], images.labels[order].astype(np.float64)
    last_of_ties = np.flatnonzero(np.concatenate((falling[1:] != falling[:-1], [True])))

    def of_rows(weights: Floats) -> Floats:
        ordered = weights[:, order]
        tp = np.cumsum(ordered * labels, axis=1)[:, last_of_ties]
        fp = np.cumsum(ordered * (1 - labels), axis=1)[:, last_of_ties]
        return summary(tp, fp)

    return of_rows


def _average_precision(tp: Floats, fp: Floats) -> Floats:
    alarms = tp + fp
    precision = np.divide(tp, alarms, out=np.zeros_like(tp), where=alarms > 0)
    return (np.diff(tp, axis=1, prepend=0) * precision).sum(axis=1) / tp[:, -1]


def _f1_max(tp: Floats, fp: Floats) -> Floats:
    return (2 * tp / (tp[:, -1:] + tp + fp)).max(axis=1)


def _share_of_alarms(images: ScoredImages, *, label: int) -> Callable[[Floats], Floats]:
    if images.threshold is None:
        raise UndefinedMetricError("there is no threshold")
    chosen = np.flatnonzero(images.labels == label)
    alarms = (images.scores[chosen] >= images.threshold).astype(np.float64)
    return lambda weights: weights[:, chosen] @ alarms / weights[:, chosen].sum(axis=1)


def _seg_f1(images: ScoredImages) -> Callable[[Floats], Floats]:
    if images.pixels is None:
        raise UndefinedMetricError("the marked and defective pixels of the images are not known")
    hits, both = images.pixels[:, 0].astype(np.float64), images.pixels[:, 1:].sum(axis=1).astype(np.float64)

    def of_rows(weights: Floats) -> Floats:
        total = weights @ both
        return np.divide(2 * (weights @ hits), total, out=np.zeros(len(weights)), where=total > 0)

    return of_rows


def _places(groups: int | Sequence[Hashable]) -> NDArray[np.int64]:
    """The number of each image's group [N], in the order in which they first come up."""
    if isinstance(groups, int):
        return np.arange(groups)
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)


def _draw_counts(generator: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """How often each of `count` comes up in `rows` draws of `count` with replacement [rows, count]."""
    drawn = np.empty((rows, count), dtype=np.int64)
    step = max(1, _CELLS // count)
    for start in range(0, rows, step):
        part = generator.integers(count, size=(min(step, rows - start), count))
        part += np.arange(len(part))[:, None] * count
        drawn[start : start + step] = np.bincount(part.ravel(), minlength=part.size).reshape(part.shape)
    return drawn


def _blocks(counts: NDArray[Any]) -> Iterator[NDArray[Any]]:
    step = max(1, _CELLS // max(1, counts.shape[1]))
    for start in range(0, len(counts), step):
        yield counts[start : start + step]
