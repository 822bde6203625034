"""The device's lock between real processes, and the protocol of speed."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from detectors.backbones.pyramid import build_backbone
from detectors.detector import Detector
from detectors.files import file_lock
from detectors.heads.padim.head import Padim
from detectors.runtime import latency
from detectors.runtime.artifact import model_size_mb
from detectors.runtime.latency import DeviceLock, Latency, measure_latency, physical_name

CPU = torch.device("cpu")
SOON, LATE = 0.3, 60
"""Seconds to wait for what must not happen, and at most for what must."""
fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that start at once"
)


# --- the lock


def hold(folder: Path, mode: str, device: str, pipe: Connection) -> None:
    with getattr(DeviceLock(folder, torch.device(device)), mode)():
        pipe.send("held")
        pipe.recv()


def work_on(folder: Path, pipe: Connection) -> None:
    """A trial after the other, without a break between them."""
    lock = DeviceLock(folder, CPU)
    for _ in range(3):
        with lock.shared():
            pass
    pipe.send("at work")
    while not pipe.poll():
        with lock.shared():
            time.sleep(0.01)


class Trial:
    """A process that wants the lock."""

    def __init__(self, folder: Path, mode: str, device: str = "cpu") -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=hold, args=(folder, mode, device, theirs), daemon=True)
        self.process.start()

    def gets_it(self) -> bool:
        return self.pipe.poll(LATE) and self.pipe.recv() == "held"

    def waits(self) -> bool:
        return not self.pipe.poll(SOON) and self.process.is_alive()

    def lets_go(self) -> None:
        self.pipe.send("let go")
        self.process.join(LATE)

    def dies(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(LATE)


@pytest.fixture
def trial(tmp_path) -> Iterator:
    started = []

    def start(mode: str, device: str = "cpu") -> Trial:
        started.append(Trial(tmp_path, mode, device))
        return started[-1]

    yield start
    for one in started:
        if one.process.is_alive():
            one.process.kill()
        one.process.join()


def until_somebody_waits_at_the_gate(folder: Path) -> None:
    deadline = time.monotonic() + LATE
    while time.monotonic() < deadline:
        try:
            with file_lock(DeviceLock(folder, CPU)._gate, shared=True, wait=False):
                time.sleep(0.01)
        except BlockingIOError:
            return
    pytest.fail("nobody came to the gate")


@fork
def test_trials_work_together(trial):
    first, second = trial("shared"), trial("shared")
    assert first.gets_it()
    assert second.gets_it()


@fork
def test_a_measurement_is_alone(trial):
    alone = trial("exclusive")
    assert alone.gets_it()
    shared, exclusive = trial("shared"), trial("exclusive")
    assert shared.waits()
    assert exclusive.waits()
    alone.lets_go()
    # In which order they follow is the operating system's choice; that both do, one after the other, is ours.
    assert shared.pipe.poll(LATE) or exclusive.pipe.poll(LATE)
    first, second = (shared, exclusive) if shared.pipe.poll() else (exclusive, shared)
    assert first.gets_it()
    assert second.waits()
    first.lets_go()
    assert second.gets_it()


@fork
def test_a_measurement_waits_for_every_trial(trial):
    trials = [trial("shared"), trial("shared")]
    assert all(one.gets_it() for one in trials)
    measurement = trial("exclusive")
    assert measurement.waits()
    trials[0].lets_go()
    assert measurement.waits()
    trials[1].lets_go()
    assert measurement.gets_it()


@fork
def test_who_comes_after_a_waiting_measurement_waits_behind_it(trial, tmp_path):
    early = trial("shared")
    assert early.gets_it()
    measurement = trial("exclusive")
    until_somebody_waits_at_the_gate(tmp_path)
    late = trial("shared")
    assert late.waits()
    assert measurement.waits()
    early.lets_go()
    assert measurement.gets_it()
    assert late.waits()
    measurement.lets_go()
    assert late.gets_it()


@fork
def test_a_stream_of_trials_does_not_starve_a_measurement(trial, tmp_path):
    context = multiprocessing.get_context("fork")
    stream = []
    for _ in range(3):
        ours, theirs = context.Pipe()
        process = context.Process(target=work_on, args=(tmp_path, theirs), daemon=True)
        process.start()
        stream.append((process, ours))
    try:
        assert all(pipe.poll(LATE) for _, pipe in stream)
        for _ in range(3):
            measurement = trial("exclusive")
            assert measurement.gets_it()
            measurement.lets_go()
    finally:
        for process, pipe in stream:
            pipe.send("enough")
            process.join(LATE)
    assert [process.exitcode for process, _ in stream] == [0, 0, 0]


@fork
@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_the_locks_of_a_killed_process_are_free(trial, mode):
    victim = trial(mode)
    assert victim.gets_it()
    heir = trial("exclusive")
    assert heir.waits()
    victim.dies()
    assert heir.gets_it()


@fork
def test_a_killed_measurement_that_waited_lets_the_trials_pass(trial, tmp_path):
    early = trial("shared")
    assert early.gets_it()
    measurement = trial("exclusive")
    until_somebody_waits_at_the_gate(tmp_path)
    late = trial("shared")
    assert late.waits()
    measurement.dies()
    assert late.gets_it()


@fork
def test_devices_have_locks_of_their_own(trial):
    assert trial("exclusive", "cuda:0").gets_it()
    assert trial("exclusive", "cuda:1").gets_it()
    assert trial("exclusive", "cpu").gets_it()
    assert trial("shared", "cuda:1").waits()


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cpu", "3", "cpu"),
        ("cuda:1", None, "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("cuda:0", "3", "cuda:3"),
        ("cuda:1", "3, GPU-ab", "cuda:GPU-ab"),
        ("cuda:2", "3,4", "cuda:2"),
        ("cuda:1", "", "cuda:1"),
    ],
)
def test_a_device_has_one_name_in_all_workers(device, visible, name):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert physical_name(torch.device(device), environment) == name


def test_workers_that_see_one_gpu_each_do_not_wait_for_each_other(tmp_path, monkeypatch):
    def lock(gpu: str) -> DeviceLock:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        return DeviceLock(tmp_path, torch.device("cuda:0"))

    with (
        lock("0").exclusive(),
        lock("1").exclusive(),
        pytest.raises(BlockingIOError),
        file_lock(lock("0")._work, wait=False),
    ):
        pass


def test_an_exception_frees_both_locks(tmp_path):
    lock = DeviceLock(tmp_path / "new" / "locks", CPU)
    for mode in (lock.exclusive, lock.shared):
        with pytest.raises(RuntimeError, match="inside"), mode():
            raise RuntimeError("inside")
    for path in (tmp_path / "new" / "locks").iterdir():
        with file_lock(path, wait=False):
            pass


# --- the protocol


@pytest.fixture(scope="module")
def detector() -> Detector:
    detector = Detector(build_backbone("test_resnet@random", [8, 16]), Padim(n_features=8), image_size=(64, 64))
    return detector.fit(random_images(4))


def random_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hurried(monkeypatch) -> None:
    monkeypatch.setattr(latency, "MIN_SECONDS", 0.02)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("images", [1, 3, 40])
def test_figures_are_finite_and_agree_with_each_other(detector, images):
    measured = measure_latency(detector, random_images(images), CPU)
    figures = measured.to_metrics()
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
    assert all(value > 0 for value in figures.values())
    assert measured.latency_ms_p50 <= measured.latency_ms_p95
    assert measured.fps == pytest.approx(1000 / measured.latency_ms_p50)
    assert measured.model_size_mb == model_size_mb(detector)
    assert measured.peak_memory_mb >= measured.model_size_mb


@pytest.mark.usefixtures("hurried")
def test_all_cores_are_used_and_the_thread_count_comes_back(detector):
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    with threads(1):
        measured = measure_latency(detector, random_images(1), CPU)
        assert torch.get_num_threads() == 1
    if available:
        assert measured.latency_threads == available


def test_the_thread_count_comes_back_after_an_error(detector):
    with threads(1):
        with pytest.raises(ValueError, match="uint8"):
            measure_latency(detector, random_images(1).float(), CPU)
        assert torch.get_num_threads() == 1


class Counted(Detector):
    """Notes the size of each batch."""

    def forward(self, images: torch.Tensor):
        self.batches.append(len(images))
        return super().forward(images)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("images", [1, 5, 50])
def test_single_images_and_batches_of_32_are_timed(detector, images):
    counted = Counted(detector.backbone, detector.head, image_size=(64, 64))
    counted.batches = []
    counted.finish_fit()
    measure_latency(counted, random_images(images), CPU)
    singles = counted.batches.index(32)
    assert counted.batches == [1] * singles + [32] * (len(counted.batches) - singles)
    assert singles >= latency.WARM_UP_RUNS + latency.MIN_RUNS == 35
    assert len(counted.batches) - singles >= 3


@pytest.mark.parametrize(("step", "wanted"), [(1.0, 30), (0.001, 510)])
def test_at_least_so_many_runs_and_seconds(monkeypatch, step, wanted):
    """A clock of our own: each look at it costs `step`, twice a run and, after 30, once to ask whether to go on."""
    now = itertools.count(0, step)
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    calls = []
    runs = latency._timed(lambda: calls.append(1), 5, 30, 1.5)
    assert len(calls) == len(runs) + 5
    assert len(runs) == pytest.approx(wanted, abs=1)
    np.testing.assert_allclose(runs, 1000 * step)


def test_the_peak_is_that_of_the_block_even_when_it_is_free_again():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process start its high-water mark again")
    large = np.ones(50_000_000)  # an earlier peak that must not count
    del large
    with latency._peak_memory(CPU) as quiet:
        pass
    with latency._peak_memory(CPU) as busy:
        block = np.ones(25_000_000)
        del block
    assert quiet[0] < 50
    assert 150 < busy[0] < 300
    assert psutil.Process().memory_info().rss > 0


# --- other programs


def test_what_others_did_is_what_the_cores_did_less_the_own_part(monkeypatch):
    busy, used, now = iter([[10.0, 20.0], [11.0, 21.5]]), iter([5.0, 6.5]), iter([100.0, 102.0])
    monkeypatch.setattr(latency, "_cores_busy", lambda process: next(busy))
    monkeypatch.setattr(latency, "_used", lambda process: next(used))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(now))
    with latency.others_load() as load:
        pass
    # 2.5 core seconds, 1.5 of them ours: 1 of the 4 that two cores have in two seconds.
    assert load == [pytest.approx(0.25)]


@pytest.mark.parametrize("after", [None, [10.0], [10.0, 20.0]])
def test_where_the_system_does_not_say_the_load_is_not_known(monkeypatch, after):
    busy = iter([[10.0, 20.0], after])
    monkeypatch.setattr(latency, "_cores_busy", lambda process: next(busy))
    with latency.others_load() as load:
        time.sleep(0.01)
    assert load == []
    assert "latency_load" not in small_latency(load=None).to_metrics()
    assert small_latency(load=0.5).to_metrics()["latency_load"] == 0.5


def small_latency(*, load: float | None) -> Latency:
    return Latency(1.0, 1.1, 1000.0, 2000.0, 10.0, 5.0, 2.0, load)


def test_a_program_beside_it_is_seen():
    """The one that spins takes at least its share of the cores, however many others there are."""
    script = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as spinning:
        try:
            assert spinning.stdout is not None
            spinning.stdout.readline()
            with latency.others_load() as load:
                time.sleep(1.0)
        finally:
            spinning.kill()
    cores = len(psutil.Process().cpu_affinity())
    assert load
    assert load[0] > 0.3 / cores


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        ({}, False),
        ({"latency_load": 0.02, "latency_ms_p50": 10.0, "latency_ms_p95": 11.0}, False),
        ({"latency_load": 0.1, "latency_ms_p50": 10.0, "latency_ms_p95": 11.0}, True),
        ({"latency_load": 0.0, "latency_ms_p50": 10.0, "latency_ms_p95": 15.0}, True),
        ({"latency_ms_p50": 10.0, "latency_ms_p95": 14.0}, False),
    ],
)
def test_a_measurement_is_disturbed_by_load_or_scatter(metrics, wanted):
    assert latency.is_disturbed(metrics) is wanted


def test_it_waits_until_others_are_quiet_but_not_for_ever(monkeypatch):
    looks: list[float] = []

    @contextmanager
    def scripted() -> Iterator[list[float]]:
        looks.append(next(loads))
        yield looks[-1:]

    monkeypatch.setattr(latency, "others_load", scripted)
    monkeypatch.setattr(latency, "LOOK_SECONDS", 0.0)
    loads = iter([0.9, 0.4, 0.05, 0.9])
    assert latency.wait_until_quiet()
    assert looks == [0.9, 0.4, 0.05]
    looks.clear()
    loads = itertools.repeat(0.9)
    assert not latency.wait_until_quiet()
    assert len(looks) == latency.MOST_LOOKS
