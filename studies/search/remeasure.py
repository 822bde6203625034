"""Speed that was measured on a busy machine, measured once more before a trial is given up for it.

The lock of a device keeps other trials away from a measurement, but not other programs. A trial that misses a constraint on speed
for their sake would be lost for good, and a worse one selected. So at the end of the search, those of them that could be selected
are measured again, the best first, at most `MOST` of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from optuna.trial import TrialState

from detectors.runtime.latency import is_disturbed
from studies.file.config import StudyConfig
from studies.search.notices import Remark
from studies.search.opened import OpenStudy
from studies.search.outcome import StudyFailedError
from studies.search.refit import Refit
from studies.search.selection import SPEED, best_by_value, limits_of, violations
from studies.search.view import TrialView
from studies.worker.jobs import read_result

MOST = 5
"""Trials that are measured again in one run of a study."""
FACTOR = 10
"""A constraint that is missed by more is not missed because of other programs."""
MOST_FIT_SECONDS = 900.0
"""A trial keeps no detector: one whose fit took longer is not fitted again for the sake of its speed."""


def missed_while_busy(config: StudyConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """{constraint on speed that is missed: its limit} of a trial that was measured on a busy machine and misses nothing else.

    Empty where the trial meets its constraints, was measured on a quiet machine, misses another constraint, or one by far.
    """
    limits = limits_of(config)
    missed = {name: limits[name] for name, by in violations(config, metrics).items() if by > 0}
    if not set(missed) <= set(SPEED) or not is_disturbed(metrics):
        return {}
    for name, limit in missed.items():
        value = metrics.get(name, 0.0)
        low, high = sorted((value, limit))
        if low <= 0 or high >= FACTOR * low:
            return {}
    return missed


class Remeasurement:
    """Measures the speed of trials again. Killed in between, the next run of the study begins with what is not stored yet."""

    def __init__(self, opened: OpenStudy, refit: Refit) -> None:
        self._opened, self._refit = opened, refit

    def run(self) -> tuple[str, ...]:
        """Measure what could be selected; returns a sentence on each.

        Raises:
            InputError: images or weights are not what they were, or another driver has the study.
        """
        said: list[str] = []
        tried: set[int] = set()
        while len(tried) < MOST and (trial := self._next(tried)) is not None:
            tried.add(trial.number)
            said.append(self._measure(trial))
            self._opened.notify(Remark(said[-1]))
        return tuple(said)

    def _next(self, tried: set[int]) -> TrialView | None:
        """The trial that would be best if every one of these met its limits; None where it is one that meets them anyway."""
        view, assumed, hopeful = self._opened.view, dict(self._opened.view.remeasured), {}
        for trial in view.trials():
            missed = missed_while_busy(view.config, trial.metrics) if trial.state == "COMPLETE" else {}
            if missed and trial.number not in tried:
                hopeful[trial.number] = trial
                assumed[trial.number] = {**assumed.get(trial.number, {}), **missed}
        best = best_by_value(view.config, self._opened.all_trials(TrialState.COMPLETE), assumed) if hopeful else None
        return hopeful.get(best.number) if best is not None else None

    def _measure(self, trial: TrialView) -> str:
        config = self._opened.config
        before, missed = trial.metrics, missed_while_busy(config, trial.metrics)
        if (seconds := before.get("train_seconds", 0.0)) > MOST_FIT_SECONDS:
            return (
                f"trial {trial.number} missed {_conditions(config, missed)} on a busy machine and was not measured again, "
                f"because its fit takes {seconds / 60:.0f} minutes; a fresh study on a quiet machine would tell"
            )
        try:
            self._refit.run(trial, "speed")
        except StudyFailedError as error:
            return f"trial {trial.number} could not be measured again: {error}"
        result = read_result(self._opened.view.speed_folder(trial.number))
        if result is None:
            return f"trial {trial.number} could not be measured again: its result is gone"
        now, is_still_busy = result.metrics, is_disturbed(result.metrics)
        # Other programs only ever slow a detector down: of two measurements among them the faster one is nearer to the truth.
        is_nearer = not is_still_busy or now.get("fps", 0.0) > before.get("fps", 0.0)
        if is_nearer:
            self._opened.store_remeasured(trial.number, now, time.time())
        left = [name for name, by in violations(config, {**before, **now}).items() if by > 0]
        figures = ", ".join(
            f"{name} {now.get(name, 0.0):.4g} instead of {before.get(name, 0.0):.4g}" for name in missed
        )
        verdict = (
            f"it still misses {_conditions(config, left)}" if left else f"it now meets {_conditions(config, missed)}"
        )
        if not is_still_busy:
            return f"trial {trial.number} was measured again on a quiet machine: {figures}; {verdict}"
        load = now.get("latency_load")
        by = f" (other programs used {100 * load:.0f} % of its cores)" if load is not None else ""
        again = "; the same command measures it once more" if left else ""
        again = again if is_nearer else f"; the faster figure, the earlier one, stays{again}"
        return (
            f"trial {trial.number} was measured again, and the machine was busy again{by}: {figures}; {verdict}{again}"
        )


def _conditions(config: StudyConfig, names: Mapping[str, float] | list[str]) -> str:
    return ", ".join(f"{name} {config.constraints[name]}" for name in names)
