"""The latency of a model, measured again where other work on the machine may have spoilt it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.runtime.latency import DeviceLock, Latency, is_disturbed, measure_latency

ATTEMPTS = 3
"""How often the latency is measured at most."""
BEYOND_LOAD = 10.0
"""A limit that is missed by this factor is missed on an idle machine too: it is not measured again."""


@dataclass(frozen=True)
class Timing:
    """The latency as it was measured when the machine was quietest."""

    latency: Latency
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
    timings: list[Latency] = []
    for attempt in range(1, ATTEMPTS + 1):
        with lock.exclusive():
            timings.append(measure_latency(detector, images, device))
        latency = timings[-1]
        slow = limit is not None and limit < latency.latency_ms_p95 <= BEYOND_LOAD * limit
        if not slow or not is_disturbed(latency.to_metrics()):
            break
        if attempt < ATTEMPTS:
            tell("other programs were busy: timing once more")
    quietest = min(timings, key=lambda latency: (latency.latency_load or 0.0, latency.latency_ms_p95))
    return Timing(quietest, len(timings))
