"""A study as JSON for scripts."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from studies.search.outcome import Outcome
from studies.search.view import StudyView, TrialView
from studies.show import insight


def study_json(view: StudyView) -> dict[str, Any]:
    """A study with all its trials as data for `json.dumps`."""
    header = view.header
    return {
        "name": view.study.study_name,
        "uid": header.uid,
        "experiment": header.experiment,
        "identity": header.identity,
        "counts": header.counts,
        "backbones": header.backbones,
        "dropped": header.dropped,
        "config": view.config.to_json(),
        "trials": [trial_json(trial) for trial in view.trials()],
        "savings": asdict(saved) if (saved := insight.savings(view)) else None,
        "importances": insight.importances(view),
        "effects": [asdict(effect) for effect in insight.effects(view)],
        "ledger": [line.model_dump() for line in view.ledger()],
    }


def trial_json(trial: TrialView) -> dict[str, Any]:
    """A trial as data for `json.dumps`; times are seconds since the epoch, paths are absolute."""
    return {
        "number": trial.number,
        "state": trial.state,
        "selected": trial.selected,
        "pareto": trial.pareto,
        "feasible": trial.feasible,
        "params": trial.params,
        "values": list(trial.frozen.values or []),
        "metrics": trial.metrics,
        "test_metrics": trial.test_metrics,
        "failure": trial.failure,
        "seconds": trial.seconds,
        "stages": trial.outcome.seconds,
        "asked": _timestamp(trial.frozen.datetime_start),
        "told": _timestamp(trial.frozen.datetime_complete),
        "folder": str(trial.folder),
        "detector": str(trial.detector) if trial.detector else None,
        "detectors": {name: str(folder) for name, folder in trial.detectors.items()},
    }


def _timestamp(moment: datetime | None) -> float | None:
    """A time as seconds since the epoch; None if there is none."""
    return moment.timestamp() if moment else None


def outcome_json(outcome: Outcome) -> str:
    """The JSON that ``study run --json`` prints: the study and how the run ended."""
    data = study_json(outcome.view) | {
        "reason": outcome.reason,
        "selected": outcome.selected.number if outcome.selected else None,
        "parent_run_id": outcome.parent_run_id,
        "remeasured": list(outcome.remeasured),
    }
    return json.dumps(data, indent=1)
