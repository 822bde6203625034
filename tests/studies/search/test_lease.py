"""One driver per study: who has it is told, who is dead is replaced, and who lost it touches nothing any more."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.exc import OperationalError

from detectors.errors import InputError
from studies.executors.inline import InlineExecutor
from studies.home import Home, prepare_sqlite
from studies.search import lease as lease_module
from studies.search.lease import Holder, Lease
from studies.search.notices import Started
from studies.search.outcome import LeaseLostError
from studies.search.patient_storage import PatientStorage
from studies.search.storage import open_storage
from studies.worker.jobs import Job, Stage
from tests.helpers.bench import Bench, ScriptedExecutor
from tests.helpers.preloaded import quick_trials
from tests.helpers.scenes import Scene

PATIENCE = 60.0
STUDY = "padim_screw"


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    prepare_sqlite(address)
    return address


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def lease(engine: Engine, **seconds: float) -> Lease:
    """One that is quick to renew and to give up on others."""
    return Lease(engine, STUDY, **{"renew_seconds": 0.05, "dead_seconds": 0.6} | seconds)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextmanager
def elsewhere() -> Iterator[None]:
    """What happens within is done on another machine, as far as a lease can tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "_place", lambda: "over there")
        patch.setattr(socket, "gethostname", lambda: "otherhost")
        yield


HOLD = """
import os, sys, time
from pathlib import Path
from sqlalchemy import create_engine
from studies.search import lease as module

address, study, place, renew = sys.argv[1:]
if place:
    module._place = lambda: place
lease = module.Lease(create_engine(address), study, renew_seconds=float(renew), dead_seconds=0.6)
with lease.hold():
    print("held", flush=True)
    while not lease.is_lost():
        time.sleep(0.05)
    print("lost", flush=True)
"""


@contextmanager
def holding(url: str, *, place: str = "", renew: float = 0.05) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease, until it is killed or loses it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, url, STUDY, place, str(renew)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# Taken and given back


def test_a_lease_is_taken_renewed_and_given_back(engine: Engine) -> None:
    taken = lease(engine)
    with taken.hold():
        holder = taken.holder()
        assert holder is not None
        assert str(holder) == f"process {os.getpid()} on {socket.gethostname()}"
        assert holder.is_here
        assert holder.is_running_here
        until(lambda: (now := taken.holder()) is not None and now.beat > holder.beat + 1)
        assert not taken.is_lost()
    assert taken.holder() is None
    with lease(engine).hold():
        pass


def test_it_is_given_back_when_the_driver_fails(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), lease(engine).hold():
        1 / 0  # noqa: B018
    assert lease(engine).holder() is None


def test_studies_are_held_apart(engine: Engine) -> None:
    with lease(engine).hold(), Lease(engine, "another").hold(), engine.connect() as connection:
        held = set(connection.execute(select(lease_module._LEASES.c.study)).scalars())
    assert held == {STUDY, "another"}


# Refused


def test_a_second_one_is_refused_with_who_holds_it(engine: Engine, url: str) -> None:
    with holding(url) as process:
        said: list[str] = []
        with pytest.raises(InputError) as info, lease(engine, dead_seconds=PATIENCE).hold(said.append):
            pass
        told = f"study 'padim_screw' is being run by process {process.pid} on {socket.gethostname()}; "
        assert str(info.value) == f"{told}wait for it or stop it"
        # Where one can look for the process there is nothing to wait for.
        assert said == []
        still = lease(engine).holder()
        assert still is not None
        assert still.pid == process.pid


def test_a_living_holder_on_another_machine_is_told_from_a_dead_one_by_its_beat(engine: Engine) -> None:
    said: list[str] = []
    with elsewhere():
        away = lease(engine)
        held = away.hold()
        held.__enter__()
    try:
        with (
            pytest.raises(InputError, match=rf"is being run by process {os.getpid()} on otherhost; wait"),
            lease(engine, dead_seconds=PATIENCE).hold(said.append),
        ):
            pass
        assert said == [
            f"process {os.getpid()} on otherhost holds study 'padim_screw'; finding out whether it still runs"
        ]
        assert not away.is_lost()
    finally:
        held.__exit__(None, None, None)


# Taken over


def test_a_killed_holder_on_this_machine_is_replaced_at_once(engine: Engine, url: str) -> None:
    with holding(url) as process:
        process.kill()
        # Not waited for: a dead process whose parent has not asked for it is still listed.
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert lease(engine).holder() is not None
        with lease(engine, dead_seconds=PATIENCE).hold(pytest.fail):
            mine = lease(engine).holder()
            assert mine is not None
            assert mine.pid == os.getpid()
    assert lease(engine).holder() is None


def test_a_process_number_that_is_used_again_is_nobody(engine: Engine) -> None:
    with lease(engine).hold():
        mine = lease(engine).holder()
        assert mine is not None
    parent = psutil.Process(os.getppid())
    born = lease_module._born(parent)
    if abs(born - mine.born) > lease_module.SAME_SECONDS:
        reused = Holder("x", mine.host, mine.place, parent.pid, mine.born, 0)
        assert not reused.is_running_here
    assert Holder("x", mine.host, mine.place, parent.pid, born, 0).is_running_here
    assert not Holder("x", mine.host, mine.place, mine.pid, mine.born - 60, 0).is_running_here
    assert not Holder("x", mine.host, "another container", mine.pid, mine.born, 0).is_here


