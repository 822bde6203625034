"""The operating point: the threshold that a line is run at, what it rests on, and what it catches and stops.

Notation: n scores of good images that the detector was not fitted on, sorted ascending s_1 <= ... <= s_n; k of them may raise an
alarm. An image raises an alarm iff its score >= threshold.

The threshold for a false-alarm rate is the conservative quantile of split conformal prediction: one step above s_j with
j = ceil((n + 1) (1 - rate)), that is k = n - j = floor((n + 1) rate) - 1. A new good image takes each of the n + 1 places among
the old ones equally often, so it raises an alarm with probability (k + 1) / (n + 1) <= rate (Angelopoulos and Bates, "A Gentle
Introduction to Conformal Prediction", arXiv 2107.07511, theorem 1). Where n + 1 < 1 / rate no threshold can promise the rate: the
threshold then lies above every score, and what it supports, 1 / (n + 1), is told instead.

Scores of K folds, each by a twin that was fitted without the fold, are pooled as if one detector had given them (cross-conformal
prediction, Vovk, "Cross-conformal predictors", 2015). A twin has seen fewer images than the detector, so its scores of new good
images are rather higher: the pooled threshold errs towards fewer alarms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from torch import Tensor

from detectors.data.samples import GOOD
from detectors.errors import InputError
from detectors.scoring.arrays import as_array
from detectors.scoring.metrics import Interval, UndefinedMetricError, check_finite, check_fraction, f1_max, floats

ThresholdRule = Literal["false_alarm_rate", "f1_max", "cost", "value"]
DECIDES = 0.25
"""A good image decides the threshold if this would fall without it by more than so large a share of what it then lies above the
median of the good scores. One fixed share for every detector: no figure was looked at to choose it."""
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""False-alarm rates for which `at_rates` counts."""
PIXEL_DEVIATIONS = 3.0
"""A pixel is part of a defect from the mean of the good images' maps plus so many standard deviations on (MVTec AD 2,
arXiv 2503.21622, section 4)."""
_OPTIONAL = frozenset({"rate", "expected_rate", "f1", "without", "pixel", "cost_miss", "cost_alarm", "share_defective"})
_COUNTS = frozenset({"normals", "defective", "out_of_fold"})
_TEXTS = frozenset({"source", "decided_by"})


