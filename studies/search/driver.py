"""ask -> submit -> tell: the loop of a search.

What makes a crash harmless: a trial's outcome lies in its folder before it is told, Optuna is told before MLflow is written, and
MLflow can be written again at any time. `studies.search.settling` takes up what an earlier driver left.
"""

from __future__ import annotations

from collections.abc import Callable

from optuna.trial import Trial

from detectors.errors import InputError
from studies.executors.base import Executor
from studies.search.attributes import Submission
from studies.search.job_factory import JobFactory
from studies.search.notices import Progressed, Retried, Started
from studies.search.opened import OpenStudy
from studies.search.outcome import StudyFailedError
from studies.search.provisional import Provisional
from studies.search.queue import Attempt, Queue
from studies.search.stopping import Stopping
from studies.search.telling import Telling
from studies.worker.jobs import FIRST_DETECTOR, RETRIED, Done, Event, Job, Lost, Report, Stage

POLL_SECONDS = 1.0


class Driver:
    """Keeps an executor busy with the queue's trials until it is time to stop, and tells Optuna what comes of each."""

    def __init__(
        self,
        opened: OpenStudy,
        executor: Executor,
        *,
        queue: Queue,
        jobs: JobFactory,
        telling: Telling,
        stopping: Stopping,
        check_lease: Callable[[], None],
    ) -> None:
        """Args: `check_lease` raises where another driver has the study by now."""
        self._opened, self._executor = opened, executor
        self._queue, self._jobs, self._telling, self._stopping = queue, jobs, telling, stopping
        self._check_lease = check_lease
        self._provisional = Provisional(opened, slots=executor.slots)
        self._running: dict[int, tuple[Trial, Job]] = {}

    def search(self) -> str:
        """Run trials to the end of the search; returns why it ended.

        A limit may end it while a trial waits for another attempt: `studies.search.settling.put_back` closes it.

        Raises:
            InputError: images, weights or stores fail, or another driver took the study over.
            StudyFailedError: too many trials failed in a row.
        """
        while True:
            reason = self._stopping.reason(len(self._running))
            while reason is None and len(self._running) < self._executor.slots and self._submit_next():
                reason = self._stopping.reason(len(self._running))
            if not self._running:
                reason = reason or self._stopping.reason(0)
                if reason is not None:
                    return reason
            self._executor.poll(POLL_SECONDS, self._handle)
            self._check_lease()

    def _submit_next(self) -> bool:
        """Submit one job; False where there is nothing to try any more."""
        following = self._queue.take()
        if following is None:
            return False
        attempt, params = following
        trial, number = attempt.trial, attempt.trial.number
        Submission(attempt=attempt.attempt, params=params, memory_halvings=attempt.memory_halvings).write(trial)
        self._telling.begin_attempt(number)
        job = self._jobs.make(
            "trial",
            number,
            params,
            attempt=attempt.attempt,
            memory_halvings=attempt.memory_halvings,
            keep_above=self._provisional.keep_above,
        )
        self._opened.write_trial(self._opened.trial(number))
        self._running[number] = (trial, job)
        self._executor.submit(job)
        self._opened.notify(Started(job))
        return True

    def _handle(self, event: Event) -> None:
        trial, job = self._running.get(event.number, (None, None))
        if trial is None or job is None or event.attempt != job.attempt:
            return
        if isinstance(event, Stage):
            self._opened.notify(Progressed(event))
            if event.name == FIRST_DETECTOR and event.done:
                self._check_lease()
                self._provisional.update()
            return
        # Another driver may have taken over meanwhile: nothing may be stored then.
        self._check_lease()
        if isinstance(event, Report):
            if self._telling.report(trial, event):
                self._executor.stop(event.number)
        else:
            del self._running[event.number]
            if isinstance(event, Done):
                self._telling.tell(trial, event.result)
            else:
                self._lose(trial, job, event)
            self._provisional.update()
        failures = self._telling.failures_in_a_row
        if len(failures) >= self._opened.config.execution.failures_in_a_row:
            raise StudyFailedError(
                f"{len(failures)} trials failed in a row, the last with: {failures[-1]}; see {job.path}"
            )

    def _lose(self, trial: Trial, job: Job, event: Lost) -> None:
        """A job that will not finish: bad input ends the study, a crash is tried again, the rest fails."""
        if self._telling.tell_stored_result(trial, job.attempt):
            return
        if event.kind == "bad_input":
            self._queue.requeue(trial.number)
            self._telling.fail(trial, f"bad_input: {event.message}")
            raise InputError(event.message)
        if event.kind not in RETRIED or event.attempt >= self._opened.config.execution.attempts:
            self._telling.fail(trial, f"{event.kind}: {event.message}")
            return
        is_short = event.kind == "out_of_memory"
        how = " with smaller batches" if is_short else ""
        self._opened.notify(Retried(event.number, event.attempt + 1, f"{event.kind}: {event.message}", how=how))
        self._queue.retry(Attempt(trial, event.attempt + 1, job.memory_halvings + is_short), first=True)
