"""Guards for what all threads of a process share: torch's settings and its generator, loggers, warning filters."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from detectors.while_inside import WhileInside

warning_filters_restored = WhileInside(warnings.catch_warnings)
"""Filters added inside hold for all threads until the last thread has left, which restores those of the first one."""

_GENERATOR = threading.RLock()


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What draws from torch's own generator in this block draws from a seed; the generator is afterwards as it was before.

    One thread at a time may be inside, as the generator is the process's.
    """
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
