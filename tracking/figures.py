"""The figures of a study on its own run in MLflow: what holds now, and how the best value grew.

MLflow keeps every point (name, value, time, step) once and shows the one of the highest step, of these the latest. So a point
that is there is not written again, and a value that changed gets a time after that of the one it replaces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from tracking.records import Point

BATCH = 900
"""Points that are written in one request; MLflow takes 1000."""


class StudyFigures:
    """Writes the points of one run. Only one process writes them, so that what was read of the curves once need not be again."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._curves: dict[str, dict[int, Metric]] = {}
        """{curve: {step: its latest point}}, as far as they were read."""

    def write(self, run: Run, latest: Sequence[Point], curves: Sequence[Point]) -> None:
        """Write the points that the run lacks.

        Args:
            run: as it is stored now.
            latest: values that hold now, all of step 0. NaN takes back a value that was written before, and is nothing where none
                was.
            curves: points of which each step of each name keeps its own.
        """
        new = [metric for point in latest if (metric := self._changed(run, point)) is not None]
        grown = [metric for point in curves if (metric := self._grown(point)) is not None]
        for start in range(0, len(new) + len(grown), BATCH):
            self._client.log_batch(self._run_id, metrics=(new + grown)[start : start + BATCH])
        for metric in grown:
            self._curves[metric.key][metric.step] = metric

    def _changed(self, run: Run, point: Point) -> Metric | None:
        """A value as it is to be written; None where the run shows it."""
        shown = run.data.metrics.get(point.name)
        if shown is None:
            return None if math.isnan(point.value) else Metric(point.name, point.value, point.time_ms, point.step)
        if _same(shown, point.value):
            return None
        last = max(stored.timestamp for stored in self._client.get_metric_history(self._run_id, point.name))
        return Metric(point.name, point.value, max(point.time_ms, last + 1), point.step)

    def _grown(self, point: Point) -> Metric | None:
        """A point of a curve as it is to be written; None where the curve has it."""
        if point.name not in self._curves:
            stored = self._client.get_metric_history(self._run_id, point.name)
            ascending = sorted(stored, key=lambda metric: metric.timestamp)
            self._curves[point.name] = {metric.step: metric for metric in ascending}
        there = self._curves[point.name].get(point.step)
        if there is None:
            return Metric(point.name, point.value, point.time_ms, point.step)
        if _same(there.value, point.value):
            return None
        return Metric(point.name, point.value, max(point.time_ms, there.timestamp + 1), point.step)


def _same(stored: float, value: float) -> bool:
    return stored == value or (math.isnan(stored) and math.isnan(value))
