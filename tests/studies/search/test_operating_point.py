"""Operating points read from stored figures, of this version and of earlier ones."""

from __future__ import annotations

from studies.search.operating_point import (
    OperatingPoint,
    counts_from,
    metrics_on_test,
    points_on_test,
    pooled,
    thresholds_by_product,
)
from tests.helpers.bench import Bench, ScriptedExecutor

IMAGES = {"good": 41, "scratch": 18, "dent": 40}
THRESHOLD = {
    "value": 2.5,
    "rule": "false_alarm_rate",
    "source": "validation",
    "normals": 21,
    "rate": 0.01,
    "expected_rate": 1 / 22,
}


def test_counts_follow_from_the_shares() -> None:
    metrics = {
        "test/image_recall": 42 / 58,
        "test/false_alarm_rate": 1 / 41,
        "test/image_recall/scratch": 2 / 18,
        "test/image_recall/dent": 1.0,
    }
    counts = counts_from(metrics, IMAGES)
    assert counts is not None
    assert (counts.caught, counts.defective, counts.alarms, counts.good) == (42, 58, 1, 41)
    assert counts.per_defect == {"scratch": (2, 18), "dent": (40, 40)}


def test_results_of_an_earlier_version_have_misses_in_the_place_of_the_recall() -> None:
    counts = counts_from({"test/miss_rate": 16 / 58, "test/false_alarm_rate": 0.0}, IMAGES)
    assert counts is not None
    assert (counts.caught, counts.alarms, counts.per_defect) == (42, 0, {})


def test_without_a_threshold_there_are_no_counts() -> None:
    assert counts_from({"test/image_auroc": 0.9}, IMAGES) is None
    assert counts_from({"test/image_recall": 0.9}, IMAGES) is None
    assert counts_from({}, {}) is None
    alone = counts_from({"test/false_alarm_rate": 0.5}, {"good": 4})
    assert alone is not None
    assert (alone.alarms, alone.defective, alone.recall) == (2, 0, None)


def test_products_are_pooled_unless_one_was_not_judged() -> None:
    nut = counts_from({"test/image_recall": 0.5, "test/false_alarm_rate": 0.0}, {"good": 4, "bent": 2})
    bolt = counts_from(
        {"test/image_recall": 1.0, "test/image_recall/bent": 1.0, "test/false_alarm_rate": 0.5}, {"good": 2, "bent": 3}
    )
    both = pooled([OperatingPoint("nut", nut, None), OperatingPoint("bolt", bolt, None)])
    assert both is not None
    assert (both.caught, both.defective, both.alarms, both.good) == (4, 5, 1, 6)
    assert both.per_defect == {"bolt/bent": (3, 3)}
    assert pooled([OperatingPoint("nut", nut, None), OperatingPoint("bolt", None, None)]) is None
    assert pooled([]) is None


def test_thresholds_are_found_whatever_their_form() -> None:
    assert thresholds_by_product(None) == {}
    assert thresholds_by_product({"rule": "false_alarm_rate", "rate": 0.01}) == {}
    assert thresholds_by_product(THRESHOLD)[""].value == 2.5
    older = {"rule": "false_alarm_rate", "rate": 0.01, "products": {"nut": THRESHOLD}}
    assert thresholds_by_product(older)["nut"] == thresholds_by_product({"products": {"nut": THRESHOLD}})["nut"]


def test_a_study_that_was_not_refitted_has_no_points(bench: Bench) -> None:
    view = bench.run(ScriptedExecutor(), budget={"trials": 2}).view
    selected = view.selected()
    assert selected is not None
    assert [point.counts for point in points_on_test(view, selected)] == [None]
    other = next(trial for trial in view.trials() if not trial.selected)
    assert points_on_test(view, other) == []


def test_what_an_earlier_version_wrote_gets_a_recall_with_its_interval(bench: Bench) -> None:
    older = {"test/image_auroc": 0.8, "test/miss_rate": 0.5, "test/false_alarm_rate": 0.0}
    outcome = bench.run(ScriptedExecutor(final=lambda job: older), budget={"trials": 1})
    assert outcome.selected is not None
    metrics = metrics_on_test(outcome.view, outcome.selected)
    assert older.items() <= metrics.items()
    assert metrics["test/image_recall"] == 0.5
    assert metrics["test/image_recall_low"] < 0.5 < metrics["test/image_recall_high"]
    (point,) = points_on_test(outcome.view, outcome.selected)
    assert point.counts is not None
    assert point.counts.recall == 0.5
