"""Executors: one contract for all, and what only processes can meet: crashes, time limits, a driver that dies."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from detectors.errors import InputError, NumericalError
from studies.executors import failure
from studies.executors.base import Executor
from studies.executors.failure import describe, kind_of, lost
from studies.executors.inline import InlineExecutor
from studies.executors.local import LocalExecutor, _environment
from studies.executors.slots import plan_slots
from studies.search.plan import Plan
from studies.testing import checks as contract
from studies.testing import jobs as scripted_jobs
from studies.testing.checks import Record, poll, seen, worker_pids
from studies.worker.jobs import LOG_FILE, Done, Event, Job, Lost, Stage, TrialResult, read_result
from studies.worker.trial import run_job
from tests.helpers.builders import build_job, build_plan, make_config, repeatable

EXECUTORS: dict[str, Callable[..., Executor]] = {
    "inline": InlineExecutor,
    "local, a worker for all": partial(LocalExecutor, slots=2, reuse=True),
    "local, a worker for each": partial(LocalExecutor, slots=2, reuse=False),
}
PROCESSES = [name for name in EXECUTORS if name != "inline"]
DEAR = [pytest.param(name, marks=pytest.mark.slow) for name in PROCESSES]
"""Those whose workers import all that real jobs need, for several seconds each."""
SECONDS = 120.0


@pytest.fixture(scope="module")
def plan(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build_plan(make_config(tiny_mvtec), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def reference(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
    return run_job(build_job(plan, 5, folder=tmp_path_factory.mktemp("reference")))


@pytest.fixture(scope="module", params=["inline", *DEAR], ids=str)
def record(
    request: pytest.FixtureRequest, plan: Plan, reference: TrialResult, tmp_path_factory: pytest.TempPathFactory
) -> Record:
    jobs = contract.batch(partial(build_job, plan), tmp_path_factory.mktemp("jobs"))
    if request.param == "local, a worker for each":
        # Seconds of imports for each; the scripted jobs fail in every way.
        jobs = {name: jobs[name] for name in ("trial", "final")}
    record = contract.run(EXECUTORS[request.param](), jobs, reference)
    assert worker_pids() == set()
    return record


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(record: Record, check: Callable[[Record], None]):
    check(record)


@pytest.mark.parametrize("record", ["inline", DEAR[0]], indirect=True, scope="module")
@pytest.mark.parametrize("check", contract.FAILURE_CHECKS, ids=lambda check: check.__name__)
def test_contract_of_failing_jobs(record: Record, check: Callable[[Record], None]):
    check(record)


@pytest.fixture(scope="module", params=["inline", PROCESSES[0], DEAR[1]], ids=str)
def scripted(request: pytest.FixtureRequest, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Record:
    jobs = contract.scripted(
        partial(build_job, plan), tmp_path_factory.mktemp("jobs"), in_processes=request.param in PROCESSES
    )
    if request.param in PROCESSES:
        executor = EXECUTORS[request.param](run=scripted_jobs.act)
        record = contract.run(executor, jobs)
        assert all(len(pids) <= 2 * record.slots for pids in record.pids.values())
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("studies.executors.inline.run_job", scripted_jobs.act)
            record = contract.run(InlineExecutor(), jobs)
    assert worker_pids() == set()
    return record


@pytest.mark.parametrize("check", contract.SCRIPTED_CHECKS, ids=lambda check: check.__name__)
def test_scripted_contract(scripted: Record, check: Callable[[Record], None]):
    check(scripted)


@pytest.mark.parametrize("name", EXECUTORS)
def test_closing_leaves_nothing(name: str, plan: Plan, tmp_path: Path):
    contract.closing_leaves_nothing(EXECUTORS[name](), build_job(plan, folder=tmp_path / "job"))


@pytest.mark.kill
@pytest.mark.parametrize("name", PROCESSES)
def test_closing_ends_hanging_workers_and_their_children(name: str, plan: Plan, tmp_path: Path):
    contract.closing_ends_everything(EXECUTORS[name](run=scripted_jobs.act), partial(build_job, plan), tmp_path)


@pytest.mark.kill
@pytest.mark.parametrize("name", PROCESSES)
def test_hanging_jobs_are_lost_in_time(name: str, plan: Plan, tmp_path: Path):
    executor = EXECUTORS[name](slots=3, run=scripted_jobs.act, trial_timeout=5.0)
    contract.hanging_jobs_are_lost_in_time(executor, partial(build_job, plan), tmp_path)
    assert worker_pids() == set()


def test_workers_are_kept_or_not(record: Record, request: pytest.FixtureRequest):
    name = request.node.callspec.params["record"]
    processes = len(set().union(*record.pids.values()))
    if name == "local, a worker for each":
        assert processes >= len(record.jobs)
    else:
        assert processes == {"inline": 0, "local, a worker for all": 2}[name]
    if record.slots == 2:
        second = list(record.pids.values())[1]
        assert len(second) >= 2  # two jobs at once, each in a process of its own


# --- inline


def test_inline_runs_within_poll_and_in_order(plan: Plan, tmp_path: Path):
    executor = InlineExecutor()
    assert executor.slots == 1
    assert poll(executor, 0.0) == []
    jobs = [build_job(plan, number, task="final", folder=tmp_path / str(number)) for number in (2, 1)]
    for job in jobs:
        executor.submit(job)
    assert not any(read_result(job.path) for job in jobs)
    assert [poll(executor, 0.0)[-1].number for _ in jobs] == [2, 1]
    assert poll(executor, 0.0) == []


def test_inline_lets_ctrl_c_through(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.executors.inline.run_job", interrupted)
    executor = InlineExecutor()
    executor.submit(build_job(plan, folder=tmp_path))
    with pytest.raises(KeyboardInterrupt):
        poll(executor, 0.0)


# --- failures in words


def allocate_too_much() -> None:
    torch.empty(2**50, dtype=torch.float32)


def allocate_too_much_in_numpy() -> None:
    np.empty(2**50, dtype=np.float64)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("allocate", [allocate_too_much, allocate_too_much_in_numpy])
def test_a_lack_of_memory_is_recognised(allocate: Callable[[], None]):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert kind_of(caught.value) == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("a.png: no such file"), "bad_input", "a.png: no such file"),
        (MemoryError(), "out_of_memory", "MemoryError: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nhard"), "out_of_memory", None),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", "RuntimeError: CUDA error: out of memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory", None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory", None),
        (caused_by(ValueError("no fit"), MemoryError()), "out_of_memory", "ValueError: no fit"),
        (caused_by(ValueError("no fit"), KeyError("a")), "exception", "ValueError: no fit"),
        (ValueError("x" * 5000), "exception", "ValueError: " + "x" * 1000),
        (NumericalError("scores are not finite"), "exception", "scores are not finite"),
        (ValueError("one\ntwo"), "exception", "ValueError: one"),
        (RuntimeError(""), "exception", "RuntimeError: RuntimeError"),
        (OSError(5, "Input/output error"), "exception", "OSError: [Errno 5] Input/output error"),
    ],
)
def test_failures_in_words(plan: Plan, tmp_path: Path, error: Exception, kind: str, message: str | None):
    assert kind_of(error) == kind
    assert "\n" not in describe(error)
    if message is not None:
        assert describe(error) == message
    job = build_job(plan, 3, folder=tmp_path / "job", attempt=2)
    assert lost(job, error) == Lost(3, 2, kind, describe(error))
    assert type(error).__name__ in (job.path / LOG_FILE).read_text()


def test_an_image_damaged_after_planning_is_bad_input(own_widgets: Path, tmp_path: Path):
    plan = build_plan(make_config(own_widgets), tmp_path / "home")
    (own_widgets / "widget" / "train" / "good" / "004.png").write_bytes(b"no image")
    executor = InlineExecutor()
    executor.submit(build_job(plan))
    end = poll(executor, 0.0)[-1]
    assert isinstance(end, Lost)
    assert end.kind == "bad_input"
    assert "the images of tiny/widget changed while the study was running" in end.message


VMSTAT = "nr_free_pages 12\noom_kill {}\npgfault 3\n"


@pytest.mark.parametrize(
    ("exitcode", "kills", "kind", "message"),
    [
        (-9, 4, "out_of_memory", "worker ended by SIGKILL: the system ran out of memory"),
        (-9, 3, "crashed", "worker ended by SIGKILL"),
        (-9, None, "crashed", "worker ended by SIGKILL (often the system ran out of memory)"),
        (-11, 4, "crashed", "worker ended by SIGSEGV"),
        (-50, 4, "crashed", "worker ended by signal 50"),
        (3, 4, "crashed", "worker ended with exit code 3"),
    ],
)
def test_how_a_worker_ended(monkeypatch: pytest.MonkeyPatch, exitcode: int, kills: int | None, kind: str, message: str):
    monkeypatch.setattr(failure, "memory_kills", lambda: kills)
    assert failure.death(exitcode, kills_before=3) == (kind, message)


@pytest.mark.parametrize(("text", "kills"), [(VMSTAT.format(7), 7), ("nr_free_pages 12\n", None), ("what\n", None)])
def test_the_kernels_count_of_kills_for_memory(tmp_path: Path, text: str, kills: int | None):
    (tmp_path / "vmstat").write_text(text)
    assert failure.memory_kills(tmp_path / "vmstat") == kills
    assert failure.memory_kills(tmp_path / "absent") is None


# --- processes


@pytest.fixture
def local() -> Iterator[Callable[..., LocalExecutor]]:
    made: list[LocalExecutor] = []

    def make(**options: object) -> LocalExecutor:
        made.append(LocalExecutor(**options))
        return made[-1]

    yield make
    for executor in made:
        executor.close()
    assert worker_pids() == set()


def until(executor: Executor, wanted: Callable[[Event], bool]) -> Event:
    """Poll until an event of the wanted kind comes."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for event in poll(executor, 1.0):
            if wanted(event):
                return event
    raise AssertionError("the event never came")