def test_a_clock_that_is_set_changes_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(engine).hold():
        mine = lease(engine).holder()
        assert mine is not None
        before, create_time = psutil.boot_time(), psutil.Process.create_time
        monkeypatch.setattr(psutil, "boot_time", lambda: before + 3600)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 3600)
        assert mine.is_running_here


def test_a_holder_elsewhere_whose_beat_stands_still_is_replaced(engine: Engine) -> None:
    with elsewhere():
        dead = lease(engine)
        dead._take(lambda text: None)
    said: list[str] = []
    with lease(engine).hold(said.append):
        assert len(said) == 1
        assert dead.is_lost()
        mine = lease(engine).holder()
        assert mine is not None
        assert mine.host == socket.gethostname()
        dead._give_back()
        # What is not its own it cannot give back.
        assert lease(engine).holder() is not None


def test_a_holder_elsewhere_that_ends_meanwhile_is_followed_at_once(engine: Engine) -> None:
    with elsewhere():
        other = lease(engine)
        other._take(lambda text: None)
    with lease(engine, dead_seconds=PATIENCE).hold(lambda text: other._give_back()):
        assert lease(engine).holder() is not None


def test_a_successor_is_not_judged_by_how_long_the_one_before_it_was_waited_for(engine: Engine) -> None:
    """The first one stands still, ends at the last moment, and another living one takes its place."""
    with elsewhere():
        first, second = lease(engine), lease(engine, renew_seconds=0.3)
        first._take(lambda text: None)
    said: list[str] = []
    held = second.hold()

    def change() -> None:
        first._give_back()
        with elsewhere():
            held.__enter__()

    timer = threading.Timer(0.5, change)
    timer.start()
    try:
        with pytest.raises(InputError, match="is being run by"), lease(engine).hold(said.append):
            pass
        assert not second.is_lost()
    finally:
        timer.join()
        held.__exit__(None, None, None)


@pytest.mark.kill
def test_a_process_that_stood_still_learns_that_it_was_replaced(engine: Engine, url: str) -> None:
    with holding(url, place="another machine") as process:
        process.send_signal(signal.SIGSTOP)
        with lease(engine).hold():
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            assert process.stdout.readline() == "lost\n"
            assert process.wait(PATIENCE) == 0
            mine = lease(engine).holder()
            assert mine is not None
            assert mine.pid == os.getpid()


# At once


RACE = """
import sys, time
from sqlalchemy import create_engine
from detectors.errors import InputError
from studies.search.lease import Lease

address, study, start = sys.argv[1:]
lease = Lease(create_engine(address), study, renew_seconds=0.05, dead_seconds=1.0)
time.sleep(max(0.0, float(start) - time.time()))
try:
    with lease.hold():
        print("held", flush=True)
        sys.stdin.readline()
except InputError as error:
    print(error, flush=True)
"""


def race(url: str, takers: int = 4) -> list[str]:
    """What processes say that begin to take the lease at the same moment."""
    command = [sys.executable, "-c", RACE, url, STUDY, str(time.time() + 2.5)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(takers)
    ]
    said = [process.stdout.readline().strip() for process in processes if process.stdout]
    for process in processes:
        process.communicate("\n", timeout=PATIENCE)
    return said


@pytest.mark.kill
@pytest.mark.parametrize("what", ["nobody", "dead"])
def test_of_those_who_come_at_once_one_gets_it(url: str, engine: Engine, what: str) -> None:
    if what == "dead":
        with holding(url) as process:
            process.kill()
            process.wait()
        assert lease(engine).holder() is not None
    said = race(url)
    assert said.count("held") == 1
    others = [text for text in said if text != "held"]
    assert all(re.match(r"study 'padim_screw' is being run by process \d+ on ", text) for text in others), said


# The database


def test_a_database_that_takes_no_note_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    path.write_bytes(b"no database at all" * 100)
    with (
        pytest.raises(InputError, match=r"^study 'padim_screw': cannot note in the database who runs it \(file is not"),
        lease(create_engine(f"sqlite:///{path}")).hold(),
    ):
        pass


def test_a_database_that_is_away_for_a_while_loses_nothing(engine: Engine) -> None:
    held, away, refused = lease(engine), threading.Event(), threading.Event()

    @event.listens_for(engine, "before_cursor_execute")
    def refuse(*arguments: Any) -> None:
        if away.is_set():
            refused.set()
            raise OperationalError("statement", {}, Exception("server closed the connection"))

    with held.hold():
        away.set()
        assert refused.wait(PATIENCE)
        assert not held.is_lost()
        away.clear()
        before = held.holder()
        assert before is not None
        until(lambda: (now := held.holder()) is not None and now.beat > before.beat)
        assert not held.is_lost()
    assert held.holder() is None


# In a driver


