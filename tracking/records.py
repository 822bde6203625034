"""What is projected into MLflow, as plain data: no Optuna on this side."""

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
    source: str
    """Where the images lay."""
    counts: dict[str, int]


@dataclass(frozen=True)
class StudyRecord:
    """A study, as its parent run shows it."""

    uid: str
    name: str
    experiment: str
    started_ms: int
    state: StudyState = "RUNNING"
    finished_ms: int | None = None
    note: str = ""
    """Markdown shown above the run."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Repeated on every child, since filters of the MLflow UI can hide a parent."""
    datasets: tuple[DatasetRecord, ...] = ()
    artifacts: Path | None = None
    """Folder whose files become the run's artifacts."""
    columns: tuple[str, ...] = ()
    """Of the table of its trials: ``metrics.<name>``, ``params.<name>``, ``tags.<name>``."""
    order_by: str = ""
    """The column that trials are ordered by; the latest first where there is none."""
    ascending: bool = False


@dataclass(frozen=True)
class TrialRecord:
    """A trial, as its child run shows it."""

    number: int
    attempt: int
    state: TrialState
    run_name: str
    started_ms: int
    finished_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: tuple[tuple[int, float, int], ...] = ()
    """Intermediate values: (step, value, time in ms)."""
    failure: str = ""
    feasible: bool | None = None
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    """{path among the run's artifacts ("" is their root): folder whose files go there}"""
    log: Path | None = None
    """Log whose tail explains a failure."""
