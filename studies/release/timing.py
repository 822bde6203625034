"""The latency of a model, measured again where other work on the machine may have spoilt it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from detectors.base import Detector
from detectors.runtime.latency import DeviceLock, Latency, measure_latency

BUSY = 0.1
"""A machine on which other work takes more than this share of the cores counts as busy."""
ATTEMPTS = 3
"""How often the latency is measured at most."""
BEYOND_LOAD = 10.0
"""A limit that is missed by this factor is missed on an idle machine too: it is not measured again."""


@dataclass(frozen=True)
class Timing:
    """The latency as it was measured when the machine was quietest."""

    latency: Latency
    load: float
    """Share of the cores, 0 to 1, that other work took meanwhile."""
    attempts: int
    """How often it was measured."""


def quiet_latency(
    detector: Detector,
    images: Tensor,
    device: torch.device,
    *,
    lock: DeviceLock,
    limit: float | None,
    tell: Callable[[str], None] = lambda text: None,
) -> Timing:
    """Measure a detector's latency, up to three times where the machine is busy and the limit is missed.

    Other work makes a model slower, never faster: what is within the limit on a busy machine is within it on a quiet one, and a
    figure without a limit decides nothing. Neither is measured again.

    Args:
        images: uint8 [N, 3, H, W], N >= 1.
        limit: of the 95th percentile, in milliseconds; None where there is none.
        tell: called with a line where it is measured again.
    """
    timings: list[Timing] = []
    for attempt in range(1, ATTEMPTS + 1):
        with lock.exclusive():
            meter = LoadMeter()
            latency = measure_latency(detector, images, device)
            timings.append(Timing(latency, meter.load(), attempt))
        slow = limit is not None and limit < latency.latency_ms_p95 <= BEYOND_LOAD * limit
        if timings[-1].load <= BUSY or not slow:
            break
        if attempt < ATTEMPTS:
            tell(f"other work took {100 * timings[-1].load:.0f} % of the machine: timing once more")
    quietest = min(timings, key=lambda timing: timing.load)
    return Timing(quietest.latency, quietest.load, len(timings))


class LoadMeter:
    """Share of the cores that this process may use which other processes took since the meter was made."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cores = _usable_cores(self._process)
        self._begin, self._busy, self._own = time.perf_counter(), self._busy_seconds(), self._own_seconds()

    def load(self) -> float:
        """0 to 1. On a GPU, too, it is about the cores: they prepare its work."""
        elapsed = (time.perf_counter() - self._begin) * len(self._cores)
        others = (self._busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        return min(max(others / elapsed, 0.0), 1.0) if elapsed > 0 else 0.0

    def _busy_seconds(self) -> float:
        """Seconds that the usable cores spent on anything, added up."""
        times = psutil.cpu_times(percpu=True)
        # Linux counts the time of guests twice, as theirs and within user and nice.
        apart = ("idle", "iowait", "guest", "guest_nice")
        return sum(
            sum(core) - sum(getattr(core, name, 0.0) for name in apart)
            for index, core in enumerate(times)
            if index in self._cores
        )

    def _own_seconds(self) -> float:
        own = self._process.cpu_times()
        return float(own.user + own.system)


def _usable_cores(process: psutil.Process) -> frozenset[int]:
    """Numbers of the cores that a process may run on."""
    if hasattr(process, "cpu_affinity"):
        return frozenset(process.cpu_affinity())
    return frozenset(range(os.cpu_count() or 1))
