"""Optuna's log lines are left out where ours say the same, or where nobody can do anything about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from detectors.while_inside import WhileInside

GAUSSIAN_PROCESS = "optuna._gp.batched_lbfgsb"
"""Its logger warns that a package is absent that saves a Gaussian process milliseconds."""


@contextmanager
def _warnings_alone() -> Iterator[None]:
    before, without_greenlet = optuna.logging.get_verbosity(), logging.getLogger(GAUSSIAN_PROCESS)
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    level = without_greenlet.level
    without_greenlet.setLevel(logging.ERROR)
    try:
        yield
    finally:
        without_greenlet.setLevel(level)
        optuna.logging.set_verbosity(before)


quiet_optuna = WhileInside(_warnings_alone)
"""``with quiet_optuna():`` Optuna logs warnings and errors alone, in all threads; the last one to leave restores its level."""