@dataclass(frozen=True)
class Threshold:
    """The image score from which on a detector calls an image defective, and where it comes from."""

    value: float
    rule: ThresholdRule
    source: str
    """Name of the images that the scores came from, e.g. ``train (5 folds), validation``."""
    normals: int
    """Good images it rests on; of a given value, those that its false-alarm rate is estimated from."""
    defective: int = 0
    """Defective images it rests on; none for a false-alarm rate."""
    rate: float | None = None
    """The false-alarm rate that was asked for; None for the other rules."""
    expected_rate: float | None = None
    """Mean false-alarm rate to expect on new normals, (k + 1) / (n + 1); larger than `rate` where the normals are too few."""
    f1: float | None = None
    """F1 on `source` at this threshold; None for the other rules."""
    out_of_fold: int = 0
    """Of `normals`, those of train, each scored by a twin that was fitted without it."""
    decided_by: str = ""
    """The one good image that decides the value, its file where that is known; empty where no single one does."""
    without: float | None = None
    """What the value would be without that image; None where no single one decides."""
    pixel: float | None = None
    """The score of a pixel from which on it counts as part of a defect; None where it is not known."""
    cost_miss: float | None = None
    """Of rule ``cost``: what a missed defect costs, in any unit."""
    cost_alarm: float | None = None
    """Of rule ``cost``: what a false alarm costs, in the same unit."""
    share_defective: float | None = None
    """Of rule ``cost``: the share of defective parts on the line."""

    @property
    def alarms(self) -> int | None:
        """How many of the normals raise an alarm, k; None where no rate is known."""
        if self.expected_rate is None or self.normals < 1:
            return None
        return min(max(round(self.expected_rate * (self.normals + 1)) - 1, 0), self.normals)

    @property
    def supports_rate(self) -> bool:
        """Whether the normals are enough for the rate that was asked for; True for the other rules."""
        return self.rate is None or (self.expected_rate is not None and self.expected_rate <= self.rate * (1 + 1e-12))

    @property
    def normals_needed(self) -> int | None:
        """Fewest normals that support the rate that was asked for; None for the other rules, and for a rate of 0."""
        return normals_needed(self.rate) if self.rate else None

    @property
    def largest_rate(self) -> float | None:
        """The false-alarm rate on new normals is below this with a probability of 95 %; None where no rate is known."""
        return None if (k := self.alarms) is None else _largest_rate(self.normals, k, 0.95)

    @property
    def rate_interval(self) -> Interval | None:
        """95 % interval of the false-alarm rate to expect on new normals; None where no rate is known.

        Of a threshold that was not set by the rank of a score, Clopper and Pearson's (1934).
        """
        if (k := self.alarms) is None:
            return None
        interval = rate_interval(self.normals, k)
        if self.rule == "false_alarm_rate":
            return interval
        low = float(special.betaincinv(k, self.normals - k + 1, 0.025)) if k else 0.0
        return Interval(low, interval.high)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Threshold:
        """Read what `to_json` wrote, in this version or an earlier one, which knew fewer fields.

        Raises:
            InputError: a key is missing or unknown, or a value is of another type or range.
        """
        known = {entry.name for entry in fields(cls)}
        needed = {"value", "rule", "source", "normals"}
        if not isinstance(data, Mapping) or not needed <= set(data) <= known:
            keys = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"threshold: expected the keys {sorted(known)}, got {keys}")
        if data["rule"] not in get_args(ThresholdRule):
            raise InputError(
                f"threshold: 'rule' must be one of {', '.join(get_args(ThresholdRule))}, got {data['rule']!r}"
            )
        for name, value in data.items():
            if name in _TEXTS and not isinstance(value, str):
                raise InputError(f"threshold: '{name}' must be a text, got {value!r}")
            if name in _TEXTS or name == "rule" or (value is None and name in _OPTIONAL):
                continue
            wanted = int if name in _COUNTS else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"threshold: '{name}' must be a finite number, got {value!r}")
            if name in _COUNTS and value < 0:
                raise InputError(f"threshold: '{name}' must be 0 or more, got {value}")
        for name in ("rate", "expected_rate", "f1", "share_defective"):
            if (value := data.get(name)) is not None and not 0 <= value <= 1:
                raise InputError(f"threshold: '{name}' must lie between 0 and 1, got {value}")
        return cls(**data)


@dataclass(frozen=True)
class GoodScores:
    """Image scores of good images that the detector was not fitted on: what a threshold rests on."""

    values: NDArray[np.floating[Any]]
    """[n]"""
    source: str
    """Name of the images."""
    names: Sequence[str] = ()
    """[n], how a person finds each image; empty where that is not known."""
    out_of_fold: int = 0
    """How many of them are images of train, scored by a twin that was fitted without them."""

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.values):
            raise InputError(f"{self.source}: {len(self.names)} names for {len(self.values)} scores; give one for each")


@dataclass(frozen=True)
class Costs:
    """What mistakes cost, for the threshold of the least expected cost per part."""

    miss: float
    """Of one missed defect, above 0, in any unit."""
    alarm: float
    """Of one false alarm, above 0, in the same unit."""
    share_defective: float
    """Share of defective parts on the line, in (0, 1)."""

    def __post_init__(self) -> None:
        for name, value in (("a miss", self.miss), ("a false alarm", self.alarm)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"the cost of {name} must be above 0, got {value:g}")
        if not 0 < self.share_defective < 1:
            raise InputError(f"the share of defective parts must lie between 0 and 1, got {self.share_defective:g}")


