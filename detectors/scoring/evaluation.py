"""What a detector's predictions on a labelled set are worth, and which threshold to run it at.

Takes raw scores and maps and gives, for every metric, either its value or why this set does not define it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from detectors.data.samples import GOOD
from detectors.errors import InputError
from detectors.scoring import metrics
from detectors.scoring.metrics import UndefinedMetricError

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
INTERVAL_METRICS = ("image_auroc_low", "image_auroc_high")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")
METRICS = (*IMAGE_METRICS, *PIXEL_METRICS)
"""What a search may aim at: each says more about a detector the higher it is."""
PER_DEFECT = "per_defect"
"""Key under `Evaluation.undefined` that stands for all of `Evaluation.per_defect`."""

ThresholdRule = Literal["false_alarm_rate", "f1_max"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one detector on one labelled set, all in [0, 1]."""

    metrics: dict[str, float]
    """The defined ones of `IMAGE_METRICS`, `INTERVAL_METRICS` (95 % for the image AUROC) and `PIXEL_METRICS`."""
    per_defect: dict[str, float] = field(default_factory=dict)
    """Image AUROC of each defect type against all good images."""
    undefined: dict[str, str] = field(default_factory=dict)
    """The other metrics, each with the reason in words."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Raises `InputError` where `data` is not what `to_json` writes."""
        _check_keys(cls, data)
        for name, kind in (("metrics", (int, float)), ("per_defect", (int, float)), ("undefined", (str,))):
            entries = data[name]
            if not isinstance(entries, Mapping):
                raise InputError(f"evaluation: '{name}' must be a mapping, got {type(entries).__name__}")
            for key, value in entries.items():
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise InputError(f"evaluation: '{name}.{key}' must be a {kind[-1].__name__}, got {value!r}")
        return cls(
            metrics={str(key): float(value) for key, value in data["metrics"].items()},
            per_defect={str(key): float(value) for key, value in data["per_defect"].items()},
            undefined=dict(data["undefined"]),
        )


@dataclass(frozen=True)
class Threshold:
    """The image score from which on a detector calls an image defective, and where it comes from."""

    value: float
    rule: ThresholdRule
    source: str
    """Name of the set that the scores came from, e.g. ``validation``."""
    normals: int
    """Good images it rests on."""
    defective: int = 0
    """Defective images it rests on; none for a false-alarm rate."""
    rate: float | None = None
    """The false-alarm rate allowed on those normals; None for ``f1_max``."""
    expected_rate: float | None = None
    """Mean false-alarm rate to expect on new normals, (k + 1) / (n + 1): larger than `rate` where normals are few."""
    f1: float | None = None
    """F1 on `source` at this threshold; None for a false-alarm rate."""

    @property
    def largest_rate(self) -> float | None:
        """The false-alarm rate on new normals is below this with a probability of 95 %; None for ``f1_max``."""
        if self.rate is None or self.normals < 1:
            return None
        return metrics.largest_false_alarm_rate(self.normals, self.rate)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Threshold:
        """Raises `InputError` where `data` is not what `to_json` writes."""
        _check_keys(cls, data)
        if data["rule"] not in get_args(ThresholdRule):
            raise InputError(
                f"threshold: 'rule' must be one of {', '.join(get_args(ThresholdRule))}, got {data['rule']!r}"
            )
        if not isinstance(data["source"], str):
            raise InputError(f"threshold: 'source' must be a name, got {data['source']!r}")
        for name in ("value", "normals", "defective", "rate", "expected_rate", "f1"):
            value = data[name]
            if value is None and name in ("rate", "expected_rate", "f1"):
                continue
            wanted = int if name in ("normals", "defective") else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"threshold: '{name}' must be a finite number, got {value!r}")
        return cls(**data)


def evaluate(
    *,
    scores: ArrayLike | Tensor,
    maps: ArrayLike | Tensor | None,
    labels: ArrayLike | Tensor,
    masks: ArrayLike | Tensor | None,
    defect_types: Sequence[str],
    seed: int = 0,
) -> Evaluation:
    """Every metric that the set defines.

    Args:
        scores: image scores [N], raw, larger is more anomalous.
        maps: pixel scores [N, H, W], or None where the detector gives none.
        labels: [N], 0 good, 1 defective.
        masks: bool [N, H, W], or None where they are not known.
        defect_types: type of each image, ``good`` for the good ones.
        seed: of the bootstrap behind the interval.

    Raises:
        InputError: shapes, labels, types and masks contradict each other.
        NumericalError: NaN or infinite scores.
    """
    scores, labels = _array(scores), _array(labels)
    _check_types(labels, defect_types)
    defined: dict[str, float] = {}
    undefined: dict[str, str] = {}

    def record(names: Iterable[str], compute: Callable[[], Iterable[float]]) -> None:
        try:
            defined.update(zip(names, compute(), strict=True))
        except UndefinedMetricError as error:
            undefined.update(dict.fromkeys(names, str(error)))

    record(
        IMAGE_METRICS,
        lambda: (
            metrics.auroc(scores, labels),
            metrics.average_precision(scores, labels),
            metrics.f1_max(scores, labels)[0],
        ),
    )
    record(INTERVAL_METRICS, lambda: metrics.bootstrap_auroc(scores, labels, seed=seed))
    record(PIXEL_METRICS, lambda: _pixel_values(maps, masks, labels))
    if "image_auroc" in undefined:
        undefined[PER_DEFECT] = undefined["image_auroc"]
    per_defect = {} if PER_DEFECT in undefined else _auroc_per_type(scores, defect_types)
    return Evaluation(metrics=defined, per_defect=per_defect, undefined=undefined)


