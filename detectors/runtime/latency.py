"""The one FPS protocol: every figure of speed in a study, a report or the gate is measured here.

A preprocessed uint8 tensor goes in, score and map come out on the host; eval mode, warmed up, device synchronised,
the median of at least 30 runs and one second; alone on the device, with all of the machine's cores.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.files import file_lock
from detectors.runtime.artifact import model_size_mb

MIN_RUNS, MIN_SECONDS, WARM_UP_RUNS = 30, 1.0, 5
THROUGHPUT_BATCH, THROUGHPUT_PIXELS = 32, 2**23
BUSY, UNEVEN = 0.1, 1.5
"""Share of the cores, and p95 over p50, from which on a measurement counts as disturbed."""
LOOK_SECONDS, MOST_LOOKS = 2.0, 30
"""How long it is looked whether the machine is quiet, and how often before it is taken as it is."""


@dataclass(frozen=True)
class Latency:
    """Speed and memory of one detector on one device."""

    latency_ms_p50: float
    latency_ms_p95: float
    fps: float
    """Images per second at batch 1: 1000 / latency_ms_p50."""
    throughput: float
    """Images per second at batch 32."""
    peak_memory_mb: float
    """Model and working memory at their highest, 10^6 bytes."""
    model_size_mb: float
    """Size of the stored artifact's tensors, 10^6 bytes."""
    latency_threads: float
    """CPU threads used."""
    latency_load: float | None = None
    """Share of this process's cores that other programs used meanwhile, 0 to 1; None where the system does not say."""

    def to_metrics(self) -> dict[str, float]:
        """Metric name -> value, of those that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def is_disturbed(metrics: Mapping[str, float]) -> bool:
    """Whether other programs are likely to have slowed a measurement down, from its metrics.

    What they used of the cores in that very time decides, from `BUSY` on; a load average would look back a minute, on the
    trial's own fit too. Timings that scatter (p95 over p50 from `UNEVEN` on) count as well: they are all there is of an older
    measurement, and of a GPU that others use.
    """
    middle, high = metrics.get("latency_ms_p50", 0.0), metrics.get("latency_ms_p95", 0.0)
    return metrics.get("latency_load", 0.0) >= BUSY or (middle > 0 and high >= UNEVEN * middle)


class DeviceLock:
    """Shared by trials that work on a device, exclusive for the one that measures speed on it.

    Two files: ``gate`` keeps newcomers out while somebody waits for the exclusive lock, which would otherwise never come.
    The operating system frees the locks of a dead process. Workers that each see one GPU only, and machines that share the
    folder, have locks of their own.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        name = re.sub(r"\W", "-", f"{platform.node()}-{physical_name(device)}")
        self._gate, self._work = folder / f"device-{name}.gate", folder / f"device-{name}.work"

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Held while a trial computes."""
        with ExitStack() as held:
            with file_lock(self._gate, shared=True):
                held.enter_context(file_lock(self._work, shared=True))
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held while speed is measured; the holder must not hold the shared lock."""
        with file_lock(self._gate), file_lock(self._work):
            yield


def physical_name(device: torch.device, environment: Mapping[str, str] = os.environ) -> str:
    """The same name in every process of a machine: with CUDA_VISIBLE_DEVICES=3, ``cuda:0`` is GPU 3."""
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = device.index or 0
    if device.type != "cuda":
        return str(device)
    return f"cuda:{visible[index] if index < len(visible) else index}"


