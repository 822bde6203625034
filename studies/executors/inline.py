"""Jobs one after the other in this process: for tests, debuggers and profilers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from studies.executors.failure import lost
from studies.worker.jobs import Done, Event, Job, Lost
from studies.worker.trial import run_job


class InlineExecutor:
    """Runs a job within `poll`."""

    slots = 1

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._stopped: set[int] = set()

    def submit(self, job: Job) -> None:
        """Keep a job for the next `poll`."""
        self._waiting.append(job)

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        """Run the oldest job to its end, and hand its events on as they happen."""
        if not self._waiting:
            return
        job = self._waiting.popleft()
        self._stopped.discard(job.number)
        handle(self._run(job, handle))

    def _run(self, job: Job, emit: Callable[[Event], None]) -> Done | Lost:
        refused: list[Exception] = []

        def emit_unless_refused(event: Event) -> None:
            try:
                emit(event)
            except Exception as error:
                refused.append(error)
                raise

        try:
            result = run_job(job, emit_unless_refused, lambda: job.number in self._stopped)
        except Exception as error:
            # What the listener raises is no fault of the job.
            if error in refused:
                raise
            return lost(job, error)
        return Done(job.number, job.attempt, result)

    def stop(self, number: int) -> None:
        """The job sees it at its next step."""
        self._stopped.add(number)

    def close(self) -> None:
        """Forget what has not begun."""
        self._waiting.clear()
