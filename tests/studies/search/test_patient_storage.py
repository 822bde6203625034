"""The storage that waits: for what, for how long, and that no call is done twice or left out."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    TimeoutError,
)

from detectors.errors import InputError
from studies.search.patient_storage import PatientStorage, is_away
from tracking.patience import Patience

psycopg = pytest.importorskip("psycopg")
LOST = OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[PatientStorage]:
    database = RDBStorage(f"sqlite:///{tmp_path / 'studies.db'}")
    storage = PatientStorage(database, patience=Patience(sleep=lambda seconds: None))
    yield storage
    storage.engine.dispose()


def breaking(storage: PatientStorage, *, after: bool, commits: int = 1) -> Callable[[], None]:
    """Let the connection break at the next commits, before or after the database did its work; returns how to end that."""
    session = storage.database.scoped_session.session_factory.class_
    original, left = session.commit, [commits]

    def commit(self: Any) -> None:
        if left[0] and not after:
            left[0] -= 1
            raise LOST
        original(self)
        if left[0]:
            left[0] -= 1
            raise LOST

    session.commit = commit

    def end() -> None:
        assert left == [0]
        session.commit = original

    return end


@pytest.mark.parametrize("name", sorted(BaseStorage.__abstractmethods__))
def test_every_call_is_patient(storage: PatientStorage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[tuple[Any, ...]] = []

    def answer(*arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) == 1:
            raise LOST
        return "the answer"

    count = len(inspect.signature(getattr(BaseStorage, name)).parameters) - 1
    arguments = tuple(f"argument {number}" for number in range(count))
    monkeypatch.setattr(storage._cached, name, answer)
    method = getattr(storage, name)
    assert method(*arguments) == (
        "the answer" if "None" not in str(inspect.signature(method).return_annotation) else None
    )
    assert calls == [arguments] * 2


def test_a_study_goes_on_through_any_broken_connection(storage: PatientStorage) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    for after in (False, True):
        for commits in range(1, 4):
            end = breaking(storage, after=after, commits=commits)
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            trial.report(0.5, 1)
            trial.set_user_attr("a", 1)
            trial.set_constraint("c", -1.0)
            study.tell(trial, 1.0)
            end()
    finished = study.get_trials(states=[TrialState.COMPLETE])
    assert len(finished) == 6
    assert [trial.number for trial in study.get_trials()] == list(range(len(study.get_trials())))


def counted(storage: PatientStorage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the reads that reach the database, as they come."""
    calls: list[str] = []
    for name in ("get_all_trials", "get_study_user_attrs", "get_trial"):
        original = getattr(storage._cached, name)

        def read(*words: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            calls.append(name)
            return original(*words, **options)

        monkeypatch.setattr(storage._cached, name, read)
    return calls


def test_where_reads_are_cached_each_thing_is_read_once_until_something_is_written(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    study.tell(study.ask(), 0.5)
    other = optuna.load_study(study_name="s", storage=PatientStorage(RDBStorage(str(storage.engine.url))))
    calls = counted(storage, monkeypatch)
    with storage.reads_cached():
        for _ in range(3):
            assert len(study.get_trials()) == len(study.get_trials(states=[TrialState.COMPLETE])) == 1
            assert study.get_trials(states=[TrialState.RUNNING]) == []
            assert study.user_attrs == {}
        assert calls == ["get_all_trials", "get_study_user_attrs"]
        # What was read belongs to who read it.
        study.get_trials()[0].user_attrs["mine"] = 1
        study.user_attrs["mine"] = 1
        study.get_trials(deepcopy=False).clear()
        assert [trial.user_attrs for trial in study.get_trials()] == [{}]
        assert study.user_attrs == {}
        study.set_user_attr("told", 1)
        assert study.user_attrs == {"told": 1}
        trial = study.ask()
        trial.set_user_attr("a", 1)
        assert [one.user_attrs for one in study.get_trials()] == [{}, {"a": 1}]
        # Who must know of others looks again.
        assert study.user_attrs == {"told": 1}
        other.set_user_attr("told", 2)
        assert study.user_attrs == {"told": 1}
        storage.invalidate()
        assert study.user_attrs == {"told": 2}
        # Another thread reads for itself.
        other.set_user_attr("told", 3)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: study.user_attrs).result() == {"told": 3}
    other.set_user_attr("told", 4)
    assert study.user_attrs == {"told": 4}


def attributes_of(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    return [vars(trial) | {"distributions": {n: repr(d) for n, d in trial.distributions.items()}} for trial in trials]


def test_what_is_written_is_seen_as_the_database_has_it_and_costs_no_look_at_all_trials(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    other = optuna.load_study(study_name="s", storage=PatientStorage(RDBStorage(str(storage.engine.url))))
    study.add_trial(optuna.trial.create_trial(value=0.1))
    draw = random.Random(0)
    calls = counted(storage, monkeypatch)
    with storage.reads_cached():
        before = study.get_trials(deepcopy=False)
        assert len(before) == 1
        del calls[:]
        for turn in range(6):
            if turn % 2:
                study.enqueue_trial(
                    {"size": 0.25, "kind": None}, user_attrs={"idea": [1, (2, 3)], "deep": {"a": {1: 2}}}
                )
            trial = study.ask()
            trial.suggest_float("size", 0.1, 0.3, log=True)
            trial.suggest_int("count", 1, 9, step=2)
            trial.suggest_categorical("kind", (None, "a", 0.5))
            for name in "abc":
                trial.set_user_attr(name, draw.choice([None, True, 1e-300, "ü", [1, {"x": (1,)}]]))
            trial.set_user_attr("a", "again")
            if turn == 2:
                trial.report(0.5, step=3)
            if turn == 3:
                study.tell(trial, state=TrialState.FAIL)
            elif turn != 4:
                study.tell(trial, float(turn))
            assert attributes_of(study.get_trials()) == attributes_of(other.get_trials())
            assert storage.get_trial(trial._trial_id) == other.get_trials()[-1]
        assert len(before) == 1
        assert before[0].user_attrs == {}
        assert calls.count("get_all_trials") == 0
        # Another driver's trial is not missed between those of this one.
        other.ask()
        study.ask()
        assert [trial.number for trial in study.get_trials()] == list(range(9))


def test_the_cache_of_reads_does_not_outlive_a_write_that_failed_half_way(storage: PatientStorage) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    storage._patience.give_up_seconds = 0.0
    with storage.reads_cached():
        assert study.get_trials()[0].state == TrialState.RUNNING
        end = breaking(storage, after=True)
        with pytest.raises(InputError):
            storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])
        end()
        assert study.get_trials()[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("after", [False, True])
def test_a_trial_whose_end_was_stored_but_not_confirmed_is_ended_once(storage: PatientStorage, after: bool) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    end = breaking(storage, after=after)
    assert storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5]) is True
    end()
    (frozen,) = study.get_trials()
    assert (frozen.state, frozen.values) == (TrialState.COMPLETE, [0.5])
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.7])


