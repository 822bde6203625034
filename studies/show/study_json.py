"""A study as JSON for scripts."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from studies.search import advice_words, nested, threshold_words
from studies.search.answers import stored_advice
from studies.search.choice import sentences
from studies.search.gain import gain
from studies.search.operating_point import OperatingPoint, points_on_test
from studies.search.outcome import Outcome
from studies.search.view import StudyView, TrialView
from studies.show import insight


def study_json(view: StudyView) -> dict[str, Any]:
    """A study with all its trials as data for `json.dumps`."""
    header, usable = view.header, view.usable()
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
        "choice": choice_json(view),
        "advice": advice_json(view),
        "nested": nested.to_json(view.nested()),
        "usable": _usable_json(usable) if usable is not None else None,
        "gain": asdict(found) | {"text": found.line} if (found := gain(view)) is not None else None,
        "savings": asdict(saved) if (saved := insight.savings(view)) else None,
        "importances": insight.importances(view),
        "effects": [asdict(effect) for effect in insight.effects(view)],
        "ledger": [line.model_dump() for line in view.ledger()],
        "ledger_faults": view.ledger_faults(),
    }


def advice_json(view: StudyView) -> dict[str, Any]:
    """What would help most, as sentences, and the fits that were made to find out."""
    stored = stored_advice(view)
    answers = {name: answer.model_dump(mode="json") for name, answer in stored.answers.items()} if stored else {}
    return {"text": advice_words.lines(view), "answers": answers}


def choice_json(view: StudyView) -> dict[str, Any] | None:
    """Which trial is selected and why, as data for `json.dumps`; None where none is."""
    choice = view.choice()
    if choice is None:
        return None
    return choice.model_dump(mode="json", exclude={"basis"}) | {"text": sentences(choice, view.config)}


def operating_point_json(point: OperatingPoint) -> dict[str, Any]:
    """An operating point as data for `json.dumps`; shares are from 0 to 1."""
    counts, threshold = point.counts, point.threshold
    return {
        "product": point.product,
        "found": counts.caught if counts else None,
        "defective": counts.defective if counts else None,
        "false_alarms": counts.alarms if counts else None,
        "good": counts.good if counts else None,
        "per_defect": {kind: list(pair) for kind, pair in counts.per_defect.items()} if counts else {},
        "threshold": threshold.to_json() if threshold else None,
        "supports_rate": threshold.supports_rate if threshold else None,
        "normals_needed": threshold.normals_needed if threshold else None,
        "rate_interval": list(interval) if threshold and (interval := threshold.rate_interval) else None,
        "text": threshold_words.found(counts) if counts else None,
        "threshold_text": list(threshold_words.lines(threshold)) if threshold else [],
    }


def trial_json(trial: TrialView) -> dict[str, Any]:
    """A trial as data for `json.dumps`; times are seconds since the epoch, paths are absolute."""
    return {
        "number": trial.number,
        "state": trial.state,
        "selected": trial.selected,
        "pareto": trial.pareto,
        "feasible": trial.feasible,
        "origin": trial.attributes.origin,
        "warm_from": trial.attributes.warm_from,
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


def _usable_json(trial: TrialView) -> dict[str, Any]:
    """The detector that there is to use now."""
    return {
        "trial": trial.number,
        "provisional": trial.provisional,
        "detectors": {name: str(folder) for name, folder in trial.detectors.items()},
    }


def _timestamp(moment: datetime | None) -> float | None:
    """A time as seconds since the epoch; None if there is none."""
    return moment.timestamp() if moment else None


def outcome_json(outcome: Outcome) -> str:
    """The JSON that ``study run --json`` prints: the study, how the run ended, and the selected trial at its threshold."""
    view, selected = outcome.view, outcome.selected
    points = points_on_test(view, selected) if selected is not None else []
    data = study_json(view) | {
        "reason": outcome.reason,
        "selected": selected.number if selected else None,
        "parent_run_id": outcome.parent_run_id,
        "operating_points": [operating_point_json(point) for point in points],
        "remeasured": list(outcome.remeasured),
    }
    return json.dumps(data, indent=1)
