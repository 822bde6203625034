"""What a finished search says about its parameters: how much each matters and what each choice is worth."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from studies.file.encoding import encode
from studies.search.view import DISCARDED, StudyView, TrialView

MIN_TRIALS = 8
"""Fewer finished trials say nothing about a parameter."""
BINS = 4
"""Ranges that a number's values are divided into, with as many trials each."""


@dataclass(frozen=True)
class Effect:
    """How the trials with one value, or a range of values, of one parameter did."""

    parameter: str
    value: str
    trials: int
    mean: float
    """Mean of the first objective."""
    best: float


@dataclass(frozen=True)
class Savings:
    """What the pruner spared a search."""

    trials: int
    """Trainings that it ended."""
    epochs: int
    """Of these trainings, that were not run."""
    seconds: float
    """What those would have taken, each at the mean pace of its own training so far, validation included."""
    spent: float
    """Seconds of training and validation in all trials that ended."""


def savings(view: StudyView) -> Savings | None:
    """None where nothing was pruned."""
    trials, epochs, seconds, spent = 0, 0, 0.0, 0.0
    for trial in view.trials():
        stages = trial.outcome.get("seconds", {})
        pace = stages.get("fit", 0.0) + stages.get("validate", 0.0)
        spent += pace
        done, wanted = max(trial.frozen.intermediate_values, default=0), trial.params.get("epochs")
        if trial.state == "PRUNED" and done and wanted:
            trials += 1
            epochs += wanted - done
            seconds += pace / done * (wanted - done)
    return Savings(trials, epochs, seconds, spent) if trials else None


def importances(view: StudyView) -> dict[str, float]:
    """Share of each searched parameter in what tells good trials from others, the largest first; they add up to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255) on the first objective. Empty where too few trials are finished, or
    none differ. Parameters that only some trials have are judged among those.
    """
    trials = [
        trial
        for trial in view.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if DISCARDED not in trial.user_attrs
    ]
    if len(trials) < MIN_TRIALS:
        return {}
    sound = optuna.create_study(direction=view.config.direction)
    for trial in trials:
        sound.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=trial.values[0], state=TrialState.COMPLETE
            )
        )
    names = sorted({name for trial in trials for name in trial.params})
    found: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            having = [trial for trial in sound.get_trials(deepcopy=False) if name in trial.params]
            if len(having) >= MIN_TRIALS and len({trial.params[name] for trial in having}) > 1:
                found[name] = _importance(view, having, name)
    total = sum(found.values())
    if total <= 0:
        return {}
    return {name: found[name] / total for name in sorted(found, key=lambda name: -found[name])}


def _importance(view: StudyView, trials: Sequence[optuna.trial.FrozenTrial], name: str) -> float:
    """Of one parameter, among the trials that have it."""
    alone = optuna.create_study(direction=view.config.direction)
    # A choice may be bounded differently from trial to trial; the widest range holds all.
    widest = _widest([trial.distributions[name] for trial in trials])
    for trial in trials:
        alone.add_trial(
            optuna.trial.create_trial(
                params={name: trial.params[name]}, distributions={name: widest}, value=trial.values[0]
            )
        )
    from optuna.importance import PedAnovaImportanceEvaluator  # its package imports scikit-learn, which takes a second

    evaluated = PedAnovaImportanceEvaluator(evaluate_on_local=True).evaluate(alone)
    value = float(evaluated.get(name, 0.0))
    return value if np.isfinite(value) else 0.0


def _widest(distributions: Sequence[Any]) -> Any:
    first = distributions[0]
    if isinstance(first, optuna.distributions.CategoricalDistribution):
        return first
    options = {"log": first.log, "step": first.step}
    return type(first)(min(d.low for d in distributions), max(d.high for d in distributions), **options)


def effects(view: StudyView) -> list[Effect]:
    """Mean and best first objective for each choice, or range of values, of each parameter that differs between trials."""
    finished = [trial for trial in view.trials() if trial.state == "COMPLETE" and trial.value is not None]
    names = list(dict.fromkeys(name for trial in finished for name in trial.params))
    found: list[Effect] = []
    for name in names:
        having = [trial for trial in finished if name in trial.params]
        values = {str(encode(trial.params[name])) for trial in having}
        if len(values) > 1:
            found += _effects_of(view, name, having)
    return found


def _effects_of(view: StudyView, name: str, trials: Sequence[TrialView]) -> list[Effect]:
    values = [trial.params[name] for trial in trials]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric or len(set(values)) <= BINS + 2:
        groups = {str(encode(value)): [t for t in trials if t.params[name] == value] for value in _in_order(values)}
    else:
        edges = np.quantile(np.asarray(values, float), np.linspace(0, 1, BINS + 1))
        places = np.clip(np.searchsorted(edges[1:-1], np.asarray(values, float), side="right"), 0, BINS - 1)
        groups = {}
        for place in range(BINS):
            members = [trial for trial, where in zip(trials, places, strict=True) if where == place]
            if members:
                inside = [trial.params[name] for trial in members]
                groups[f"{min(inside):.3g} .. {max(inside):.3g}"] = members
    sign = 1 if view.config.direction == "maximize" else -1
    return [
        Effect(name, text, len(group), fmean(scores), sign * max(sign * score for score in scores))
        for text, group in groups.items()
        if (scores := [trial.value for trial in group if trial.value is not None])
    ]


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Distinct values, numbers ascending, others as they come."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return sorted(distinct, key=lambda value: value if isinstance(value, int | float) else 0)
