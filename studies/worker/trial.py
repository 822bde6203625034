"""One trial, as a worker runs it: features, fit, scores, speed, plots, ``result.json``. Uses no database."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from detectors import working_memory
from detectors.base import Prediction
from detectors.data.repainting import repainted
from detectors.data.samples import ImageSet
from detectors.detector import Detector
from detectors.files import os_errors_as_input_errors, write_json, write_text
from detectors.head_texts import look_in
from detectors.own_version import own_version
from detectors.runtime.artifact import Artifact, model_size_mb, save_artifact
from detectors.runtime.latency import DeviceLock, Latency, measure_latency, wait_until_quiet
from detectors.scoring.evaluation import RECALL, SEG_F1, Evaluation, evaluate
from detectors.scoring.operating_point import Threshold
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file.config import StudyConfig, metric_of, validate
from studies.file.keys import IMAGE_SIZE
from studies.file.known_pixels import known_pixels
from studies.file.looks import look_of
from studies.file.sections import ThresholdConfig
from studies.file.sizes import size_of, written_size
from studies.home import Home
from studies.worker import plots
from studies.worker.calibration import (
    Calibration,
    threshold_metrics,
    write_calibration,
)
from studies.worker.fitting import Emit, Fitting, Stages, masks_of
from studies.worker.good_images import good_images, named
from studies.worker.jobs import ARTIFACTS, DETECTOR, FIRST_DETECTOR, PROVISIONAL, RESULT_FILE, Job, TrialResult
from studies.worker.ledger import LedgerLine, append_to_ledger
from studies.worker.products import load_images, run_products
from studies.worker.scores import read_scores, write_scores
from studies.worker.seeding import seeded
from studies.worker.validation_scores import write_validation_scores

HEAT_MAPS = 6
"""Most heat maps that are kept of a trial."""
LARGEST_MB = 512.0
"""Of a detector that a trial keeps: a larger one takes longer to write than many a trial."""
LATENCY_IMAGES = 4
"""Images on which the latency is measured."""


def run_job(job: Job, emit: Emit = lambda event: None, should_stop: Callable[[], bool] = lambda: False) -> TrialResult:
    """Do a job and write its result into its folder.

    Args:
        emit: called with the stages and intermediate values of the job.
        should_stop: asked between epochs; True ends the training, and the trial counts as pruned.

    Raises:
        InputError: images or weights are missing, damaged or not those that the study was created with.
        NumericalError: a value of the detector is not finite.
    """
    home = Home(Path(job.home))
    look_in(home.heads)
    config = validate(job.config, source=f"trial {job.number}")
    if config.data.is_several:
        return run_products(job, config, home, run=run_job, emit=emit, should_stop=should_stop)
    with working_memory.halved(job.memory_halvings), seeded(job.seed, threads=job.threads):
        worker = _Worker(job, config, home, emit, should_stop)
        steps = {"trial": worker.trial, "probe": worker.probe, "speed": worker.speed}
        return steps.get(job.task, worker.final)()


@dataclass(frozen=True)
class _Fitted:
    """A fitted detector, and what its threshold rests on."""

    detector: Detector
    calibration: Calibration


@dataclass(frozen=True)
class _Judged:
    """A fitted detector on the images that a trial is judged by."""

    detector: Detector
    as_fitted: Prediction
    """What the detector predicts."""
    prediction: Prediction
    """What it is judged by; of a training that chose among its epochs, free of that choice."""
    evaluation: Evaluation
    calibration: Calibration
    """What the detector's threshold rests on."""


