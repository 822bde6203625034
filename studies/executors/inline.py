"""Jobs one after the other in this process: for tests, debuggers and profilers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from studies.executors.failure import lost
from studies.jobs import Done, Event, Job
from studies.trial import run_job


class InlineExecutor:
    """Runs a job within `poll`."""

    slots = 1

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._stopped: set[int] = set()

    def submit(self, job: Job) -> None:
        """Keep a job for the next `poll`."""
        self._waiting.append(job)

    def poll(self, timeout: float) -> Sequence[Event]:
        """Run the oldest job to its end."""
        if not self._waiting:
            return []
        job = self._waiting.popleft()
        events: list[Event] = []
        try:
            result = run_job(job, events.append, lambda: job.number in self._stopped)
            events.append(Done(job.number, job.attempt, result))
        except Exception as error:
            events.append(lost(job, error))
        return events

    def stop(self, number: int) -> None:
        """The job sees it at its next step."""
        self._stopped.add(number)

    def close(self) -> None:
        """Forget what has not begun."""
        self._waiting.clear()