def ended(event: Event) -> bool:
    return isinstance(event, Done | Lost)


def gone(pid: int) -> bool:
    """Whether a process ends before we give up; the exit code of a child is left for its `Process` to read."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            # A killed process is a zombie before the last of its threads has ended: this waits for all of them.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return True
        except ChildProcessError:  # not ours
            try:
                if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
        time.sleep(0.05)
    return False


@pytest.mark.kill
def test_a_killed_worker_is_a_lost_job_and_the_next_job_has_a_new_worker(local, plan, tmp_path, reference):
    executor = local()
    executor.submit(build_job(plan, 1, folder=tmp_path / "1", attempt=2))
    until(executor, lambda event: isinstance(event, Stage))
    (first,) = worker_pids()
    os.kill(first, signal.SIGKILL)
    executor.stop(1)  # may find the pipe closed
    end = until(executor, ended)
    assert isinstance(end, Lost)
    assert (end.number, end.attempt, end.kind) == (1, 2, "crashed")
    assert "worker ended by SIGKILL" in end.message
    assert poll(executor, 0.0) == []

    executor.submit(build_job(plan, 5, folder=tmp_path / "5"))
    done = until(executor, ended)
    assert isinstance(done, Done)
    assert repeatable(done.result.metrics) == repeatable(reference.metrics)
    (second,) = worker_pids()
    assert second != first

    # A worker that dies between two jobs is replaced, and nothing is lost.
    os.kill(second, signal.SIGKILL)
    assert gone(second)
    executor.submit(build_job(plan, 6, task="final", folder=tmp_path / "6"))
    assert isinstance(until(executor, ended), Done)
    assert worker_pids().isdisjoint({first, second})


def test_a_job_that_takes_too_long_is_lost_and_its_process_gone(local, plan, tmp_path):
    executor = local(trial_timeout=0.5)
    executor.submit(build_job(plan, 4, folder=tmp_path / "job"))
    (pid,) = worker_pids()
    end = until(executor, ended)
    assert isinstance(end, Lost)
    assert (end.number, end.kind) == (4, "timeout")
    assert end.message == "took longer than 0.5 s"
    assert not psutil.pid_exists(pid)
    assert poll(executor, 0.0) == []


@pytest.mark.slow
def test_a_worker_that_ends_after_its_done_is_done(local, plan, tmp_path):
    executor = local(reuse=False)
    job = build_job(plan, 8, task="final", folder=tmp_path / "job")
    executor.submit(job)
    (pid,) = worker_pids()
    assert gone(pid)  # and nobody has polled: all events lie in the pipe
    events = poll(executor, 5.0)
    assert isinstance(events[-1], Done)
    assert [ended(event) for event in events].count(True) == 1
    assert poll(executor, 0.0) == []


@pytest.mark.slow
def test_what_a_job_prints_goes_to_its_log(local, own_widgets, tmp_path, capfd):
    # PIL warns of this one's EXIF block wherever it is decoded.
    path = own_widgets / "widget" / "train" / "good" / "000.png"
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with pytest.warns(UserWarning, match="EXIF"):
        plan = build_plan(make_config(own_widgets), tmp_path / "home")
    capfd.readouterr()
    executor = local()
    job = build_job(plan, 0, task="final")
    executor.submit(job)
    assert isinstance(until(executor, ended), Done)
    assert "EXIF" in (job.path / LOG_FILE).read_text()
    second = build_job(plan, 1, task="final", params={"n_features": 10_000})
    executor.submit(second)
    assert isinstance(until(executor, ended), Lost)
    assert "n_features=10000" in (second.path / LOG_FILE).read_text()
    assert "n_features=10000" not in (job.path / LOG_FILE).read_text()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("gpus_per_trial", "wanted"), [(1.0, {"4": 1, "7": 1}), (0.5, {"4": 2, "7": 2}), (2.0, {"4,7": 1})]
)
def test_a_gpu_slot_never_has_two_trials(local, plan, tmp_path, gpus_per_trial, wanted):
    planned = plan_slots("auto", gpus_per_trial=gpus_per_trial, cores=2, gpu_ids=["4", "7"])
    executor = local(slots=planned, run=scripted_jobs.act)
    jobs = {
        str(number): build_job(plan, number, folder=tmp_path / str(number), device="cpu", params={"seconds": 0.4})
        for number in range(3 * len(planned))
    }
    contract.run(executor, jobs)
    assert contract.at_the_same_time(list(jobs.values())) == wanted
    for ran in map(seen, jobs.values()):
        assert ran["device"] == "cuda:0"  # as the worker sees it
        assert ran["threads"] == int(ran["omp"]) == planned[0].threads
        assert not ran["torch"]  # the variable is there before anything could look at it
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_full_executor_takes_no_more(local, plan, tmp_path):
    executor = local(slots=1, run=scripted_jobs.act)
    executor.submit(build_job(plan, 1, folder=tmp_path / "1", params={"act": "hang"}))
    with pytest.raises(RuntimeError, match="job 2: all 1 slots are taken"):
        executor.submit(build_job(plan, 2, folder=tmp_path / "2"))


def test_a_worker_short_of_memory_is_not_used_again(local, plan, tmp_path):
    executor = local(run=scripted_jobs.act)
    pids = []
    for number, deed in enumerate(["work", "no memory", "work"]):
        job = build_job(plan, number, folder=tmp_path / str(number), params={"act": deed})
        executor.submit(job)
        until(executor, ended)
        pids.append(seen(job)["pid"])
    assert pids[0] == pids[1] != pids[2]


def test_the_next_worker_starts_while_this_one_works(local, plan, tmp_path):
    executor = local(reuse=False, run=scripted_jobs.act)
    first = build_job(plan, 1, folder=tmp_path / "1", params={"act": "until stopped"})
    executor.submit(first)
    until(executor, lambda event: isinstance(event, Stage))
    waiting = worker_pids() - {seen(first)["pid"]}
    assert len(waiting) == 1
    executor.stop(1)
    until(executor, ended)
    second = build_job(plan, 2, folder=tmp_path / "2")
    executor.submit(second)
    assert isinstance(until(executor, ended), Done)
    assert {seen(second)["pid"]} == waiting


def test_a_worker_that_was_started_ahead_takes_the_first_job(local, plan, tmp_path):
    executor = local(run=scripted_jobs.act, ready=True)
    ahead = worker_pids()
    assert len(ahead) == 1
    job = build_job(plan, 1, folder=tmp_path / "1")
    executor.submit(job)
    assert isinstance(until(executor, ended), Done)
    assert {seen(job)["pid"]} == ahead
    # One that has no job yet goes with its executor.
    idle = local(run=scripted_jobs.act, ready=True)
    (waiting,) = worker_pids() - ahead
    idle.close()
    assert gone(waiting)


DRIVER = """
import json, sys
import psutil
from studies.executors.local import LocalExecutor
from studies.worker.jobs import Done, Job, Lost, Stage

