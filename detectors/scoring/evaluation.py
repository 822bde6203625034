"""What a detector's predictions on a labelled set are worth.

Takes raw scores and maps and gives, for every metric, either its value or why this set does not define it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from detectors.data.painting.painted_set import PaintedSet
from detectors.data.samples import GOOD
from detectors.errors import InputError
from detectors.scoring import metrics
from detectors.scoring.arrays import as_array
from detectors.scoring.metrics import UndefinedMetricError
from detectors.scoring.operating_point import Counts, Threshold, count, share_interval
from detectors.scoring.ranked_by import RANKING_SCORE
from detectors.scoring.ranking import ranking_interval, ranking_score, ranking_scores_by_kind

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
INTERVAL_METRICS = ("image_auroc_low", "image_auroc_high")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro", "pixel_aupro_05")
RECALL, FALSE_ALARMS, SEG_F1 = "image_recall", "false_alarm_rate", "seg_f1"
"""At the threshold: the share of defective images that raise an alarm, that of good ones, and the F1 of the pixels."""
OPERATING_METRICS = (RECALL, FALSE_ALARMS, SEG_F1)
METRICS = (*IMAGE_METRICS, *PIXEL_METRICS, RECALL, SEG_F1, RANKING_SCORE)
"""What a search may aim at: each says more about a detector the higher it is."""
LOWER_METRICS = (FALSE_ALARMS,)
"""What it may aim at as well: better the lower it is."""
PER_DEFECT = "per_defect"
"""Key under `Evaluation.undefined` that stands for all of `Evaluation.per_defect`."""
NO_THRESHOLD = "there is no threshold"
IS_PAINTED = "the defects are painted, which the ranking score is for"
NOT_PAINTED = "the ranking score is for painted defects; these are real ones"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one detector on one labelled set, all in [0, 1]."""

    metrics: dict[str, float]
    """The defined ones of `IMAGE_METRICS`, `INTERVAL_METRICS` (95 % for the image AUROC) and `PIXEL_METRICS`. Where the detector
    has a threshold `OPERATING_METRICS` too; recall and false-alarm rate with their 95 % intervals (``_low``, ``_high``). Of
    painted defects `RANKING_SCORE` with its interval stands for `IMAGE_METRICS`."""
    per_defect: dict[str, float] = field(default_factory=dict)
    """Image AUROC of each defect type against all good images; of painted defects the ranking score of each kind."""
    undefined: dict[str, str] = field(default_factory=dict)
    """The other metrics, each with the reason in words."""
    per_defect_recall: dict[str, float] = field(default_factory=dict)
    """Share of the images of each defect type that raise an alarm; empty without a threshold."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Raises `InputError` where `data` is not what `to_json` writes."""
        wanted = {entry.name for entry in fields(cls)}
        # The recalls were not there before version 0.3.
        if not isinstance(data, Mapping) or set(data) | {"per_defect_recall"} != wanted:
            keys = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"evaluation: expected the keys {sorted(wanted)}, got {keys}")
        numbers = (int, float)
        kinds = {"metrics": numbers, "per_defect": numbers, "undefined": (str,), "per_defect_recall": numbers}
        for name, kind in kinds.items():
            entries = data.get(name, {})
            if not isinstance(entries, Mapping):
                raise InputError(f"evaluation: '{name}' must be a mapping, got {type(entries).__name__}")
            for key, value in entries.items():
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise InputError(f"evaluation: '{name}.{key}' must be a {kind[-1].__name__}, got {value!r}")
        return cls(
            metrics={str(key): float(value) for key, value in data["metrics"].items()},
            per_defect={str(key): float(value) for key, value in data["per_defect"].items()},
            undefined=dict(data["undefined"]),
            per_defect_recall={str(key): float(value) for key, value in data.get("per_defect_recall", {}).items()},
        )


