"""Jobs one after the other in this process: for tests, debuggers and profilers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from studies.executors.failure import lost
from studies.worker.jobs import Done, Event, Job
from studies.worker.trial import run_job


class InlineExecutor:
    """Runs a job within `poll`.

    What happens during a job would reach the caller only after its end: `deliver`, where it is set, hears of it at once,
    so that a job can be stopped, and `poll` returns the rest.
    """

    slots = 1

    def __init__(self) -> None:
        self.deliver: Callable[[Event], None] | None = None
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
        self._stopped.discard(job.number)
        events: list[Event] = []
        try:
            result = run_job(job, self.deliver or events.append, lambda: job.number in self._stopped)
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
