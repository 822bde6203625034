"""Jobs in spawned worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from studies.jobs import LOG_FILE, Done, Event, Job, Lost

GRACE_SECONDS = 3.0
"""How long a worker may take to end after it was told to."""


@dataclass
class _Slot:
    """One worker process and the job it is at."""

    process: SpawnProcess
    pipe: Connection
    job: Job | None = None
    deadline: float = float("inf")


class LocalExecutor:
    """Up to `slots` worker processes.

    Args:
        reuse: a worker takes job after job, which saves the 3 to 6 seconds of a fresh start; without it, each job gets a
            process of its own, which gives all of a GPU's memory back.
        trial_timeout: seconds after which a job is killed and lost.
    """

    def __init__(self, *, slots: int = 1, reuse: bool = True, trial_timeout: float = float("inf")) -> None:
        self.slots, self._reuse, self._trial_timeout = slots, reuse, trial_timeout
        self._context = multiprocessing.get_context("spawn")
        self._slots: list[_Slot] = []

    def submit(self, job: Job) -> None:
        """Hand a job to an idle worker, or to a new one."""
        idle = [slot for slot in self._slots if slot.job is None]
        for dead in [slot for slot in idle if not slot.process.is_alive()]:
            idle.remove(dead)
            self._retire(dead)
        slot = idle[0] if idle else self._start()
        slot.job, slot.deadline = job, time.monotonic() + self._trial_timeout
        try:
            slot.pipe.send(job)
        except (BrokenPipeError, OSError):
            # The worker died while idle; poll reports the job as crashed and it is tried again.
            slot.process.join(GRACE_SECONDS)

    def poll(self, timeout: float) -> Sequence[Event]:
        """Events of all workers, losses by crash and by time limit included."""
        busy = [slot for slot in self._slots if slot.job is not None]
        if not busy:
            return []
        nearest = min(slot.deadline for slot in busy) - time.monotonic()
        waited_for = [item for slot in busy for item in (slot.pipe, slot.process.sentinel)]
        wait(waited_for, timeout=max(0.0, min(timeout, nearest)))
        return [event for slot in busy for event in self._events(slot)]

    def stop(self, number: int) -> None:
        """Tell the worker; the job sees it at its next step."""
        for slot in self._slots:
            if slot.job is not None and slot.job.number == number:
                # Where the worker has just died, poll tells of it.
                with suppress(OSError):
                    slot.pipe.send(number)

    def close(self) -> None:
        """End every worker."""
        for slot in self._slots:
            slot.process.terminate()
        for slot in self._slots:
            slot.process.join(GRACE_SECONDS)
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()
            slot.pipe.close()
        self._slots.clear()

    def _start(self) -> _Slot:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._reuse), daemon=True, name="study-worker")
        process.start()
        theirs.close()
        slot = _Slot(process, mine)
        self._slots.append(slot)
        return slot

    def _events(self, slot: _Slot) -> list[Event]:
        events: list[Event] = []
        job = slot.job
        # Asked before the pipe is emptied: a worker that reports and ends in between is then looked at once more.
        ended = not slot.process.is_alive()
        while slot.job is not None:
            try:
                if not slot.pipe.poll():
                    break
                event = slot.pipe.recv()
            except (EOFError, OSError):
                # Nobody holds the other end any more.
                ended = True
                break
            events.append(event)
            if isinstance(event, Done | Lost):
                slot.job = None
                if not self._reuse:
                    self._retire(slot)
        if slot.job is None or job is None:
            return events
        if time.monotonic() > slot.deadline:
            events.append(Lost(job.number, job.attempt, "timeout", f"took longer than {self._trial_timeout:g} s"))
            self._retire(slot, kill=True)
        elif ended:
            events.append(Lost(job.number, job.attempt, "crashed", _how_it_ended(slot.process)))
            self._retire(slot)
        return events

    def _retire(self, slot: _Slot, *, kill: bool = False) -> None:
        """Take a worker out of service."""
        slot.job = None
        if kill:
            slot.process.kill()
        slot.process.join(GRACE_SECONDS)
        if slot.process.is_alive():
            slot.process.kill()
            slot.process.join()
        slot.pipe.close()
        self._slots.remove(slot)


def _how_it_ended(process: SpawnProcess) -> str:
    process.join(GRACE_SECONDS)
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often the system ran out of memory)" if name == "SIGKILL" else ""
        return f"worker ended by {name}{hint}"
    return f"worker ended with exit code {code}"


def _work(pipe: Connection, reuse: bool) -> None:
    """A worker's life: job after job until the pipe closes or the driver dies."""
    # Ctrl-C reaches the whole process group: the driver decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_driver, daemon=True).start()
    from studies.executors.failure import lost
    from studies.trial import run_job

    while (job := _next_job(pipe)) is not None:
        _log_to(job)
        try:
            event: Event = Done(job.number, job.attempt, run_job(job, pipe.send, _StopCheck(pipe, job.number)))
        except Exception as error:
            event = lost(job, error)
        pipe.send(event)
        if not reuse:
            return


def _next_job(pipe: Connection) -> Job | None:
    """The next job; None when the driver has closed the pipe. A stop order that came too late is passed over."""
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(message, Job):
            return message


class _StopCheck:
    """True once the driver has asked the running job to stop."""

    def __init__(self, pipe: Connection, number: int) -> None:
        self._pipe, self._number, self._stopped = pipe, number, False

    def __call__(self) -> bool:
        while not self._stopped and self._pipe.poll():
            self._stopped = self._pipe.recv() == self._number
        return self._stopped


def _die_with_driver() -> None:
    """No worker outlives its driver, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _log_to(job: Job) -> None:
    """Everything that libraries print during a job goes to its log."""
    job.path.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(job.path / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
