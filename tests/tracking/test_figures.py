"""Metrics on a study's own run, in a real MLflow store."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tracking import figures as figures_module
from tracking.projection import Projection
from tracking.records import Point, StudyRecord

BEST = "best/val/image_auroc"
STUDY = StudyRecord(
    uid="0123456789ab",
    name="padim_screw",
    experiment="mvtec/screw",
    started_ms=1_700_000_000_000,
    figures=(Point("val/image_auroc", 0.9, 1_700_000_001_000), Point("test/image_recall", math.nan, 0)),
    curves=(Point(BEST, 0.8, 1_700_000_000_500, 1), Point(BEST, 0.9, 1_700_000_001_000, 2)),
)


@pytest.fixture
def store(study_home: Path) -> str:
    return f"sqlite:///{study_home / 'mlflow.db'}"


def history(store: str, run_id: str) -> dict[str, list[tuple[int, float, int]]]:
    """{metric: its points as (step, value, time)}"""
    client = MlflowClient(tracking_uri=store)
    return {
        name: sorted((point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, name))
        for name in client.get_run(run_id).data.metrics
    }


def shown(store: str, run_id: str) -> dict[str, float]:
    return dict(MlflowClient(tracking_uri=store).get_run(run_id).data.metrics)


def opened(store: str, study: StudyRecord) -> Projection:
    """A projection as a new process would open it."""
    projection = Projection(store)
    projection.open(study)
    return projection


def test_figures_and_curves_are_on_the_studys_run_and_a_repeat_adds_nothing(store: str) -> None:
    projection = opened(store, STUDY)
    before = history(store, projection.parent_run_id)
    assert before == {
        "val/image_auroc": [(0, 0.9, 1_700_000_001_000)],
        BEST: [(1, 0.8, 1_700_000_000_500), (2, 0.9, 1_700_000_001_000)],
    }
    projection.write_figures(STUDY)
    projection.write_study(replace(STUDY, state="FINISHED", finished_ms=1_700_000_100_000))
    again = opened(store, STUDY)
    again.write_figures(STUDY)
    assert history(store, projection.parent_run_id) == before


def test_a_value_that_changed_is_the_one_that_is_shown_whatever_its_time(store: str) -> None:
    projection = opened(store, STUDY)
    # A trial that ended earlier is the selected one now, say because a constraint was added.
    earlier = Point("val/image_auroc", 0.7, 1_700_000_000_100)
    projection.write_figures(replace(STUDY, figures=(earlier,)))
    run_id = projection.parent_run_id
    assert shown(store, run_id)["val/image_auroc"] == 0.7
    assert history(store, run_id)["val/image_auroc"] == [(0, 0.7, 1_700_000_001_001), (0, 0.9, 1_700_000_001_000)]
    opened(store, replace(STUDY, figures=(earlier,)))
    assert len(history(store, run_id)["val/image_auroc"]) == 2
    # And back: the old point is there already, and would not be shown again with its old time.
    projection.write_figures(STUDY)
    assert shown(store, run_id)["val/image_auroc"] == 0.9


def test_a_figure_that_no_longer_holds_is_taken_back_once(store: str) -> None:
    recall = Point("test/image_recall", 0.75, 1_700_000_002_000)
    projection = opened(store, replace(STUDY, figures=(recall,)))
    run_id = projection.parent_run_id
    gone = replace(STUDY, figures=(replace(recall, value=math.nan),))
    for _ in range(2):
        opened(store, gone).write_figures(gone)
    assert math.isnan(shown(store, run_id)["test/image_recall"])
    assert len(history(store, run_id)["test/image_recall"]) == 2
    projection.write_figures(replace(STUDY, figures=(recall,)))
    assert shown(store, run_id)["test/image_recall"] == 0.75


def test_a_curve_grows_by_the_new_points_alone(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    projection = opened(store, STUDY)
    written: list[Any] = []
    log_batch = MlflowClient.log_batch

    def listen(client: MlflowClient, run_id: str, metrics: Any = (), **others: Any) -> Any:
        written.extend((metric.key, metric.step) for metric in metrics)
        return log_batch(client, run_id, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", listen)
    longer = replace(STUDY, curves=(*STUDY.curves, Point(BEST, 0.9, 1_700_000_003_000, 3)))
    projection.write_figures(longer)
    assert written == [(BEST, 3)]
    opened(store, longer)
    assert written == [(BEST, 3)]


def test_a_step_that_has_another_value_now_shows_it(store: str) -> None:
    run_id = opened(store, STUDY).parent_run_id
    other = replace(STUDY, curves=(*STUDY.curves[:1], replace(STUDY.curves[1], value=0.85)))
    for _ in range(2):
        opened(store, other)
    assert shown(store, run_id)[BEST] == 0.85
    assert len(history(store, run_id)[BEST]) == 3


def test_more_points_than_one_request_holds_arrive_also_after_a_cut(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures_module, "BATCH", 3)
    curve = tuple(Point(BEST, 0.5 + step / 100, 1_700_000_000_000 + step, step) for step in range(1, 9))
    long = replace(STUDY, curves=curve)
    projection = opened(store, replace(STUDY, curves=()))
    log_batch, batches = MlflowClient.log_batch, []

    def cut(client: MlflowClient, run_id: str, **parts: Any) -> Any:
        batches.append(len(parts["metrics"]))
        if len(batches) == 2:
            raise RuntimeError("cut")
        return log_batch(client, run_id, **parts)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", cut)
        with pytest.raises(RuntimeError, match="cut"):
            projection.write_figures(long)
    projection.write_figures(long)
    stored = history(store, projection.parent_run_id)[BEST]
    assert stored == [(point.step, point.value, point.time_ms) for point in curve]
    assert max(batches) == 3


def test_a_run_that_was_deleted_in_between_is_restored(store: str) -> None:
    projection = opened(store, STUDY)
    client = MlflowClient(tracking_uri=store)
    client.delete_run(projection.parent_run_id)
    projection.write_figures(replace(STUDY, figures=(Point("val/image_auroc", 0.95, 1_700_000_002_000),)))
    run = client.get_run(projection.parent_run_id)
    assert (run.info.lifecycle_stage, run.data.metrics["val/image_auroc"]) == ("active", 0.95)
