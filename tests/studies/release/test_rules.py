"""The gate's comparisons, on made-up scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors.scoring.evaluation import Evaluation
from detectors.scoring.operating_point import Threshold, count
from studies.file.sections import GateConfig
from studies.release.measured import Measured, share_text
from studies.release.rules import Rule, champion_rules, threshold_rule
from tests.helpers.small_models import LATENCY

RECALL, ALARMS = "recall at the threshold", "false alarms at the threshold"
LABELS = np.array([0] * 12 + [1] * 12)


def at(value: float, scores: Any, labels: Any, label: str = "x") -> Measured:
    """Made-up scores with a threshold."""
    scores = np.asarray(scores, dtype=np.float64)
    types = ["good" if not known else "dent" for known in labels]
    return Measured(
        label,
        scores,
        Evaluation(metrics={}),
        LATENCY,
        1.0,
        threshold=Threshold(value, "value", "given", normals=0),
        counts=count(scores, labels, types, value),
    )


def found(defects: int, of: int, alarms: int, good: int, *, lowest: bool = False) -> tuple[Measured, Any]:
    """A model that finds so many defects and stops so many good images; those with the lowest scores of all, if so."""
    labels = np.array([0] * good + [1] * of)
    raised = [index < alarms for index in range(good)] + [index < defects for index in range(of)]
    if lowest:
        raised = [*raised[:good], *reversed(raised[good:])]
    return at(0.5, np.where(raised, 0.9, 0.1) + np.arange(good + of) * 1e-4, labels), labels


def compared(new: Measured, old: Measured, labels: Any, **config: Any) -> dict[str, Rule]:
    rules, _ = champion_rules(GateConfig(epsilon=1, **config), new, old, labels, seed=0)
    return {rule.name: rule for rule in rules}


def test_a_model_that_finds_fewer_defects_is_refused_with_both_counts() -> None:
    (new, labels), (old, _) = found(16, 58, 1, 40), found(24, 58, 3, 40)
    rule = compared(new, old, labels)[RECALL]
    assert rule.verdict == "refused"
    assert rule.value == pytest.approx(-8 / 58)
    assert rule.outcome.startswith("finds 16 of 58 defects where the champion finds 24 (14 % fewer")
    assert "stops 1 of 40 good images where the champion stops 3" in rule.outcome  # what it was traded for
    assert "\n" not in rule.outcome


@pytest.mark.parametrize(
    ("finds", "champion", "of", "verdict", "words"),
    [
        (20, 21, 20 + 1, "passed", ""),  # 1 of 21 is within 5 %
        (19, 21, 21, "refused", "chance may explain it, p = 0.25"),
        (195, 200, 200, "refused", "more than chance explains, p = 0.031"),  # 2.5 %, but five losses and no gain
        (196, 200, 200, "passed", ""),
        (30, 20, 40, "passed", ""),
    ],
)
def test_few_images_decide_by_the_margin_and_many_by_chance(
    finds: int, champion: int, of: int, verdict: str, words: str
) -> None:
    (new, labels), (old, _) = found(finds, of, 0, 10), found(champion, of, 0, 10)
    rule = compared(new, old, labels)[RECALL]
    assert rule.verdict == verdict
    assert words in rule.outcome
    # The same, counted from the other side.
    (new, labels), (old, _) = found(5, 5, of - finds, of), found(5, 5, of - champion, of)
    assert compared(new, old, labels)[ALARMS].verdict == verdict


def test_the_same_number_found_of_other_defects_is_no_loss() -> None:
    (new, labels), (old, _) = found(10, 20, 0, 10, lowest=True), found(10, 20, 0, 10)
    assert compared(new, old, labels)[RECALL].verdict == "passed"


def test_a_study_file_allows_the_trade_of_recall_for_false_alarms() -> None:
    (new, labels), (old, _) = found(70, 100, 1, 50), found(80, 100, 10, 50)
    assert compared(new, old, labels)[RECALL].verdict == "refused"
    allowed = compared(new, old, labels, recall_drop=None)[RECALL]
    assert (allowed.verdict, allowed.outcome) == (
        "not applicable",
        "gate.recall_drop is null: it is not compared with the champion's",
    )
    assert compared(old, new, labels)[ALARMS].verdict == "refused"
    assert compared(old, new, labels, false_alarm_rise=None)[ALARMS].verdict == "not applicable"


def test_a_threshold_that_is_too_high_is_named_as_the_cause() -> None:
    labels = np.array([0] * 30 + [1] * 25)
    scores = np.concatenate([np.linspace(1, 180, 30), np.linspace(185, 400, 25)])
    rule = compared(at(462, scores, labels), at(193, scores, labels), labels)[RECALL]
    assert rule.verdict == "refused"
    assert rule.outcome.startswith("finds 0 of 25 defects where the champion finds 24")
    assert "it would find 25 with no more false alarms than the champion: its threshold is too high" in rule.outcome


def test_a_defect_type_that_collapses_is_refused_though_the_mean_holds() -> None:
    def measured(**per_defect: float) -> Measured:
        evaluation = Evaluation(metrics={"image_auroc": 0.9}, per_defect=per_defect)
        return Measured("x", np.zeros(len(LABELS)), evaluation, LATENCY, 1.0)

    def judged(new: Measured) -> Rule:
        rules, _ = champion_rules(GateConfig(per_defect_drop=0.1), new, old, LABELS, seed=0)
        return next(rule for rule in rules if rule.name == "no defect type collapses")

    old = measured(scratch=0.9, hole=0.8)
    assert judged(measured(scratch=0.81, hole=0.9)).verdict == "passed"
    rule = judged(measured(scratch=0.79, hole=1.0))
    assert rule.verdict == "refused"
    assert "scratch, +0.1100" in rule.outcome


def test_not_worse_beyond_chance_refuses_within_epsilon() -> None:
    """A small loss on many images that never is a gain."""
    labels = LABELS
    old = labels + np.linspace(0, 0.5, len(labels))
    new = old.copy()
    worst = np.flatnonzero(labels == 0)[-1]
    new[worst] = old[labels == 1].max() + 1

    def measured(scores: Any) -> Measured:
        return Measured("x", scores, Evaluation(metrics={}), LATENCY, 1.0)

    def judged(epsilon: float) -> tuple[Rule, tuple[float, float, float] | None]:
        config = GateConfig(epsilon=epsilon)
        rules, difference = champion_rules(config, measured(new), measured(old), labels, seed=0)
        return rules[0], difference

    rule, difference = judged(1.0)
    assert difference is not None
    assert difference[0] < 0
    assert rule.verdict == ("refused" if difference[2] < 0 else "passed")
    rule, _ = judged(0.001)
    assert rule.verdict == "refused"
    assert "more than 0.001 below it" in rule.outcome


def test_a_share_is_shown_with_its_counts_and_interval() -> None:
    assert share_text(16, 58) == "16 of 58 (28 %, 18 to 40 %)"
    assert share_text(0, 0) == "-"


@pytest.mark.parametrize(("finds", "verdict"), [(4, "warning"), (5, "passed")])
def test_a_threshold_that_misses_most_defects_is_a_warning(finds: int, verdict: str) -> None:
    """Also of the first model, which has no champion to be compared with."""
    model, _ = found(finds, 10, 1, 10)
    rule = threshold_rule(model, "tiny")
    assert rule.verdict == verdict
    assert f"misses {10 - finds} of 10 (" in rule.outcome
    assert "stops 1 of 10 (" in rule.outcome
