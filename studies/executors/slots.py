"""Device slots: where on a machine trials run side by side. A slot never has more than one trial at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detectors.errors import InputError

THREADS_PER_TRIAL = 4
"""More do not pay: extraction and the small products of a head stop scaling at about four threads, images and files take one
at any rate, and speed is measured while the other trials wait."""


@dataclass(frozen=True)
class Slot:
    """Room for one trial."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the worker's process starts with, before CUDA looks at them."""
    device: str | None = None
    """As the worker sees it; None leaves the choice to the job."""
    threads: int | None = None
    """CPU threads; None leaves the choice to the job."""


def plan_slots(
    jobs: int | Literal["auto"],
    *,
    device: str = "auto",
    gpus_per_trial: float = 1.0,
    cores: int,
    gpu_ids: Sequence[str] = (),
) -> list[Slot]:
    """Divide a machine among trials.

    Args:
        jobs: trials at the same time; ``auto``: as many as the GPUs hold, on the CPU one for each four cores begun.
        device: ``auto`` (every GPU, else the CPU), ``cpu``, ``cuda`` (every GPU) or ``cuda:N`` (that one alone).
        gpus_per_trial: 0.5 puts two trials on a GPU, 2 gives each trial two GPUs.
        cores: CPU cores to divide.
        gpu_ids: GPUs by the names that CUDA_VISIBLE_DEVICES takes.

    Raises:
        InputError: the machine does not hold so many.
    """
    if jobs != "auto" and jobs < 1:
        raise InputError(f"jobs: {jobs} is too few; give a number from 1 on, or auto")
    if device == "cpu" or (device == "auto" and not gpu_ids):
        count = max(1, math.ceil(cores / THREADS_PER_TRIAL)) if jobs == "auto" else jobs
        threads = max(1, cores // count)
        return [Slot(_threading(threads), "cpu", threads)] * count
    shares = _gpu_shares(_chosen(device, gpu_ids), gpus_per_trial)
    count = len(shares) if jobs == "auto" else jobs
    if count > len(shares):
        raise InputError(
            f"jobs: {count} trials at the same time do not fit: with {gpus_per_trial:g} GPUs for each there is room for "
            f"{len(shares)}; give fewer jobs, or lower gpus_per_trial"
        )
    threads = max(1, cores // count)
    return [
        Slot({"CUDA_VISIBLE_DEVICES": ",".join(share)} | _threading(threads), "cuda:0", threads)
        for share in shares[:count]
    ]


def check_gpus_per_trial(value: float) -> None:
    """Raise `InputError` unless a GPU can be shared so, or so many be taken."""
    if not 0 < value < math.inf or (value > 1 and value != int(value)):
        raise InputError(f"gpus_per_trial: {value:g} is neither a whole number nor a part of 1, such as 0.5")


def visible_gpus(count: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the `count` GPUs that this process sees, as CUDA_VISIBLE_DEVICES gives them: numbers, GPU-... or MIG-..."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()][:count]


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPU cores that this process may use: by affinity, and in a container by its share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(cores, math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):  # another system, or no limit ("max")
        return cores


def _chosen(device: str, gpu_ids: Sequence[str]) -> Sequence[str]:
    """The GPUs that a device name means."""
    kind, _, index = device.partition(":")
    if device != "auto" and (kind != "cuda" or (":" in device and not index.isdecimal())):
        raise InputError(f"device {device!r}: give auto, cpu, cuda or cuda:N")
    if not gpu_ids or (index and int(index) >= len(gpu_ids)):
        raise InputError(f"device {device!r}: this machine has {len(gpu_ids)} CUDA devices; use --device cpu")
    return [gpu_ids[int(index)]] if index else gpu_ids


def _gpu_shares(gpu_ids: Sequence[str], gpus_per_trial: float) -> list[tuple[str, ...]]:
    """GPUs of each slot; parts of one GPU come after every GPU has had its first, so that few trials spread out."""
    check_gpus_per_trial(gpus_per_trial)
    if gpus_per_trial <= 1:
        # 1 / 0.1 may fall just below 10.
        return [(name,) for _ in range(math.floor(1 / gpus_per_trial + 1e-6)) for name in gpu_ids]
    size = int(gpus_per_trial)
    if size > len(gpu_ids):
        raise InputError(f"gpus_per_trial: {size}, but there are only {len(gpu_ids)} GPUs; give at most that many")
    return [tuple(gpu_ids[first : first + size]) for first in range(0, len(gpu_ids) - size + 1, size)]


def _threading(threads: int) -> dict[str, str]:
    """For the libraries that `torch.set_num_threads` does not reach: numpy's products, faiss, scikit-learn."""
    return {"OMP_NUM_THREADS": str(threads)}
