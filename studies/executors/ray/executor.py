"""Jobs on the nodes of a Ray cluster, as core tasks. Needs the extra ``ray``.

The executor places each job on a node itself: it knows how many fit there, which nodes have the data and the weights, and
where the last attempt was lost. Ray starts a process for each job, watches over it and its node, and ends it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from detectors.errors import InputError
from detectors.files import append_line
from studies.executors.failure import describe, kind_of
from studies.executors.process import Runner
from studies.executors.ray import node as on_node
from studies.executors.ray.node import Begun, Mailbox, Orders, Returned
from studies.executors.ray.orders import absolute, need_of, orders_of
from studies.executors.ray.parcels import unpack
from studies.executors.slots import Slot, available_cores, check_gpus_per_trial, plan_slots
from studies.home import Home
from studies.worker.jobs import LOG_FILE, Event, Job, Lost, LostKind
from studies.worker.ledger import append_from_elsewhere

NODES_SECONDS = 1.0
"""How old the list of nodes may be."""
ABSENT_SECONDS = 300.0
"""How long a study waits for a node when there is none."""
PATIENCE_SECONDS = 60.0
"""How long a job waits for room on its node before a person is informed."""
TAKE_SECONDS = 20.0
CLOSE_SECONDS = 7.0
"""How long ended jobs may take to be gone; a worker that hangs is killed by its node after 5 s."""
CLIENT_WAITS = (1.0, 5.0)
"""Before a head is asked again, in seconds, that is there and could not start its server for this client."""
LOCAL_STORE_BYTES = 200 * 2**20
"""Object store of a Ray that is started here: jobs leave their files on disk."""


@dataclass
class _Task:
    """A job from its submission to its end."""

    job: Job
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    ref: Any = None
    node: str = ""
    since: float = 0.0
    """Of its submission to Ray; 0 once it has begun, or its delay was reported."""
    deadline: float = float("inf")


@dataclass
class _Node:
    """A node of the cluster."""

    id: str
    host: str
    slots: Sequence[Slot]
    cpus: float
    """Cores of one slot, for Ray's accounts."""
    checks: dict[str, Any] = field(default_factory=dict)
    """Under way: {what the job needs: task}."""
    problems: dict[str, str | None] = field(default_factory=dict)
    """Done: {what the job needs: what is wrong}."""

    @property
    def refused(self) -> bool:
        """Whether no job has been able to run here."""
        return bool(self.problems) and all(self.problems.values())


