"""Optuna's verbosity is lowered for a while, by several at once, and given back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import optuna
import pytest

from studies.search.quiet import quiet_optuna


@pytest.fixture(autouse=True)
def verbose():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    yield
    optuna.logging.set_verbosity(before)


def test_it_is_given_back_after_an_error_too():
    def fail():
        with quiet_optuna():
            assert optuna.logging.get_verbosity() == optuna.logging.WARNING
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG


def test_the_last_thread_to_leave_gives_it_back():
    inside, first_left = Barrier(2, timeout=10), Barrier(2, timeout=10)

    def leave_first():
        with quiet_optuna():
            inside.wait()
        first_left.wait()

    def leave_last():
        with quiet_optuna():
            inside.wait()
            first_left.wait()
            return optuna.logging.get_verbosity()

    with ThreadPoolExecutor(2) as pool:
        pool.submit(leave_first)
        assert pool.submit(leave_last).result() == optuna.logging.WARNING
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG


def test_who_wants_it_quieter_still_keeps_that():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with quiet_optuna():
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
