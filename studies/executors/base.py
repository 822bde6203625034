"""The contract of every executor, and of what an entry point of the group `anomaly_studies.executors` leads to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from studies.worker.jobs import Event, Job


class Executor(Protocol):
    """Runs jobs somewhere and reports what becomes of them. Used by one thread.

    Every submitted job ends with exactly one `Done` or `Lost`, unless it was stopped or the executor closed; the events of
    one job come in order. `studies.testing` holds the tests of this contract.
    """

    @property
    def slots(self) -> int:
        """Jobs that can run at the same time."""

    def submit(self, job: Job) -> None:
        """Start a job. The caller never has more than `slots` jobs under way."""

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        """Hand every event since the last call to `handle`, and wait up to `timeout` seconds for the first one.

        An executor that works within `poll` hands events on while the job still runs, so that `handle` may `stop` it. What
        `handle` raises ends the call.
        """

    def stop(self, number: int) -> None:
        """Ask a running trial to end early; it still ends with an event. Unknown numbers are ignored."""

    def close(self) -> None:
        """End all work now and leave no process behind; may be called twice."""


@dataclass(frozen=True)
class ExecutorOptions:
    """What a person asked of an executor, on the command line and under ``execution`` in the study file."""

    jobs: int | Literal["auto"] = 1
    """Jobs at the same time at most; ``auto``: as many as there is room for."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    gpus_per_trial: float = 1.0
    """0.5 puts two jobs on a GPU, 2 gives each job two GPUs."""
    trial_timeout: float = float("inf")
    """Seconds after which a job is ended and lost."""
    address: str | None = None
    """Of a cluster; only for an executor that takes one."""
    say: Callable[[str], None] = lambda line: None
    """Called with lines for the person who waits, such as a node that is left out."""


@dataclass(frozen=True)
class ExecutorPlugin:
    """An executor for ``study run --executor NAME``: what an entry point leads to.

    >>> from studies.executors.inline import InlineExecutor
    >>> plugin = ExecutorPlugin(make=lambda options: InlineExecutor())
    >>> plugin.make(ExecutorOptions(jobs=1)).slots
    1
    """

    make: Callable[[ExecutorOptions], Executor]
    """Makes the executor. Raises `InputError` for options that it cannot meet."""
    remote: bool = False
    """Whether jobs run on other machines: the devices of this one are then not looked for, and without ``--jobs`` as many jobs
    run as there is room for."""
    takes_address: bool = False
    """Whether `ExecutorOptions.address` means something to it."""