@pytest.mark.parametrize("after", [False, True])
def test_a_queued_setting_that_was_taken_but_not_confirmed_is_not_lost(storage: PatientStorage, after: bool) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial(params={"x": 0.25})
    (waiting,) = study.get_trials()
    end = breaking(storage, after=after)
    assert storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING) is True
    end()
    # Somebody who comes later does not get it again.
    assert storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING) is False


def test_it_gives_up_with_one_line_that_names_the_database(storage: PatientStorage) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    said: list[str] = []
    storage = PatientStorage(
        storage.database,
        patience=Patience(give_up_seconds=30, tell=said.append, clock=lambda: now[0], sleep=sleep),
        shown_url="Optuna storage postgresql://ann:***@db/studies",
    )
    study = optuna.create_study(study_name="s", storage=storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.database.scoped_session.session_factory.class_, "commit", _lose)
        with pytest.raises(InputError) as info:
            study.set_user_attr("a", 1)
    assert str(info.value) == (
        "Optuna storage postgresql://ann:***@db/studies cannot be reached any more "
        "(server closed the connection unexpectedly); run the same command again"
    )
    assert 20 < now[0] <= 30
    assert said[0].startswith("Optuna storage postgresql://ann:***@db/studies does not answer; waiting for it")
    study.set_user_attr("a", 2)
    assert study.user_attrs == {"a": 2}


def _lose(session: Any) -> None:
    raise LOST


def wrapped(error: Exception) -> StorageInternalError:
    """As Optuna hands an error of the database on."""
    try:
        raise StorageInternalError("An exception is raised during the commit.") from error
    except StorageInternalError as internal:
        return internal


@pytest.mark.parametrize("hand_on", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    "error",
    [
        LOST,
        OperationalError("s", {}, psycopg.OperationalError("connection failed: Connection refused")),
        OperationalError("s", {}, psycopg.errors.AdminShutdown("terminating connection")),
        OperationalError("s", {}, psycopg.errors.CannotConnectNow("the database system is starting up")),
        OperationalError("s", {}, Exception("database is locked")),
        InterfaceError("s", {}, Exception("the connection is closed")),
        DBAPIError("s", {}, Exception("SSL SYSCALL error: EOF detected"), connection_invalidated=True),
        PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
        TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
    ],
)
def test_what_waiting_helps_against(error: Exception, hand_on: Callable[[Exception], Exception]) -> None:
    assert is_away(hand_on(error))


@pytest.mark.parametrize("hand_on", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    "error",
    [
        OperationalError("s", {}, Exception("database or disk is full")),
        OperationalError("s", {}, psycopg.errors.InvalidPassword("password authentication failed")),
        OperationalError("s", {}, Exception("no such table: studies")),
        IntegrityError("s", {}, Exception("UNIQUE constraint failed")),
        ProgrammingError("s", {}, Exception("permission denied for table studies")),
        DBAPIError("s", {}, Exception("value too long")),
        ValueError("no error of a database"),
        KeyError("no such trial"),
    ],
)
def test_what_waiting_does_not_help_against(error: Exception, hand_on: Callable[[Exception], Exception]) -> None:
    assert not is_away(hand_on(error))


def test_it_is_a_storage_like_any_other() -> None:
    for name in BaseStorage.__abstractmethods__:
        mine, other = getattr(PatientStorage, name), getattr(RDBStorage, name)
        assert list(inspect.signature(mine).parameters) == list(inspect.signature(other).parameters)
