"""Waiting for what is away: how long, how often, what is told, and what ends it at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.patience import LONGEST_WAIT_SECONDS, Patience, is_lasting


class Clock:
    """Time that passes while one sleeps, and by `cost` with every try."""

    def __init__(self) -> None:
        self.now, self.sleeps, self.told = 1000.0, [], []
        self.tries: list[int] = []

    def patience(self, **options: object) -> Patience:
        return Patience(tell=self.told.append, clock=lambda: self.now, sleep=self.sleep, **options)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def away(self, *, until: float = float("inf"), cost: float = 0.0):
        """An action that fails until `until` seconds have passed."""
        begin = self.now

        def action(tries: int) -> str:
            self.tries.append(tries)
            self.now += cost
            if self.now - begin < until:
                raise ConnectionError(f"try {tries}")
            return "done"

        return action


def wait(patience: Patience, action) -> str:
    return patience.until_back(
        action, is_away=lambda error: isinstance(error, ConnectionError), what="Database db:5432"
    )


def test_what_succeeds_at_once_is_neither_waited_for_nor_told():
    clock = Clock()
    assert wait(clock.patience(), clock.away(until=0)) == "done"
    assert (clock.tries, clock.sleeps, clock.told) == ([0], [], [])


def test_pauses_grow_up_to_a_limit():
    clock = Clock()
    assert wait(clock.patience(), clock.away(until=20)) == "done"
    assert clock.sleeps == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert clock.tries == list(range(8))


def test_a_moment_is_not_worth_a_word():
    clock = Clock()
    assert wait(clock.patience(), clock.away(until=0.4)) == "done"
    assert clock.sleeps == [0.5]
    assert clock.told == []


def test_it_is_told_soon_then_now_and_again_and_at_the_end():
    clock = Clock()
    wait(clock.patience(give_up_seconds=100), clock.away(until=40))
    assert clock.told == [
        "Database db:5432 does not answer; waiting for it, for up to 100 s; nothing is lost",
        "Database db:5432 does not answer; waiting for it, for up to 82 s; nothing is lost",
        "Database db:5432 does not answer; waiting for it, for up to 68 s; nothing is lost",
        "Database db:5432 is back after 42 s",
    ]


def test_a_try_that_took_long_by_itself_is_told_at_once():
    clock = Clock()
    wait(clock.patience(), clock.away(until=15, cost=10))
    assert clock.told == [
        "Database db:5432 does not answer; waiting for it, for up to 590 s; nothing is lost",
        "Database db:5432 is back after 20 s",
    ]


def test_it_gives_up_with_the_last_error_and_within_the_time():
    clock = Clock()
    with pytest.raises(ConnectionError, match=r"^try 7$"):
        wait(clock.patience(give_up_seconds=25), clock.away())
    assert sum(clock.sleeps) == 22.5
    assert clock.told[-1].startswith("Database db:5432 does not answer")


@given(give_up=st.floats(0, 200), cost=st.floats(0, 30))
def test_no_pause_begins_that_would_end_too_late(give_up: float, cost: float):
    clock = Clock()
    begin = clock.now
    with pytest.raises(ConnectionError):
        wait(clock.patience(give_up_seconds=give_up), clock.away(cost=cost))
    assert clock.now - begin <= give_up + cost + 1e-6
    assert all(pause <= LONGEST_WAIT_SECONDS for pause in clock.sleeps)


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyError("wrong"), KeyboardInterrupt(), SystemExit(1)])
def test_what_waiting_does_not_help_against_ends_it_at_once(error: BaseException):
    clock = Clock()

    def action(tries: int) -> str:
        if tries == 0:
            raise ConnectionError
        raise error

    with pytest.raises(type(error)):
        wait(clock.patience(), action)
    assert clock.sleeps == [0.5]
    assert clock.told == []


def test_before_each_further_try_it_is_asked_whether_to_go_on():
    clock = Clock()
    asked: list[float] = []

    def may_go_on() -> None:
        asked.append(clock.now)
        if len(asked) == 3:
            raise PermissionError("another one has it now")

    with pytest.raises(PermissionError, match="another one has it now"):
        wait(clock.patience(may_go_on=may_go_on), clock.away())
    assert clock.tries == [0, 1, 2]


def test_a_question_that_cannot_be_asked_now_is_waited_for_too():
    clock = Clock()
    answers = iter([ConnectionError, ConnectionError, None])

    def may_go_on() -> None:
        if (answer := next(answers)) is not None:
            raise answer

    assert (
        wait(clock.patience(may_go_on=may_go_on), lambda tries: 1 / tries and "done" if tries else _refuse()) == "done"
    )
    assert clock.sleeps == [0.5, 1.0, 2.0]


def _refuse() -> str:
    raise ConnectionError


def test_ctrl_c_ends_the_waiting():
    clock = Clock()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    patience = clock.patience()
    patience.sleep = interrupted
    with pytest.raises(KeyboardInterrupt):
        wait(patience, clock.away())
    assert clock.tries == [0]


@pytest.mark.parametrize(
    "message",
    [
        "database or disk is full",
        "could not extend file: No space left on device",
        'password authentication failed for user "ann"',
        "fe_sendauth: no password supplied",
        'database "studies" does not exist',
        "attempt to write a readonly database",
        "cannot execute INSERT in a read-only transaction",
        "file is not a database",
        "database disk image is malformed",
    ],
)
def test_errors_that_last(message: str):
    assert is_lasting(message)


@pytest.mark.parametrize(
    "message",
    [
        "database is locked",
        "connection refused",
        "server closed the connection unexpectedly",
        "the database system is starting up",
        "terminating connection due to administrator command",
        "sorry, too many clients already",
        "the request was handled successfully, but its answer was lost",
        "failed to resolve host 'db': Name or service not known",
    ],
)
def test_errors_that_pass(message: str):
    assert not is_lasting(message)