def evaluate(
    *,
    scores: ArrayLike | Tensor,
    maps: ArrayLike | Tensor | None,
    labels: ArrayLike | Tensor,
    masks: ArrayLike | Tensor | None,
    defect_types: Sequence[str],
    threshold: Threshold | None = None,
    painted: PaintedSet | None = None,
    pixels: Sequence[int] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Every metric that the set defines.

    Args:
        scores: image scores [N], raw, larger is more anomalous.
        maps: pixel scores [N, H, W], or None where the detector gives none.
        labels: [N], 0 good, 1 defective.
        masks: bool [N, H, W], or [n, H, W] of the images at `pixels`; None where they are not known.
        defect_types: type of each image, ``good`` for the good ones.
        threshold: that the detector is run at; without one there are no `OPERATING_METRICS`.
        painted: of a set with painted defects, `detectors.data.samples.ImageSet.painted`.
        pixels: indices [n] of the images that have masks; None for all.
        seed: of the bootstrap behind the interval.

    Raises:
        InputError: shapes, labels, types and masks contradict each other.
        NumericalError: NaN or infinite scores.
    """
    scores, labels = as_array(scores), as_array(labels)
    _check_types(labels, defect_types)
    in_pixels = labels
    if pixels is not None and len(pixels) < len(labels):
        chosen = np.asarray(pixels, dtype=np.int64)
        in_pixels, maps = labels[chosen], None if maps is None else as_array(maps)[chosen]
    defined: dict[str, float] = {}
    undefined: dict[str, str] = {}

    def record(names: Iterable[str], compute: Callable[[], Iterable[float]]) -> None:
        try:
            defined.update(zip(names, compute(), strict=True))
        except UndefinedMetricError as error:
            undefined.update(dict.fromkeys(names, str(error)))

    if painted is None:
        record(IMAGE_METRICS, lambda: [single_image_metric(name, scores, labels) for name in IMAGE_METRICS])
        record(INTERVAL_METRICS, lambda: metrics.bootstrap_auroc(scores, labels, seed=seed))
        ranks = "image_auroc"
    else:
        undefined.update(dict.fromkeys((*IMAGE_METRICS, *INTERVAL_METRICS), IS_PAINTED))
        record([RANKING_SCORE], lambda: [ranking_score(scores, painted)])
        ends = [f"{RANKING_SCORE}_low", f"{RANKING_SCORE}_high"]
        record(ends, lambda: ranking_interval(scores, painted, seed=seed))
        ranks = RANKING_SCORE
    record(PIXEL_METRICS, lambda: _pixel_values(maps, masks, in_pixels))
    per_defect: dict[str, float] = {}
    if ranks in undefined:
        undefined[PER_DEFECT] = undefined[ranks]
    else:
        per_defect = (
            _auroc_per_type(scores, defect_types) if painted is None else ranking_scores_by_kind(scores, painted)
        )
    if threshold is None:
        return Evaluation(defined, per_defect, undefined)
    counts = count(scores, labels, defect_types, threshold.value)
    record([RECALL, f"{RECALL}_low", f"{RECALL}_high"], lambda: _share(counts.caught, counts.defective, "defective"))
    record(
        [FALSE_ALARMS, f"{FALSE_ALARMS}_low", f"{FALSE_ALARMS}_high"],
        lambda: _share(counts.alarms, counts.good, "good"),
    )
    record([SEG_F1], lambda: [_seg_f1(maps, masks, in_pixels, threshold.pixel)])
    recalls = {kind: caught / of for kind, (caught, of) in counts.per_defect.items()}
    return Evaluation(defined, per_defect, undefined, recalls)


def operating_metrics(counts: Counts) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of an operating point that follow from its counts alone, and the recall of each type of defect.

    They are those of `evaluate`, for scores that were stored when the threshold was another.
    """
    values: dict[str, float] = {}
    for name, part, of in ((RECALL, counts.caught, counts.defective), (FALSE_ALARMS, counts.alarms, counts.good)):
        if of:
            values |= dict(zip((name, f"{name}_low", f"{name}_high"), _share(part, of, name), strict=True))
    return values, {kind: caught / of for kind, (caught, of) in counts.per_defect.items()}


def single_metric(
    name: str,
    *,
    scores: ArrayLike | Tensor,
    maps: ArrayLike | Tensor | None,
    labels: ArrayLike | Tensor,
    masks: ArrayLike | Tensor | None,
    threshold: Threshold | None = None,
    painted: PaintedSet | None = None,
) -> float:
    """One of `METRICS` or `LOWER_METRICS` alone, as a training is judged by after every epoch: `evaluate` gives the same value.

    Args:
        scores, maps, labels, masks, threshold, painted: as for `evaluate`; of a pixel metric all are of the images with masks.

    Raises:
        InputError: the metric is not defined on this set, or needs a threshold.
        NumericalError: NaN or infinite scores.
    """
    if name in OPERATING_METRICS:
        if threshold is None:
            raise UndefinedMetricError(f"{name}: {NO_THRESHOLD}")
        if name == SEG_F1:
            return _seg_f1(maps, masks, as_array(labels), threshold.pixel)
        types = [GOOD if not label else "defective" for label in as_array(labels)]
        counts = count(scores, labels, types, threshold.value)
        value = counts.recall if name == RECALL else counts.false_alarm_rate
        if value is None:
            raise UndefinedMetricError(
                f"{name} needs {'defective' if name == RECALL else 'good'} images; there are none"
            )
        return value
    if name in PIXEL_METRICS:
        return _pixel_values(maps, masks, as_array(labels))[PIXEL_METRICS.index(name)]
    if name == RANKING_SCORE:
        if painted is None:
            raise UndefinedMetricError(NOT_PAINTED)
        return ranking_score(scores, painted)
    return single_image_metric(name, as_array(scores), as_array(labels))


def single_image_metric(name: str, scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """One of `IMAGE_METRICS` of scores [N] and labels [N]. Raises as `detectors.scoring.metrics` does."""
    functions: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
        "image_auroc": metrics.auroc,
        "image_ap": metrics.average_precision,
        "image_f1_max": lambda scores, labels: metrics.f1_max(scores, labels)[0],
    }
    return functions[name](scores, labels)


def _pixel_values(
    maps: ArrayLike | Tensor | None, masks: ArrayLike | Tensor | None, labels: NDArray[Any]
) -> tuple[float, ...]:
    """`PIXEL_METRICS` in their order."""
    values = metrics.pixel_metrics(*_checked_maps(maps, masks, labels))
    return values.auroc, values.ap, values.f1_max, values.aupro, values.aupro_05


def _seg_f1(
    maps: ArrayLike | Tensor | None, masks: ArrayLike | Tensor | None, labels: NDArray[Any], pixel: float | None
) -> float:
    checked = _checked_maps(maps, masks, labels)
    if pixel is None:
        raise UndefinedMetricError("there is no threshold for pixels")
    return metrics.f1_at(*checked, pixel)


def _share(part: int, of: int, what: str) -> tuple[float, float, float]:
    if not of:
        raise UndefinedMetricError(f"there are no {what} images")
    return part / of, *share_interval(part, of)


def _checked_maps(
    maps: ArrayLike | Tensor | None, masks: ArrayLike | Tensor | None, labels: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Maps and masks as arrays, with the reason where pixel metrics are not defined on them."""
    if maps is None:
        raise UndefinedMetricError("pixel metrics need anomaly maps; this detector gives none")
    maps = as_array(maps)
    if len(maps) != len(labels):
        raise InputError(f"there are {len(maps)} anomaly maps for {len(labels)} images; give one per image")
    metrics.check_finite(maps, "anomaly maps")
    if masks is None:
        raise UndefinedMetricError("pixel metrics need the masks of the defects; this set has none")
    masks = as_array(masks)
    if masks.shape == maps.shape:
        marked = np.flatnonzero(masks.any(axis=tuple(range(1, masks.ndim))) & (labels == 0))
        if len(marked):
            raise InputError(f"image {marked[0]} is labelled good but its mask marks a defect; correct one of them")
    return maps, masks


def _auroc_per_type(scores: NDArray[Any], defect_types: Sequence[str]) -> dict[str, float]:
    types = np.asarray(defect_types, dtype=object)
    aurocs = {}
    for defect_type in sorted(set(defect_types) - {GOOD}):
        chosen = (types == GOOD) | (types == defect_type)
        aurocs[defect_type] = metrics.auroc(scores[chosen], types[chosen] == defect_type)
    return aurocs


def _check_types(labels: NDArray[Any], defect_types: Sequence[str]) -> None:
    """Refuse types that contradict the labels."""
    if labels.shape != (len(defect_types),):
        raise InputError(
            f"labels are {list(labels.shape)} for {len(defect_types)} defect types; give one of each per image"
        )
    wrong = np.flatnonzero((labels != 0) != np.array([kind != GOOD for kind in defect_types], dtype=bool))
    if len(wrong):
        index = int(wrong[0])
        raise InputError(
            f"image {index} has label {labels[index]} but type '{defect_types[index]}'; "
            f"label 0 and type '{GOOD}' belong together"
        )
