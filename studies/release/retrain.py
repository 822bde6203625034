"""Fitting the champion's configuration again, on newer images of good parts; the result is a challenger for the gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detectors import catalog
from detectors.backbones.pyramid import weights_identity
from detectors.base import PATIENCE, Detector, FitContext
from detectors.data.samples import ImageSet
from detectors.errors import InputError
from detectors.features import Features
from detectors.runtime.artifact import Artifact, is_artifact, read_description, save_artifact
from detectors.scoring.evaluation import IMAGE_METRICS, METRICS, OPERATING_METRICS, PIXEL_METRICS, single_metric
from detectors.scoring.operating_point import GoodScores, PixelSpread, Threshold, choose_threshold
from studies.file import datasets
from studies.home import Home
from studies.release.new_images import HELD_OUT, NewImages, images_needed, read_new_images
from studies.search.view import StudyView
from studies.worker.feature_store import FeatureStore
from studies.worker.memo import FileMemo
from studies.worker.seeding import seeded
from studies.worker.trial import environment


@dataclass(frozen=True)
class Retrained:
    """A detector that was fitted again."""

    folder: Path
    """Folder of the detector."""
    new: int
    """Number of new images."""
    held_out: int
    """How many of them were used for the threshold alone."""
    warnings: tuple[str, ...] = ()
    """What a person must look at before it is promoted, a line each; the gate shows them too."""


def retrain(
    champion: Artifact,
    view: StudyView,
    product: str,
    home: Home,
    *,
    images: Path | None,
    only_new: bool,
    device: torch.device,
    weights_dir: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Retrained:
    """Fit a detector with the champion's configuration on the study's good images and new ones, and save it.

    The threshold rests on new images that are held out; without `images`, on the study's validation. Nothing is fitted if the
    same images and champion were fitted already.

    Args:
        view: the study that the champion comes from.
        product: the product within it; empty in a study of a single one.
        images: folder of new good images; None fits the study's own images again.
        only_new: leave the study's own images out of the fit; requires `images`.
        weights_dir: where a head that starts from a pretrained network looks for its weights first.
        tell: called with a line about each step.

    Raises:
        InputError: too few images, or unreadable ones, one that the study has, or missing weights.
    """
    if only_new and images is None:
        raise InputError("--only-new needs --images: a folder of new good images")
    study_images = datasets.load(view.config, home)
    part = next(part for part in study_images.parts if product in ("", part.category))
    splits = part.splits
    new = read_new_images(images, part, home, rate=view.config.threshold.rate) if images else NewImages((), ())
    known = () if only_new else splits.train.samples
    train = ImageSet("train", (*known, *new.fitted), splits.train.image_size)
    if len(train) < 2:
        raise InputError(f"{images}: {len(train)} image to learn from is not enough; add more")
    held_out = ImageSet("new images", new.held_out, splits.train.image_size) if images else None
    rests_on = held_out.digest if held_out else ""
    digest = hashlib.sha256(f"{train.digest} {rests_on} {champion.provenance}".encode()).hexdigest()[:16]
    folder = home.root / "retrained" / view.config.name / digest / "detector"
    if is_artifact(folder):
        warnings = read_description(folder).provenance.get("warnings", [])
        return Retrained(folder, len(new), len(new.held_out), tuple(map(str, warnings)))

    fit = _Fit(champion.detector, view, home, device=device, weights_dir=weights_dir, tell=tell)
    tell(f"fitting {champion.detector.head.name} on {len(train)} good images")
    with seeded(view.config.sampler.seed):
        detector = fit.on(train, splits.validation)
    normal_scores = fit.set_threshold(detector, held_out, splits.validation)
    warnings = [*new.warnings, *_warnings(detector.threshold, champion, new_images=held_out is not None)]
    inherited = {name: value for name, value in champion.provenance.items() if name != "warnings"}
    provenance = {
        **inherited,
        "retrained_from": champion.provenance.get("trial"),
        "new_pictures": len(new),
        "digests": {"train": train.digest, "test": splits.test.digest} | ({"held_out": rests_on} if rests_on else {}),
        "environment": environment(device),
        "metrics": {},
        **({"warnings": warnings} if warnings else {}),
    }
    save_artifact(Artifact(detector, normal_scores, provenance), folder)
    return Retrained(folder, len(new), len(new.held_out), tuple(warnings))


class _Fit:
    """Fits the champion's configuration, and sets the threshold of what was fitted."""

    def __init__(
        self,
        champion: Detector,
        view: StudyView,
        home: Home,
        *,
        device: torch.device,
        weights_dir: Path | None,
        tell: Callable[[str], None],
    ) -> None:
        self.champion, self.config = champion, view.config
        self.networks: dict[str, str] = view.header.identity.get("networks", {})
        self.home, self.device, self.weights_dir, self.tell = home, device, weights_dir, tell
        self.store = FeatureStore(home.features)

    def on(self, train: ImageSet, validation: ImageSet | None) -> Detector:
        """A detector with the champion's configuration, fitted on train; a training is validated as in the study."""
        seed = self.config.sampler.seed
        backbone = self.champion.backbone  # It has the weights with which it was saved.
        head_type = type(self.champion.head)
        self._check_networks(catalog.networks(head_type, self.champion.head.settings))
        detector = Detector(
            backbone,
            head_type(**self.champion.head.settings),
            image_size=self.champion.image_size,
            smoothing_sigma=self.champion.smoothing_sigma,
        )
        validate = self._validation(detector, validation)
        if validate is None and PATIENCE.name in self.champion.head.settings:
            self.tell("no labelled images to validate on: the training goes on to its last epoch, which is used")
        context = FitContext(
            device=self.device,
            seed=seed,
            structural_seed=seed,
            validate=validate,
            memo=FileMemo(self.home.memos, features=self.store.identity_of(train, backbone, self.device)),
            weights_dir=self.weights_dir,
        )
        detector.fit_features(self._features(train), context)
        return detector.to(self.device)

    def set_threshold(
        self, detector: Detector, held_out: ImageSet | None, validation: ImageSet | None
    ) -> NDArray[np.float64]:
        """Set the threshold by the study's rule: good images are the held-out new ones, or without any those of validation;
        a rule that needs defects takes them from validation. Returns the scores of the good images [N]."""
        rule = self.config.threshold
        judged = [image_set for image_set in (held_out, validation) if image_set is not None]
        if rule.rule == "false_alarm_rate":
            judged = judged[:1]
        if not judged:
            return np.empty(0)
        source = judged[0]
        pixels = PixelSpread()
        scores, labels = [], []
        for image_set in judged:
            prediction = detector.score_features(self._features(image_set))
            # Of validation beside new images, the defective ones alone: its good images are not what the line sees now.
            kept = image_set.labels == 1 if image_set is not source else np.ones(len(image_set), dtype=bool)
            scores.append(prediction.scores.cpu().numpy()[kept])
            labels.append(image_set.labels[kept])
            if image_set is source:
                pixels.add(prediction.maps.cpu().numpy()[image_set.labels == 0])
        all_scores, all_labels = np.concatenate(scores), np.concatenate(labels)
        normals = all_scores[all_labels == 0]
        if not len(normals):
            return np.empty(0)
        files = [str(sample.file) for sample in source.samples if not sample.label]
        detector.threshold = choose_threshold(
            rule=rule.rule if all_labels.any() else "false_alarm_rate",
            rate=rule.rate,
            source=", ".join(image_set.name for image_set in judged),
            good=GoodScores(normals, source.name, files),
            scores=all_scores,
            labels=all_labels,
            pixel=pixels.threshold,
        )
        return normals.astype(np.float64)

    def _features(self, image_set: ImageSet) -> Features:
        return self.store.features(
            image_set,
            self.champion.backbone,
            device=self.device,
            progress=lambda done, total: self.tell(f"features: {done} of {total}"),
        )

    def _validation(self, detector: Detector, validation: ImageSet | None) -> Callable[[], float] | None:
        """A function that measures the study's first objective on its validation images, as in a trial.

        Image AUROC in place of a metric that needs a threshold, which there is none of yet. None for a cost, or without images.
        """
        objective = next(iter(self.config.objectives))
        if validation is None or objective not in (*METRICS, *OPERATING_METRICS):
            return None
        metric = objective if objective in (*IMAGE_METRICS, *PIXEL_METRICS) else "image_auroc"
        features = self._features(validation)
        masks = validation.masks() if metric in PIXEL_METRICS else None

        def validate() -> float:
            prediction = detector.score_features(features)
            return single_metric(
                metric,
                scores=prediction.scores.cpu(),
                maps=prediction.maps.cpu(),
                labels=validation.labels,
                masks=masks,
            )

        return validate

    def _check_networks(self, names: list[str]) -> None:
        """Raise `InputError` if the weights of a network that the head starts from are missing, or not those of the study."""
        for name in names:
            here = weights_identity(name, weights_dir=self.weights_dir).sha256
            if (stored := self.networks.get(name, here)) != here:
                raise InputError(
                    f"network {name}: the weights on this machine are not those the study was created with "
                    f"({here[:12]}, not {stored[:12]}); restore them, or name their folder with --weights-dir"
                )


