"""How the run of a study ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detectors.errors import InputError

if TYPE_CHECKING:  # a command that only prints an error does not wait for these
    from studies.search.view import StudyView, TrialView


class StudyFailedError(RuntimeError):
    """The study cannot go on; one line says why (exit code 1)."""


class LeaseLostError(InputError):
    """Another driver has the study now: this one must not touch it any more."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended."""

    view: StudyView
    reason: str
    """Why the search ended."""
    selected: TrialView | None
    parent_run_id: str
    remeasured: tuple[str, ...] = ()
    """A sentence on each trial whose speed was measured again before the selection."""
