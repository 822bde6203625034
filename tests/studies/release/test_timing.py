"""The latency is measured again where other work may have spoilt it, and only there."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detectors.runtime.latency import DeviceLock
from studies.file.sections import GateConfig
from studies.release import timing
from studies.release.rules import limit_rules
from studies.release.timing import LoadMeter, Timing, quiet_latency
from tests.helpers.small_models import LATENCY
from tests.studies.release.test_rules import at

CPU = torch.device("cpu")


def measured(
    monkeypatch: pytest.MonkeyPatch, folder: Path, runs: list[tuple[float, float]], *, limit: float | None
) -> tuple[Timing, list[str]]:
    """The outcome of measurements [(95th percentile in ms, load)], and what was told."""
    figures, told = iter(runs), list[str]()

    class Meter:
        def load(self) -> float:
            return current[1]

    current = (0.0, 0.0)

    def measure(*_: object) -> object:
        nonlocal current
        current = next(figures)
        return replace(LATENCY, latency_ms_p95=current[0])

    monkeypatch.setattr(timing, "measure_latency", measure)
    monkeypatch.setattr(timing, "LoadMeter", Meter)
    lock = DeviceLock(folder / "locks", CPU)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    outcome = quiet_latency(None, images, CPU, lock=lock, limit=limit, tell=told.append)  # type: ignore[arg-type]
    return outcome, told


@pytest.mark.parametrize(
    ("runs", "limit", "p95", "attempts"),
    [
        ([(90, 0.6), (12, 0.05)], 20, 12, 2),  # busy, then quiet: the quiet one counts
        ([(90, 0.6), (80, 0.3), (95, 0.5)], 20, 80, 3),  # it stayed busy: the quietest counts
        ([(90, 0.02)], 20, 90, 1),  # quiet: it is slow
        ([(15, 0.9)], 20, 15, 1),  # within the limit though busy
        ([(900, 0.9)], 20, 900, 1),  # no load explains a factor of 45
        ([(90, 0.9)], None, 90, 1),  # the figure decides nothing
    ],
)
def test_a_missed_limit_is_measured_again_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    runs: list[tuple[float, float]],
    limit: float | None,
    p95: float,
    attempts: int,
) -> None:
    outcome, told = measured(monkeypatch, tmp_path, runs, limit=limit)
    assert (outcome.latency.latency_ms_p95, outcome.attempts) == (p95, attempts)
    assert len(told) == attempts - 1
    assert all(line.startswith("other work took ") for line in told)


def test_a_refusal_on_a_busy_machine_says_so() -> None:
    model = replace(at(0.5, [0.1, 0.9], [0, 1]), load=0.43, timed=3)
    rule = next(rule for rule in limit_rules(GateConfig(floor={}, latency_ms_p95=5), model) if rule.name == "latency")
    assert rule.verdict == "refused"
    assert "the quietest of 3 measurements; other work took 43 % of the machine meanwhile" in rule.outcome


@pytest.fixture
def busy_process() -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    time.sleep(1)
    yield
    process.kill()
    process.join()


def test_the_meter_counts_the_work_of_others_and_not_its_own(busy_process: None) -> None:
    meter = LoadMeter()
    time.sleep(1)
    # One core's worth at least; half of it, for a machine on which others are busy as well.
    assert meter.load() >= 0.5 / len(meter._cores)
    spinning = LoadMeter()
    end = time.process_time() + 1
    while time.process_time() < end:
        pass
    own = spinning._own_seconds() - spinning._own
    assert own == pytest.approx(1, abs=0.2)
    assert spinning.load() <= 1


def _spin() -> None:
    while True:
        pass
