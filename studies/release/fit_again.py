"""The champion's configuration fitted to other images, with a threshold from good images that no fit saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detectors import catalog
from detectors.backbones.pyramid import weights_identity
from detectors.base import PATIENCE, FitContext
from detectors.data.samples import ImageSet
from detectors.data.turning import References
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.features import Features
from detectors.scoring.evaluation import METRICS, SEG_F1
from studies.file.sections import ThresholdConfig
from studies.home import Home
from studies.search.view import StudyView
from studies.worker.calibration import Calibration, Collector, LabelledImage, Origin, labelled_images
from studies.worker.epochs import Validation
from studies.worker.feature_store import FeatureStore
from studies.worker.memo import FileMemo
from studies.worker.out_of_fold import FOLDS, LEAST, LEAST_TRAINED, Part, at_size, divide, predictions, twin_predictions
from studies.worker.references import references

Tell = Callable[[str], None]


def leaves_out(detector: Detector, section: ThresholdConfig) -> bool:
    """Whether a part of the images is left out of the only fit, in place of a fit for each fold: see `out_of_fold`.

    So it is where ``threshold.folds`` wants no folds either: new images have nothing else that a threshold could rest on.
    """
    return detector.head.trained or section.folds in (0, 1)


def share(detector: Detector, section: ThresholdConfig) -> int:
    """One of so many images is scored without having been fitted: 1 with folds, which score every image."""
    return (section.folds if section.folds and section.folds > 1 else FOLDS) if leaves_out(detector, section) else 1


def least(detector: Detector, section: ThresholdConfig) -> int:
    """Fewest images with different contents that a threshold may rest on."""
    return LEAST_TRAINED if leaves_out(detector, section) else LEAST


def parts_of(
    detector: Detector, image_set: ImageSet, groups: Sequence[int], section: ThresholdConfig, *, after: int
) -> list[Part]:
    """How the last images of a set are divided for the threshold; those before are in every fit.

    Args:
        groups: a number for the content of each of the last images.
        after: number of images before them.
    """
    samples = image_set.samples[after:]
    wanted = None if section.folds in (0, 1) else section.folds
    parts = divide(samples, groups, wanted, trained=leaves_out(detector, section))
    always = tuple(range(after))
    return [
        Part(
            (*always, *(index + after for index in part.fitted)),
            tuple(index + after for index in part.held_out),
        )
        for part in parts
    ]


class FitAgain:
    """Fits the champion's configuration, and collects what its threshold rests on."""

    def __init__(
        self,
        champion: Detector,
        view: StudyView,
        home: Home,
        *,
        device: torch.device,
        weights_dir: Path | None,
        tell: Tell,
    ) -> None:
        """Args: `tell` is called with a line about each step."""
        self.champion, self.config = champion, view.config
        self.networks: dict[str, str] = view.header.identity.get("networks", {})
        self.home, self.device, self.weights_dir, self.tell = home, device, weights_dir, tell
        self.store = FeatureStore(home.features)
        self.collector, self.parts = Collector(), 0

    def on(self, train: ImageSet, validation: ImageSet | None, parts: Sequence[Part], origin: Origin) -> Detector:
        """The detector, fitted to train; a training is validated as in the study.

        Args:
            parts: of train, to be scored by detectors that were fitted without them. A single one is left out of the fit.
            origin: of the images in `parts`, for the record.

        Raises:
            InputError: the weights of a network that the head starts from are missing, or not those of the study.
        """
        self._check_networks()
        fitted_to = references(train, self.champion.head, self.config)
        features = self._features(fitted_to.image_set)
        parts = [Part(tuple(fitted_to.rows(part.fitted)), part.held_out) for part in parts]
        detector = self.champion.unfitted()
        validate = self._validation(detector, validation)
        if validate is None and PATIENCE.name in self.champion.head.settings:
            self.tell("no labelled images to validate on: the training goes on to its last epoch, which is used")
        left_out = parts[0] if len(parts) == 1 else None
        fitted = features.take(left_out.fitted) if left_out else features
        detector.fit_features(
            fitted,
            self._context(fitted_to, f"without the {len(left_out.held_out)} left out" if left_out else "", validate),
        )
        detector.to(self.device)
        self.parts = len(parts)
        if left_out:
            self._collect_part(detector, features, train, left_out, origin)
            return detector

        def fit(fitted: Features, number: int) -> Detector:
            self.tell(f"threshold: fold {number + 1} of {len(parts)}")
            twin = self.champion.unfitted()
            twin.fit_features(fitted, self._context(fitted_to, f"without fold {number + 1} of {len(parts)}", None))
            return twin.to(self.device)

        for block, prediction in twin_predictions(features, parts, fit):
            self.collector.add(
                [train.samples[index] for index in block], at_size(prediction, self.config.data.size), origin
            )
        return detector

    def score_good(self, detector: Detector, image_set: ImageSet, origin: Origin) -> None:
        """Collect the scores of the good images of a set that was not fitted to."""
        good = np.flatnonzero(image_set.labels == 0).tolist()
        self._collect_part(detector, self._features(image_set), image_set, Part((), tuple(good)), origin)

    def calibration(self, detector: Detector, validation: ImageSet | None, *, source: str | None) -> Calibration:
        """What was collected, with the labelled images of validation.

        Args:
            source: name of the new images that the threshold rests on alone; of validation only the defective ones count
                then, for a rule that needs some. None for the study's own images.
        """
        labelled: list[LabelledImage] = []
        if source is not None:
            labelled = [
                LabelledImage(name=image.file, label=0, defect_type="good", score=image.score)
                for image in self.collector.good
            ]
        if validation is not None:
            found = predictions(detector, self._features(validation), range(len(validation)))
            scores = [score for block in found for score in block.scores.tolist()]
            known = labelled_images(validation.samples, scores)
            labelled += [image for image in known if image.label] if source is not None else known
        folds = self.config.threshold.folds
        return self.collector.calibration(folds=folds, parts=self.parts, images=source, labelled=labelled)

    def _collect_part(
        self, detector: Detector, features: Features, image_set: ImageSet, part: Part, origin: Origin
    ) -> None:
        done = 0
        for prediction in predictions(detector, features, part.held_out):
            block = part.held_out[done : done + len(prediction)]
            self.collector.add(
                [image_set.samples[index] for index in block], at_size(prediction, self.config.data.size), origin
            )
            done += len(prediction)

    def _context(self, train: References, images: str, validate: Validation | None) -> FitContext:
        """What a fit may know. Args: `images` says which of train it is fitted to; empty for all."""
        identity = self.store.identity_of(train.image_set, self.champion.backbone, self.device, self.champion.tiles)
        seed = self.config.sampler.seed
        return FitContext(
            device=self.device,
            seed=seed,
            structural_seed=seed,
            turned_copies=train.copies,
            validate=validate,
            memo=FileMemo(self.home.memos, features=f"{identity} {images}" if images else identity),
            weights_dir=self.weights_dir,
        )

    def _features(self, image_set: ImageSet) -> Features:
        return self.store.features(
            image_set,
            self.champion.backbone,
            device=self.device,
            tiles=self.champion.tiles,
            progress=lambda done, total: self.tell(f"features: {done} of {total}"),
        )

    def _validation(self, detector: Detector, validation: ImageSet | None) -> Validation | None:
        """What measures the study's first objective on validation, as in a trial; None for a cost, or without images."""
        objective = next(iter(self.config.objectives))
        if validation is None or objective not in METRICS:
            return None
        size, by_pixels = self.config.data.size, objective.startswith("pixel_") or objective == SEG_F1
        masks = replace(validation, image_size=size).masks() if by_pixels else None
        features, rate = self._features(validation), self.config.threshold.rate
        return Validation(objective, detector, features, validation, masks=masks, crossed=None, rate=rate, size=size)

    def _check_networks(self) -> None:
        """Raise `InputError` if the weights of a network that the head starts from are missing, or not those of the study."""
        for name in catalog.networks(type(self.champion.head), self.champion.head.settings):
            here = weights_identity(name, weights_dir=self.weights_dir).sha256
            if (stored := self.networks.get(name, here)) != here:
                raise InputError(
                    f"network {name}: the weights on this machine are not those the study was created with "
                    f"({here[:12]}, not {stored[:12]}); restore them, or name their folder with --weights-dir"
                )
