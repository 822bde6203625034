"""The events of a run, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `study run --help` imports this module and waits for neither torch nor Optuna
    from studies.search.view import TrialView
    from studies.worker.jobs import Job, Stage


@dataclass(frozen=True)
class Opened:
    """The study is there."""

    name: str
    new: bool
    counted: int
    """Trials that count already."""
    feasible: int
    """Of these, those that meet every constraint."""
    budget: int
    constrained: bool
    """There are constraints at all."""
    parent_run_id: str


@dataclass(frozen=True)
class Started:
    """A job was handed to a worker."""

    job: Job


@dataclass(frozen=True)
class Progressed:
    """A worker is at a new stage."""

    stage: Stage


@dataclass(frozen=True)
class Retried:
    """A trial goes on with another attempt."""

    number: int
    attempt: int
    reason: str
    how: str = ""
    """What is done otherwise this time."""


@dataclass(frozen=True)
class Finished:
    """A trial has ended."""

    trial: TrialView
    counted: int
    best: TrialView | None


@dataclass(frozen=True)
class Ended:
    """A job has ended that is no trial."""

    job: Job


@dataclass(frozen=True)
class Remark:
    """A line for the person."""

    text: str


Notice = Opened | Started | Progressed | Retried | Finished | Ended | Remark
Listener = Callable[[Notice], None]
