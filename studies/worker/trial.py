"""One trial, as a worker runs it: features, fit, scores, speed, plots, ``result.json``. Uses no database."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from detectors import working_memory
from detectors.backbones.pyramid import Backbone, build_backbone, weights_identity
from detectors.base import Detector, FitContext, Prediction
from detectors.data.samples import ImageSet
from detectors.errors import InputError
from detectors.features import Features
from detectors.files import os_errors_as_input_errors, write_json, write_text
from detectors.head_texts import look_in
from detectors.runtime.artifact import Artifact, save_artifact
from detectors.runtime.latency import DeviceLock, Latency, measure_latency, wait_until_quiet
from detectors.scoring.evaluation import METRICS, Evaluation, evaluate
from detectors.scoring.operating_point import GoodScores, choose_threshold
from studies.file.config import StudyConfig, validate
from studies.file.encoding import canonical
from studies.home import Home
from studies.worker import plots
from studies.worker.epochs import CrossedEpochs, Validation, halves
from studies.worker.feature_store import FeatureStore
from studies.worker.jobs import ARTIFACTS, CHECKPOINTS, DETECTOR, RESULT_FILE, Event, Job, Report, Stage, TrialResult
from studies.worker.ledger import LedgerLine, append_to_ledger
from studies.worker.memo import FileMemo
from studies.worker.products import load_images, run_products
from studies.worker.scores import write_scores
from studies.worker.seeding import seeded

Emit = Callable[[Event], None]
HEAT_MAPS = 6
"""Most heat maps that are kept of a trial."""
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
        if job.task == "speed":
            return worker.speed()
        return worker.trial() if job.task == "trial" else worker.final()


class _Worker:
    """The steps of one job, and the seconds that each took."""

    def __init__(self, job: Job, config: StudyConfig, home: Home, emit: Emit, should_stop: Callable[[], bool]) -> None:
        self.job, self.config, self.home, self.emit, self.should_stop = job, config, home, emit, should_stop
        self.started = time.time()
        self.seconds: dict[str, float] = {}
        self.stored_seconds = 0.0
        self.validation: Validation | None = None
        self.stopped = False
        self.device = torch.device(job.device)
        self.lock = DeviceLock(self.home.locks, self.device)
        self.splits = load_images(config, home, job.splits_digest).parts[0].splits
        self.backbone = self._build_backbone()
        self.store = FeatureStore(self.home.features, max_bytes=int(self.config.execution.feature_store_gb * 1e9))

    def trial(self) -> TrialResult:
        """Fit on train and score on validation, or under protocol ``paper`` on the whole test set."""
        scored, prefix = (self.splits.validation, "val") if self.splits.validation else (self.splits.test, "test")
        with self.lock.shared():
            detector = self._fit()
            if self.stopped:
                return self._finish({"train_seconds": self._train_seconds}, Evaluation(metrics={}), pruned=True)
            prediction, evaluation = self._score(detector, scored)
            judged = self.validation.judged() if self.validation is not None else None
            evaluation = evaluation if judged is None else self._evaluate(judged, scored)
        latency = self._measure_speed(detector, scored)
        folder = self._fresh_folder(ARTIFACTS)
        with self._stage("plots"):
            curves = (judged or prediction).scores.numpy()
            plots.write_curves(curves, scored.labels, folder, title=f"trial {self.job.number}, {scored.name}")
            plots.write_heat_maps(prediction, scored, folder / "heatmaps", most=HEAT_MAPS)
        if prefix == "test":
            self._write_ledger("paper", evaluation)
            write_scores(prediction, scored, folder, threshold=None)
        metrics = _prefixed(evaluation, prefix) | latency.to_metrics() | {"train_seconds": self._train_seconds}
        metrics |= {f"head/{name}": value for name, value in detector.head.diagnostics.items()}
        return self._finish(metrics, evaluation)

    def speed(self) -> TrialResult:
        """Fit the setting of a trial and measure its speed alone, once the machine is quiet or does not get so."""
        with self.lock.shared():
            detector = self._fit()
        with self._stage("waiting for a quiet machine"):
            wait_until_quiet()
        latency = self._measure_speed(detector, self.splits.validation or self.splits.test)
        return self._finish(latency.to_metrics(), Evaluation(metrics={}))

    def _measure_speed(self, detector: Detector, image_set: ImageSet) -> Latency:
        with self._stage("speed"), self.lock.exclusive():
            images = image_set.images(range(min(LATENCY_IMAGES, len(image_set))))
            return measure_latency(detector.to(self.device), images, self.device)

    def final(self) -> TrialResult:
        """Refit the selected trial, choose its threshold, score it on test and save it; a replicate is not saved.

        Under protocol ``paper`` the trial was scored on test already, so it is refitted and saved only.
        """
        normal_scores: NDArray[np.float64] = np.empty(0)
        metrics, evaluation = dict[str, float](), Evaluation(metrics={})
        with self.lock.shared():
            detector = self._fit()
            folder = self._fresh_folder(ARTIFACTS)
            if self.splits.validation is not None:
                normal_scores = self._choose_threshold(detector, self.splits.validation)
                metrics, evaluation = self._score_on_test(detector, folder)
        if self.job.task == "final":
            with self._stage("save"):
                artifact = Artifact(detector, normal_scores, self._provenance(metrics))
                save_artifact(artifact, self.job.path / DETECTOR)
        return self._finish(metrics, evaluation, threshold=detector.threshold.to_json() if detector.threshold else None)

    def _score_on_test(self, detector: Detector, folder: Path) -> tuple[dict[str, float], Evaluation]:
        """Score the test images, which the ledger records; for a final job, write plots and scores into `folder`."""
        test, is_final = self.splits.test, self.job.task == "final"
        prediction, evaluation = self._score(detector, test)
        self._write_ledger("selected" if is_final else "replicate", evaluation)
        if is_final:
            plots.write_curves(prediction.scores.numpy(), test.labels, folder, title=f"trial {self.job.number}, test")
            threshold = detector.threshold.value if detector.threshold else None
            plots.write_heat_maps(prediction, test, folder / "heatmaps", most=HEAT_MAPS, threshold=threshold)
            write_scores(prediction, test, folder, threshold=threshold)
        return _prefixed(evaluation, "test") | _at_threshold(detector, prediction.scores, test), evaluation

    def _build_backbone(self) -> Backbone:
        """The backbone of the trial. Raises `InputError` if its weights are not those of the study."""
        with self._stage("backbone"):
            backbone = _backbone(self.job.params["backbone"], tuple(self.job.params["layers"]), self.job.weights_dir)
        if backbone.identity.sha256 != self.job.weights_sha256:
            raise InputError(
                f"backbone {self.job.params['backbone']}: the weights on this machine are not those the study was created "
                f"with ({backbone.identity.sha256[:12]}, not {self.job.weights_sha256[:12]}); restore them, or --fresh"
            )
        return backbone

    def _fit(self) -> Detector:
        """The trial's detector, fitted on train, on the device."""
        params = self.job.params
        head_type = self.config.head_class(params.get("detector") or self.config.detectors[0])
        head = head_type(**{parameter.name: params[parameter.name] for parameter in head_type.searchable})
        detector = Detector(
            self.backbone, head, image_size=self.config.data.size, smoothing_sigma=params["smoothing_sigma"]
        )
        features = self._features(self.splits.train)
        job = self.job
        check_networks(job)
        context = FitContext(
            device=self.device,
            seed=job.seed,
            structural_seed=job.structural_seed,
            report=lambda step, value: self.emit(Report(job.number, job.attempt, step, value)),
            should_stop=self._should_stop,
            count_stored=self._count_stored,
            validate=self._validate_with(detector),
            checkpoint_dir=job.path / CHECKPOINTS,
            weights_dir=Path(job.weights_dir) if job.weights_dir else None,
            memo=FileMemo(
                self.home.memos, features=self.store.identity_of(self.splits.train, self.backbone, self.device)
            ),
        )
        with self._stage("fit"):
            detector.fit_features(features, context)
        # Validation between epochs is part of the search, not of the training.
        if self.validation is not None and self.validation.seconds:
            self.seconds["validate"] = self.validation.seconds
            self.seconds["fit"] -= self.validation.seconds
        shutil.rmtree(job.path / CHECKPOINTS, ignore_errors=True)
        return detector.to(self.device)

    def _validate_with(self, detector: Detector) -> Validation | None:
        """What measures the first objective on validation, by which a training is pruned and chooses its epoch.

        None if the objective is a cost, or there are no validation images.
        """
        objective, validation, job = next(iter(self.config.objectives)), self.splits.validation, self.job
        if validation is None or objective not in METRICS or job.task == "speed":
            return None
        crossed = None
        if job.task == "trial":
            identity = canonical({"study": job.study_uid, "trial": job.number, "seed": job.seed, **job.params})
            crossed = CrossedEpochs(halves(validation), job.path / CHECKPOINTS, identity=identity)
        masks = _masks(validation) if objective.startswith("pixel_") else None
        features = self._features(validation)
        self.validation = Validation(objective, detector, features, validation, masks=masks, crossed=crossed)
        return self.validation

    def _count_stored(self, seconds: float) -> None:
        self.stored_seconds += seconds

    @property
    def _train_seconds(self) -> float:
        """Seconds of the fit from features, as from scratch: work that the fit found stored counts with what it took when it was
        done, so that trials which share it can be compared. `seconds` keeps the time that was spent here."""
        return max(0.0, self.seconds["fit"] + self.stored_seconds)

    def _should_stop(self) -> bool:
        """Whether the training is to end. A head that never calls this trains to its end, and its trial counts as finished."""
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    def _features(self, image_set: ImageSet) -> Features:
        """The features of a set at the trial's strides, from the store or computed."""
        name = f"features ({image_set.name})"
        with self._stage(name):
            # All strides of the study are computed at once, so that another trial's layers need no second pass over the images.
            full_backbone = _backbone(self.job.params["backbone"], self.job.strides, self.job.weights_dir)
            features = self.store.features(
                image_set,
                full_backbone,
                device=self.device,
                progress=lambda done, total: self.emit(Stage(self.job.number, self.job.attempt, name, done, total)),
            )
        return features.select(self.job.params["layers"])

    def _score(self, detector: Detector, image_set: ImageSet) -> tuple[Prediction, Evaluation]:
        """Score a set; the prediction is on the CPU."""
        features = self._features(image_set)
        with self._stage(f"score ({image_set.name})"):
            prediction = detector.score_features(features)
            prediction = Prediction(scores=prediction.scores.cpu(), maps=prediction.maps.cpu())
            evaluation = self._evaluate(prediction, image_set)
        return prediction, evaluation

    def _evaluate(self, prediction: Prediction, image_set: ImageSet) -> Evaluation:
        return evaluate(
            scores=prediction.scores,
            maps=prediction.maps,
            labels=image_set.labels,
            masks=_masks(image_set),
            defect_types=image_set.defect_types,
            seed=self.job.structural_seed,
        )

    def _choose_threshold(self, detector: Detector, validation: ImageSet) -> NDArray[np.float64]:
        """Set the threshold from validation. Returns the scores of its good images [N]."""
        scores = detector.score_features(self._features(validation)).scores.cpu().numpy()
        normals = scores[validation.labels == 0]
        detector.threshold = choose_threshold(
            rule=self.config.threshold.rule,
            rate=self.config.threshold.rate,
            source=validation.name,
            good=GoodScores(normals, validation.name),
            scores=scores,
            labels=validation.labels,
        )
        return normals.astype(np.float64)

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
        threshold: dict[str, Any] | None = None,
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
            undefined=evaluation.undefined,
            seconds={name: round(seconds, 4) for name, seconds in self.seconds.items()},
            backbone=self.backbone.identity.to_json(),
            threshold=threshold,
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

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Report a stage and add its time to `seconds`."""
        self.emit(Stage(self.job.number, self.job.attempt, name))
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def environment(device: torch.device) -> dict[str, str]:
    """Host, device, threads and versions with which a figure was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    packages = ("anomaly-studies", "torch", "timm", "numpy", "optuna", "mlflow")
    return {
        "host": platform.node(),
        "device": str(device),
        "device_name": name,
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def check_networks(job: Job) -> None:
    """Check the pretrained weights of the networks that the detector starts from.

    Raises:
        InputError: they are missing, or not those of the study.
    """
    for name, sha256 in job.networks.items():
        here = weights_identity(name, weights_dir=Path(job.weights_dir) if job.weights_dir else None).sha256
        if here != sha256:
            raise InputError(
                f"network {name}: the weights on this machine are not those the study was created with "
                f"({here[:12]}, not {sha256[:12]}); restore them, or --fresh"
            )


@lru_cache(maxsize=8)
def _backbone(name: str, strides: tuple[int, ...], weights_dir: str | None) -> Backbone:
    return build_backbone(name, strides, weights_dir=Path(weights_dir) if weights_dir else None)


@lru_cache(maxsize=4)
def _masks(image_set: ImageSet) -> NDArray[np.bool_] | None:
    """Masks of a set, bool [N, H, W], which are decoded once per process; None if it has none."""
    return image_set.masks()


def _prefixed(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """The metrics under names such as ``val/image_auroc`` and ``val/image_auroc/<type of defect>``."""
    per_defect = {f"{prefix}/image_auroc/{kind}": value for kind, value in evaluation.per_defect.items()}
    return {f"{prefix}/{name}": value for name, value in evaluation.metrics.items()} | per_defect


def _at_threshold(detector: Detector, scores: Tensor, image_set: ImageSet) -> dict[str, float]:
    """False-alarm rate and miss rate of the chosen threshold on test; empty without a threshold."""
    if detector.threshold is None:
        return {}
    alarms = scores.numpy() >= detector.threshold.value
    labels = image_set.labels.astype(bool)
    return {
        "test/false_alarm_rate": float(alarms[~labels].mean()),
        "test/miss_rate": float((~alarms[labels]).mean()),
    }
