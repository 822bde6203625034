"""Smaller portions where memory ran out."""

from __future__ import annotations

import threading

import pytest

from detectors.working_memory import halved, parts, portion


def test_portions_are_halved_within_the_context_alone():
    assert (portion(100), parts()) == (100, 1)
    with halved(2):
        assert (portion(100), portion(3), parts()) == (25, 1, 4)
        with halved(0):
            assert portion(100) == 100
        assert portion(100) == 25
    assert (portion(100), parts()) == (100, 1)


def test_other_threads_keep_theirs():
    seen: list[int] = []
    with halved(3):
        thread = threading.Thread(target=lambda: seen.append(portion(64)))
        thread.start()
        thread.join()
    assert seen == [64]


def test_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match="-1 times"), halved(-1):
        pytest.fail("entered")
