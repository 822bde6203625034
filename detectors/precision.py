"""Full float32 for whatever a score is made of, whatever the rest of the process computes in.

On a GPU torch rounds the inputs of convolutions to TF32, 10 bits of mantissa, unless it is told otherwise. Scores then differ
from those of a CPU by about a hundredth of their spread, where float32 throughout leaves a millionth (measured on an H200 with
PaDiM and PatchCore): a threshold found on one machine would not be that of another. Training is left as it is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch.backends import cudnn, mkldnn

from detectors.while_inside import WhileInside


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions of this thread are in float32 throughout: no TF32, no bfloat16, no autocast.

    torch keeps one precision for the whole process. It is the highest as long as any thread is inside, for all threads; the
    last one to leave restores what the first one found. Blocks may be nested. Autocast is each thread's own.
    """
    with _highest_precision(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _precision_set_to_highest() -> Iterator[None]:
    with ExitStack() as restored:
        # Put back in the reverse order, the finer settings last: each of the coarse ones changes several of single operations.
        for operation in OPERATIONS:
            restored.callback(setattr, operation, "fp32_precision", operation.fp32_precision)
        with suppress(RuntimeError):  # torch refuses to name one precision for settings that contradict each other
            restored.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        for coarse in (torch.backends.cuda.matmul, cudnn):
            with suppress(RuntimeError):
                restored.callback(setattr, coarse, "allow_tf32", coarse.allow_tf32)
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        for operation in OPERATIONS:  # what is not set here goes by the setting above it, which may be TF32
            operation.fp32_precision = "ieee"
        yield


OPERATIONS: list[Any] = [
    operation
    for operation in (
        torch.backends.cuda.matmul,
        getattr(cudnn, "conv", None),
        getattr(cudnn, "rnn", None),
        getattr(mkldnn, "matmul", None),
        getattr(mkldnn, "conv", None),
        getattr(mkldnn, "rnn", None),
    )
    if hasattr(operation, "fp32_precision")
]
"""Operations that have a precision of their own, which came with torch 2.9."""
_highest_precision = WhileInside(_precision_set_to_highest)
