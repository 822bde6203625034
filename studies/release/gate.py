"""The gate: decides whether a challenger may replace the champion, by measuring both on the same images, and gives the reasons.

Both are measured by the same function: same images, same batches, same device, float32, each at the threshold that is stored with
it. What is compared with what is in `studies.release.rules`.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from detectors.data.images import Size
from detectors.data.samples import ImageSet
from detectors.precision import full_precision
from detectors.runtime.artifact import Artifact, load_artifact, model_size_mb
from detectors.runtime.latency import DeviceLock
from detectors.runtime.verdicts import judge
from detectors.scoring.anomaly_map import resampled
from detectors.scoring.evaluation import evaluate
from detectors.scoring.metrics import UndefinedMetricError, auroc
from detectors.scoring.operating_point import count
from studies.file.sections import GateConfig
from studies.release.gate_report import GateReport
from studies.release.measured import Measured, warnings_of
from studies.release.rules import (
    Rule,
    Verdict,
    champion_rules,
    in_sample_rule,
    limit_rules,
    nested_rule,
    threshold_rule,
    warning_rules,
)
from studies.release.timing import quiet_latency
from tracking.model import ask

BATCH = 8
"""Images that are scored together."""
LATENCY_IMAGES = 4
"""Test images on which the latency is measured."""
RELOAD_TOLERANCE = 1e-4
"""Largest difference of a score between a model as it was saved and as it is loaded, relative to the spread of the scores."""


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
    trial: int = -1
    """Number of the trial that it comes from; -1 where that is not known."""
    version: str | None = None
    """``NAME/VERSION`` in the registry; None if it is not registered."""


Scored = Callable[[Contender, float | None], None]
"""Called each time that a contender has scored the test images, with the image AUROC; None where that is undefined."""


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
        scored: Scored,
        study: str,
        nested: Mapping[str, float] | None = None,
        in_sample: bool = False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Args:
        test: the test images.
        data: their data set and category, as the report names them.
        lock: keeps other work off the device while the latency is measured.
        seed: of the bootstrap.
        scored: puts a scoring of the test images on record, before its figures are shown anywhere.
        study: name of the study, or ``STUDY/product``, for messages.
        nested: of a study that keeps no images for test, its nested estimate (``nested/image_auroc`` ...), empty where there is
            none: all of `test` took part in the choice of the challenger, so that floors and ceilings use this. Else None.
        in_sample: whether models were fitted to the very images of `test`, of which too few are there to hold any out.
        progress: called with a line about each step.
        """
        self.study, self.nested, self.in_sample = study, nested, in_sample
        self.config, self.test, self.data = config, test, data
        self.device, self.lock, self.seed = device, lock, seed
        self.environment, self.scored, self.progress = environment, scored, progress
        self._sets: dict[Size, tuple[ImageSet, list[NDArray[np.uint8]]]] = {}

    def judge(
        self, model: str, challenger: Contender, champion: Contender | None, *, objections: Sequence[Rule] = ()
    ) -> GateReport:
        """Measure both models and apply every rule.

        Args:
            model: name of the registered model, for the report.
            champion: None if there is none yet.
            objections: rules that were decided before anything was measured.

        Raises:
            InputError: images or models cannot be read.
            NumericalError: a score is not finite.
        """
        measured = self.measure(challenger)
        measured_champion = self.measure(champion) if champion else None
        rules = [
            *objections,
            *limit_rules(self.config, measured, nested=self.nested),
            threshold_rule(measured, self.study),
        ]
        if self.nested is not None:
            rules.append(nested_rule(self.nested, self.study, len(self.test)))
        if self.in_sample:
            rules.append(in_sample_rule())
        rules.append(self._reload(challenger, measured))
        rules.append(self._serving(challenger, measured))
        difference = None
        if measured_champion is None:
            rules.append(Rule("not worse", "not applicable", None, None, "there is no champion yet"))
        else:
            compared, difference = champion_rules(
                self.config,
                measured,
                measured_champion,
                self.test.labels,
                painted=self.test.painted,
                seed=self.seed,
            )
            rules += compared
        return GateReport(
            model=model,
            challenger=measured,
            champion=measured_champion,
            rules=(*rules, *warning_rules(measured)),
            test=self.test,
            data=self.data,
            config=self.config,
            difference=difference,
            environment=self.environment,
            nested=self.nested,
        )

    def measure(self, contender: Contender) -> Measured:
        """Score the test images at the model's own threshold, and measure the latency of a single one."""
        self.progress(f"{contender.label}: scoring {len(self.test)} test images")
        artifact = load_artifact(contender.folder, device=self.device)
        scores, maps = self._scores(artifact)
        evaluation = evaluate(
            scores=scores,
            maps=maps,
            labels=self.test.labels,
            masks=self.test.masks(),
            defect_types=self.test.defect_types,
            threshold=artifact.threshold,
            painted=self.test.painted,
            pixels=self.test.with_pixels,
            seed=self.seed,
        )
        self.scored(contender, evaluation.metrics.get("image_auroc"))
        self.progress(f"{contender.label}: timing")
        images = torch.cat([artifact.resize(rgb) for rgb in self._at(artifact)[1][:LATENCY_IMAGES]])
        limit = self.config.latency_ms_p95
        timing = quiet_latency(
            artifact.detector,
            images,
            self.device,
            lock=self.lock,
            limit=limit,
            tell=lambda text: self.progress(f"{contender.label}: {text}"),
        )
        threshold = artifact.threshold
        return Measured(
            contender.label,
            scores,
            evaluation,
            timing.latency,
            model_size_mb(artifact.detector),
            threshold=threshold,
            counts=None
            if threshold is None
            else count(scores, self.test.labels, self.test.defect_types, threshold.value),
            timed=timing.attempts,
            warnings=warnings_of(artifact.provenance),
        )

    # --- rules that ask the model itself

    def _reload(self, contender: Contender, measured: Measured) -> Rule:
        """Whether the detector from the registry gives the same scores as the one that was saved."""
        name = "reload equality"
        if contender.original is None:
            return Rule(name, "not applicable", None, RELOAD_TOLERANCE, "the detector that was saved first is gone")
        self.progress(f"{contender.label}: comparing with what was saved")
        original, _ = self._scores(load_artifact(contender.original, device=self.device))
        self.scored(replace(contender, label=f"{contender.label}, as it was saved"), self._auroc(original))
        gap = self._gap(original, measured.scores)
        text = f"largest difference of a score {gap:.1e} of their spread, at most {RELOAD_TOLERANCE:.0e}"
        verdict: Verdict = "passed" if gap <= RELOAD_TOLERANCE else "refused"
        return Rule(name, verdict, gap, RELOAD_TOLERANCE, text, forcible=False)

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
            text = f"the model does not answer: {reason[:200]}"
            return Rule(name, "refused", None, RELOAD_TOLERANCE, text, forcible=False)
        seconds = time.perf_counter() - begin
        served = np.array([answer.score for answer in answers])
        gap = self._gap(measured.scores[some], served)
        equal = gap <= RELOAD_TOLERANCE and bool(answers[0].heatmap) and not answers[1].heatmap
        text = f"answered in {seconds:.1f} s, loading included; largest difference of a score {gap:.1e} of their spread"
        verdict: Verdict = "passed" if equal else "refused"
        return Rule(name, verdict, gap, RELOAD_TOLERANCE, text, forcible=False)

    # --- measuring

    def _auroc(self, scores: NDArray[np.float64]) -> float | None:
        """Image AUROC of scores [N]; None where the test images do not define it."""
        try:
            return auroc(scores, self.test.labels)
        except UndefinedMetricError:
            return None

    def _gap(self, expected: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
        """Largest difference of a score, relative to the spread of the expected ones."""
        spread = max(float(np.ptp(expected)), float(np.abs(expected).max()), math.ulp(1.0))
        return float(np.abs(expected - scores).max()) / spread

    def _scores(self, artifact: Artifact) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Image scores [N] and anomaly maps [N, h, w] of the test images: the one way in which any model is scored here.

        Whatever size a model looks at, its maps are brought to the study's, so that pixels of two models compare.
        """
        rgb, size = self._at(artifact)[1], self.test.image_size
        scores: list[float] = []
        maps: list[NDArray[np.float32]] = []
        with full_precision(self.device):
            for start in range(0, len(rgb), BATCH):
                verdicts = judge(artifact, rgb[start : start + BATCH])
                scores += [verdict.score for verdict in verdicts]
                block = torch.from_numpy(np.stack([verdict.anomaly_map for verdict in verdicts]))
                maps.append((block if block.shape[1:] == size else resampled(block, size)).numpy())
        return np.array(scores), np.concatenate(maps)

    def _at(self, artifact: Artifact) -> tuple[ImageSet, list[NDArray[np.uint8]]]:
        """The test set at a detector's image size, and its images, each uint8 [H, W, 3]; resized once for each size."""
        size = artifact.detector.image_size
        if size not in self._sets:
            resized = replace(self.test, image_size=size)
            self._sets[size] = resized, [resized.load(index)[0] for index in range(len(resized))]
        return self._sets[size]


def _png(rgb: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
