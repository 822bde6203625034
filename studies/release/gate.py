"""The gate: decides whether a challenger may replace the champion, by measuring both on the same images, and gives the reasons.

A challenger is "not worse" if its image AUROC is at most `epsilon` below the champion's, and the one-sided 95 % upper bound of
the difference, from a paired bootstrap, is not below 0.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from detectors.data.images import Size
from detectors.data.samples import ImageSet
from detectors.runtime.artifact import Artifact, load_artifact, model_size_mb, read_description
from detectors.runtime.latency import DeviceLock, Latency, measure_latency
from detectors.runtime.verdicts import judge
from detectors.scoring.evaluation import Evaluation, evaluate
from detectors.scoring.metrics import UndefinedMetricError, paired_bootstrap_difference
from studies.file.sections import GateConfig
from tracking.model import ask

Verdict = Literal["passed", "refused", "not applicable", "warning"]
BATCH = 8
"""Images that are scored together."""
LATENCY_IMAGES = 4
"""Test images on which the latency is measured."""
MAX_WARNINGS, MAX_WARNING = 10, 500
"""Warnings of a detector's provenance that a report shows, and their length in characters."""
RELOAD_TOLERANCE = 1e-4
"""Largest difference of a score between a model as it was saved and as it is loaded, relative to the spread of the scores."""


@dataclass(frozen=True)
class Rule:
    """One condition of the gate and its outcome."""

    name: str
    verdict: Verdict
    value: float | None
    """What was measured; None if nothing was."""
    limit: float | None
    """What the value is compared with; None if there is no limit."""
    outcome: str
    """What was measured, in words."""

    def to_json(self) -> dict[str, Any]:
        """The fields under the keys of a gate report."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "value": self.value,
            "limit": self.limit,
            "told": self.outcome,
        }


@dataclass(frozen=True)
class Measured:
    """The figures of a model on the test images."""

    label: str
    scores: NDArray[np.float64]
    """[N] image scores."""
    evaluation: Evaluation
    latency: Latency
    size_mb: float
    """Size of the detector's tensors in units of 10^6 bytes."""

    @property
    def auroc(self) -> float | None:
        """Image AUROC; None if it is undefined."""
        return self.evaluation.metrics.get("image_auroc")

    def to_json(self) -> dict[str, Any]:
        """The figures and scores as JSON-able data."""
        return {
            "label": self.label,
            "metrics": self.evaluation.metrics,
            "per_defect": self.evaluation.per_defect,
            "undefined": self.evaluation.undefined,
            "latency_ms_p50": self.latency.latency_ms_p50,
            "latency_ms_p95": self.latency.latency_ms_p95,
            "size_mb": self.size_mb,
            "scores": [float(score) for score in self.scores],
        }


@dataclass(frozen=True)
class GateReport:
    """What the gate measured and decided."""

    model: str
    challenger: Measured
    champion: Measured | None
    rules: tuple[Rule, ...]
    test: ImageSet
    data: str
    """``<dataset>/<category>``"""
    config: GateConfig
    difference: tuple[float, float, float] | None = None
    """Image AUROC of the challenger minus that of the champion, and the ends of its 95 % interval."""
    environment: dict[str, str] = field(default_factory=dict)
    """Host, device and versions."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def passed(self) -> bool:
        """Whether no rule refused the challenger."""
        return all(rule.verdict != "refused" for rule in self.rules)

    @property
    def reasons(self) -> list[str]:
        """Why the challenger was refused; empty if it passed."""
        return [rule.outcome for rule in self.rules if rule.verdict == "refused"]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able data, for scripts and for the record."""
        return {
            "model": self.model,
            "passed": self.passed,
            "time": self.time,
            "data": self.data,
            "test_digest": self.test.digest,
            "test_counts": self.test.counts,
            "pictures": [sample.key for sample in self.test.samples],
            "rules": [rule.to_json() for rule in self.rules],
            "difference": self.difference,
            "challenger": self.challenger.to_json(),
            "champion": self.champion.to_json() if self.champion else None,
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment,
        }

    def to_markdown(self) -> str:
        """The report as Markdown."""
        models = [self.challenger, *([self.champion] if self.champion else [])]
        lines = [
            f"# Gate report: {self.model}",
            "",
            f"**{'Passed' if self.passed else 'Refused'}** on {self.time}, measured on the test images of {self.data} "
            f"({', '.join(f'{count} {kind}' for kind, count in self.test.counts.items())}; digest "
            f"`{self.test.digest[:16]}`), {self.environment.get('device', '')} of {self.environment.get('host', '')}.",
            "",
            "| rule | verdict | |",
            "|---|---|---|",
            *(f"| {rule.name} | {rule.verdict} | {rule.outcome} |" for rule in self.rules),
            "",
            f"| | {' | '.join(model.label for model in models)} |",
            f"|---|{'---|' * len(models)}",
            *(f"| {name} | {' | '.join(cells)} |" for name, cells in _rows(models)),
            "",
        ]
        if self.difference:
            value, low, high = self.difference
            lines += [
                f"Difference of the image AUROC, challenger minus champion, on the same images: {value:+.4f} "
                f"(95 % interval {low:+.4f} to {high:+.4f}, paired bootstrap).",
                "",
            ]
        return "\n".join(lines)


