"""A stored study, opened as commands do, and grown by trials of every state in a moment."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from studies.home import Home
from studies.search import storage as studies_storage
from studies.search.attributes import JOB, OUTCOME
from studies.search.storage import open_storage
from studies.search.view import StudyView


def open_view(folder: Path, name: str) -> StudyView:
    """A study in the ``home`` of a folder."""
    home = Home(folder / "home")
    return StudyView(*studies_storage.load_study(open_storage(home), name), home)


def grown(view: StudyView, count: int) -> StudyView:
    """The study with so many trials more, of every state, without a storage."""
    stored = optuna.create_study(study_name=view.study.study_name, directions=view.study.directions)
    stored.add_trials(view.study.get_trials())
    begin = datetime(2026, 1, 1)
    for number in range(len(stored.trials), len(stored.trials) + count):
        state = {3: TrialState.FAIL, 5: TrialState.PRUNED}.get(number % 10, TrialState.COMPLETE)
        params = {"n_features": 4 + number % 37, "shrinkage": (number * 7 % 50) / 100}
        metrics = {
            "val/image_auroc": 0.6 + params["shrinkage"] / 2,
            "val/pixel_auroc": 0.9,
            "fps": 5.0 + params["n_features"],
        }
        start = begin + timedelta(seconds=10 * number)
        outcome: dict[str, Any] = {
            "started": start.timestamp(),
            "finished": start.timestamp() + 8,
            "seconds": {"fit": 5.0, "score (validation)": 2.0},
            "environment": {"host": "here", "device": "cpu"},
            "metrics": metrics if state == TrialState.COMPLETE else {},
        }
        if state == TrialState.FAIL:
            outcome["failure"] = "exception: <b>no</b> & more"
        stored.add_trial(
            create_trial(
                state=state,
                value=metrics["val/image_auroc"] if state == TrialState.COMPLETE else None,
                params=params,
                distributions={
                    "n_features": optuna.distributions.IntDistribution(4, 40),
                    "shrinkage": optuna.distributions.FloatDistribution(0.0, 0.5),
                },
                intermediate_values={1: 0.5} if state == TrialState.PRUNED else None,
                user_attrs={JOB: {"attempt": 1, "params": params | {"epochs": 4}}, OUTCOME: outcome},
            )
        )
    return StudyView(stored, view.header, view.home)