def choose_threshold(
    *,
    rule: ThresholdRule,
    good: GoodScores | None = None,
    rate: float = 0.01,
    scores: ArrayLike | Tensor | None = None,
    labels: ArrayLike | Tensor | None = None,
    source: str = "",
    costs: Costs | None = None,
    value: float | None = None,
    pixel: float | None = None,
) -> Threshold:
    """The image threshold by one of the rules.

    - ``false_alarm_rate``: the conservative quantile of `good` for `rate`; see the head of this module.
    - ``f1_max``: the threshold of the largest F1 of `scores` [N] against `labels` [N], named `source`; needs known defects.
    - ``cost``: the least expected cost per part by `costs`: the miss rate from the defective ones of `scores`, the false-alarm
      rate from `good`, each as the mean to expect of new images, (count + 1) / (images + 1). Ties go to the lower threshold.
    - ``value``: `value` as it is given.

    Whatever the rule, the false-alarm rate to expect is estimated from `good` where there is any.

    Raises:
        UndefinedMetricError: no normals, or (``f1_max``, ``cost``) no defective ones.
        InputError: the rule is unknown or what it needs was not given.
        NumericalError: NaN or infinite scores.
    """
    if rule not in get_args(ThresholdRule):
        raise InputError(f"unknown threshold rule {rule!r}; valid are {', '.join(get_args(ThresholdRule))}")
    if rule == "false_alarm_rate":
        if good is None:
            raise InputError("the threshold rule false_alarm_rate needs scores of good images")
        chosen = _at_rate(good, rate)
    elif rule == "f1_max":
        if scores is None or labels is None:
            raise InputError("the threshold rule f1_max needs scores and labels")
        known = as_array(labels)
        f1, at = f1_max(as_array(scores), known)
        defective = int(np.count_nonzero(known))
        chosen = Threshold(at, rule, source, normals=len(known) - defective, defective=defective, f1=f1)
    elif rule == "cost":
        if good is None or scores is None or labels is None or costs is None:
            raise InputError("the threshold rule cost needs scores of good and of labelled images, and the costs")
        chosen = _at_least_cost(good, as_array(scores)[as_array(labels) == 1], costs)
    else:
        if value is None or not math.isfinite(value):
            raise InputError(f"the threshold rule value needs a finite number, got {value}")
        chosen = Threshold(float(value), rule, "given", normals=0)
    if chosen.expected_rate is None and good is not None and len(good.values):
        alarms = int(np.count_nonzero(_good_values(good) >= chosen.value))
        chosen = replace(
            chosen,
            normals=len(good.values),
            out_of_fold=good.out_of_fold,
            expected_rate=min((alarms + 1) / (len(good.values) + 1), 1.0),
        )
    return replace(chosen, pixel=pixel)


def threshold_at_false_alarm_rate(normal_scores: ArrayLike, rate: float) -> float:
    """The conservative quantile of normal scores [n]: new normals raise an alarm with a probability of at most `rate`.

    Where n is too small for the rate it lies above every score. It is one step of the scores' precision above the score that it
    may not reach, so that ties never exceed the rate.

    Raises:
        UndefinedMetricError: no score at all.
        InputError: scores not [n] or in half precision, rate outside [0, 1).
        NumericalError: NaN or infinite scores.
    """
    scores = floats(normal_scores, "normal scores", dimensions=1)
    position = len(scores) - 1 - allowed_alarms(len(scores), rate)
    return just_above(np.partition(scores, position)[position], scores)


def just_above(score: float, scores: NDArray[np.floating[Any]]) -> float:
    """The next number above one of `scores` in their own precision."""
    # Scores that went through JSON come back as float64. A float64 step above a float32 score would be lost again as
    # soon as the threshold is compared in float32, and every normal at that score would raise the alarm.
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    dtype = np.dtype(np.float32) if np.array_equal(narrow, scores) else scores.dtype
    return float(np.nextafter(dtype.type(score), np.asarray(np.inf, dtype=dtype)))


def allowed_alarms(normals: int, rate: float) -> int:
    """k = floor((n + 1) rate) - 1, at least 0: how many of n normals may raise an alarm at a threshold for `rate`."""
    check_fraction("the false-alarm rate", rate)
    if normals < 1:
        raise UndefinedMetricError("a false-alarm threshold needs scores of normal images; there are none")
    places = (normals + 1) * rate
    nearest = round(places)
    # A plain floor loses one where rate x (n + 1) rounds down, such as 0.29 x 100.
    whole = nearest if math.isclose(places, nearest, rel_tol=1e-12) else math.floor(places)
    return min(max(whole - 1, 0), normals - 1)