if __name__ == "__main__":
    fields = json.loads(sys.stdin.read())
    executor = LocalExecutor()
    executor.submit(Job(**fields | {"strides": tuple(fields["strides"])}))

    def handle(event):
        if isinstance(event, Done | Lost):
            sys.exit(f"the job ended too early: {event}")
        # Seconds in which a worker says nothing, so that it cannot notice by a broken pipe.
        if isinstance(event, Stage) and event.name == "speed":
            print(json.dumps([child.pid for child in psutil.Process().children()]), flush=True)

    while True:
        executor.poll(1.0, handle)
"""


def test_threads_that_start_workers_at_a_time_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUDY_TEST_SET", "before")
    monkeypatch.delenv("STUDY_TEST_UNSET", raising=False)

    def start(number: int) -> None:
        with _environment({"STUDY_TEST_SET": str(number), "STUDY_TEST_UNSET": str(number)}):
            time.sleep(0.005)
            assert os.environ["STUDY_TEST_SET"] == os.environ["STUDY_TEST_UNSET"] == str(number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(start, range(24)))
    assert os.environ["STUDY_TEST_SET"] == "before"
    assert "STUDY_TEST_UNSET" not in os.environ


@pytest.mark.kill
def test_no_worker_outlives_its_driver(plan, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    job: Job = replace(build_job(plan, folder=tmp_path / "job"), threads=1)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(json.dumps(asdict(job)))
        driver.stdin.close()
        pids = json.loads(driver.stdout.readline() or "[]")
        assert pids
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert [pid for pid in pids if not gone(pid)] == []
    assert read_result(job.path) is None
    assert "Traceback" not in (job.path / LOG_FILE).read_text()
