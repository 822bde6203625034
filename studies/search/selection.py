"""Which trials could be deployed: constraints, the best value, the Pareto front. `studies.search.choice` takes one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from optuna.trial import FrozenTrial, TrialState

from studies.file.config import StudyConfig, metric_of
from studies.search.attributes import TrialAttributes

SPEED = ("fps", "latency_ms_p50", "latency_ms_p95", "throughput")
"""Metrics that depend on what else the machine does."""
Remeasured = Mapping[int, Mapping[str, float]]
"""{number of a trial: figures that were measured again and replace its own}"""
MISSED_BY_FAR = 1e9
"""Finite, for TPE models the violations."""


def violations(config: StudyConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """By how much each constraint is missed; met where 0 or less. A metric that is not there is missed by far."""
    missed, limits = {}, limits_of(config)
    for name, condition in config.constraints.items():
        limit = limits[name]
        value = metrics.get(metric_of(config, name))
        if value is None:
            missed[name] = MISSED_BY_FAR
        else:
            missed[name] = limit - value if condition.strip().startswith(">=") else value - limit
    return missed


def limits_of(config: StudyConfig) -> dict[str, float]:
    """{constraint: the value that just meets it}"""
    return {name: float(condition.strip()[2:]) for name, condition in config.constraints.items()}


def metrics_of(trial: FrozenTrial, remeasured: Remeasured) -> dict[str, float]:
    """The figures of the search as they stand."""
    return {**TrialAttributes.of(trial).outcome.metrics, **remeasured.get(trial.number, {})}


def is_feasible(config: StudyConfig, metrics: Mapping[str, float]) -> bool:
    """Whether all constraints are met."""
    return all(missed <= 0 for missed in violations(config, metrics).values())


def best_by_value(
    config: StudyConfig, trials: Sequence[FrozenTrial], remeasured: Remeasured = MappingProxyType({})
) -> FrozenTrial | None:
    """The feasible trial with the best first objective; ties go to the higher fps, then to the earlier one."""
    sign = 1 if config.direction == "maximize" else -1
    candidates = [
        (sign * trial.values[0], metrics.get("fps", 0.0), -trial.number, trial)
        for trial in trials
        if trial.state == TrialState.COMPLETE and is_feasible(config, metrics := metrics_of(trial, remeasured))
    ]
    return max(candidates, key=lambda candidate: candidate[:3], default=(0, 0, 0, None))[3]


def pareto_front(
    config: StudyConfig, trials: Sequence[FrozenTrial], remeasured: Remeasured = MappingProxyType({})
) -> set[int]:
    """Numbers of the feasible trials that no other one beats; empty for a single objective."""
    if len(config.objectives) < 2:
        return set()
    signs = [1 if way == "maximize" else -1 for way in config.objectives.values()]
    candidates = {
        trial.number: [sign * value for sign, value in zip(signs, trial.values, strict=True)]
        for trial in trials
        if trial.state == TrialState.COMPLETE and is_feasible(config, metrics_of(trial, remeasured))
    }
    return {
        number for number, own in candidates.items() if not any(_beats(other, own) for other in candidates.values())
    }


def _beats(first: Sequence[float], second: Sequence[float]) -> bool:
    """At least as good everywhere, and better somewhere."""
    pairs = list(zip(first, second, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