class RayExecutor:
    """Jobs as Ray tasks, each in a fresh process, on every node that has the study's data and weights.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT`` of a cluster; None starts Ray on this machine, or takes the one
            that this process is connected to.
        jobs: trials at the same time at most; ``auto``: as many as the cluster holds, which may change while a study runs.
        device: ``cpu``, ``cuda``, or ``auto``: GPUs where the cluster has any.
        gpus_per_trial: 0.5 puts two trials on a GPU, 2 gives each trial two GPUs of one node.
        cpus_per_trial: cores of a trial on the CPU; None for two to four, whatever divides a node best.
        trial_timeout: seconds after which a job that has begun is cancelled and lost.
        say: called with a line for each node that is left out, and when a job waits.
        run: what workers do with a job, a function of a module; None for `studies.worker.trial.run_job`.

    Raises:
        InputError: Ray is not installed, no cluster at `address`, an impossible share of GPUs.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        jobs: int | Literal["auto"] = "auto",
        device: str = "auto",
        gpus_per_trial: float = 1.0,
        cpus_per_trial: int | None = None,
        trial_timeout: float = float("inf"),
        say: Callable[[str], None] = lambda line: None,
        run: Runner | None = None,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device {device!r}: with Ray give auto, cpu or cuda; Ray chooses the GPU")
        check_gpus_per_trial(gpus_per_trial)
        self._ray = _import_ray()
        self._ours = _connect(self._ray, address)
        self._jobs, self._device = jobs, device
        self._gpus_per_trial, self._cpus_per_trial = gpus_per_trial, cpus_per_trial
        self._trial_timeout, self._say, self._run = trial_timeout, say, run
        self._queue: deque[_Task] = deque()
        self._running: dict[str, _Task] = {}
        self._cancelled: list[Any] = []
        """Tasks whose processes may not be gone yet."""
        self._losses: list[Event] = []
        """Of jobs that were never started, until `poll`."""
        self._nodes: dict[str, _Node] = {}
        self._gone: set[str] = set()
        """Nodes known to be dead before the list of nodes says so; no node comes back under its old id."""
        self._looked = self._seen = float("-inf")
        """When the nodes were listed, and when there were any."""
        self._lost_on: dict[str, str] = {}
        """Folder of a job -> node on which its last attempt was lost."""
        self._orders: Orders | None = None
        self._closed = False
        remote = self._ray.remote
        # A process of its own gives all of a GPU's memory back; tries are the driver's business.
        self._work = remote(max_calls=1, max_retries=0)(on_node.work)
        self._check = remote(max_calls=1, max_retries=0, num_cpus=0)(on_node.check)
        self._mailbox = remote(Mailbox).options(num_cpus=0, max_restarts=-1).remote()
        self._inbox = self._mailbox.take.remote(TAKE_SECONDS)
        self._seen = time.monotonic()

    @property
    def slots(self) -> int:
        """Jobs that can run at the same time now; 0 while there is no node for them."""
        self._look_around()
        room = sum(len(node.slots) for node in self._nodes.values() if not node.refused)
        return room if self._jobs == "auto" else min(room, self._jobs)

    def submit(self, job: Job) -> None:
        """Start a job, or keep it until a node is found to have what it needs."""
        if self._orders is None:
            self._orders = orders_of(job)
        self._queue.append(_Task(absolute(job)))
        self._losses += self._place()

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        """As `studies.executors.base.Executor.poll`; raises `InputError` where there has been no node for `ABSENT_SECONDS`."""
        for event in self._wait(timeout):
            handle(event)

    def _wait(self, timeout: float) -> Sequence[Event]:
        """What has happened since; looks for nodes that came or went."""
        end = time.monotonic() + timeout
        while not self._closed:
            events, self._losses = self._losses + self._place(), []
            remaining = end - time.monotonic()
            events += self._collect(0.0 if events else max(0.0, min(remaining, NODES_SECONDS)))
            if events or remaining <= 0:
                return events
            if not self._queue and not self._running and self._nodes:
                return []
        return []

    def stop(self, number: int) -> None:
        """Tell the job; it sees it at its next step."""
        for task in [*self._queue, *self._running.values()]:
            if task.job.number == number:
                self._mailbox.stop.remote(task.token)

    def close(self) -> None:
        """Cancel everything, and end Ray where it was started here."""
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        tasks = [task.ref for task in self._running.values()]
        tasks += [check for node in self._nodes.values() for check in node.checks.values()]
        self._running.clear()
        try:
            with suppress(self._ray.exceptions.RayError, ConnectionError):
                for task in tasks:
                    self._ray.cancel(task, force=True)
                if tasks := tasks + self._cancelled:
                    self._ray.wait(tasks, num_returns=len(tasks), timeout=CLOSE_SECONDS)
                self._ray.kill(self._mailbox)
        finally:
            if self._orders is not None:
                Path(self._orders.beacon).unlink(missing_ok=True)
            if self._ours:
                self._ray.shutdown()

    # Nodes

    def _look_around(self) -> None:
        """List the nodes, unless that was done a moment ago."""
        now = time.monotonic()
        if self._closed or now < self._looked + NODES_SECONDS:
            return
        self._looked = now
        alive = {
            node["NodeID"]: node for node in self._ray.nodes() if node["Alive"] and node["NodeID"] not in self._gone
        }
        if self._device == "auto" and alive:
            # Once for all: figures of speed from different devices cannot be compared.
            self._device = "cuda" if any(node["Resources"].get("GPU") for node in alive.values()) else "cpu"
        self._nodes = {name: node for name, node in self._nodes.items() if name in alive}
        for name, node in alive.items():
            if name not in self._nodes:
                slots = _slots_of(node["Resources"], self._device, gpus=self._gpus_per_trial, cpus=self._cpus_per_trial)
                if slots:
                    cpus = min(slots[0].threads or 1, node["Resources"].get("CPU", 0) / len(slots))
                    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
                    self._nodes[name] = _Node(name, f"{host} ({address})", slots, cpus)
        if self._nodes:
            self._seen = now
        elif now > self._seen + ABSENT_SECONDS:
            raise InputError(
                f"the Ray cluster has had no node for a trial on {self._device} for {ABSENT_SECONDS / 60:.0f} minutes; "
                "add one (`ray start --address=...`) and run the same command again"
            )

    # Placing

    def _place(self) -> list[Event]:
        """Start what is waiting, where there is room for it; losses of jobs that no node can do."""
        self._look_around()
        losses: list[Event] = []
        for task in list(self._queue):
            job, need = task.job, need_of(task.job)
            self._check_nodes(job, need)
            if self._nodes and all(node.problems.get(need) for node in self._nodes.values()):
                first = next(iter(self._nodes.values()))
                message = f"no node of the cluster can do this; {first.host}: {first.problems[need]}"
                losses.append(Lost(job.number, job.attempt, "bad_input", message))
                self._queue.remove(task)
            elif node := self._room_for(job, need):
                self._queue.remove(task)
                self._start(task, node)
        return losses

    def _check_nodes(self, job: Job, need: str) -> None:
        """Look at those nodes of which it is not known whether they have what a job needs."""
        for node in self._nodes.values():
            if need not in node.problems and need not in node.checks:
                check = self._check.options(scheduling_strategy=_at(node), name=f"check for {job.number}")
                node.checks[need] = check.remote(job, self._orders)

    def _room_for(self, job: Job, need: str) -> _Node | None:
        """The sound node with most room, rather not the one that lost the job's last attempt."""
        sound = [node for node in self._nodes.values() if need in node.problems and node.problems[need] is None]
        with_room = [node for node in sound if self._free(node) > 0]
        lost_on = self._lost_on.get(job.folder)
        return max(with_room, key=lambda node: (node.id != lost_on, self._free(node)), default=None)

    def _free(self, node: _Node) -> int:
        return len(node.slots) - sum(task.node == node.id for task in self._running.values())

    def _start(self, task: _Task, node: _Node) -> None:
        slot = node.slots[0]  # all of a node are alike: Ray names the GPU
        job = replace(task.job, device=slot.device or task.job.device, threads=slot.threads or task.job.threads)
        work = self._work.options(
            num_cpus=node.cpus,
            num_gpus=self._gpus_per_trial if self._device == "cuda" else 0,
            scheduling_strategy=_at(node),
            name=f"{job.task} {job.number}",
        )
        task.node, task.since = node.id, time.monotonic()
        task.ref = work.remote(job, self._orders, task.token, self._mailbox, self._run)
        self._running[task.token] = task

    # What happens

    def _collect(self, seconds: float) -> list[Event]:
        """Wait for something to happen; events of every kind."""
        checks = {check: (node, need) for node in self._nodes.values() for need, check in node.checks.items()}
        refs = [self._inbox, *(task.ref for task in self._running.values()), *checks]
        nearest = min((task.deadline for task in self._running.values()), default=float("inf")) - time.monotonic()
        self._ray.wait(refs, num_returns=1, timeout=max(0.0, min(seconds, nearest)))
        ready = set(self._ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        ended = [task for task in self._running.values() if task.ref in ready]
        events = self._read_mail(all_of_it=bool(ended)) if ended or self._inbox in ready else []
        for task in ended:
            del self._running[task.token]
            events.append(self._end(task))
        for check in ready & checks.keys():
            self._heed(check, *checks[check])
        return events + self._overdue()

    def _read_mail(self, *, all_of_it: bool) -> list[Event]:
        """Events that jobs have sent.

        Args:
            all_of_it: nothing that was sent so far is left behind, for the end of a job comes after its events.
        """
        mail: list[tuple[str, Event | Begun]] = []
        with suppress(self._ray.exceptions.RayError):
            if all_of_it:
                self._mailbox.wake.remote()
            mail = self._ray.get(self._inbox)
            if all_of_it:
                # Sent after the mailbox had answered, before we asked.
                mail = mail + self._ray.get(self._mailbox.take.remote(0.0))
        self._inbox = self._mailbox.take.remote(TAKE_SECONDS)
        events = []
        for token, message in mail:
            task = self._running.get(token)
            if task is None:
                continue
            if isinstance(message, Begun):
                task.since, task.deadline = 0.0, time.monotonic() + self._trial_timeout
            else:
                events.append(message)
        return events

    def _end(self, task: _Task) -> Event:
        """The last event of a job whose task is over; its files are then here."""
        job = task.job
        try:
            returned: Returned = self._ray.get(task.ref)
        except self._ray.exceptions.RayError as error:
            append_line(job.path / LOG_FILE, f"{type(error).__name__}: {error}")
            self._lost_on[job.folder] = task.node
            node = self._nodes.get(task.node)
            if isinstance(error, self._ray.exceptions.NodeDiedError | self._ray.exceptions.TaskUnschedulableError):
                self._gone.add(task.node)
                self._nodes.pop(task.node, None)
            return Lost(job.number, job.attempt, *_loss(self._ray.exceptions, error, node.host if node else "a node"))
        append_from_elsewhere(Home(Path(job.home)), job.study_uid, returned.ledger)
        if returned.files is not None:
            unpack(returned.files, job.path)
        return returned.end

    def _heed(self, check: Any, node: _Node, need: str) -> None:
        """Note the result of the check of a node."""
        del node.checks[need]
        try:
            problem: str | None = self._ray.get(check)
        except self._ray.exceptions.RayError as error:
            if isinstance(error, self._ray.exceptions.NodeDiedError | self._ray.exceptions.TaskUnschedulableError):
                return  # checked again, should it still be there
            problem = f"anomaly-studies does not run there ({describe(getattr(error, 'cause', None) or error)})"
        node.problems[need] = problem
        if problem is not None:
            self._say(f"node {node.host} is left out: {problem}")

    def _overdue(self) -> list[Event]:
        """Losses by the time limit; says where a job waits for its node to have room."""
        events: list[Event] = []
        now = time.monotonic()
        for task in list(self._running.values()):
            job = task.job
            if now > task.deadline:
                del self._running[task.token]
                self._ray.cancel(task.ref, force=True)
                self._cancelled.append(task.ref)
                events.append(Lost(job.number, job.attempt, "timeout", f"took longer than {self._trial_timeout:g} s"))
            elif task.since and now > task.since + PATIENCE_SECONDS:
                task.since = 0.0
                self._say(f"{job.task} {job.number} waits for room on its node; somebody else uses the cluster")
        return events


def _import_ray() -> Any:
    # Read when Ray is imported: no report to its makers, no lines of its own among ours.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise InputError("the Ray executor needs Ray: pip install 'anomaly-studies[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> bool:
    """Connect to a cluster, or start one; whether this was done here. Raises `InputError` where there is none."""
    if ray.is_initialized():
        return False
    here: dict[str, Any] = {}
    if address is None:
        here = {
            "num_cpus": available_cores(),
            "object_store_memory": LOCAL_STORE_BYTES,
            "include_dashboard": False,
        }
    before = signal.getsignal(signal.SIGTERM)
    where = address or "this machine"
    try:
        _init(ray, address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except ConnectionAbortedError as error:
        reason = str(error).strip().splitlines()[-1]  # of the head's traceback
        raise InputError(
            f"the Ray cluster at {where} takes no client, asked {len(CLIENT_WAITS) + 1} times ({reason})"
        ) from error
    except (ConnectionError, ImportError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no Ray cluster at {where} ({describe(error)}); start one with `ray start --head`, or check --ray-address"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray takes SIGTERM for itself; the command has its own way to end.
            signal.signal(signal.SIGTERM, before)
    return True


def _init(ray: Any, **options: Any) -> None:
    """``ray.init``, again where the head was there and the server it forks for each ``ray://`` client died at birth."""
    for wait in (*CLIENT_WAITS, None):
        try:
            ray.init(**options)
        except Exception as error:
            with suppress(Exception):
                ray.shutdown()
            if wait is None or not isinstance(error, ConnectionAbortedError):
                raise
            time.sleep(wait)
        else:
            return


def _slots_of(resources: Mapping[str, float], device: str, *, gpus: float, cpus: int | None) -> Sequence[Slot]:
    """Room on a node with these resources, for trials that take so many GPUs, or so many cores."""
    cores = int(resources.get("CPU", 0))
    if device == "cuda":
        names = [str(index) for index in range(int(resources.get("GPU", 0)))]
        try:
            return plan_slots("auto", device="cuda", gpus_per_trial=gpus, cores=cores, gpu_ids=names)
        except InputError:  # too few GPUs for one trial
            return []
    if cpus is not None:
        return [Slot(device="cpu", threads=cpus)] * (cores // cpus)
    return plan_slots("auto", device="cpu", cores=cores) if cores else []


def _at(node: _Node) -> Any:
    """The strategy that places a task on this node and on no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def _loss(exceptions: Any, error: Exception, host: str) -> tuple[LostKind, str]:
    """Kind and message of a task on `host` that gave nothing back; `exceptions` are Ray's."""
    if isinstance(error, exceptions.OutOfMemoryError):
        return "out_of_memory", f"{host} ran out of memory, and Ray ended the worker"
    gone = (
        exceptions.NodeDiedError,
        exceptions.TaskUnschedulableError,
        exceptions.LocalRayletDiedError,
        exceptions.ObjectLostError,
    )
    if isinstance(error, gone):
        return "node_lost", f"{host} left the cluster"
    if isinstance(error, exceptions.RayTaskError):
        cause = getattr(error, "cause", None) or error
        return kind_of(cause), describe(cause)
    if isinstance(error, exceptions.WorkerCrashedError):
        return "crashed", f"worker on {host} died"
    return "crashed", f"worker on {host} died ({describe(error)})"