def expected_false_alarm_rate(normals: int, rate: float) -> float:
    """Mean false-alarm rate on new normals of a threshold for `rate` from that many: (k + 1) / (n + 1).

    At most `rate` where the normals support it, else 1 / (n + 1): 1 % from 20 normals is really about 5 %. An upper bound where
    scores tie.
    """
    return (allowed_alarms(normals, rate) + 1) / (normals + 1)


def largest_false_alarm_rate(normals: int, rate: float, *, confidence: float = 0.95) -> float:
    """What the false-alarm rate of such a threshold stays below with this probability, whatever the scores' distribution.

    The rate on new normals is one of order statistics, Beta(k + 1, n - k) with k as in `expected_false_alarm_rate`, whose
    mean that is (Wilks, "Determination of sample sizes for setting tolerance limits", 1941). 1 % on 20 normals may be 14 %.
    """
    return _largest_rate(normals, allowed_alarms(normals, rate), confidence)


def rate_interval(normals: int, alarms: int, *, level: float = 0.95) -> Interval:
    """Interval of the false-alarm rate on new normals of a threshold that `alarms` of that many exceed: Beta(k + 1, n - k)."""
    if alarms >= normals:
        return Interval(0.0, 1.0)
    ends = special.betaincinv(alarms + 1, normals - alarms, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(ends[0]), float(ends[1]))


def normals_needed(rate: float) -> int:
    """Fewest normals from which a threshold can promise a rate in (0, 1): ceil(1 / rate) - 1; 99 for 1 %."""
    check_fraction("the false-alarm rate", rate, above_zero=True)
    nearest = round(1 / rate)
    return max((nearest if math.isclose(1 / rate, nearest, rel_tol=1e-9) else math.ceil(1 / rate)) - 1, 1)


@dataclass(frozen=True)
class Counts:
    """What a threshold catches and stops on one labelled set."""

    caught: int
    """Defective images that raise an alarm."""
    defective: int
    alarms: int
    """Good images that raise one."""
    good: int
    per_defect: Mapping[str, tuple[int, int]]
    """{type of defect: (caught, of how many)}"""

    @property
    def recall(self) -> float | None:
        """Share of the defective images that raise an alarm; None where there are none."""
        return self.caught / self.defective if self.defective else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of the good images that raise an alarm; None where there are none."""
        return self.alarms / self.good if self.good else None


def count(scores: ArrayLike | Tensor, labels: ArrayLike | Tensor, defect_types: Sequence[str], value: float) -> Counts:
    """Count alarms of scores [N] with labels [N] and types [N] at a threshold of `value`."""
    # As `judge` compares them; of float32 scores numpy would round the threshold instead.
    raised = as_array(scores).astype(np.float64) >= value
    defective = as_array(labels).astype(bool)
    types = np.asarray(defect_types, dtype=object)
    return Counts(
        caught=int(np.count_nonzero(raised & defective)),
        defective=int(np.count_nonzero(defective)),
        alarms=int(np.count_nonzero(raised & ~defective)),
        good=int(np.count_nonzero(~defective)),
        per_defect={
            kind: (int(np.count_nonzero(raised & (types == kind))), int(np.count_nonzero(types == kind)))
            for kind in sorted(set(defect_types) - {GOOD})
        },
    )


@dataclass(frozen=True)
class RateRow:
    """What a threshold for one false-alarm rate does."""

    threshold: Threshold
    counts: Counts
    """On the labelled images; their good ones may be among those that the threshold rests on."""
    stopped: int
    """Good images that the threshold rests on and that raise an alarm, of `threshold.normals`."""


def at_rates(
    good: GoodScores,
    scores: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    defect_types: Sequence[str],
    *,
    rates: Sequence[float] = RATES,
) -> list[RateRow]:
    """Thresholds for several false-alarm rates, and what each catches of images with scores [N], labels [N] and types [N]."""
    values, rows = _good_values(good), []
    for rate in rates:
        threshold = _at_rate(good, rate)
        stopped = int(np.count_nonzero(values >= threshold.value))
        rows.append(RateRow(threshold, count(scores, labels, defect_types, threshold.value), stopped))
    return rows


def share_interval(successes: float, of: int) -> Interval:
    """95 % interval of a share by Wilson's score (1927): sound for few images, and at none and all of them.

    Args:
        successes: from 0 to `of`; no whole number where it is a mean over repeats.
    """
    if of < 1:
        raise UndefinedMetricError("a share needs at least one image")
    z = float(special.ndtri(0.975))
    share, weight = successes / of, z**2 / of
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return Interval(0.0 if not successes else centre - half, 1.0 if successes == of else centre + half)


class PixelSpread:
    """Mean and standard deviation of the map pixels of good images, added up map by map in float64."""

    def __init__(self) -> None:
        self.pixels = 0
        self._mean = self._squares = 0.0

    def add(self, maps: ArrayLike | Tensor) -> None:
        """Add maps [B, H, W]; by blocks, with Chan's update of the squares, which does not cancel."""
        for image in as_array(maps):
            size = image.size
            mean = float(image.mean(dtype=np.float64))
            squares = float(((image.astype(np.float64) - mean) ** 2).sum())
            shift, total = mean - self._mean, self.pixels + size
            self._squares += squares + shift**2 * self.pixels * size / total
            self._mean += shift * size / total
            self.pixels = total

    @property
    def threshold(self) -> float | None:
        """Mean plus `PIXEL_DEVIATIONS` standard deviations; None before the first map."""
        if not self.pixels:
            return None
        return self._mean + PIXEL_DEVIATIONS * math.sqrt(self._squares / self.pixels)


