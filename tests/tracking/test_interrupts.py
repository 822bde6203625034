"""A signal never ends a store's call in its midst, and never waits for one for long."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tracking import interrupts
from tracking.interrupts import handle_interrupts, undisturbed
from tracking.patience import Patience


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handle_interrupts()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    assert interrupts._State.depth == 0
    assert interrupts._State.waiting is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_acted_upon_at_once_outside(number: signal.Signals):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_outermost_block(number: signal.Signals):
    steps = []
    with pytest.raises(KeyboardInterrupt), undisturbed():  # noqa: PT012
        with undisturbed():
            signal.raise_signal(number)
            steps.append("inner")
        steps.append("outer")
    assert steps == ["inner", "outer"]
    with undisturbed():
        steps.append("later")
    assert steps[-1] == "later"


def test_an_error_in_the_block_gives_way_to_the_signal():
    with pytest.raises(KeyboardInterrupt) as info, undisturbed():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("while it waited")
    assert isinstance(info.value.__context__, ValueError)


def test_the_second_signal_does_not_wait():
    steps = []
    with pytest.raises(KeyboardInterrupt), undisturbed():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        steps.append("first")
        signal.raise_signal(signal.SIGINT)
        steps.append("second")
    assert steps == ["first"]


def test_a_store_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interrupts, "GRACE_SECONDS", 0.2)
    killer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM])
    killer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), undisturbed():
        time.sleep(60)
    killer.join()
    assert time.monotonic() - begin < 50


def test_other_threads_are_none_of_its_business():
    done = []

    def work() -> None:
        with undisturbed():
            done.append(interrupts._State.depth)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [0]


def test_a_call_that_is_waited_for_is_over_when_the_signal_is_acted_upon():
    steps = []

    def action(tries: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        steps.append("stored")

    with pytest.raises(KeyboardInterrupt):
        Patience().until_back(action, is_away=lambda error: False, what="it")
    assert steps == ["stored"]


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle_interrupts()
    signal.raise_signal(signal.SIGINT)