def _rows(models: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """Rows of the table of figures: name, and one cell for each model."""

    def shown(value: float | None, form: str = ".4f") -> str:
        return "-" if value is None else format(value, form)

    def with_interval(model: Measured) -> str:
        metrics = model.evaluation.metrics
        if (low := metrics.get("image_auroc_low")) is None:
            return shown(model.auroc)
        return f"{shown(model.auroc)} ({low:.3f} to {metrics['image_auroc_high']:.3f})"

    rows = [("image AUROC (95 % interval)", [with_interval(model) for model in models])]
    for name, title in (("pixel_auroc", "pixel AUROC"), ("pixel_aupro", "AUPRO")):
        rows.append((title, [shown(model.evaluation.metrics.get(name)) for model in models]))
    kinds = list(dict.fromkeys(kind for model in models for kind in model.evaluation.per_defect))
    rows += [(f"AUROC of {kind}", [shown(model.evaluation.per_defect.get(kind)) for model in models]) for kind in kinds]
    rows.append(
        ("latency p50 / p95, ms", [f"{m.latency.latency_ms_p50:.1f} / {m.latency.latency_ms_p95:.1f}" for m in models])
    )
    rows.append(("size, MB", [shown(model.size_mb, ".1f") for model in models]))
    return rows


@dataclass(frozen=True)
class Contender:
    """A model that is to be measured."""

    label: str
    folder: Path
    """Folder of the detector, as the registry provides it."""
    original: Path | None = None
    """Folder in which the detector was saved first; None if it is gone."""
    model: Path | None = None
    """Folder of the MLflow model, for a request as in serving; None if there is none yet."""


class Gate:
    """Measures contenders on one set of test images and applies the rules of the study file."""

    def __init__(
        self,
        *,
        config: GateConfig,
        test: ImageSet,
        data: str,
        device: torch.device,
        lock: DeviceLock,
        seed: int,
        environment: dict[str, str],
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Args:
        test: the test images.
        data: their data set and category, as the report names them.
        lock: keeps other work off the device while the latency is measured.
        seed: of the bootstrap.
        progress: called with a line about each step.
        """
        self.config, self.test, self.data = config, test, data
        self.device, self.lock, self.seed = device, lock, seed
        self.environment, self.progress = environment, progress
        self._sets: dict[Size, tuple[ImageSet, list[NDArray[np.uint8]]]] = {}

    def judge(self, model: str, challenger: Contender, champion: Contender | None) -> GateReport:
        """Measure both models and apply every rule.

        Args:
            model: name of the registered model, for the report.
            champion: None if there is none yet.

        Raises:
            InputError: images or models cannot be read.
            NumericalError: a score is not finite.
        """
        measured = self.measure(challenger)
        measured_champion = self.measure(champion) if champion else None
        rules = [self._floors(measured), *self._limits(measured)]
        rules.append(self._reload(challenger, measured))
        rules.append(self._serving(challenger, measured))
        rules += _warnings(challenger)
        difference = None
        if measured_champion is None:
            rules.append(Rule("not worse", "not applicable", None, None, "there is no champion yet"))
        else:
            rule, difference = self._not_worse(measured, measured_champion)
            rules += [rule, self._per_defect(measured, measured_champion)]
        return GateReport(
            model=model,
            challenger=measured,
            champion=measured_champion,
            rules=tuple(rules),
            test=self.test,
            data=self.data,
            config=self.config,
            difference=difference,
            environment=self.environment,
        )

    def measure(self, contender: Contender) -> Measured:
        """Score the test images and measure the latency of a single one."""
        self.progress(f"{contender.label}: scoring {len(self.test)} test images")
        artifact = load_artifact(contender.folder, device=self.device)
        scores, maps = self._scores(artifact)
        evaluation = evaluate(
            scores=scores,
            maps=maps,
            labels=self.test.labels,
            masks=self._at(artifact)[0].masks(),
            defect_types=self.test.defect_types,
            seed=self.seed,
        )
        self.progress(f"{contender.label}: timing")
        images = torch.cat([artifact.resize(rgb) for rgb in self._at(artifact)[1][:LATENCY_IMAGES]])
        with self.lock.exclusive():
            latency = measure_latency(artifact.detector, images, self.device)
        return Measured(contender.label, scores, evaluation, latency, model_size_mb(artifact.detector))

    # --- rules

    def _floors(self, measured: Measured) -> Rule:
        """Whether the metrics are at least the floors of the study file."""
        missed = []
        for name, floor in self.config.floor.items():
            value = measured.evaluation.metrics.get(name.removeprefix("test/"))
            if value is None:
                why = measured.evaluation.undefined.get(name.removeprefix("test/"), "the test images do not define it")
                missed.append(f"{name} is unknown ({why})")
            elif value < floor:
                missed.append(f"{name} {value:.4f} is below {floor:g}")
        floors = ", ".join(f"{name} {floor:g}" for name, floor in self.config.floor.items())
        limit = self.config.floor.get("test/image_auroc")
        if not floors:
            return Rule("floor", "not applicable", measured.auroc, limit, "none is set")
        verdict: Verdict = "refused" if missed else "passed"
        return Rule("floor", verdict, measured.auroc, limit, "; ".join(missed) or f"at least {floors}")

    def _limits(self, measured: Measured) -> list[Rule]:
        """Whether latency and size are within the limits of the study file."""
        rules = []
        for name, value, limit, unit in (
            ("latency", measured.latency.latency_ms_p95, self.config.latency_ms_p95, "ms (p95, one image)"),
            ("size", measured.size_mb, self.config.model_size_mb, "MB"),
        ):
            text = f"{value:.1f} {unit}" + ("" if limit is None else f", at most {limit:g}")
            verdict: Verdict = "not applicable" if limit is None else ("passed" if value <= limit else "refused")
            rules.append(Rule(name, verdict, value, limit, text))
        return rules

    def _not_worse(self, new: Measured, old: Measured) -> tuple[Rule, tuple[float, float, float] | None]:
        """Whether the image AUROC is not worse than the champion's; and the difference with its interval, if defined."""
        epsilon = self.config.epsilon
        try:
            bootstrap = paired_bootstrap_difference(old.scores, new.scores, self.test.labels, seed=self.seed)
        except UndefinedMetricError as error:
            return Rule("not worse", "refused", None, -epsilon, f"cannot be compared with the champion: {error}"), None
        value, (low, high) = bootstrap.difference, bootstrap.interval
        text = f"AUROC {value:+.4f} against the champion (95 % interval {low:+.4f} to {high:+.4f})"
        worse = value < -epsilon or bootstrap.upper < 0
        if value < -epsilon:
            text += f", more than {epsilon:g} below it"
        elif bootstrap.upper < 0:
            text += f", below it by more than chance would explain (one-sided upper bound {bootstrap.upper:+.4f})"
        return Rule("not worse", "refused" if worse else "passed", value, -epsilon, text), (value, low, high)

    def _per_defect(self, new: Measured, old: Measured) -> Rule:
        """Whether no type of defect loses more AUROC than the study file allows."""
        limit = self.config.per_defect_drop
        drops = {
            kind: value - new.evaluation.per_defect[kind]
            for kind, value in old.evaluation.per_defect.items()
            if kind in new.evaluation.per_defect
        }
        if not drops:
            return Rule(
                "no defect type collapses", "not applicable", None, limit, "there are no types of defects to compare"
            )
        worst = max(drops, key=lambda kind: drops[kind])
        text = f"largest loss: {worst}, {drops[worst]:+.4f} of AUROC, at most {limit:g}"
        verdict: Verdict = "refused" if drops[worst] > limit else "passed"
        return Rule("no defect type collapses", verdict, drops[worst], limit, text)

    def _reload(self, contender: Contender, measured: Measured) -> Rule:
        """Whether the detector from the registry gives the same scores as the one that was saved."""
        name = "reload equality"
        if contender.original is None:
            return Rule(name, "not applicable", None, RELOAD_TOLERANCE, "the detector that was saved first is gone")
        self.progress(f"{contender.label}: comparing with what was saved")
        original, _ = self._scores(load_artifact(contender.original, device=self.device))
        gap = self._gap(original, measured.scores)
        text = f"largest difference of a score {gap:.1e} of their spread, at most {RELOAD_TOLERANCE:.0e}"
        return Rule(name, "passed" if gap <= RELOAD_TOLERANCE else "refused", gap, RELOAD_TOLERANCE, text)

    def _serving(self, contender: Contender, measured: Measured) -> Rule:
        """Whether the MLflow model answers a request with the same scores."""
        name = "serving"
        if contender.model is None:
            return Rule(name, "not applicable", None, RELOAD_TOLERANCE, "not registered yet")
        self.progress(f"{contender.label}: a request through MLflow's serving path")
        some = [0, len(self.test) - 1]
        rgb = self._at(load_artifact(contender.folder))[1]
        requests = [{"image": _png(rgb[index]), "return_heatmap": index == 0} for index in some]
        begin = time.perf_counter()
        try:
            answers = ask(contender.model, requests)
        except Exception as error:  # Any error here would occur in production too.
            reason = " ".join(str(error).split()) or type(error).__name__
            return Rule(name, "refused", None, RELOAD_TOLERANCE, f"the model does not answer: {reason[:200]}")
        seconds = time.perf_counter() - begin
        served = np.array([answer.score for answer in answers])
        gap = self._gap(measured.scores[some], served)
        equal = gap <= RELOAD_TOLERANCE and bool(answers[0].heatmap) and not answers[1].heatmap
        text = f"answered in {seconds:.1f} s, loading included; largest difference of a score {gap:.1e} of their spread"
        return Rule(name, "passed" if equal else "refused", gap, RELOAD_TOLERANCE, text)

    # --- measuring

    def _gap(self, expected: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
        """Largest difference of a score, relative to the spread of the expected ones."""
        spread = max(float(np.ptp(expected)), float(np.abs(expected).max()), math.ulp(1.0))
        return float(np.abs(expected - scores).max()) / spread

    def _scores(self, artifact: Artifact) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Image scores [N] and anomaly maps [N, h, w] of the test images."""
        rgb = self._at(artifact)[1]
        verdicts = [v for start in range(0, len(rgb), BATCH) for v in judge(artifact, rgb[start : start + BATCH])]
        maps = np.stack([verdict.anomaly_map for verdict in verdicts])
        return np.array([verdict.score for verdict in verdicts]), maps

    def _at(self, artifact: Artifact) -> tuple[ImageSet, list[NDArray[np.uint8]]]:
        """The test set at a detector's image size, and its images, each uint8 [H, W, 3]; resized once for each size."""
        size = artifact.detector.image_size
        if size not in self._sets:
            resized = replace(self.test, image_size=size)
            self._sets[size] = resized, [resized.load(index)[0] for index in range(len(resized))]
        return self._sets[size]


def _warnings(contender: Contender) -> list[Rule]:
    """What the fit of a model left to the person who decides, such as a threshold that jumped; it refuses nothing."""
    warnings = read_description(contender.folder).provenance.get("warnings", [])
    if not isinstance(warnings, list):
        return []
    shown = [str(warning)[:MAX_WARNING] for warning in warnings[:MAX_WARNINGS]]
    return [Rule("fit", "warning", None, None, text) for text in shown]


def _png(rgb: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