def _at_rate(good: GoodScores, rate: float) -> Threshold:
    values = _good_values(good)
    value = threshold_at_false_alarm_rate(values, rate)
    decided_by, without = _decider(good, values, value, rate)
    return Threshold(
        value=value,
        rule="false_alarm_rate",
        source=good.source,
        normals=len(values),
        rate=float(rate),
        expected_rate=expected_false_alarm_rate(len(values), rate),
        out_of_fold=good.out_of_fold,
        decided_by=decided_by,
        without=without,
    )


def _decider(
    good: GoodScores, values: NDArray[np.floating[Any]], value: float, rate: float
) -> tuple[str, float | None]:
    """The one image without which the threshold would be another, and that other value; see `DECIDES`."""
    if len(values) < 3:
        return "", None
    highest = int(np.argmax(values))
    others = np.delete(values, highest)
    without = threshold_at_false_alarm_rate(others, rate)
    if value - without <= DECIDES * (without - float(np.median(others))):
        return "", None
    return (good.names[highest] if good.names else f"image {highest}"), without


def _at_least_cost(good: GoodScores, defective: NDArray[np.floating[Any]], costs: Costs) -> Threshold:
    values = _good_values(good)
    for what, there in (("good images", len(values)), ("labelled defects", len(defective))):
        if not there:
            raise UndefinedMetricError(f"the threshold rule cost needs {what}; there are none")
    check_finite(defective, "scores of defects")
    ascending = np.sort(values)
    # Between two good scores only misses are added: the lowest of each gap is the best of it.
    lowest = min(float(ascending[0]), float(defective.min()))
    candidates = np.array([lowest, *(just_above(score, ascending) for score in np.unique(ascending))])
    alarms = len(ascending) - np.searchsorted(ascending, candidates, side="left")
    missed = np.searchsorted(np.sort(defective), candidates, side="left")
    alarm_rate, miss_rate = (alarms + 1) / (len(ascending) + 1), (missed + 1) / (len(defective) + 1)
    cost = costs.share_defective * costs.miss * miss_rate + (1 - costs.share_defective) * costs.alarm * alarm_rate
    best = int(np.argmin(cost))
    return Threshold(
        value=float(candidates[best]),
        rule="cost",
        source=good.source,
        normals=len(values),
        defective=len(defective),
        expected_rate=float(min(alarm_rate[best], 1.0)),
        out_of_fold=good.out_of_fold,
        cost_miss=costs.miss,
        cost_alarm=costs.alarm,
        share_defective=costs.share_defective,
    )


def _good_values(good: GoodScores) -> NDArray[np.floating[Any]]:
    return floats(as_array(good.values), "normal scores", dimensions=1)


def _largest_rate(normals: int, alarms: int, confidence: float) -> float:
    if alarms >= normals:
        return 1.0
    return float(special.betaincinv(alarms + 1, normals - alarms, confidence))
