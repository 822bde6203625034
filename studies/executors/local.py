"""Jobs in spawned worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import psutil

from studies.executors.failure import death, memory_kills
from studies.executors.process import Runner, perform
from studies.executors.slots import Slot
from studies.worker.jobs import Done, Event, Job, Lost

GRACE_SECONDS = 3.0
"""How long a worker may take to end by itself after its last word, and the kernel to end one that was killed."""

_ENVIRONMENT = threading.RLock()


@dataclass
class _Worker:
    """A process and our end of the pipe to it."""

    process: SpawnProcess
    pipe: Connection


@dataclass
class _Place:
    """A slot, its worker, and the job this one is at."""

    slot: Slot
    worker: _Worker | None = None
    next_worker: _Worker | None = None
    """Started while `worker` still works, where each job has a process of its own."""
    job: Job | None = None
    deadline: float = float("inf")
    kills_before: int | None = None


class LocalExecutor:
    """A worker process for each slot.

    Args:
        slots: where trials run, as `plan_slots` gives it; a number stands for so many slots that leave device and threads
            to the job.
        reuse: a worker takes job after job, which saves the seconds of a fresh start; without it, each job gets a process
            of its own, which gives all of a GPU's memory back, and the next process starts while the last one still works.
        trial_timeout: seconds after which a job is killed and lost.
        run: what workers do with a job, a function of a module; None for `studies.worker.trial.run_job`.
        ready: start a worker now, which imports torch while the caller is not at its first job yet.
    """

    def __init__(
        self,
        *,
        slots: int | Sequence[Slot] = 1,
        reuse: bool = True,
        trial_timeout: float = float("inf"),
        run: Runner | None = None,
        ready: bool = False,
    ) -> None:
        slots = [Slot()] * slots if isinstance(slots, int) else slots
        self._places = [_Place(slot) for slot in slots]
        self._reuse, self._trial_timeout, self._run = reuse, trial_timeout, run
        self._context = multiprocessing.get_context("spawn")
        if ready:
            self._ready_worker(self._places[0])

    @property
    def slots(self) -> int:
        """Jobs that can run at the same time."""
        return len(self._places)

    def submit(self, job: Job) -> None:
        """Hand a job to an idle worker, or to a new one. Raises `RuntimeError` where every slot is taken."""
        free = [place for place in self._places if place.job is None]
        if not free:
            raise RuntimeError(f"job {job.number}: all {len(self._places)} slots are taken")
        place = next((place for place in free if place.worker is not None), free[0])
        slot, worker = place.slot, self._ready_worker(place)
        place.job, place.deadline = job, time.monotonic() + self._trial_timeout
        place.kills_before = memory_kills()
        try:
            worker.pipe.send(replace(job, device=slot.device or job.device, threads=slot.threads or job.threads))
        except (BrokenPipeError, OSError):
            # The worker died at this moment; poll reports the job as crashed and it is tried again.
            worker.process.join(GRACE_SECONDS)

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        """As `studies.executors.base.Executor.poll`; losses by crash and by time limit are events, too."""
        for event in self._wait(timeout):
            handle(event)

    def _wait(self, timeout: float) -> Sequence[Event]:
        busy = [place for place in self._places if place.job is not None]
        workers = [place.worker for place in busy if place.worker is not None]
        if not workers:
            return []
        nearest = min(place.deadline for place in busy) - time.monotonic()
        waited_for = [item for worker in workers for item in (worker.pipe, worker.process.sentinel)]
        wait(waited_for, timeout=max(0.0, min(timeout, nearest)))
        return [event for place in busy for event in self._events(place)]

    def stop(self, number: int) -> None:
        """Tell the worker; the job sees it at its next step."""
        for place in self._places:
            if place.worker is not None and place.job is not None and place.job.number == number:
                # Where the worker has just died, poll tells of it.
                with suppress(OSError):
                    place.worker.pipe.send(number)

    def close(self) -> None:
        """End every worker."""
        for place in self._places:
            place.job = None
            for worker in (place.worker, place.next_worker):
                if worker is not None:
                    _kill(worker)
            place.worker = place.next_worker = None

    def _ready_worker(self, place: _Place) -> _Worker:
        """The worker that waits at a place, or else a new one."""
        worker = place.worker
        if worker is not None and not worker.process.is_alive():
            _wait_until_ended(worker)
            worker = None
        place.worker = worker or self._start(place.slot)
        return place.worker

    def _start(self, slot: Slot) -> _Worker:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._reuse, self._run), daemon=True, name="study-worker"
        )
        # Read when torch is imported: threads that spin while they wait would starve the other workers.
        calm = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
        with _environment({**calm, **slot.environment}):
            process.start()
        theirs.close()
        return _Worker(process, mine)

    def _events(self, place: _Place) -> list[Event]:
        events: list[Event] = []
        job, worker = place.job, place.worker
        if job is None or worker is None:
            return events
        # Asked before the pipe is emptied: a worker that reports and ends in between is then looked at once more.
        ended = not worker.process.is_alive()
        while True:
            try:
                if not worker.pipe.poll():
                    break
                event = worker.pipe.recv()
            except (EOFError, OSError):
                # Nobody holds the other end any more.
                ended = True
                break
            events.append(event)
            if isinstance(event, Done | Lost):
                # After a lack of memory a fresh process gives the next attempt all that there is.
                short = isinstance(event, Lost) and event.kind == "out_of_memory"
                self._release(place, keep=self._reuse and not short)
                return events
        if time.monotonic() > place.deadline:
            events.append(Lost(job.number, job.attempt, "timeout", f"took longer than {self._trial_timeout:g} s"))
            _kill(worker)
            self._release(place, keep=False)
        elif ended:
            worker.process.join(GRACE_SECONDS)
            kind, message = death(worker.process.exitcode, kills_before=place.kills_before)
            events.append(Lost(job.number, job.attempt, kind, message))
            self._release(place, keep=False)
        elif events and not self._reuse and place.next_worker is None:
            # This one has left its start behind: the cores are free for the next one's.
            place.next_worker = self._start(place.slot)
        return events

    def _release(self, place: _Place, *, keep: bool) -> None:
        """Free a place; unless its worker is kept, the place is free only when that process is gone."""
        place.job = None
        if not keep and place.worker is not None:
            _wait_until_ended(place.worker)
            place.worker, place.next_worker = place.next_worker, None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with other values, for a child to inherit; it is the only way to a spawned one.

    One thread at a time may be inside, or each would take the other's values for those of before.
    """
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _kill(worker: _Worker) -> None:
    """End a worker at once, and what it has started; a worker that is stopped or deaf to SIGTERM ends as well."""
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = psutil.Process(worker.process.pid).children(recursive=True)
    worker.process.kill()
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    _wait_until_ended(worker)


def _wait_until_ended(worker: _Worker) -> None:
    """Wait for a worker to end; one that does not is killed."""
    worker.process.join(GRACE_SECONDS)
    if worker.process.is_alive():
        worker.process.kill()
        # A process that hangs within the kernel (a dead network drive) ends whenever that lets go of it.
        worker.process.join(GRACE_SECONDS)
    worker.pipe.close()


def _work(pipe: Connection, reuse: bool, run: Runner | None) -> None:
    """A worker's life: job after job until the pipe closes or the driver dies."""
    # Ctrl-C reaches the whole process group: the driver decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_driver, daemon=True).start()
    if run is None:
        # While there is no job yet: the next one then begins at once.
        from studies.worker.trial import run_job

        run = run_job
    while (job := _next_job(pipe)) is not None:
        event = perform(job, pipe.send, _StopCheck(pipe, job.number), run)
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
