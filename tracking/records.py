"""What is written into MLflow, as plain data that does not depend on Optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TrialState = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]
StudyState = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RUN_STATUS: dict[str, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
"""Trial state -> MLflow run status."""


@dataclass(frozen=True)
class DatasetRecord:
    """One image set of a study."""

    name: str
    """``<dataset>/<category>``"""
    context: str
    """``train``, ``validation`` or ``test``."""
    digest: str
    """sha256 of the images."""
    source: str
    """Folder or address of the images."""
    counts: dict[str, int]
    """{type of defect, or ``good``: number of images}"""


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    """NaN for a value that does not hold any more, and for one that never did."""
    time_ms: int
    """Milliseconds since the epoch."""
    step: int = 0


@dataclass(frozen=True)
class StudyRecord:
    """A study, as it is written to its parent run. Times are milliseconds since the epoch."""

    uid: str
    name: str
    experiment: str
    started_ms: int
    state: StudyState = "RUNNING"
    finished_ms: int | None = None
    note: str = ""
    """Description of the run in Markdown."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Tags that the runs of all trials get too, because filters of the MLflow UI can hide the parent run."""
    datasets: tuple[DatasetRecord, ...] = ()
    figures: tuple[Point, ...] = ()
    """Metrics that hold for the study now, each name once, all of step 0."""
    curves: tuple[Point, ...] = ()
    """Metrics that grow with the study: a point for each step."""
    artifacts: Path | None = None
    """Folder whose files become the run's artifacts."""
    columns: tuple[str, ...] = ()
    """Columns of the table of its trials: ``metrics.<name>``, ``params.<name>`` or ``tags.<name>``."""
    order_by: str = ""
    """The column by which trials are ordered; empty for the latest first."""
    ascending: bool = False


@dataclass(frozen=True)
class TrialRecord:
    """A trial, as it is written to its child run. Times are milliseconds since the epoch."""

    number: int
    attempt: int
    state: TrialState
    run_name: str
    started_ms: int
    finished_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)
    """Figures that were measured again after the trial; MLflow shows them in place of its own, which stay in their history."""
    later_ms: int | None = None
    revised_ms: int | None = None
    """When the figures on test, and the threshold, were set anew after the trial; None where they were not."""
    steps: tuple[tuple[int, float, int], ...] = ()
    """Intermediate values: (step, value, time)."""
    failure: str = ""
    """Why the trial failed or was pruned; empty if it finished."""
    feasible: bool | None = None
    """Whether it meets the constraints; None if that is not known."""
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    """{path within the run's artifacts ("" is their root): folder whose files are stored there}"""
    log: Path | None = None
    """Log of the trial, whose end is stored if the trial failed."""