def rob(storage: PatientStorage) -> Lease:
    """Take a living driver's lease, as another machine does that believes it dead."""
    thief = Lease(storage.engine, "tiny")
    with elsewhere():
        while True:
            found = thief.holder()
            assert found is not None
            if thief._replace(found):
                return thief


def snapshot(bench: Bench) -> tuple[list[str], list[Any]]:
    """All that is stored of a study."""
    runs = [(run.info.run_id, run.info.status, run.info.end_time, run.data.to_dictionary()) for run in bench.runs()]
    return [repr(trial) for trial in bench.all_frozen()], sorted(runs, key=lambda run: run[0])


@pytest.mark.parametrize("task", ["trial", "final"])
def test_a_driver_that_lost_its_study_touches_nothing_any_more(bench: Bench, task: str) -> None:
    left: list[Any] = []
    thieves: list[Lease] = []

    def steal(notice: Any) -> None:
        if isinstance(notice, Started) and notice.job.task == task and (task == "final" or notice.job.number == 1):
            thieves.append(rob(open_storage(bench.home)))
            left.append(snapshot(bench))

    executor = ScriptedExecutor()
    with pytest.raises(LeaseLostError, match="'tiny' was taken over by another driver while this one stood still"):
        bench.run(executor, listener=steal)
    assert [snapshot(bench)] == left
    assert executor.closed
    (thief,) = thieves
    holder = thief.holder()
    assert holder is not None
    assert holder.id == thief._holder
    thief._give_back()
    bench.run()
    assert bench.states() == ["COMPLETE"] * 3
    assert sorted(bench.children()) == [0, 1, 2]
    assert bench.parent().info.status == "FINISHED"


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_waited_for_a_database_asks_first_whether_it_may_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """The network of this machine was cut, and another machine took the study over before it was whole again."""
    left: list[Any] = []
    original = RDBStorage.set_trial_user_attr

    def cut(storage: RDBStorage, *arguments: Any, **named: Any) -> None:
        if not left:
            rob(open_storage(bench.home))
            left.append(snapshot(bench))
            raise KeyboardInterrupt if interrupted else OperationalError("statement", {}, Exception("connection lost"))
        original(storage, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, "set_trial_user_attr", cut)
        with pytest.raises(KeyboardInterrupt if interrupted else LeaseLostError):
            bench.run()
    assert [snapshot(bench)] == left


def test_a_lease_that_is_renewed_all_the_time_disturbs_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write to one SQLite file, from two threads."""
    monkeypatch.setattr("studies.search.run.Lease", lambda engine, study: Lease(engine, study, renew_seconds=0.001))
    bench.run(budget={"trials": 15})
    assert bench.states() == ["COMPLETE"] * 15
    assert len(bench.children()) == 15
    assert "does not answer" not in bench.said()


def test_the_second_driver_of_one_home_is_told_who_holds_it(bench: Bench) -> None:
    told = []

    def start_another(notice: Any) -> None:
        if isinstance(notice, Started) and not told:
            with pytest.raises(InputError) as info:
                bench.run()
            told.append(str(info.value))

    bench.run(listener=start_another, budget={"trials": 1})
    assert told == [
        f"study 'tiny' is being run by process {os.getpid()} on {socket.gethostname()}; wait for it or stop it"
    ]


def steal_in_the_second_trial() -> None:
    """In the process of a command: another machine takes the study over during trial 1."""
    quick_trials()
    original = InlineExecutor.submit

    def submit(executor: InlineExecutor, job: Job) -> None:
        original(executor, job)
        if job.number == 1:
            rob(open_storage(Home.from_environment()))

    InlineExecutor.submit = submit  # type: ignore[method-assign]


@pytest.mark.kill
def test_the_command_ends_with_one_line_when_it_lost_its_study(
    tiny_mvtec: Path, study_home: Path, tmp_path: Path
) -> None:
    scene = Scene.write(tmp_path, tiny_mvtec, study_home)
    ended = scene.run(before=steal_in_the_second_trial)
    assert ended.code == 2
    assert ended.err == (
        "error: study 'tiny' was taken over by another driver while this one stood still; it goes on there\n"
    )
    assert [trial.state for trial in scene.view().trials()] == ["COMPLETE", "RUNNING"]
    assert {run.info.status for run in scene.runs()} == {"FINISHED", "RUNNING"}


def test_the_lease_is_asked_for_after_each_poll_and_before_what_is_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages, of which a job has many, cost no query, and a driver that lost its study notices while nothing happens."""
    executor, calls = ScriptedExecutor(), []
    is_lost, events = Lease.is_lost, executor.events

    def stages_first(timeout: float) -> list[Any]:
        happened = list(events(timeout))
        return [stage for stage in happened if isinstance(stage, Stage)] * 20 or happened

    def counted(lease: Lease) -> bool:
        calls.append(1)
        return is_lost(lease)

    monkeypatch.setattr(executor, "events", stages_first)
    monkeypatch.setattr(Lease, "is_lost", counted)
    bench.run(executor, budget={"trials": 2})
    # Two trials and a refit: a poll with stages and a poll with the end of each, and two ends that are told.
    assert len(calls) == 3 * 2 + 2