def single_metric(
    name: str,
    *,
    scores: ArrayLike | Tensor,
    maps: ArrayLike | Tensor | None,
    labels: ArrayLike | Tensor,
    masks: ArrayLike | Tensor | None,
) -> float:
    """One of `METRICS` alone, as a training is judged by after every epoch: `evaluate` gives the same value and all others.

    Raises:
        InputError: the metric is not defined on this set.
        NumericalError: NaN or infinite scores.
    """
    if name in PIXEL_METRICS:
        return _pixel_values(maps, masks, _array(labels))[PIXEL_METRICS.index(name)]
    functions: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
        "image_auroc": metrics.auroc,
        "image_ap": metrics.average_precision,
        "image_f1_max": lambda scores, labels: metrics.f1_max(scores, labels)[0],
    }
    return functions[name](_array(scores), _array(labels))


def choose_threshold(
    *,
    rule: ThresholdRule,
    source: str,
    normal_scores: ArrayLike | Tensor | None = None,
    rate: float = 0.01,
    scores: ArrayLike | Tensor | None = None,
    labels: ArrayLike | Tensor | None = None,
) -> Threshold:
    """The image threshold by one of two rules, from the set named `source`.

    ``false_alarm_rate``: the smallest threshold at which at most `rate` of `normal_scores` [n] raise an alarm. These
    have to be normals that the detector was not fitted on, or it will be too low.
    ``f1_max``: the threshold of the largest F1 of `scores` [N] against `labels` [N]; needs known defects.

    Raises:
        UndefinedMetricError: no normals, or (``f1_max``) no defective ones.
        InputError: the rule is unknown or its scores were not given.
        NumericalError: NaN or infinite scores.
    """
    if rule == "false_alarm_rate":
        if normal_scores is None:
            raise InputError("the threshold rule false_alarm_rate needs normal_scores")
        normals = _array(normal_scores)
        return Threshold(
            value=metrics.threshold_at_false_alarm_rate(normals, rate),
            rule=rule,
            source=source,
            normals=len(normals),
            rate=float(rate),
            expected_rate=metrics.expected_false_alarm_rate(len(normals), rate),
        )
    if rule == "f1_max":
        if scores is None or labels is None:
            raise InputError("the threshold rule f1_max needs scores and labels")
        known = _array(labels)
        f1, value = metrics.f1_max(_array(scores), known)
        defective = int(np.count_nonzero(known))
        return Threshold(
            value=value, rule=rule, source=source, normals=len(known) - defective, defective=defective, f1=f1
        )
    raise InputError(f"unknown threshold rule {rule!r}; valid are {', '.join(get_args(ThresholdRule))}")


def _pixel_values(
    maps: ArrayLike | Tensor | None, masks: ArrayLike | Tensor | None, labels: NDArray[Any]
) -> tuple[float, float, float, float]:
    """`PIXEL_METRICS` in their order."""
    if maps is None:
        raise UndefinedMetricError("pixel metrics need anomaly maps; this detector gives none")
    maps = _array(maps)
    if len(maps) != len(labels):
        raise InputError(f"there are {len(maps)} anomaly maps for {len(labels)} images; give one per image")
    metrics.check_finite(maps, "anomaly maps")
    if masks is None:
        raise UndefinedMetricError("pixel metrics need the masks of the defects; this set has none")
    masks = _array(masks)
    if masks.shape == maps.shape:
        marked = np.flatnonzero(masks.any(axis=tuple(range(1, masks.ndim))) & (labels == 0))
        if len(marked):
            raise InputError(f"image {marked[0]} is labelled good but its mask marks a defect; correct one of them")
    values = metrics.pixel_metrics(maps, masks)
    return values.auroc, values.ap, values.f1_max, values.aupro


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


def _check_keys(cls: type, data: Mapping[str, Any]) -> None:
    """Refuse missing and unknown keys of a dataclass written as JSON."""
    wanted = {entry.name for entry in fields(cls)}
    if not isinstance(data, Mapping) or set(data) != wanted:
        keys = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise InputError(f"{cls.__name__.lower()}: expected the keys {sorted(wanted)}, got {keys}")


def _array(values: ArrayLike | Tensor) -> NDArray[Any]:
    """As numpy array; a tensor keeps its memory."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    if values.dtype == torch.bfloat16:
        raise InputError("scores must be float32 or float64, got bfloat16; half precision ties scores")
    return values.detach().cpu().numpy()
