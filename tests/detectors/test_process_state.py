"""What threads share and change for a while: put back by the last of them, whatever the order in which they leave."""

from __future__ import annotations

import doctest
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from detectors import training, while_inside
from detectors.process_state import drawn_from, warning_filters_restored
from detectors.runtime import export
from detectors.while_inside import WhileInside

WAIT = 60
"""Seconds after which a thread that waits for another gives up."""


class Switch:
    """Something that is turned on and off, and remembers how often."""

    def __init__(self) -> None:
        self.on, self.times = False, 0

    @contextmanager
    def turned_on(self) -> Any:
        assert not self.on
        self.on, self.times = True, self.times + 1
        try:
            yield
        finally:
            self.on = False


def run_overlapping(manager: Callable[[], AbstractContextManager[Any]], look: Callable[[], Any]) -> Any:
    """One thread enters, a second one enters, the first leaves: what the second sees then, before it leaves too."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with manager():
            first_in.set()
            assert second_in.wait(WAIT)
        first_out.set()

    def second() -> Any:
        assert first_in.wait(WAIT)
        with manager():
            second_in.set()
            assert first_out.wait(WAIT)
            return look()

    with ThreadPoolExecutor(2) as threads:
        early, late = threads.submit(first), threads.submit(second)
        early.result(WAIT)
        return late.result(WAIT)


def test_a_change_lasts_until_the_last_thread_has_left():
    switch = Switch()
    guard = WhileInside(switch.turned_on)
    assert run_overlapping(guard, lambda: switch.on) is True
    assert not switch.on
    assert switch.times == 1


def test_the_example_runs():
    results = doctest.testmod(while_inside)
    assert results.attempted > 2
    assert results.failed == 0


def test_a_change_that_fails_leaves_nobody_inside():
    attempts = []

    @contextmanager
    def change() -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyError
        yield

    guard = WhileInside(change)
    with pytest.raises(KeyError), guard():
        pytest.fail("not reached")
    with guard():
        pass
    assert len(attempts) == 2


def test_warning_filters_are_those_of_before_when_all_have_left():
    before = list(warnings.filters)

    @contextmanager
    def ignoring() -> Any:
        with warning_filters_restored():
            warnings.simplefilter("ignore")
            yield

    assert run_overlapping(ignoring, lambda: warnings.filters[0][0]) == "ignore"
    assert list(warnings.filters) == before


def test_two_trainings_at_a_time_leave_lightnings_loggers_as_they_were():
    logger = logging.getLogger("pytorch_lightning")
    level, filters = logger.level, list(warnings.filters)
    assert level != logging.ERROR
    assert run_overlapping(training._quiet, lambda: logger.level) == logging.ERROR
    assert logger.level == level
    assert list(warnings.filters) == filters


def test_two_exports_at_a_time_leave_logging_and_output_as_they_were():
    stdout, disabled = sys.stdout, logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        assert run_overlapping(export._quiet, lambda: logging.root.manager.disable) == logging.WARNING
        assert logging.root.manager.disable == logging.INFO
        assert sys.stdout is stdout
    finally:
        logging.disable(disabled)


def test_threads_that_draw_from_seeds_at_a_time_draw_what_they_would_alone():
    def draw(seed: int) -> list[float]:
        numbers = []
        with drawn_from(seed):
            for _ in range(5):
                numbers += torch.rand(3).tolist()
                time.sleep(0.002)
        return numbers

    alone = [draw(seed) for seed in range(6)]
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(draw, range(6))) == alone
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seeds_draws_do_not_touch_the_generator_even_after_an_error():
    state = torch.random.get_rng_state()
    with pytest.raises(KeyError), drawn_from(3):  # noqa: PT012
        torch.rand(2)
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), state)
