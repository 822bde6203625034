"""Matrix products in full float32, whatever the rest of the process computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from detectors.while_inside import WhileInside


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products of this thread are in float32 throughout: no TF32, no bfloat16, no autocast.

    torch keeps one precision for the whole process. It is "highest" as long as any thread is inside, for all threads; the
    last one to leave restores the precision that the first one found. Blocks may be nested. Autocast is each thread's own.
    """
    with _highest_precision(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _precision_set_to_highest() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


_highest_precision = WhileInside(_precision_set_to_highest)