def measure_latency(detector: Detector, images: Tensor, device: torch.device) -> Latency:
    """Measure a fitted detector on `device`; the caller holds the device's exclusive lock.

    Args:
        images: uint8 [N, 3, H, W], real images of the data set, N >= 1; repeated to make up a batch.
    """
    with all_cores() as threads:
        single = images[:1]
        height, width = images.shape[2:]
        length = min(THROUGHPUT_BATCH, max(1, THROUGHPUT_PIXELS // (height * width)))
        batch = images.repeat(-(-length // len(images)), 1, 1, 1)[:length]
        size = model_size_mb(detector)
        with _peak_memory(device) as peak, others_load() as load:
            milliseconds = _timed(lambda: _predict(detector, single, device), WARM_UP_RUNS, MIN_RUNS, MIN_SECONDS)
            batch_milliseconds = _timed(lambda: _predict(detector, batch, device), 1, 2, MIN_SECONDS)
        median = float(np.median(milliseconds))
        return Latency(
            latency_ms_p50=median,
            latency_ms_p95=float(np.percentile(milliseconds, 95)),
            fps=1000 / median,
            throughput=1000 * length / float(np.median(batch_milliseconds)),
            peak_memory_mb=peak[0] + (0 if device.type == "cuda" else size),
            model_size_mb=size,
            latency_threads=float(threads),
            latency_load=load[0] if load else None,
        )


@contextmanager
def others_load() -> Iterator[list[float]]:
    """One entry after the block: share of this process's cores on which others worked during it; none where that is not known.

    It is what the cores did, less what this process did: an operating system counts both in the same unit.
    """
    found: list[float] = []
    process, begin = psutil.Process(), time.perf_counter()
    own, cores = _used(process), _cores_busy(process)
    yield found
    seconds, busy = time.perf_counter() - begin, _cores_busy(process)
    if cores is not None and busy is not None and len(cores) == len(busy) and seconds > 0:
        worked = sum(after - before for before, after in zip(cores, busy, strict=True))
        if worked > 0:  # a system that counts nothing says nothing
            found.append(min(1.0, max(0.0, (worked - (_used(process) - own)) / (seconds * len(cores)))))


def wait_until_quiet() -> bool:
    """Wait until others leave the cores alone, for a minute at most; returns whether they do."""
    for _ in range(MOST_LOOKS):
        with others_load() as load:
            time.sleep(LOOK_SECONDS)
        if not load or load[0] < BUSY:
            return True
    return False


def _used(process: psutil.Process) -> float:
    """CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _cores_busy(process: psutil.Process) -> list[float] | None:
    """Seconds that each core which the process may use was busy so far; None where the system does not say."""
    try:
        cores = psutil.cpu_times(percpu=True)
        allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(cores))
        # Time of guests is part of that of users.
        idle = ("idle", "iowait", "guest", "guest_nice")
        return [sum(seconds for name, seconds in cores[core]._asdict().items() if name not in idle) for core in allowed]
    except (OSError, IndexError, NotImplementedError, psutil.Error):
        return None


@contextmanager
def all_cores() -> Iterator[int]:
    """Within the block torch uses every core that this process may use; yields their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def single_image_ms(work: Callable[[], object]) -> float:
    """Median milliseconds of what takes one image to score and map, warmed up and repeated as everywhere here."""
    return float(np.median(_timed(work, WARM_UP_RUNS, MIN_RUNS, MIN_SECONDS)))


def _predict(detector: Detector, images: Tensor, device: torch.device) -> None:
    prediction = detector(images.to(device))
    prediction.scores.cpu()  # the copies to the host wait for the device
    prediction.maps.cpu()


def _timed(work: Callable[[], object], warm_up: int, min_runs: int, min_seconds: float) -> list[float]:
    """Milliseconds of each run."""
    for _ in range(warm_up):
        work()
    runs: list[float] = []
    begin = time.perf_counter()
    while len(runs) < min_runs or time.perf_counter() - begin < min_seconds:
        start = time.perf_counter()
        work()
        runs.append(1000 * (time.perf_counter() - start))
    return runs


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float]]:
    """One entry: MB in use at most during the block; on a CPU what the process grew by, on CUDA all that is allocated."""
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) / 1e6
        return
    process = psutil.Process()
    counter, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    resettable = os.access(counter, os.W_OK)
    if resettable:
        counter.write_text("5")  # Linux: start the high-water mark of resident memory again
    before = process.memory_info().rss
    yield peak
    after = process.memory_info().rss
    if resettable and (mark := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        after = max(after, int(mark[1]) * 1024)
    peak[0] = max(0, after - before) / 1e6
