"""The contract of every executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from studies.worker.jobs import Event, Job


class Executor(Protocol):
    """Runs jobs somewhere and tells what becomes of them. Used by one thread.

    Every submitted job ends with exactly one `Done` or `Lost`, unless it was stopped or the executor closed; the events of
    one job come in order.
    """

    @property
    def slots(self) -> int:
        """Jobs that can run at the same time."""

    def submit(self, job: Job) -> None:
        """Start a job. The caller never has more than `slots` jobs under way."""

    def poll(self, timeout: float) -> Sequence[Event]:
        """What has happened since; waits up to `timeout` seconds for the first event."""

    def stop(self, number: int) -> None:
        """Ask a running trial to end early; it still ends with an event. Unknown numbers are ignored."""

    def close(self) -> None:
        """End all work now and leave no process behind; may be called twice."""
