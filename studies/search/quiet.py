"""Optuna's log lines are left out where ours say the same; its verbosity belongs to the whole process, and is given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

_lock = threading.Lock()
_depth = 0
_before = optuna.logging.INFO


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Within the block, in whichever thread, Optuna logs warnings and errors alone; the last one to leave restores its level."""
    global _depth, _before
    with _lock:
        if _depth == 0:
            _before = optuna.logging.get_verbosity()
            optuna.logging.set_verbosity(max(_before, optuna.logging.WARNING))
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                optuna.logging.set_verbosity(_before)
