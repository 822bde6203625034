"""The metrics of a study's own run in MLflow, from real studies of an executor that answers as it is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
from mlflow import MlflowClient

from studies.worker.jobs import Job
from tests.helpers.bench import Bench, Killed, ScriptedExecutor
from tracking.projection import Projection

BEST = "best/val/image_auroc"
VALUES = {0: 0.6, 1: 0.85, 2: 0.7, 3: 0.95}
FINAL = {
    "test/image_auroc": 0.8,
    "test/image_auroc_low": 0.7,
    "test/image_auroc_high": 0.9,
    "test/image_recall": 0.75,
    "test/image_recall_low": 0.4,
    "test/image_recall_high": 0.9,
    "test/false_alarm_rate": 0.125,
    "test/false_alarm_rate_low": 0.02,
    "test/false_alarm_rate_high": 0.4,
    "test/image_recall/scratch": 0.75,
    "test/pixel_aupro_05": 0.3,
    "test/seg_f1": 0.4,
    "threshold": 12.5,
    "threshold_normals": 24.0,
    "threshold_expected_rate": 0.04,
}


def trial(job: Job) -> dict[str, float]:
    return {"val/image_auroc": VALUES[job.number], "val/image_recall": 0.5, "fps": 50.0 - job.number}


def executor(final: dict[str, float] = FINAL, **options: Any) -> ScriptedExecutor:
    return ScriptedExecutor(trial, final=lambda job: final, **options)


def history(bench: Bench) -> dict[str, list[tuple[int, float, int]]]:
    """{metric of the parent run: its points as (step, value, time)}"""
    client, parent = MlflowClient(tracking_uri=bench.home.tracking_uri), bench.parent()
    return {
        name: sorted(
            (point.step, point.value, point.timestamp) for point in client.get_metric_history(parent.info.run_id, name)
        )
        for name in parent.data.metrics
    }


def test_the_studys_run_shows_the_selected_trial_on_validation_and_on_test(bench: Bench) -> None:
    bench.run(executor(), budget={"trials": 4})
    shown = bench.parent().data.metrics
    wanted = {name: value for name, value in FINAL.items() if name != "test/image_recall/scratch"}
    wanted |= {"val/image_auroc": 0.95, "val/image_recall": 0.5, "fps": 47.0, BEST: 0.95}
    wanted |= {"trials/complete": 4.0, "trials/pruned": 0.0, "trials/failed": 0.0}
    assert shown == wanted


def test_the_curve_is_the_best_so_far_at_the_end_of_each_trial(bench: Bench) -> None:
    bench.run(executor(), budget={"trials": 4})
    points = history(bench)[BEST]
    assert [(step, value) for step, value, _ in points] == [(1, 0.6), (2, 0.85), (3, 0.85), (4, 0.95)]
    told = [frozen.datetime_complete for frozen in bench.frozen()]
    assert [time for _, _, time in points] == [int(moment.timestamp() * 1000) for moment in told if moment]


def test_what_does_not_meet_the_constraints_is_not_the_best(bench: Bench) -> None:
    bench.run(executor(), budget={"trials": 4}, constraints={"fps": ">= 47.5"})
    assert [value for _, value, _ in history(bench)[BEST]] == [0.6, 0.85, 0.85, 0.85]
    assert bench.parent().data.metrics["val/image_auroc"] == 0.85
    # Another limit on resumption: what holds now is what is shown.
    bench.run(executor(), budget={"trials": 4}, constraints={"fps": ">= 49.5"})
    shown = bench.parent().data.metrics
    assert (shown["val/image_auroc"], shown[BEST]) == (0.6, 0.6)


def test_a_cost_is_better_the_lower_it_is(bench: Bench) -> None:
    sizes = {0: 30.0, 1: 20.0, 2: 40.0}
    script = ScriptedExecutor(lambda job: {"model_size_mb": sizes[job.number], "val/image_auroc": 0.5})
    bench.run(script, objectives={"model_size_mb": "minimize"}, budget={"trials": 3})
    assert [value for _, value, _ in history(bench)["best/model_size_mb"]] == [30.0, 20.0, 20.0]


def test_every_objective_has_a_curve(bench: Bench) -> None:
    objectives = {"image_auroc": "maximize", "fps": "maximize"}
    bench.run(executor(), objectives=objectives, budget={"trials": 3})
    points = history(bench)
    assert [value for _, value, _ in points["best/val/image_auroc"]] == [0.6, 0.85, 0.85]
    assert [value for _, value, _ in points["best/fps"]] == [50.0, 50.0, 50.0]


def test_figures_are_there_while_the_study_goes_on(bench: Bench) -> None:
    seen: list[dict[str, float]] = []

    def look(job: Job) -> dict[str, float]:
        seen.append(dict(bench.parent().data.metrics))
        return trial(job)

    bench.run(ScriptedExecutor(look), budget={"trials": 3})
    assert [shown.get(BEST) for shown in seen] == [None, 0.6, 0.85]
    assert [shown["trials/complete"] for shown in seen] == [0.0, 1.0, 2.0]
    assert "test/image_auroc" not in seen[-1]


@pytest.mark.parametrize(("method", "at"), [("write_trial", 4), ("write_figures", 2)])
def test_a_replay_after_a_crash_adds_nothing_and_misses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, at: int
) -> None:
    real = getattr(Projection, method)
    calls = 0

    def dies(projection: Projection, record: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return real(projection, record)

    with monkeypatch.context() as patch:
        patch.setattr(Projection, method, dies)
        bench.kill(executor(), budget={"trials": 4})
    for _ in range(2):
        bench.run(executor(), budget={"trials": 4})
    points = history(bench)
    assert [(step, value) for step, value, _ in points[BEST]] == [(1, 0.6), (2, 0.85), (3, 0.85), (4, 0.95)]
    assert all(len(points[name]) == 1 for name in FINAL if name in points)
    before = points
    bench.run(executor(), budget={"trials": 4})
    assert history(bench) == before


def test_figures_on_test_of_a_trial_that_is_no_longer_selected_are_taken_back(bench: Bench) -> None:
    bench.run(executor(), budget={"trials": 2})
    assert bench.parent().data.metrics["test/image_recall"] == 0.75
    bench.run(executor({"test/image_auroc": 0.82}), budget={"trials": 4})
    shown = bench.parent().data.metrics
    assert shown["test/image_auroc"] == 0.82
    assert math.isnan(shown["test/image_recall"])
    assert math.isnan(shown["threshold"])


def test_results_of_an_earlier_version_show_their_recall(bench: Bench) -> None:
    older = {"test/image_auroc": 0.8, "test/miss_rate": 0.5, "test/false_alarm_rate": 0.0}
    bench.run(executor(older), budget={"trials": 1})
    shown = bench.parent().data.metrics
    assert (shown["test/image_recall"], shown["test/false_alarm_rate"]) == (0.5, 0.0)
    assert shown["test/image_recall_low"] < 0.5 < shown["test/image_recall_high"]
    assert shown["test/false_alarm_rate_high"] > 0.1


def test_a_failure_counts_and_an_interruption_does_not(bench: Bench) -> None:
    def script(job: Job) -> Any:
        return {0: "exception", 2: KeyboardInterrupt()}.get(job.number) or trial(job)

    with pytest.raises(KeyboardInterrupt):
        bench.run(ScriptedExecutor(script), budget={"trials": 3})
    shown = bench.parent().data.metrics
    assert (shown["trials/failed"], shown["trials/complete"]) == (1.0, 1.0)
