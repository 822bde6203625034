"""A threshold and what it does, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detectors.scoring.operating_point import Costs, Counts, GoodScores, Threshold, choose_threshold
from studies.search import threshold_words as words


def counts(caught: int, defective: int, alarms: int, good: int) -> Counts:
    return Counts(caught, defective, alarms, good, {})


def at_rate(normals: int, rate: float = 0.01, **options: Any) -> Threshold:
    values = np.linspace(0.0, 1.0, normals, dtype=np.float32)
    return choose_threshold(rule="false_alarm_rate", rate=rate, good=GoodScores(values, "validation", **options))


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((42, 58, 1, 41), "finds 42 of 58 defects at 1 false alarm in 41 good images"),
        ((42, 58, 0, 41), "finds 42 of 58 defects at 0 false alarms in 41 good images"),
        ((0, 1, 3, 1), "finds 0 of 1 defect at 3 false alarms in 1 good image"),
        ((0, 0, 2, 9), "raises 2 false alarms in 9 good images"),
        ((5, 9, 0, 0), "finds 5 of 9 defects"),
    ],
)
def test_what_a_threshold_finds_and_stops(figures: tuple[int, int, int, int], text: str) -> None:
    assert words.found(counts(*figures)) == text


def test_what_a_threshold_rests_on() -> None:
    # 341 good images: 3 of them may exceed it less one, so that (2 + 1) / 342 = 0.88 % are expected.
    threshold = at_rate(341, out_of_fold=320)
    assert words.basis(threshold) == (
        "rests on 320 good images out of fold and 21 held out; expect 0.9 % false alarms, 0.2 to 2.1 %"
    )
    assert words.basis(at_rate(320, out_of_fold=320)).startswith("rests on 320 good images out of fold; expect ")
    assert words.basis(at_rate(21)).startswith("rests on 21 held-out good images; expect 4.5 % false alarms, 0.1 to ")


def test_a_rate_that_few_images_cannot_promise_is_never_told_as_kept() -> None:
    few, enough = at_rate(27), at_rate(99)
    assert words.shortfall(few) == "1 % cannot be promised by 27 good images: they support 3.6 %; 99 are needed"
    assert words.aim(few) == ""
    assert not any("at most" in line for line in words.lines(few))
    assert (words.shortfall(enough), words.aim(enough)) == ("", "at most 1 % false alarms")
    assert next(words.lines(enough)).startswith(
        "threshold 1, at most 1 % false alarms: rests on 99 held-out good images"
    )
    assert words.shortfall(at_rate(1)) == "1 % cannot be promised by 1 good image: it supports 50 %; 99 are needed"
    assert words.shortfall(at_rate(50, rate=0.0)) == "0 % cannot be promised by 50 good images: they support 2 %"


def test_a_threshold_of_an_earlier_version_that_keeps_no_rate_says_so_without_asking_for_fewer_images() -> None:
    # Two of 101 may exceed it there, which is (2 + 1) / 102.
    older = Threshold(
        value=1.0, rule="false_alarm_rate", source="validation", normals=101, rate=0.01, expected_rate=3 / 102
    )
    assert words.shortfall(older) == "1 % cannot be promised by 101 good images: they support 2.9 %"


def test_the_image_that_decides_is_named() -> None:
    values = np.array([1.0, 2.0, 3.0, 193.0, 462.0], dtype=np.float32)
    names = [f"parts/good/{number:03d}.png" for number in range(5)]
    threshold = choose_threshold(rule="false_alarm_rate", rate=0.1, good=GoodScores(values, "validation", names))
    assert words.decider(threshold) == (
        "one image decides the threshold: parts/good/004.png; without it it would be 193 instead of 462"
    )
    assert words.decider(replace(threshold, decided_by="", without=None)) == ""
    assert [line.partition(":")[0] for line in words.lines(threshold, "screw")] == ["screw"] * 3


def test_other_rules_say_what_they_are() -> None:
    good = GoodScores(np.linspace(0.0, 1.0, 40, dtype=np.float32), "validation")
    scores, labels = np.concatenate([good.values, [0.9, 2.0, 3.0]]), np.array([0] * 40 + [1] * 3)
    best = choose_threshold(rule="f1_max", scores=scores, labels=labels, source="validation", good=good)
    assert words.basis(best).startswith(
        "is where F1 is highest on validation; rests on 3 defective and 40 held-out good images; expect "
    )
    cheap = choose_threshold(
        rule="cost", good=good, scores=scores, labels=labels, costs=Costs(miss=5.0, alarm=1.0, share_defective=0.1)
    )
    assert words.basis(cheap).startswith(
        "is where mistakes are expected to cost least; rests on 3 defective and 40 held-out good images; expect "
    )
    given = choose_threshold(rule="value", value=2.5)
    assert list(words.lines(given)) == ["threshold 2.5: was given"]
    assert "its false alarms are estimated from 40 held-out good images; expect" in words.basis(
        choose_threshold(rule="value", value=2.5, good=good)
    )
    assert [words.aim(each) for each in (best, cheap, given)] == [
        "the best F1",
        "the least expected cost",
        "as it was given",
    ]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"), (0.0005, "0.05 %"), (0.009, "0.9 %"), (0.01, "1 %"), (0.0357, "3.6 %"), (0.0996, "10 %"),
        (0.28, "28 %"), (1.0, "100 %"),
    ],
)  # fmt: skip
def test_shares_have_the_digits_that_matter(share: float, text: str) -> None:
    assert words.percent(share) == text