class _Worker:
    """The steps of one job, and the seconds that each took."""

    def __init__(self, job: Job, config: StudyConfig, home: Home, emit: Emit, should_stop: Callable[[], bool]) -> None:
        self.job, self.config, self.home = job, config, home
        self.started = time.time()
        self.stage = Stages(job, emit)
        self.device = torch.device(job.device)
        self.lock = DeviceLock(self.home.locks, self.device)
        self.splits = load_images(config, home, job.splits_digest).parts[0].splits
        validation = self.splits.validation
        if job.probe is not None and job.probe.repaint and validation is not None:
            self.splits = replace(self.splits, validation=repainted(validation, seed=job.structural_seed))
        asked = (job.probe and job.probe.image_size) or size_of(job.params, config.data.size)
        size, self.tiles = look_of(job.params | {IMAGE_SIZE: written_size(asked)}, asked)
        if size != config.data.size:
            self.splits = self.splits.resized(size)
        self.fitting = self._new_fitting(self.stage, should_stop)

    def _new_fitting(self, stages: Stages, should_stop: Callable[[], bool] = lambda: False) -> Fitting:
        return Fitting(self.job, self.config, self.home, self.splits, stages, tiles=self.tiles, should_stop=should_stop)

    def trial(self) -> TrialResult:
        """Fit on train and score on validation, or under protocol ``paper`` on the whole test set."""
        scored, prefix = (self.splits.validation, "val") if self.splits.validation else (self.splits.test, "test")
        first = self._leave_first_detector()
        with self.lock.shared():
            judged = self._judge(scored)
        if judged is None:
            return self._finish({"train_seconds": self.fitting.train_seconds}, Evaluation(metrics={}), pruned=True)
        detector, evaluation = judged.detector, judged.evaluation
        latency = self._measure_speed(detector, scored)
        folder = self._fresh_folder(ARTIFACTS)
        with self.stage("plots"):
            curves = judged.prediction.scores.numpy()
            plots.write_curves(curves, scored.labels, folder, title=f"trial {self.job.number}, {scored.name}")
            plots.write_heat_maps(judged.as_fitted, scored, folder / "heatmaps", most=HEAT_MAPS)
        if prefix == "test":
            self._write_ledger("paper", evaluation)
            write_scores(judged.as_fitted, scored, folder, threshold=None)
        else:
            self._keep_validation_scores(judged, scored, folder)
        metrics = _prefixed(evaluation, prefix) | latency.to_metrics() | {"train_seconds": self.fitting.train_seconds}
        metrics |= {f"head/{name}": value for name, value in detector.head.diagnostics.items()}
        if self._is_to_be_kept(metrics):
            self._leave(first or _Fitted(detector, judged.calibration), metrics)
        return self._finish(metrics, evaluation, threshold=detector.threshold)

    def _leave_first_detector(self) -> _Fitted | None:
        """Before a study without labels has its first figure, fit to the good images and save that detector.

        What such a trial is judged by takes much longer than its fit: hundreds of images are painted, and their features
        computed. A person can look at new images meanwhile. The threshold rests on train out of fold, as a refit's does.
        """
        waits_for_paint = self.config.protocol == "synthetic" and not self.splits.in_sample
        if self.job.keep_above != -math.inf or not waits_for_paint or self.fitting.is_trained:
            return None
        # Its times are no part of the trial's.
        fitting = self._new_fitting(Stages(self.job, self.stage.emit))
        with self.stage(FIRST_DETECTOR), self.lock.shared():
            detector = fitting.fit(with_folds=True, validated=False)
            calibration = fitting.calibration(None)
            detector.threshold = calibration.threshold(self._rule_of_trial)
            if detector.threshold is None or model_size_mb(detector) > LARGEST_MB:
                return None
            first = _Fitted(detector, calibration)
            self._leave(first, {})
        self.stage.step(FIRST_DETECTOR, 1, 1)
        return first

    def _leave(self, first: _Fitted, metrics: Mapping[str, float]) -> None:
        """Save a provisional detector, with what `study threshold` needs."""
        write_calibration(first.calibration, self.job.path)
        self._save(first.detector, first.calibration, self._provenance(dict(metrics)) | {PROVISIONAL: True})

    def _is_to_be_kept(self, metrics: Mapping[str, float]) -> bool:
        """Whether the trial's detector is the best so far, and small enough to be written in a moment."""
        objective, limit = metric_of(self.config, next(iter(self.config.objectives))), self.job.keep_above
        if limit is None or objective not in metrics or metrics.get("model_size_mb", 0.0) > LARGEST_MB:
            return False
        value = metrics[objective] if self.config.direction == "maximize" else -metrics[objective]
        return value > limit

    def _save(self, detector: Detector, calibration: Calibration, provenance: Mapping[str, Any]) -> None:
        with self.stage("save"):
            normal_scores = np.sort(calibration.good_scores.values)
            save_artifact(Artifact(detector, normal_scores, provenance), self.job.path / DETECTOR)

    def probe(self) -> TrialResult:
        """Fit as the job's probe says and score on validation, as a trial does; speed is not measured and nothing is plotted."""
        _, validation = self.splits.search_sets
        with self.lock.shared():
            judged = self._judge(validation)
        if judged is None:
            return self._finish({"train_seconds": self.fitting.train_seconds}, Evaluation(metrics={}), pruned=True)
        self._keep_validation_scores(judged, validation, self._fresh_folder(ARTIFACTS))
        metrics = _prefixed(judged.evaluation, "val") | {"train_seconds": self.fitting.train_seconds}
        return self._finish(metrics, judged.evaluation, threshold=judged.detector.threshold)

    def _judge(self, scored: ImageSet) -> _Judged | None:
        """Fit, and evaluate on a set; None where the training was stopped."""
        if self.splits.folds:
            detector, as_fitted = self.fitting.cross()
        else:
            # Elsewhere a trial's threshold rests on the held-out images alone: folds would make it several times as long.
            detector = self.fitting.fit(with_folds=self.config.aims_at_operating_point)
        if self.fitting.stopped:
            return None
        if not self.splits.folds:
            as_fitted = self.fitting.predict(detector, scored)
        validation = self.fitting.validation
        judged = validation.judged() if validation is not None else None
        prediction = self.fitting.at_study_size(judged) if judged is not None else as_fitted
        of_validation = prediction if self.splits.validation is not None else None
        calibration = self.fitting.calibration(of_validation)
        detector.threshold = calibration.threshold(self._rule_of_trial)
        return _Judged(detector, as_fitted, prediction, self._evaluate(detector, prediction, scored), calibration)

    def _keep_validation_scores(self, judged: _Judged, validation: ImageSet, folder: Path) -> None:
        counted = replace(validation, image_size=self.config.data.size)
        masks = masks_of(counted) if SEG_F1 in self.config.objectives else None
        threshold = judged.detector.threshold
        good = [image.score for image in self.fitting.collector.good if image.origin in ("fold", "left out")]
        write_validation_scores(
            judged.prediction, validation, folder, threshold=threshold, masks=masks, out_of_fold=good
        )

    def speed(self) -> TrialResult:
        """Fit the setting of a trial and measure its speed alone, once the machine is quiet or does not get so."""
        with self.lock.shared():
            detector = self.fitting.fit(with_folds=False)
        with self.stage("waiting for a quiet machine"):
            wait_until_quiet()
        latency = self._measure_speed(detector, self.splits.validation or self.splits.test)
        return self._finish(latency.to_metrics(), Evaluation(metrics={}))

    def _measure_speed(self, detector: Detector, image_set: ImageSet) -> Latency:
        with self.stage("speed"), self.lock.exclusive():
            images = image_set.images(range(min(LATENCY_IMAGES, len(image_set))))
            return measure_latency(detector.to(self.device), images, self.device)

    def final(self) -> TrialResult:
        """Refit the selected trial, choose its threshold, score it on test and save it; a replicate is not saved.

        Under protocol ``paper`` the trial was scored on test already, and where all labelled images were validated there is no
        test: then it is refitted and saved only.
        """
        metrics, evaluation = dict[str, float](), Evaluation(metrics={})
        with self.lock.shared():
            detector = self.fitting.fit(with_folds=True)
            folder = self._fresh_folder(ARTIFACTS)
            calibration = self._calibrate(detector)
            if self.splits.validation is None:
                metrics, evaluation = self._on_scores_of_trial(detector)
            elif self.splits.keeps_test:
                metrics, evaluation = self._score_on_test(detector, folder)
            metrics |= threshold_metrics(detector.threshold)
        if self.job.task == "final":
            self._save(detector, calibration, self._provenance(metrics))
        return self._finish(metrics, evaluation, threshold=detector.threshold)

    def _score_on_test(self, detector: Detector, folder: Path) -> tuple[dict[str, float], Evaluation]:
        """Score the test images, which the ledger records; for a final job, write plots and scores into `folder`."""
        test, is_final = self.splits.test, self.job.task == "final"
        prediction = self.fitting.predict(detector, test)
        evaluation = self._evaluate(detector, prediction, test)
        self._write_ledger("selected" if is_final else "replicate", evaluation)
        if is_final:
            plots.write_curves(prediction.scores.numpy(), test.labels, folder, title=f"trial {self.job.number}, test")
            threshold = detector.threshold.value if detector.threshold else None
            plots.write_heat_maps(prediction, test, folder / "heatmaps", most=HEAT_MAPS, threshold=threshold)
            write_scores(prediction, test, folder, threshold=threshold)
        return _prefixed(evaluation, "test"), evaluation

    def _on_scores_of_trial(self, detector: Detector) -> tuple[dict[str, float], Evaluation]:
        """Under protocol ``paper``: what the threshold does to the scores of the trial, which are those of this detector.

        Not of a head that trains: its trial was fitted to all of train, this detector without the part for its threshold.
        """
        study = self.home.study_folder(self.job.study_uid)
        is_other = detector.head.trained and self.fitting.parts > 0
        if detector.threshold is None or is_other or not self.job.path.is_relative_to(study / "final"):
            return {}, Evaluation(metrics={})
        scores = read_scores(study / self.job.path.relative_to(study / "final") / ARTIFACTS)
        if scores is None:
            return {}, Evaluation(metrics={})
        found, recalls = scores.at(detector.threshold.value)
        evaluation = Evaluation(metrics=found, per_defect_recall=recalls)
        return _prefixed(evaluation, "test"), evaluation

    def _evaluate(self, detector: Detector, prediction: Prediction, image_set: ImageSet) -> Evaluation:
        """The metrics of a prediction; those of the operating point where the detector has a threshold."""
        with self.stage(f"score ({image_set.name})"):
            # Whatever size a trial looks at, pixels are counted at the study's, to which maps are brought.
            image_set = replace(image_set, image_size=self.config.data.size)
            return evaluate(
                scores=prediction.scores,
                maps=prediction.maps,
                labels=image_set.labels,
                masks=masks_of(image_set),
                defect_types=image_set.defect_types,
                threshold=detector.threshold,
                painted=image_set.painted,
                pixels=image_set.with_pixels,
                seed=self.job.structural_seed,
            )

    def _calibrate(self, detector: Detector) -> Calibration:
        """Set the threshold of a refit, and keep what it rests on in the job's folder."""
        section, validation = self.config.threshold, self.splits.unseen
        prediction = self.fitting.predict(detector, validation) if validation is not None else None
        folder, images = section.folder_of(str(self.config.data.category)), None
        if folder is not None:
            with known_pixels(self.home) as known:
                other = good_images(folder, self.splits, known=known)
            self.fitting.collector.add(other.samples, self.fitting.predict(detector, other), "images")
            images = named(folder, other)
        calibration = self.fitting.calibration(prediction, images=images)
        detector.threshold = calibration.threshold(section)
        write_calibration(calibration, self.job.path)
        return calibration

    @property
    def _rule_of_trial(self) -> ThresholdConfig:
        """How a trial's threshold is chosen: a given value belongs to one detector, not to every setting."""
        section = self.config.threshold
        return ThresholdConfig(rate=section.rate) if section.rule == "value" else section

    def _write_ledger(self, purpose: str, evaluation: Evaluation) -> None:
        """Record a scoring on test. This comes before the figures are written anywhere, so that none is ever missing."""
        line = LedgerLine(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            study_uid=self.job.study_uid,
            study=self.config.name,
            trial=self.job.number,
            purpose=purpose,
            protocol=self.splits.protocol,
            test_digest=self.splits.test.digest,
            image_auroc=evaluation.metrics.get("image_auroc"),
            host=platform.node(),
        )
        append_to_ledger(self.home, line)

    def _provenance(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Where the saved detector comes from, JSON-able."""
        return {
            "study": self.config.name,
            "study_uid": self.job.study_uid,
            "trial": self.job.number,
            "dataset": self.config.data.dataset,
            "category": self.config.data.category,
            "protocol": self.splits.protocol,
            "digests": {image_set.name: image_set.digest for image_set in self.splits.sets},
            "metrics": metrics,
            "environment": environment(self.device),
        }

    def _finish(
        self,
        metrics: dict[str, float],
        evaluation: Evaluation,
        *,
        threshold: Threshold | None = None,
        pruned: bool = False,
    ) -> TrialResult:
        """Write the result and the resolved configuration into the job's folder."""
        job = self.job
        result = TrialResult(
            task=job.task,
            study_uid=job.study_uid,
            number=job.number,
            attempt=job.attempt,
            params=job.params,
            pruned=pruned,
            metrics=metrics,
            per_defect=evaluation.per_defect,
            per_defect_recall=evaluation.per_defect_recall,
            undefined=evaluation.undefined,
            seconds={name: round(seconds, 4) for name, seconds in self.stage.seconds.items()},
            backbone=self.fitting.backbone.identity.to_json(),
            threshold=threshold.to_json() if threshold else None,
            started=self.started,
            finished=time.time(),
            environment=environment(self.device),
        )
        resolved = {**job.config, "trial": {"number": job.number, "seed": job.seed, **job.params}}
        write_text(job.path / ARTIFACTS / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
        write_json(job.path / ARTIFACTS / "metrics.json", result.model_dump(mode="json"))
        write_json(job.path / RESULT_FILE, result.model_dump(mode="json"))
        return result

    def _fresh_folder(self, name: str) -> Path:
        """An empty folder within the job's folder; what an earlier attempt left there is deleted."""
        folder = self.job.path / name
        shutil.rmtree(folder, ignore_errors=True)
        with os_errors_as_input_errors(folder):
            folder.mkdir(parents=True)
        return folder


def environment(device: torch.device) -> dict[str, str]:
    """Host, device, threads and versions with which a figure was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    packages = ("torch", "timm", "numpy", "optuna", "mlflow")
    return {
        "host": platform.node(),
        "device": str(device),
        "device_name": name,
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "anomaly-studies": own_version(),
        **{package: version(package) for package in packages},
    }


def _prefixed(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """The metrics under names such as ``val/image_auroc`` and ``val/image_auroc/<type of defect>``."""
    named = {f"{prefix}/{name}": value for name, value in evaluation.metrics.items()}
    if RECALL in evaluation.metrics:
        named[f"{prefix}/miss_rate"] = 1.0 - evaluation.metrics[RECALL]
    ranks = RANKING_SCORE if RANKING_SCORE in evaluation.metrics else "image_auroc"
    for name, values in ((ranks, evaluation.per_defect), (RECALL, evaluation.per_defect_recall)):
        named |= {f"{prefix}/{name}/{kind}": value for kind, value in values.items()}
    return named
