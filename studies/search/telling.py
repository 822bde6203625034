"""What Optuna is told of a trial: intermediate values, and how it ended."""

from __future__ import annotations

import math
import time

from optuna.trial import Trial, TrialState

from studies.file.config import metric_of
from studies.search.attributes import TrialOutcome
from studies.search.notices import Finished
from studies.search.opened import OpenStudy
from studies.search.selection import violations
from studies.worker.jobs import Report, TrialResult, read_result


class Telling:
    """Tells trials to Optuna, then to MLflow, then to whoever watches, in this order.

    A driver that is killed in between is made good for by the next one, which tells what lies in the trials' folders.
    """

    def __init__(self, opened: OpenStudy) -> None:
        self._opened, self._study, self._config = opened, opened.study, opened.config
        self._failures: list[str] = []
        self._pruned: set[int] = set()
        """Trials that were told to stop: they are pruned, even where their training ended before it heard of it."""

    @property
    def failures_in_a_row(self) -> tuple[str, ...]:
        """Why the trials since the last one that did not fail failed."""
        return tuple(self._failures)

    def forget_failures(self) -> None:
        """Begin to count anew: failures of an earlier run do not end this one."""
        self._failures.clear()

    def begin_attempt(self, number: int) -> None:
        """A trial is submitted: another attempt reports its epochs again, and is judged by them again."""
        self._pruned.discard(number)

    def report(self, trial: Trial, event: Report) -> bool:
        """Store an intermediate value; True where the pruner gives the trial up, which is then to be stopped.

        Optuna takes none of several objectives, and of each step the first attempt's. What a trial that was given up still
        reports does not count.
        """
        if len(self._config.objectives) > 1 or event.number in self._pruned:
            return False
        if event.step not in self._opened.frozen(event.number).intermediate_values:
            trial.report(event.value, event.step)
        if trial.should_prune():
            self._pruned.add(event.number)
            return True
        return False

    def tell_stored_result(self, trial: Trial, attempt: int) -> bool:
        """Tell the result that an attempt left before its worker or its driver died; False where there is none."""
        result = read_result(self._opened.view.trial_folder(trial.number))
        if result is None or result.attempt != attempt:
            return False
        self.tell(trial, result)
        return True

    def tell(self, trial: Trial, result: TrialResult) -> None:
        """Complete or prune a trial; where an objective is missing or not finite, it fails."""
        if result.pruned or trial.number in self._pruned:
            _outcome(result).model_copy(update={"metrics": {}, "pruned": True}).write(trial)
            self._study.tell(trial, state=TrialState.PRUNED)
            self._end(trial.number)
            return
        values = {name: result.metrics.get(metric_of(self._config, name), math.nan) for name in self._config.objectives}
        missing = [name for name, value in values.items() if not math.isfinite(value)]
        if missing:
            reasons = "; ".join(dict.fromkeys(result.undefined.values())) or "not finite"
            self.fail(trial, f"exception: objective {', '.join(missing)} is undefined ({reasons})", result)
            return
        # The first write stays: a driver that was killed at this place may have written some.
        written = self._opened.frozen(trial.number).constraints
        for name, missed_by in violations(self._config, result.metrics).items():
            if name not in written:
                trial.set_constraint(name, missed_by)
        _outcome(result).write(trial)
        self._study.tell(trial, list(values.values()))
        self._end(trial.number)

    def fail(self, trial: Trial, failure: str, result: TrialResult | None = None) -> None:
        """Fail a trial.

        Args:
            failure: ``<kind>: <message>``.
            result: where there is one that cannot be used.
        """
        outcome = _outcome(result) if result else TrialOutcome(finished=time.time())
        outcome.model_copy(update={"failure": failure[:1000]}).write(trial)
        self._study.tell(trial, state=TrialState.FAIL)
        self._end(trial.number, failure)

    def _end(self, number: int, failure: str | None = None) -> None:
        if failure is None:
            self._failures.clear()
        else:
            self._failures.append(failure)
        opened = self._opened
        trial = opened.trial(number)
        opened.write_trial(trial)
        opened.write_figures()
        if self._config.protocol == "paper":
            opened.count_ledger()
        opened.notify(Finished(trial, opened.count_finished(), opened.view.best()))


def _outcome(result: TrialResult) -> TrialOutcome:
    """What the storage keeps of a result."""
    return TrialOutcome(
        metrics=result.metrics,
        seconds=result.seconds,
        environment=result.environment,
        undefined=result.undefined,
        started=result.started,
        finished=result.finished,
    )