def _warnings(threshold: Threshold | None, champion: Artifact, *, new_images: bool) -> list[str]:
    """What speaks against a threshold: too few images for its rate, and a jump."""
    if threshold is None:
        return []
    warnings = []
    if new_images and threshold.rate and not threshold.supports_rate and threshold.expected_rate is not None:
        warnings.append(
            f"the threshold rests on {threshold.normals} held-out new images, from which a false-alarm rate of "
            f"{threshold.expected_rate:.1%} is to be expected; {threshold.rate:.3g} (threshold.rate) needs "
            f"{images_needed(threshold.rate)} new images, of which one in {HELD_OUT} is held out"
        )
    if (jump := _jump(threshold, champion)) is not None:
        warnings.append(jump)
    return warnings


def _jump(threshold: Threshold, champion: Artifact) -> str | None:
    """How a threshold jumped against the champion's; None if it did not.

    The champion's good images tell the scale: its threshold lies above the median of their scores by a distance that holds the
    upper half of them. A threshold below that median would stop every second of those parts; one that is further above the
    champion's than that distance lets pass what scores twice as far off.
    """
    old = champion.threshold
    if old is None or not len(champion.normal_scores):
        return None
    median = float(np.median(champion.normal_scores))
    reach = old.value - median
    if reach <= 0 or median <= threshold.value <= old.value + reach:
        return None
    went = f"the threshold jumped from {old.value:.4g} to {threshold.value:.4g}"
    if threshold.value < median:
        why = f"below {median:.4g}, the median of the champion's good images"
    else:
        why = f"further above the champion's than that is above {median:.4g}, the median of its good images"
    if not threshold.decided_by or threshold.without is None:
        return f"{went}, {why}"
    return (
        f"{went}, {why}; one image alone decides it, {threshold.decided_by}: without it {threshold.without:.4g}. "
        "Look whether it shows a good part"
    )
