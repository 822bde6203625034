"""Optuna's log lines are left out where ours say the same, or where nobody can do anything about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from detectors.while_inside import WhileInside

GAUSSIAN_PROCESS_LOGGER = "optuna._gp.batched_lbfgsb"
"""It warns that a package is absent that saves a Gaussian process milliseconds."""


@contextmanager
def _warnings_alone() -> Iterator[None]:
    gaussian_process = logging.getLogger(GAUSSIAN_PROCESS_LOGGER)
    before, level = optuna.logging.get_verbosity(), gaussian_process.level
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    gaussian_process.setLevel(logging.ERROR)
    try:
        yield
    finally:
        gaussian_process.setLevel(level)
        optuna.logging.set_verbosity(before)


quiet_optuna = WhileInside(_warnings_alone)
"""``with quiet_optuna():`` Optuna logs warnings and errors alone, in all threads; the last one to leave restores its level."""
