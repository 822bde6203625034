"""A threshold and what it does, in words: what it finds and stops, what it rests on, what that does not support.

A rate is never told as if it were kept where the good images are too few for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from detectors.data.painted_types import is_painted_type

if TYPE_CHECKING:  # a command that prints an error does not wait for torch
    from detectors.scoring.operating_point import Counts, Threshold


def found(counts: Counts) -> str:
    """``finds 42 of 58 defects at 1 false alarm in 41 good images``; of images of one kind alone, that half of it.

    Painted defects are called so.
    """
    alarms = f"{counts.alarms} false alarm{'' if counts.alarms == 1 else 's'} in {_images(counts.good)}"
    if not counts.defective:
        return f"raises {alarms}"
    what = "painted defect" if counts.per_defect and all(map(is_painted_type, counts.per_defect)) else "defect"
    defects = f"finds {counts.caught} of {counts.defective} {what}{'' if counts.defective == 1 else 's'}"
    return f"{defects} at {alarms}" if counts.good else defects


def each_type(counts: Counts) -> str:
    """``of each type of defect it finds: scratch 2 of 18, dent 40 of 40``, the type of the lowest share first."""
    ascending = sorted(counts.per_defect.items(), key=lambda item: (item[1][0] / item[1][1], item[0]))
    return (
        f"of each type of defect it finds: {', '.join(f'{kind} {caught} of {of}' for kind, (caught, of) in ascending)}"
    )


def basis(threshold: Threshold) -> str:
    """``rests on 320 good images out of fold and 21 held out; expect 0.9 % false alarms, 0.2 to 2.1 %``."""
    parts = [_rests_on(threshold)]
    interval = threshold.rate_interval
    if threshold.expected_rate is not None and interval is not None:
        low, high = (percent(end).removesuffix(" %") for end in interval)
        parts.append(f"expect {percent(threshold.expected_rate)} false alarms, {low} to {high} %")
    return "; ".join(parts)


def _rests_on(threshold: Threshold) -> str:
    good = _good(threshold)
    if threshold.rule == "value":
        return f"was given; its false alarms are estimated from {good}" if threshold.normals else "was given"
    if threshold.rule == "f1_max":
        # Its good images are those that its false alarms are estimated from, where these are known.
        defective = f"{threshold.defective} defective and " if threshold.defective else ""
        return f"is where F1 is highest on {threshold.source}; rests on {defective}{good}"
    if threshold.rule == "cost":
        return f"is where mistakes are expected to cost least; rests on {threshold.defective} defective and {good}"
    return f"rests on {good}"


def _good(threshold: Threshold) -> str:
    held_out, out_of_fold = threshold.normals - threshold.out_of_fold, threshold.out_of_fold
    if not out_of_fold:
        return f"{held_out} held-out good image{'' if held_out == 1 else 's'}"
    return f"{_images(out_of_fold)} out of fold{f' and {held_out} held out' if held_out else ''}"


def shortfall(threshold: Threshold) -> str:
    """``1 % cannot be promised by 27 good images: they support 3.6 %; 99 are needed``; empty where the rate is supported."""
    if threshold.supports_rate or threshold.rate is None or threshold.expected_rate is None:
        return ""
    few = _images(threshold.normals)
    they = "it supports" if threshold.normals == 1 else "they support"
    text = f"{percent(threshold.rate)} cannot be promised by {few}: {they} {percent(threshold.expected_rate)}"
    needed = threshold.normals_needed
    # A threshold of an earlier version may stop more images than it should although they are enough.
    return f"{text}; {needed} are needed" if needed is not None and needed > threshold.normals else text


def decider(threshold: Threshold) -> str:
    """``one image decides the threshold: parts/good/012.png; without it it would be 193 instead of 462``; else empty."""
    if not threshold.decided_by or threshold.without is None:
        return ""
    without, value = number(threshold.without), number(threshold.value)
    return (
        f"one image decides the threshold: {threshold.decided_by}; without it it would be {without} instead of {value}"
    )


def aim(threshold: Threshold) -> str:
    """``at most 1 % false alarms``, where that is supported; what else the threshold was chosen for; empty if neither."""
    if threshold.rule == "f1_max":
        return "the best F1"
    if threshold.rule == "cost":
        return "the least expected cost"
    if threshold.rule == "value":
        return "as it was given"
    if threshold.rate is None or not threshold.supports_rate:
        return ""
    return f"at most {percent(threshold.rate)} false alarms"


def remarks(threshold: Threshold) -> Iterator[str]:
    """What whoever runs a line at the threshold should know first: what cannot be promised, and the image that decides it."""
    yield from filter(None, (shortfall(threshold), decider(threshold)))


def lines(threshold: Threshold, product: str = "") -> Iterator[str]:
    """The threshold in one line, and a line for each of its `remarks`; before each the product, where there are several."""
    before = f"{product}: " if product else ""
    aimed = f", {aim(threshold)}" if threshold.rule == "false_alarm_rate" and aim(threshold) else ""
    yield f"{before}threshold {number(threshold.value)}{aimed}: {basis(threshold)}"
    for remark in remarks(threshold):
        yield f"{before}{remark}"


def percent(part: float) -> str:
    """A share from 0 to 1 as ``0.9 %``, ``3.6 %``, ``28 %``: with one decimal below 10 %, and two digits below 0.1 %."""
    value = 100 * part
    if value >= 9.95:
        return f"{value:.0f} %"
    if 0 < value < 0.1:
        return f"{value:.2g} %"
    return f"{value:.1f} %".replace(".0 ", " ")


def number(value: float) -> str:
    """A score with four digits."""
    return f"{value:.4g}"


def _images(count: int) -> str:
    return f"{count} good image{'' if count == 1 else 's'}"
