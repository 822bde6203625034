"""Choosing the threshold of a saved detector anew: from the scores that its refit kept, without a fit or a look at test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detectors.base import Prediction
from detectors.data.samples import ImageSet
from detectors.data.splits import Splits
from detectors.detector import Detector
from detectors.files import write_json
from detectors.runtime.artifact import load_artifact, read_description, with_threshold
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from detectors.scoring.operating_point import Threshold
from studies.file.known_pixels import known_pixels
from studies.file.sections import ThresholdConfig
from studies.home import Home
from studies.worker.calibration import (
    Calibration,
    Collector,
    labelled_images,
    read_calibration,
    threshold_metrics,
    write_calibration,
)
from studies.worker.feature_store import FeatureStore
from studies.worker.good_images import DIGEST, FITTED, good_images, named
from studies.worker.jobs import ARTIFACTS, DETECTOR, RESULT_FILE, TrialResult, read_result
from studies.worker.out_of_fold import at_size, predictions
from studies.worker.scores import SCORES_FILE, read_scores


def calibration_for(
    folder: Path,
    section: ThresholdConfig,
    category: str,
    *,
    splits: Callable[[], Splits],
    home: Home,
    device: torch.device,
    reread: bool = False,
) -> Calibration:
    """What a threshold by `section` rests on, for the detector that a final job saved in `folder`.

    A job of version 0.2 kept no scores: the images of validation are then scored, and train in no folds. So are the images of
    ``threshold.images`` that were not scored before.

    Args:
        category: the product.
        splits: reads the study's image sets; called only where images are to be scored.
        reread: score ``threshold.images`` again although their scores are kept.

    Raises:
        InputError: the detector, or images that are to be scored, cannot be read.
    """
    calibration = read_calibration(folder)
    if calibration is None:
        calibration = _of_validation(folder / DETECTOR, splits(), home, device)
    wanted = section.folder_of(category)
    if wanted is None:
        # Those of a retraining are no folder's that the section names: the threshold rests on them whatever the section.
        if calibration.images is None or DIGEST not in calibration.images:
            return calibration
        others = [image for image in calibration.good if image.origin != "images"]
        return calibration.model_copy(update={"images": None, "good": others})
    if not reread and (calibration.images or "").partition(DIGEST)[0] == str(wanted):
        return calibration
    return _with_images(calibration, folder / DETECTOR, wanted, splits(), home, device)


def follows(folder: Path, present: Threshold | None, section: ThresholdConfig, category: str) -> bool:
    """Whether the threshold that a final job chose is the one that `section` gives.

    Of a job of version 0.2, which kept no scores, rule and rate are compared.
    """
    calibration = read_calibration(folder)
    wanted = section.folder_of(category)
    if calibration is None:
        if present is None:
            return True
        rate = section.rate if section.rule == "false_alarm_rate" else None
        return present.rule == section.rule and present.rate == rate and wanted is None
    if (calibration.images or "").partition(DIGEST)[0] != (str(wanted) if wanted else ""):
        return False
    return calibration.threshold(section) == present


def folds_changed(folder: Path, section: ThresholdConfig) -> bool:
    """Whether the threshold is to rest on other folds of train than those of the final job: only a refit can score them."""
    calibration = read_calibration(folder)
    return calibration is not None and calibration.folds != section.folds


def set_threshold(folder: Path, threshold: Threshold, calibration: Calibration) -> TrialResult | None:
    """Give the detector of a final job another threshold, and its figures on test with it, from the scores that were kept.

    Scores of test that are there already are counted again; no image is scored. Whoever is stopped in between does it again:
    the result, by which the threshold is known, is written last.

    Returns:
        The result; None where the job left none.

    Raises:
        InputError: the folder cannot be written, or the detector in it was changed.
    """
    with_threshold(folder / DETECTOR, threshold, normal_scores=np.sort(calibration.good_scores.values))
    write_calibration(calibration, folder)
    result = read_result(folder)
    if result is None:
        return None
    metrics = {name: value for name, value in result.metrics.items() if not _belongs_to_threshold(name)}
    metrics |= threshold_metrics(threshold)
    recalls: dict[str, float] = {}
    scores = read_scores(folder / ARTIFACTS)
    kept_here = scores is not None
    if scores is None and f"test/{RECALL}" in result.metrics:
        # Under protocol paper the test images were scored by the trial.
        scores = read_scores(trial_of(folder) / ARTIFACTS)
    if scores is not None:
        found, recalls = scores.at(threshold.value)
        metrics |= {f"test/{name}": value for name, value in found.items()}
        metrics |= {f"test/{RECALL}/{kind}": value for kind, value in recalls.items()}
        if RECALL in found:
            metrics["test/miss_rate"] = 1.0 - found[RECALL]
        if kept_here:
            judged = scores.judged_at(threshold.value)
            write_json(folder / ARTIFACTS / SCORES_FILE, judged.model_dump(mode="json"))
    result = result.model_copy(
        update={
            "metrics": metrics,
            "per_defect_recall": recalls,
            "threshold": threshold.to_json(),
            "threshold_set": time.time(),
        }
    )
    write_json(folder / ARTIFACTS / "metrics.json", result.model_dump(mode="json"))
    write_json(folder / RESULT_FILE, result.model_dump(mode="json"))
    return result


def trial_of(final: Path) -> Path:
    """The folder of the trial that a final job fitted again: ``trials/UID/final/00003`` -> ``trials/UID/00003``."""
    parts = list(final.parts)
    del parts[len(parts) - 1 - parts[::-1].index("final")]
    return Path(*parts)


def _belongs_to_threshold(name: str) -> bool:
    named = name.removeprefix("test/")
    return named.startswith((RECALL, FALSE_ALARMS, "threshold")) or named == "miss_rate"


def _of_validation(detector_folder: Path, splits: Splits, home: Home, device: torch.device) -> Calibration:
    collector, labelled = Collector(), []
    if splits.unseen is not None:
        prediction = _predict(load_artifact(detector_folder, device=device).detector, splits.unseen, home, device)
        samples = splits.unseen.samples
        labelled = labelled_images(samples, prediction.scores.tolist())
        good = [index for index, sample in enumerate(samples) if not sample.label]
        of_good = Prediction(scores=prediction.scores[good], maps=prediction.maps[good])
        collector.add([samples[index] for index in good], of_good, "validation")
    return Calibration(folds=None, parts=0, good=collector.good, labelled=labelled, pixel=collector.pixel)


def _with_images(
    calibration: Calibration, detector_folder: Path, folder: Path, splits: Splits, home: Home, device: torch.device
) -> Calibration:
    with known_pixels(home) as known:
        fitted = read_description(detector_folder).provenance.get(FITTED, [])
        images = good_images(folder, splits, known=known, fitted=frozenset(map(str, fitted)))
    name = named(folder, images)
    if calibration.images == name:
        return calibration
    collector = Collector()
    detector = load_artifact(detector_folder, device=device).detector
    collector.add(images.samples, _predict(detector, images, home, device), "images")
    others = [image for image in calibration.good if image.origin != "images"]
    return calibration.model_copy(update={"images": name, "good": [*others, *collector.good]})


def _predict(detector: Detector, images: ImageSet, home: Home, device: torch.device) -> Prediction:
    """Prediction of a set, its maps at the set's size: the detector may look at another one."""
    study_size, images = images.image_size, replace(images, image_size=detector.image_size)
    store = FeatureStore(home.features)
    features = store.features(images, detector.backbone, device=device, tiles=detector.tiles)
    found = predictions(detector, features.select(detector.backbone.strides), range(len(images)))
    blocks = [at_size(block, study_size) for block in found]
    return Prediction(
        scores=torch.cat([block.scores for block in blocks]), maps=torch.cat([block.maps for block in blocks])
    )
