"""Which detector of a study there is to use now, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from studies.worker.jobs import PROVISIONAL

if TYPE_CHECKING:  # a command that prints an error does not wait for Optuna
    from studies.search.view import StudyView, TrialView


def usable_now(view: StudyView, trial: TrialView) -> str:
    """A line on the detector that there is to use."""
    what = "which was selected before"
    if trial.provisional:
        is_judged = trial.state == "COMPLETE"
        what = (
            "provisional until the search ends" if is_judged else "not judged yet and provisional until the search ends"
        )
    return (
        f"a detector is usable now: `study predict {view.address} IMAGE...` takes that of trial {trial.number}, {what}"
    )


def provisional_remark(provenance: Mapping[str, Any]) -> str:
    """A line on a saved detector that is provisional, for wherever it is named; empty for any other.

    Args:
        provenance: of the detector.
    """
    if not provenance.get(PROVISIONAL):
        return ""
    study, trial = provenance.get("study", "NAME"), provenance.get("trial")
    return (
        f"provisional: the detector of trial {trial}, while the search has not ended; `study run {study}` goes on and refits "
        "the best trial"
    )
