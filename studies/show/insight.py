"""What a finished search shows about its parameters: the importance of each, and how the trials with each choice did."""

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
from studies.search.attributes import TrialAttributes
from studies.search.quiet import quiet_optuna
from studies.search.view import StudyView, TrialView

MIN_TRIALS = 8
"""Fewest finished trials from which the importance of a parameter is computed."""
BINS = 4
"""Number of ranges into which the values of a numeric parameter are divided, each with about as many trials."""


@dataclass(frozen=True)
class Effect:
    """How the trials with one value of a parameter, or a range of its values, did."""

    parameter: str
    value: str
    """The value, or the range as ``0.1 .. 0.5``."""
    trials: int
    """Number of trials."""
    mean: float
    """Mean of the first objective."""
    best: float
    """Best value of the first objective."""


@dataclass(frozen=True)
class Savings:
    """The work that pruning saved."""

    trials: int
    """Number of trainings that were ended early."""
    epochs: int
    """Number of epochs of these trainings that were not run."""
    seconds: float
    """Seconds that these epochs would have taken, at the mean pace of each training until then, validation included."""
    spent: float
    """Seconds of training and validation in all trials that ended."""


def savings(view: StudyView) -> Savings | None:
    """The work that pruning saved; None if no trial was pruned."""
    trials, epochs, seconds, spent = 0, 0, 0.0, 0.0
    for trial in view.trials():
        stages = trial.outcome.seconds
        pace = stages.get("fit", 0.0) + stages.get("validate", 0.0)
        spent += pace
        done, wanted = max(trial.frozen.intermediate_values, default=0), trial.params.get("epochs")
        if trial.state == "PRUNED" and done and wanted:
            trials += 1
            epochs += wanted - done
            seconds += pace / done * (wanted - done)
    return Savings(trials, epochs, seconds, spent) if trials else None


def importances(view: StudyView) -> dict[str, float]:
    """How much of the difference between good and other trials each searched parameter explains.

    Computed by PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255) on the first objective. A parameter that only some trials
    have is judged among those.

    Returns:
        Shares that add up to 1, the largest first; empty with fewer than `MIN_TRIALS` finished trials, or if no parameter
        differs between them.
    """
    trials = [
        trial
        for trial in view.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if TrialAttributes.of(trial).discarded is None
    ]
    if len(trials) < MIN_TRIALS:
        return {}
    with quiet_optuna():
        judged = optuna.create_study(direction=view.config.direction)
    for trial in trials:
        judged.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=trial.values[0], state=TrialState.COMPLETE
            )
        )
    names = sorted({name for trial in trials for name in trial.params})
    shares: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            having = [trial for trial in judged.get_trials(deepcopy=False) if name in trial.params]
            if len(having) >= MIN_TRIALS and len({trial.params[name] for trial in having}) > 1:
                shares[name] = _importance(view, having, name)
    total = sum(shares.values())
    if total <= 0:
        return {}
    return {name: shares[name] / total for name in sorted(shares, key=lambda name: -shares[name])}


def _importance(view: StudyView, trials: Sequence[optuna.trial.FrozenTrial], name: str) -> float:
    """Importance of one parameter among the trials that have it, not normalised; 0 if it cannot be computed."""
    with quiet_optuna():
        alone = optuna.create_study(direction=view.config.direction)
    # The range of a parameter may differ from trial to trial; the widest one contains all values.
    widest = _widest([trial.distributions[name] for trial in trials])
    for trial in trials:
        alone.add_trial(
            optuna.trial.create_trial(
                params={name: trial.params[name]}, distributions={name: widest}, value=trial.values[0]
            )
        )
    # Imported late: the package imports scikit-learn, which takes a second.
    from optuna.importance import PedAnovaImportanceEvaluator

    evaluated = PedAnovaImportanceEvaluator(evaluate_on_local=True).evaluate(alone)
    value = float(evaluated.get(name, 0.0))
    return value if np.isfinite(value) else 0.0


def _widest(distributions: Sequence[Any]) -> Any:
    """A distribution whose range contains those of all; the first one of categories."""
    first = distributions[0]
    if isinstance(first, optuna.distributions.CategoricalDistribution):
        return first
    options = {"log": first.log, "step": first.step}
    return type(first)(min(d.low for d in distributions), max(d.high for d in distributions), **options)


def effects(view: StudyView) -> list[Effect]:
    """How the finished trials with each choice, or in each range of values, did, for each parameter that differs between them."""
    finished = [trial for trial in view.trials() if trial.state == "COMPLETE" and trial.value is not None]
    names = list(dict.fromkeys(name for trial in finished for name in trial.params))
    all_effects: list[Effect] = []
    for name in names:
        having = [trial for trial in finished if name in trial.params]
        values = {str(encode(trial.params[name])) for trial in having}
        if len(values) > 1:
            all_effects += _effects_of(view, name, having)
    return all_effects


def _effects_of(view: StudyView, name: str, trials: Sequence[TrialView]) -> list[Effect]:
    """The effects of one parameter: one for each value, or for each range if a number has more than `BINS` + 2 values."""
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
    """The distinct values: numbers in ascending order, others in the order of their first occurrence."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return sorted(distinct, key=lambda value: value if isinstance(value, int | float) else 0)
