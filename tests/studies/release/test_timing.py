"""The latency is measured again where other work may have spoilt it, and only there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detectors.runtime.latency import DeviceLock
from studies.file.sections import GateConfig
from studies.release import timing
from studies.release.rules import limit_rules
from studies.release.timing import Timing, quiet_latency
from tests.helpers.small_models import LATENCY
from tests.studies.release.test_rules import at

CPU = torch.device("cpu")


def measured(
    monkeypatch: pytest.MonkeyPatch, folder: Path, runs: list[tuple[float, float]], *, limit: float | None
) -> tuple[Timing, list[str]]:
    """The outcome of measurements [(95th percentile in ms, load)], and what was told."""
    figures, told = iter(runs), list[str]()

    def measure(*_: object) -> object:
        p95, load = next(figures)
        return replace(LATENCY, latency_ms_p50=p95, latency_ms_p95=p95, latency_load=load)

    monkeypatch.setattr(timing, "measure_latency", measure)
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
    assert all("timing once more" in line for line in told)


def test_a_refusal_on_a_busy_machine_says_so() -> None:
    busy = replace(LATENCY, latency_load=0.43)
    model = replace(at(0.5, [0.1, 0.9], [0, 1]), latency=busy, timed=3)
    rule = next(rule for rule in limit_rules(GateConfig(floor={}, latency_ms_p95=5), model) if rule.name == "latency")
    assert rule.verdict == "refused"
    assert "the quietest of 3 measurements; other programs were busy meanwhile (43 % of the cores)" in rule.outcome
