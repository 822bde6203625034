"""Optuna's log lines are left out where ours say the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from detectors.while_inside import WhileInside


@contextmanager
def _warnings_alone() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


quiet_optuna = WhileInside(_warnings_alone)
"""``with quiet_optuna():`` Optuna logs warnings and errors alone, in all threads; the last one to leave restores its level."""
