"""Executors: one contract for all, and what only processes can meet: crashes, time limits, a driver that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

pytest.register_assert_rewrite("executor_contract")

import executor_contract as contract  # noqa: E402
from builders import build_job, build_plan, make_config, repeatable  # noqa: E402
from executor_contract import Record, worker_pids  # noqa: E402

from detectors.errors import InputError, NumericalError  # noqa: E402
from studies.executors.base import Executor  # noqa: E402
from studies.executors.failure import describe, kind_of, lost  # noqa: E402
from studies.executors.inline import InlineExecutor  # noqa: E402
from studies.executors.local import LocalExecutor  # noqa: E402
from studies.jobs import LOG_FILE, Done, Event, Job, Lost, Stage, TrialResult, read_result  # noqa: E402
from studies.plan import Plan  # noqa: E402
from studies.trial import run_job  # noqa: E402

EXECUTORS: dict[str, Callable[[], Executor]] = {
    "inline": InlineExecutor,
    "local, a worker for all": lambda: LocalExecutor(slots=2, reuse=True),
    "local, a worker for each": lambda: LocalExecutor(slots=2, reuse=False),
}
SECONDS = 120.0


@pytest.fixture(scope="module")
def plan(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build_plan(make_config(tiny_mvtec), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def reference(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
    return run_job(build_job(plan, 5, folder=tmp_path_factory.mktemp("reference")))


@pytest.fixture(scope="module", params=EXECUTORS, ids=str)
def record(
    request: pytest.FixtureRequest, plan: Plan, reference: TrialResult, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Record]:
    executor = EXECUTORS[request.param]()
    jobs = contract.batch(plan, tmp_path_factory.mktemp("jobs"))
    try:
        yield contract.run(executor, jobs, reference)
    finally:
        executor.close()
        executor.close()
        assert worker_pids() == set()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(record: Record, check: Callable[[Record], None]):
    check(record)


@pytest.mark.parametrize("name", EXECUTORS)
def test_closing_leaves_nothing(name: str, plan: Plan, tmp_path: Path):
    contract.closing_leaves_nothing(EXECUTORS[name](), build_job(plan, folder=tmp_path / "job"))


def test_workers_are_kept_or_not(record: Record, request: pytest.FixtureRequest):
    name = request.node.callspec.params["record"]
    seen = set().union(*record.pids.values())
    wanted = {"inline": 0, "local, a worker for all": 2, "local, a worker for each": len(record.jobs)}
    assert len(seen) == wanted[name]
    if record.slots == 2:
        second = list(record.pids.values())[1]
        assert len(second) == 2  # two jobs at once, each in a process of its own


# --- inline


def test_inline_runs_within_poll_and_in_order(plan: Plan, tmp_path: Path):
    executor = InlineExecutor()
    assert executor.slots == 1
    assert executor.poll(0.0) == []
    jobs = [build_job(plan, number, task="final", folder=tmp_path / str(number)) for number in (2, 1)]
    for job in jobs:
        executor.submit(job)
    assert not any(read_result(job.path) for job in jobs)
    assert [executor.poll(0.0)[-1].number for _ in jobs] == [2, 1]
    assert executor.poll(0.0) == []


def test_inline_lets_ctrl_c_through(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.executors.inline.run_job", interrupted)
    executor = InlineExecutor()
    executor.submit(build_job(plan, folder=tmp_path))
    with pytest.raises(KeyboardInterrupt):
        executor.poll(0.0)


# --- failures in words


def allocate_too_much() -> None:
    torch.empty(2**50, dtype=torch.float32)


def allocate_too_much_in_numpy() -> None:
    np.empty(2**50, dtype=np.float64)


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


def test_a_picture_damaged_after_planning_is_bad_input(own_widgets: Path, tmp_path: Path):
    plan = build_plan(make_config(own_widgets), tmp_path / "home")
    (own_widgets / "widget" / "train" / "good" / "004.png").write_bytes(b"no picture")
    executor = InlineExecutor()
    executor.submit(build_job(plan))
    end = executor.poll(0.0)[-1]
    assert isinstance(end, Lost)
    assert end.kind == "bad_input"
    assert "the pictures of tiny/widget changed while the study was running" in end.message


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
        for event in executor.poll(1.0):
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
    assert list(executor.poll(0.0)) == []

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
    assert list(executor.poll(0.0)) == []


def test_a_worker_that_ends_after_its_done_is_done(local, plan, tmp_path):
    executor = local(reuse=False)
    job = build_job(plan, 8, task="final", folder=tmp_path / "job")
    executor.submit(job)
    (pid,) = worker_pids()
    assert gone(pid)  # and nobody has polled: all events lie in the pipe
    events = list(executor.poll(5.0))
    assert isinstance(events[-1], Done)
    assert [ended(event) for event in events].count(True) == 1
    assert list(executor.poll(0.0)) == []


def test_what_a_job_prints_goes_to_its_log(local, own_widgets, tmp_path, capfd):
    # PIL warns of this one's EXIF block wherever it is decoded.
    path = own_widgets / "widget" / "train" / "good" / "000.png"
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
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


DRIVER = """
import json, sys
import psutil
from studies.executors.local import LocalExecutor
from studies.jobs import Done, Job, Lost, Stage

if __name__ == "__main__":
    fields = json.loads(sys.stdin.read())
    executor = LocalExecutor()
    executor.submit(Job(**fields | {"strides": tuple(fields["strides"])}))
    while True:
        for event in executor.poll(1.0):
            if isinstance(event, Done | Lost):
                sys.exit(f"the job ended too early: {event}")
            # Seconds in which a worker says nothing, so that it cannot notice by a broken pipe.
            if isinstance(event, Stage) and event.name == "speed":
                print(json.dumps([child.pid for child in psutil.Process().children()]), flush=True)
"""


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
