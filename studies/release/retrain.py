"""Fitting the champion's configuration again, on newer images of good parts; the result is a challenger for the gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.base import Detector, FitContext
from detectors.data.folder import read_folder
from detectors.data.samples import GOOD, ImageSet, Sample, file_sha256
from detectors.data.splits import Splits, stable_order
from detectors.errors import InputError
from detectors.features import Features
from detectors.runtime.artifact import Artifact, is_artifact, save_artifact
from detectors.scoring.operating_point import GoodScores, choose_threshold
from studies.file import datasets
from studies.home import Home
from studies.search.view import StudyView
from studies.worker.feature_store import FeatureStore
from studies.worker.memo import FileMemo
from studies.worker.seeding import seeded
from studies.worker.trial import environment

HELD_OUT = 5
"""One of so many new images is not fitted to, but used for the threshold."""


@dataclass(frozen=True)
class Retrained:
    """A detector that was fitted again."""

    folder: Path
    """Folder of the detector."""
    new: int
    """Number of new images."""
    held_out: int
    """How many of them were used for the threshold alone."""


def retrain(
    champion: Artifact,
    view: StudyView,
    product: str,
    home: Home,
    *,
    images: Path | None,
    only_new: bool,
    device: torch.device,
    tell: Callable[[str], None] = lambda text: None,
) -> Retrained:
    """Fit a detector with the champion's configuration on the study's good images and new ones, and save it.

    Nothing is fitted if the same images and champion were fitted already.

    Args:
        view: the study that the champion comes from.
        product: the product within it; empty in a study of a single one.
        images: folder of new good images; None fits the study's own images again.
        only_new: leave the study's own images out of the fit; requires `images`.
        tell: called with a line about each step.

    Raises:
        InputError: too few images, or unreadable ones, or one that is among the test images.
    """
    if only_new and images is None:
        raise InputError("--only-new needs --images: a folder of new good images")
    study_images = datasets.load(view.config, home)
    splits = next(part.splits for part in study_images.parts if product in ("", part.category))
    new = _new_samples(images, splits) if images else []
    held_out = stable_order(new)[HELD_OUT - 1 :: HELD_OUT]
    fitted_on = [sample for sample in new if sample not in held_out]
    known = () if only_new else splits.train.samples
    train = ImageSet("train", (*known, *fitted_on), splits.train.image_size)
    if len(train) < 2:
        raise InputError(f"{images}: {len(train)} image to learn from is not enough; add more")
    digest = hashlib.sha256(f"{train.digest} {champion.provenance}".encode()).hexdigest()[:16]
    folder = home.root / "retrained" / view.config.name / digest / "detector"
    retrained = Retrained(folder, len(new), len(held_out))
    if is_artifact(folder):
        return retrained

    validation = None
    if splits.validation is not None:
        known = () if only_new else splits.validation.samples
        validation = ImageSet("validation", (*known, *held_out), splits.train.image_size)
    tell(f"fitting {champion.detector.head.name} on {len(train)} good images")
    with seeded(view.config.sampler.seed):
        detector, normal_scores = _fit(champion.detector, train, validation, view, home, device=device, tell=tell)
    provenance = {
        **champion.provenance,
        "retrained_from": champion.provenance.get("trial"),
        "new_pictures": len(new),
        "digests": {"train": train.digest, "test": splits.test.digest},
        "environment": environment(device),
        "metrics": {},
    }
    save_artifact(Artifact(detector, normal_scores, provenance), folder)
    return retrained


def _fit(
    champion: Detector,
    train: ImageSet,
    validation: ImageSet | None,
    view: StudyView,
    home: Home,
    *,
    device: torch.device,
    tell: Callable[[str], None],
) -> tuple[Detector, NDArray[np.float64]]:
    """A detector with the champion's configuration, fitted on train.

    Returns:
        The detector, with a threshold if there are validation images, and their good ones' scores [N].
    """
    seed = view.config.sampler.seed
    backbone = champion.backbone  # It has the weights with which it was saved.
    head = type(champion.head)(**champion.head.settings)
    detector = Detector(backbone, head, image_size=champion.image_size, smoothing_sigma=champion.smoothing_sigma)
    store = FeatureStore(home.features)

    def features(image_set: ImageSet) -> Features:
        return store.features(
            image_set, backbone, device=device, progress=lambda done, total: tell(f"features: {done} of {total}")
        )

    memo = FileMemo(home.memos, features=store.identity_of(train, backbone, device))
    detector.fit_features(features(train), FitContext(device=device, seed=seed, structural_seed=seed, memo=memo))
    detector.to(device)
    if validation is None:
        return detector, np.empty(0)
    return detector, _set_threshold(detector, validation, features(validation), view)


def _new_samples(images: Path, splits: Splits) -> list[Sample]:
    """The good images of a folder.

    Raises:
        InputError: one of them is a test image, or the folder contains images of defects.
    """
    dataset = read_folder(images)
    if dataset.defect_types:
        raise InputError(
            f"{images}: contains images of defects ({', '.join(dataset.defect_types)}); name the folder of the good ones"
        )
    test_images = {file_sha256(sample.file): sample.key for sample in splits.test.samples}
    samples = []
    for sample in (*dataset.train, *dataset.test):
        if (twin := test_images.get(file_sha256(sample.file))) is not None:
            raise InputError(f"{sample.file}: is the test image {twin}; test images cannot be fitted to")
        samples.append(replace(sample, key=f"new/{sample.key}", defect_type=GOOD))
    return samples


def _set_threshold(detector: Detector, judged: ImageSet, features: Features, view: StudyView) -> NDArray[np.float64]:
    """Set the threshold by the study's rule. Returns the scores of the good images [N]."""
    rule = view.config.threshold
    scores = detector.score_features(features).scores.cpu().numpy()
    normals = scores[judged.labels == 0]
    if not len(normals):
        return np.empty(0)
    detector.threshold = choose_threshold(
        rule=rule.rule if judged.labels.any() else "false_alarm_rate",
        rate=rule.rate,
        source=judged.name,
        good=GoodScores(normals, judged.name),
        scores=scores,
        labels=judged.labels,
    )
    return normals.astype(np.float64)
