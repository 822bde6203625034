"""Fitting the detector of one job, and scoring images with it: backbone, features, twins for the folds of the threshold."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.backbones.pyramid import AnyBackbone, build_backbones, weights_identity
from detectors.backbones.weights import digits
from detectors.base import FitContext, Head, Prediction
from detectors.committee import make_detector
from detectors.data.copies import content_groups
from detectors.data.samples import ImageSet, Sample
from detectors.data.splits import Splits
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.features import Features
from detectors.scoring.evaluation import METRICS, SEG_F1
from detectors.tiles import Tiles
from studies.file.config import StudyConfig
from studies.file.encoding import canonical
from studies.file.known_pixels import known_pixels
from studies.home import Home
from studies.worker.calibration import Calibration, Collector, LabelledImage, labelled_images
from studies.worker.epochs import CrossedEpochs, Validation, halves
from studies.worker.feature_store import FeatureStore
from studies.worker.jobs import CHECKPOINTS, Event, Job, Report, Stage
from studies.worker.memo import FileMemo
from studies.worker.out_of_fold import Part, at_size, divide, maps_at_once, predictions, twin_predictions
from studies.worker.probing import rows_of
from studies.worker.references import references

Emit = Callable[[Event], None]


class Stages:
    """Reports the stages of a job, and adds up the seconds that each took."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self._job, self.emit = job, emit
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Report a stage and add its time to `seconds`."""
        self.step(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def step(self, name: str, done: int = 0, total: int = 0) -> None:
        """Report how far a stage is."""
        self.emit(Stage(self._job.number, self._job.attempt, name, done, total))

    def add(self, name: str, seconds: float) -> None:
        """Count seconds for a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class Fitting:
    """Fits detectors of the setting of one job."""

    def __init__(
        self,
        job: Job,
        config: StudyConfig,
        home: Home,
        splits: Splits,
        stages: Stages,
        *,
        tiles: Tiles | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
            splits: at the size that the trial looks at, which may be another one than the study's.
            tiles: that images are cut into.
            should_stop: asked between epochs; True ends the training.

        Raises:
            InputError: the weights of the backbone are missing, or not those of the study.
        """
        self.job, self.config, self.home, self.splits, self.stage = job, config, home, splits, stages
        self.tiles, self._ask_to_stop = tiles, should_stop
        self.validation: Validation | None = None
        self.stopped = False
        """Whether the training was ended before its time."""
        self.collector, self.parts = Collector(), 0
        """Scores of good images that their detector did not see, and in how many folds train was scored."""
        self.stored_seconds, self.fits = 0.0, 1
        """Seconds of work that fits found done, and how many fits there were."""
        self.device = torch.device(job.device)
        self.backbone = self._build_backbone()
        self.store = FeatureStore(home.features, max_bytes=int(config.execution.feature_store_gb * 1e9))
        self.rows = self._rows_of_probe()
        """Indices of the images of train that are fitted; None for all."""
        self.references = references(self._fitted_set, self._new_head(), config, of=len(splits.train))
        """What is fitted: the images of train, with turned copies of few."""

    def fit(self, *, with_folds: bool, validated: bool = True) -> Detector:
        """The trial's detector, fitted on train, on the device.

        Args:
            with_folds: collect scores of images of train by detectors that were fitted without them, for the threshold.
            validated: a head that trains is measured on validation between its epochs.
        """
        detector = self._new_detector()
        features = self._features_of_references()
        check_networks(self.job)
        parts = self._divide(trained=detector.head.trained) if with_folds else []
        left_out = parts[0] if parts and detector.head.trained else None
        fitted = features.take(left_out.fitted) if left_out else features
        job = self.job
        context = replace(
            self._context(f"without the {len(left_out.held_out)} left out" if left_out else ""),
            report=lambda step, value: self.stage.emit(Report(job.number, job.attempt, step, value)),
            should_stop=self._should_stop,
            count_stored=self._count_stored,
            validate=self._validate_with(detector) if validated else None,
            checkpoint_dir=job.path / CHECKPOINTS,
        )
        with self.stage("fit"):
            detector.fit_features(fitted, context)
        # Validation between epochs is part of the search, not of the training.
        if self.validation is not None and self.validation.seconds:
            self.stage.seconds["validate"] = self.validation.seconds
            self.stage.seconds["fit"] -= self.validation.seconds
        shutil.rmtree(job.path / CHECKPOINTS, ignore_errors=True)
        detector = detector.to(self.device)
        if parts and not self.stopped:
            self._collect(detector, features, parts)
        return detector

    def cross(self) -> tuple[Detector, Prediction]:
        """Validation, scored fold by fold by detectors that were fitted to the other folds of train.

        Returns:
            The detector of the last fold, whose speed stands for all, and the prediction of every image of validation.
        """
        train, validation = self._features_of_references(), self.splits.validation
        if validation is None or not self.splits.folds:
            raise RuntimeError("validation is not held out in turns")
        of_validation = self.features(validation)
        check_networks(self.job)
        detector, scores, maps = None, torch.empty(len(validation)), None
        for fold in range(1, self.splits.folds + 1):
            self.stage.step("fit", fold - 1, self.splits.folds)
            fitted = [index for index, sample in enumerate(self._fitted_set.samples) if sample.fold != fold]
            rows = [index for index, sample in enumerate(validation.samples) if sample.fold == fold]
            detector = self._new_detector()
            context = replace(
                self._context(f"without turn {fold} of {self.splits.folds}"),
                should_stop=self._should_stop,
                count_stored=self._count_stored,
                checkpoint_dir=self.job.path / CHECKPOINTS / str(fold),
            )
            with self.stage("fit"):
                detector.fit_features(train.take(self.references.rows(fitted)), context)
            shutil.rmtree(self.job.path / CHECKPOINTS, ignore_errors=True)
            detector = detector.to(self.device)
            with self.stage(f"score ({validation.name})"):
                done = 0
                for block in predictions(detector, of_validation, rows):
                    block = self.at_study_size(block)
                    if maps is None:
                        maps = torch.empty(len(validation), *block.maps.shape[1:])
                    taken = rows[done : done + len(block)]
                    scores[taken], maps[taken] = block.scores, block.maps
                    done += len(block)
        if detector is None or maps is None:
            raise RuntimeError("there is no fold")
        self.fits = self.splits.folds
        return detector, Prediction(scores=scores, maps=maps)

    def _count_stored(self, seconds: float) -> None:
        self.stored_seconds += seconds

    @property
    def train_seconds(self) -> float:
        """Seconds of one fit from features, as from scratch: work that the fit found stored counts with what it took when it was
        done, so that trials which share it can be compared. `seconds` keeps the time that was spent here, over all folds."""
        return max(0.0, self.stage.seconds["fit"] + self.stored_seconds) / self.fits

    def _should_stop(self) -> bool:
        """Whether the training is to end. A head that never calls this trains to its end, and its trial counts as finished."""
        self.stopped = self.stopped or self._ask_to_stop()
        return self.stopped

    def features(self, image_set: ImageSet) -> Features:
        """The features of a set at the trial's strides, from the store or computed."""
        name = f"features ({image_set.name})"
        with self.stage(name):
            # All strides of the study are computed at once, so that another trial's layers need no second pass over the images.
            full_backbone = _backbone(self.job.params["backbone"], self.job.strides, self.job.weights_dir)
            features = self.store.features(
                image_set,
                full_backbone,
                device=self.device,
                tiles=self.tiles,
                progress=lambda done, total: self.stage.step(name, done, total),
            )
        return features.select(self.job.params["layers"])

    def predict(self, detector: Detector, image_set: ImageSet) -> Prediction:
        """Score a set; the prediction is on the CPU, its maps at the study's size."""
        features = self.features(image_set)
        with self.stage(f"score ({image_set.name})"):
            if len(features) <= maps_at_once(detector):
                return self.at_study_size(detector.score_features(features))
            blocks = [self.at_study_size(block) for block in predictions(detector, features, range(len(features)))]
            return Prediction(
                scores=torch.cat([block.scores for block in blocks]), maps=torch.cat([block.maps for block in blocks])
            )

    def at_study_size(self, prediction: Prediction) -> Prediction:
        """A prediction on the CPU whose maps have the study's size, at which pixels of all its trials are counted."""
        return at_size(prediction, self.config.data.size)

    def calibration(self, validation: Prediction | None, *, images: str | None = None) -> Calibration:
        """What was collected, with the scores of validation.

        Args:
            validation: prediction of its images; None where there are none.
            images: what ``threshold.images`` names.
        """
        labelled = list[LabelledImage]()
        # Nothing rests on images that the detector was fitted to.
        if validation is not None and self.splits.validation is not None and not self.splits.in_sample:
            samples = self.splits.validation.samples
            labelled = labelled_images(samples, validation.scores.tolist())
            good = [index for index, sample in enumerate(samples) if not sample.label]
            of_good = Prediction(scores=validation.scores[good], maps=validation.maps[good])
            self.collector.add([samples[index] for index in good], of_good, "validation")
        folds = self.config.threshold.folds
        return self.collector.calibration(folds=folds, parts=self.parts, images=images, labelled=labelled)

    def _build_backbone(self) -> AnyBackbone:
        """The backbone of the trial. Raises `InputError` if its weights are not those of the study."""
        with self.stage("backbone"):
            backbone = _backbone(self.job.params["backbone"], tuple(self.job.params["layers"]), self.job.weights_dir)
        _check_weights(backbone, self.job)
        return backbone

    @property
    def is_trained(self) -> bool:
        """Whether the trial's head trains by gradient; see `Head.trained`."""
        return self._head_type.trained

    @property
    def _head_type(self) -> type[Head]:
        return self.config.head_class(str(self.job.params.get("detector") or self.config.detectors[0]))

    def _features_of_references(self) -> Features:
        """Features of what is fitted: the images of train, or of a probe's part of it, and then their turned copies."""
        if self.references.copies or self.rows is None:
            return self.features(self.references.image_set)
        # Those of all of train are stored.
        return self.features(self.splits.train).take(self.rows)

    def _new_head(self) -> Head:
        """The trial's head, not fitted yet."""
        head_type, params = self._head_type, self.job.params
        return head_type(**{parameter.name: params[parameter.name] for parameter in head_type.searchable})

    def _new_detector(self) -> Detector:
        """The trial's detector, not fitted yet."""
        return make_detector(
            self.backbone,
            self._new_head(),
            image_size=self.splits.train.image_size,
            smoothing_sigma=self.job.params["smoothing_sigma"],
            tiles=self.tiles,
        )

    def _context(self, images: str) -> FitContext:
        """What any fit of this job may know.

        Args:
            images: which images of train it is fitted to; empty for all.
        """
        identity = self.store.identity_of(self.references.image_set, self.backbone, self.device, self.tiles)
        if self.rows is not None:
            digest = hashlib.sha256(str(self.rows).encode()).hexdigest()
            images = f"of images {digest[:16]} {images}".strip()
        return FitContext(
            device=self.device,
            seed=self.job.seed,
            structural_seed=self.job.structural_seed,
            turned_copies=self.references.copies,
            weights_dir=Path(self.job.weights_dir) if self.job.weights_dir else None,
            memo=FileMemo(self.home.memos, features=f"{identity} {images}" if images else identity),
        )

    def _divide(self, *, trained: bool) -> list[Part]:
        """The folds of train that the threshold rests on; none where none is wanted or there are too few images."""
        samples, wanted = self._fitted_set.samples, self.config.threshold.folds
        if wanted == 0:
            return []
        parts = divide(samples, _contents(samples, self.home), wanted, trained=trained)
        return [Part(tuple(self.references.rows(part.fitted)), part.held_out) for part in parts]

    @property
    def _fitted_set(self) -> ImageSet:
        """Train, or a probe's part of it."""
        train = self.splits.train
        return train if self.rows is None else replace(train, samples=tuple(train.samples[row] for row in self.rows))

    def _rows_of_probe(self) -> tuple[int, ...] | None:
        if self.job.probe is None or self.job.probe.train_share == 1:
            return None
        groups = _contents(self.splits.train.samples, self.home)
        return rows_of(self.job.probe, groups, seed=self.job.structural_seed)

    def _collect(self, detector: Detector, features: Features, parts: Sequence[Part]) -> None:
        """Collect scores of the images of train by detectors that did not see them."""
        samples, self.parts = self._fitted_set.samples, len(parts)
        with self.stage("threshold"):
            if detector.head.trained:
                done = 0
                for prediction in predictions(detector, features, parts[0].held_out):
                    block = parts[0].held_out[done : done + len(prediction)]
                    self.collector.add([samples[index] for index in block], self.at_study_size(prediction), "left out")
                    done += len(prediction)
                return

            def fit(fitted: Features, number: int) -> Detector:
                self.stage.step("threshold", number, len(parts))
                twin = self._new_detector()
                twin.fit_features(fitted, self._context(f"without fold {number + 1} of {len(parts)}"))
                return twin.to(self.device)

            for block, prediction in twin_predictions(features, parts, fit):
                self.collector.add([samples[index] for index in block], self.at_study_size(prediction), "fold")

    def _validate_with(self, detector: Detector) -> Validation | None:
        """What measures the first objective on validation, by which a training is pruned and chooses its epoch.

        None if the objective is a cost or better the lower it is, or there are no validation images.
        """
        objective, validation, job = next(iter(self.config.objectives)), self.splits.unseen, self.job
        if validation is None or objective not in METRICS or job.task == "speed":
            return None
        crossed = None
        if job.task in ("trial", "probe"):
            identity = canonical({"study": job.study_uid, "trial": job.number, "seed": job.seed, **job.params})
            crossed = CrossedEpochs(halves(validation), job.path / CHECKPOINTS, identity=identity)
        # Whatever size the trial looks at, pixels are counted at the study's.
        size, by_pixels = self.config.data.size, objective.startswith("pixel_") or objective == SEG_F1
        self.validation = Validation(
            objective,
            detector,
            self.features(validation),
            validation,
            masks=masks_of(replace(validation, image_size=size)) if by_pixels else None,
            crossed=crossed,
            rate=self.config.threshold.rate,
            size=size,
        )
        return self.validation


def _contents(samples: Sequence[Sample], home: Home) -> list[int]:
    """A number for the content of each sample."""
    with known_pixels(home) as known:
        return list(content_groups(samples, known))


def _check_weights(backbone: AnyBackbone, job: Job) -> None:
    """Raise `InputError` where the weights of the backbone are not those that the study was created with."""
    if backbone.identity.sha256 != job.weights_sha256:
        raise InputError(
            f"backbone {job.params['backbone']}: the weights on this machine are not those the study was created "
            f"with ({digits(backbone.identity.sha256)}, not {digits(job.weights_sha256)}); restore them, or --fresh"
        )


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
def _backbone(name: str, strides: tuple[int, ...], weights_dir: str | None) -> AnyBackbone:
    return build_backbones(name, strides, weights_dir=Path(weights_dir) if weights_dir else None)


@lru_cache(maxsize=4)
def masks_of(image_set: ImageSet) -> NDArray[np.bool_] | None:
    """Masks of a set, bool [N, H, W], which are decoded once per process; None if it has none."""
    return image_set.masks()
