"""The feasible finished trials of a study, with what is known to choose among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from studies.file.config import StudyConfig, metric_of
from studies.file.encoding import canonical
from studies.file.keys import DETECTOR_KEY
from studies.search import portfolio
from studies.search.attributes import TrialAttributes
from studies.search.choice import MOST_COMPARED, Candidate, Choice, Preference, applies, basis_of, decide
from studies.search.noise import spread_of
from studies.search.selection import Remeasured, is_feasible, metrics_of
from studies.worker.jobs import ARTIFACTS


def candidates(
    config: StudyConfig, trials: Sequence[FrozenTrial], remeasured: Remeasured, *, folder: Callable[[int], Path]
) -> list[Candidate]:
    """Candidates by number; the scores of the best by value alone are read.

    Args:
        folder: gives the folder of a trial.
    """
    sign = 1 if config.direction == "maximize" else -1
    found = [
        Candidate(trial.number, (trial.values[0],), preference_of(config, trial, metrics))
        for trial in trials
        if trial.state == TrialState.COMPLETE and is_feasible(config, metrics := metrics_of(trial, remeasured))
    ]
    if not applies(config):
        return found
    objective, seed = next(iter(config.objectives)), config.sampler.seed
    compared = sorted(found, key=lambda one: -sign * one.value)[:MOST_COMPARED]
    spreads = {one.number: spread_of(folder(one.number) / ARTIFACTS, objective, seed=seed) for one in compared}
    return [Candidate(one.number, one.values, one.preference, spreads.get(one.number)) for one in found]


def preference_of(config: StudyConfig, trial: FrozenTrial, metrics: Mapping[str, float]) -> Preference:
    """What decides where a trial ties with others."""
    params = TrialAttributes.of(trial).job.params
    detector = str(params.get(DETECTOR_KEY, config.detectors[0]))
    return Preference(
        prior=_place(detector, canonical(params)),
        localisation=-metrics.get(metric_of(config, "pixel_aupro"), 0.0),
        speed=-metrics.get("fps", 0.0),
        order=trial.number,
    )


def basis(config: StudyConfig, trials: Sequence[FrozenTrial], remeasured: Remeasured) -> str:
    """What a stored choice must have been made of to stand."""
    return basis_of(
        config,
        (
            (trial.number, trial.values[0], is_feasible(config, metrics_of(trial, remeasured)))
            for trial in trials
            if trial.state == TrialState.COMPLETE
        ),
    )


def choose(
    config: StudyConfig, trials: Sequence[FrozenTrial], remeasured: Remeasured, *, folder: Callable[[int], Path]
) -> Choice | None:
    """The choice by what the trials themselves have measured; None where no trial is feasible."""
    found = candidates(config, trials, remeasured, folder=folder)
    choice = decide(found, maximize=config.direction == "maximize", ties=applies(config))
    if choice is None:
        return None
    return choice.model_copy(update={"basis": basis(config, trials, remeasured)})


@lru_cache(maxsize=1024)
def _place(detector: str, setting: str) -> float:
    place = portfolio.order(detector, json.loads(setting))
    return math.inf if place is None else float(place)
