"""Random numbers and CPU threads of the process while a detector is fitted, and as they were afterwards."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SEEDED = threading.RLock()


@contextmanager
def seeded(seed: int, *, threads: int | None = None) -> Iterator[None]:
    """Within the block, seed the random numbers of Python, numpy and torch on every device, and limit torch's CPU threads.

    A fit may run in the process of a user, whose random numbers and threads must not change. One thread at a time may be inside,
    as both are the process's; the others wait.

    Args:
        seed: at least 0; numpy uses it modulo 2^32.
        threads: CPU threads of torch; default as they are.
    """
    with _SEEDED:
        python, legacy_numpy, threads_before = random.getstate(), np.random.get_state(), torch.get_num_threads()
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        try:
            with torch.random.fork_rng(devices=gpus):
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
                if threads is not None:
                    torch.set_num_threads(threads)
                yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy_numpy)
            torch.set_num_threads(threads_before)
