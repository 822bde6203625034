"""What a search is worth that chose among settings on the very images that judge it: repeated nested cross-validation.

All settings have scored all labelled images, with detectors that were fitted to other images. The images are divided into K
folds, R times over. For each fold a setting is chosen on the images outside it, as the search itself chooses; the images of the
fold are judged by the scores of that setting. So every image is judged in every repeat, and none has a say in what it is judged
by. The figures are those of the procedure "choose, then use": folds may choose different settings (Varma and Simon, "Bias in
error estimation when using cross-validation for model selection", 2006; Cawley and Talbot, "On over-fitting in model selection",
2010).
They are a little low, for a fold chooses with fewer images than the search has.

Scores of different settings have no common scale: one setting's 3 may be another's 300. So good and defective images are only
compared within a fold, where one setting scored both, and the AUROC is the share of those pairs that are in order, over all folds
and repeats. To bring the settings to one scale by ranks and pool the folds would be biased: the folds differ in how hard their
images are, and a rank within a fold undoes that in one fold and not in another (Parker, Günter and Bedo, "Stratification bias in
low signal microarray studies", 2007; Forman and Scholz, "Apples-to-apples in cross-validation studies", 2010). Pairs within folds
are an unbiased estimate however small the folds are. Average precision and the best F1 are none, so they are not given.

Likewise a threshold: it comes from scores of the chosen setting alone, outside the fold.

Notation: T settings, N images, R repeats, K folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from detectors.errors import InputError
from detectors.scoring.metrics import Interval, UndefinedMetricError, check_finite
from detectors.scoring.operating_point import share_interval

REPEATS = 10
"""Divisions over which the estimate is averaged: what chance of the division is left is a third of that of one."""
FOLDS = 5
"""Of each division; fewer where there are fewer images of a label."""

_NEAR = 1e-9

Choose = Callable[[NDArray[np.int64]], int]
"""Given the indices of the images outside a fold, the setting that is chosen on them."""
Alarm = Callable[[int, NDArray[np.int64]], float | None]
"""Given a setting and the same indices, the score from which on an image raises an alarm; None where they define none."""


@dataclass(frozen=True)
class NestedEstimate:
    """Figures of the choice among settings, free of the choice; all in [0, 1]."""

    auroc: float
    auroc_interval: Interval
    """95 %; see `auroc_interval`."""
    recall: float | None
    """Share of the defective images that raise an alarm; None where a fold has no threshold."""
    recall_interval: Interval | None
    false_alarm_rate: float | None
    """Share of the good images that raise one."""
    false_alarm_interval: Interval | None
    chosen: Mapping[int, int]
    """{setting: number of folds that chose it}, the most frequent first."""
    repeats: int
    folds: int


def nested_estimate(
    scores: NDArray[np.float64],
    labels: NDArray[np.int8],
    folds: NDArray[np.int64],
    *,
    choose: Choose,
    alarm: Alarm | None = None,
    groups: Sequence[Hashable] | None = None,
) -> NestedEstimate:
    """The nested estimate.

    Args:
        scores: [T, N] raw, each row on a scale of its own; larger is more anomalous.
        labels: [N], 0 good, 1 defective.
        folds: [R, N] fold of each image in each repeat, as `repeated_folds` gives them.
        choose: by the rule of the search, whose data are `scores` outside the fold.
        alarm: without it there is neither recall nor false-alarm rate.
        groups: [N], images of one group depend on each other and count as one for the intervals; None where each is its own.

    Raises:
        UndefinedMetricError: no fold has both labels.
        InputError: the shapes contradict each other.
        NumericalError: a score is not finite.
    """
    count = len(labels)
    if scores.ndim != 2 or scores.shape[1] != count or folds.ndim != 2 or folds.shape[1] != count:
        raise InputError(f"scores {list(scores.shape)} and folds {list(folds.shape)} are not of {count} labels")
    check_finite(scores, "scores")
    ordered = pairs = 0.0
    alarms: NDArray[np.float64] | None = None if alarm is None else np.zeros(count)
    chosen: Counter[int] = Counter()
    for row in folds:
        for fold in np.unique(row):
            outside, inside = np.flatnonzero(row != fold), np.flatnonzero(row == fold)
            setting = choose(outside)
            chosen[setting] += 1
            values, defective = scores[setting, inside], labels[inside] == 1
            gaps = values[defective][:, None] - values[~defective][None, :]
            ordered += float((gaps > 0).sum() + 0.5 * (gaps == 0).sum())
            pairs += gaps.size
            if alarm is not None and alarms is not None:
                value = alarm(setting, outside)
                if value is None:
                    alarms = None
                else:
                    alarms[inside] += values >= value
    if not pairs:
        raise UndefinedMetricError("no fold has both good and defective images")
    sizes = [
        len({group for group, label in zip(groups or range(count), labels, strict=True) if label == one})
        for one in (0, 1)
    ]
    auroc = ordered / pairs
    shares: list[float | None] = [None, None]
    if alarms is not None:
        shares = [float(alarms[labels == label].mean()) / len(folds) for label in (0, 1)]
    intervals = [
        None if share is None else share_interval(share * size, size) for share, size in zip(shares, sizes, strict=True)
    ]
    return NestedEstimate(
        auroc=auroc,
        auroc_interval=auroc_interval(auroc, good=sizes[0], defective=sizes[1]),
        recall=shares[1],
        recall_interval=intervals[1],
        false_alarm_rate=shares[0],
        false_alarm_interval=intervals[0],
        chosen=dict(chosen.most_common()),
        repeats=len(folds),
        folds=int(folds.max()),
    )


def repeated_folds(
    kinds: Sequence[str],
    labels: NDArray[np.int8],
    groups: Sequence[Hashable],
    *,
    seed: int,
    repeats: int = REPEATS,
    folds: int = FOLDS,
) -> NDArray[np.int64]:
    """The fold of each image in each repeat, from 1 on [R, N], drawn anew in each.

    Good and defective images are dealt to the folds in turn, and the defective ones type after type, so that every fold has both
    labels and the types are spread. There are at most as many folds as groups of the rarer label.

    Args:
        kinds: type of each image [N].
        labels: [N], 0 good, 1 defective.
        groups: [N]; images of one group, such as copies of one image, lie in one fold.

    Raises:
        UndefinedMetricError: fewer than two groups of one label.
    """
    of_group: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        of_group.setdefault(group, []).append(index)
    members = list(of_group.values())
    # A group with both labels counts as defective: those are the rarer ones in most data.
    is_defective = [bool(labels[group].any()) for group in members]
    folds = min(folds, sum(is_defective), len(members) - sum(is_defective))
    if folds < 2:
        raise UndefinedMetricError("a nested estimate needs at least two good and two defective images")
    generator, drawn = np.random.default_rng(seed), np.empty((repeats, len(labels)), dtype=np.int64)
    for row in drawn:
        for wanted in (False, True):
            chosen = [group for group, one in zip(members, is_defective, strict=True) if one == wanted]
            mixed = [chosen[place] for place in generator.permutation(len(chosen))]
            mixed.sort(key=lambda group: kinds[group[0]])
            names = generator.permutation(folds) + 1
            for place, rows in enumerate(mixed):
                row[rows] = names[place % folds]
    return drawn


def auroc_interval(auroc: float, *, good: int, defective: int) -> Interval:
    """95 % interval of an AUROC over other images, sound for few images and at 1, where a bootstrap knows no uncertainty.

    Its ends are the values that lie 1.96 of their own standard errors from the estimate; the standard error is that of Hanley and
    McNeil with the mean number of images of a label for each (Newcombe, "Confidence intervals for an effect size measure based on
    the Mann-Whitney statistic, part 2", 2006, method 5). That the images of a fold also helped to choose for the others is left
    out: no unbiased estimate of it exists (Bengio and Grandvalet, 2004).

    Args:
        auroc: in [0, 1].
        good, defective: independent images of each label, at least 1.
    """
    z = float(special.ndtri(0.975))
    mean = (good + defective) / 2 - 1
    # At 0 and 1 the standard error is 0, and the estimate itself would solve the equation.
    start = min(max(auroc, _NEAR), 1 - _NEAR)

    def deviation(value: float) -> float:
        spread = 1 + mean * ((1 - value) / (2 - value) + value / (1 + value))
        return float(np.sqrt(value * (1 - value) * spread / (good * defective)))

    def end(sign: int) -> float:
        limit = (1 + sign) / 2
        far = limit - sign * _NEAR

        def excess(value: float) -> float:
            return sign * (value - auroc) - z * deviation(value)

        # No value before the limit is far enough where the estimate is close to it.
        return float(optimize.brentq(excess, start, far)) if excess(far) > 0 else float(limit)

    return Interval(end(-1), end(1))
