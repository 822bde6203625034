"""Fitting the champion's configuration again, on newer images of good parts; the result is a challenger for the gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectors.data.copies import pixel_digests
from detectors.data.samples import ImageSet
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.runtime.artifact import THRESHOLD_SET, Artifact, is_artifact, read_description, save_artifact
from detectors.scoring.operating_point import Threshold, normals_needed
from studies.file import datasets
from studies.file.known_pixels import known_pixels
from studies.file.sections import ThresholdConfig
from studies.home import Home
from studies.release.fit_again import FitAgain, least, parts_of, share
from studies.release.new_images import NewImages, read_new_images
from studies.search.view import StudyView
from studies.worker.calibration import write_calibration
from studies.worker.good_images import DIGITS, FITTED, good_images
from studies.worker.out_of_fold import Part
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
    """On how many of them the threshold rests: each was scored by a detector that was fitted without it."""
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

    The threshold rests on the new images alone, each scored by a detector that was fitted without it; without `images`, on the
    study's validation. Nothing is fitted if the same images and champion were fitted already.

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
    section = _section_of(champion, view.threshold_section(int(champion.provenance.get("trial", -1)), product))
    study_images = datasets.load(view.config, home)
    part = next(part for part in study_images.parts if product in ("", part.category))
    splits = part.splits.resized(champion.detector.image_size)
    new = read_new_images(images, part, home) if images else NewImages()
    known = () if only_new else splits.train.samples
    train = ImageSet("train", (*known, *new.samples), splits.train.image_size)
    parts = _parts(champion.detector, train, new, section, images)
    digest = hashlib.sha256(f"{train.digest} {section} {champion.provenance}".encode()).hexdigest()[:16]
    folder = home.root / "retrained" / view.config.name / digest / "detector"
    if is_artifact(folder):
        stored = read_description(folder).provenance
        return Retrained(folder, len(new), stored.get("held_out", 0), tuple(map(str, stored.get("warnings", []))))

    fit = FitAgain(champion.detector, view, home, device=device, weights_dir=weights_dir, tell=tell)
    tell(f"fitting {champion.detector.head.name} on {len(train)} good images")
    with seeded(view.config.sampler.seed):
        detector = fit.on(train, splits.unseen, parts, "images")
    if not images and splits.unseen is not None:
        fit.score_good(detector, splits.unseen, "validation")
    if not images and (good := section.folder_of(part.category)) is not None:
        fit.score_good(detector, good_images(good, splits), "images")
    source = f"new images in {len(parts)} folds" if len(parts) > 1 else "new images left out of the fit"
    calibration = fit.calibration(detector, splits.unseen, source=source if images else None)
    warnings = list(new.warnings)
    rule = section
    if section.rule == "value" or (section.rule != "false_alarm_rate" and not calibration.labels.any()):
        rule = ThresholdConfig(rate=section.rate)
        warnings.append(
            f"threshold.rule {section.rule} is not used, the threshold is one for a false-alarm rate of {section.rate:.3g}: "
            + ("a given value belongs to one detector" if section.rule == "value" else "there are no labelled defects")
        )
    normal_scores = calibration.good_scores.values if calibration.good else np.empty(0)
    detector.threshold = calibration.threshold(rule) if calibration.good else None
    warnings += _warnings(detector.threshold, champion, needed=share(champion.detector, section) if images else 0)
    inherited = {name: value for name, value in champion.provenance.items() if name != "warnings"}
    provenance = {
        **inherited,
        "retrained_from": champion.provenance.get("trial"),
        "new_pictures": len(new),
        "held_out": len(normal_scores) if images else 0,
        FITTED: [*inherited.get(FITTED, []), *_pixels_of(new, home)],
        "digests": {"train": train.digest, "test": splits.test.digest},
        "environment": environment(device),
        "metrics": {},
        **({"warnings": warnings} if warnings else {}),
    }
    write_calibration(calibration, folder.parent)
    save_artifact(Artifact(detector, normal_scores.astype(np.float64), provenance), folder)
    return Retrained(folder, len(new), provenance["held_out"], tuple(warnings))


def _pixels_of(new: NewImages, home: Home) -> list[str]:
    """Digests of the pixels of the new images: a later threshold may not rest on them."""
    with known_pixels(home) as known:
        return [one[:DIGITS] for one in pixel_digests([sample.file for sample in new.samples], known) if one]


def _section_of(champion: Artifact, section: ThresholdConfig) -> ThresholdConfig:
    """How the threshold is chosen: as the champion's was set after its fit, else by the study's section."""
    own = champion.threshold
    if own is None or not champion.provenance.get(THRESHOLD_SET):
        return section
    kept: dict[str, Any] = {"folds": section.folds, "images": section.images, "rule": own.rule}
    rules: dict[str, dict[str, Any]] = {
        "false_alarm_rate": {"rate": own.rate},
        "cost": {"cost_miss": own.cost_miss, "cost_alarm": own.cost_alarm, "share_defective": own.share_defective},
        "value": {"value": own.value},
    }
    return ThresholdConfig.checked(kept | rules.get(own.rule, {}))


def _parts(
    detector: Detector, train: ImageSet, new: NewImages, section: ThresholdConfig, images: Path | None
) -> list[Part]:
    """The parts of the new images that the threshold rests on; none without new images.

    Raises:
        InputError: they are too few.
    """
    if images is None:
        return []
    parts = parts_of(detector, train, new.contents, section, after=len(train) - len(new))
    if not parts:
        one_in, few = share(detector, section), len(set(new.contents))
        how = f"one of {one_in} is left out of the fit for it" if one_in > 1 else "each is scored by a fit without it"
        rate = section.rate
        wanted = (
            f"; a false-alarm rate of {rate:.3g} (threshold.rate) needs {one_in * normals_needed(rate)}" if rate else ""
        )
        raise InputError(
            f"{images}: {few} new images that differ are too few for a threshold, give at least {least(detector, section)}: "
            f"{how}{wanted}"
        )
    return parts


def _warnings(threshold: Threshold | None, champion: Artifact, *, needed: int) -> list[str]:
    """What speaks against a threshold: too few images for its rate, a jump, and a single image that decides it.

    Args:
        needed: new images for each one that the threshold rests on; 0 where there are no new ones.
    """
    if threshold is None:
        return []
    warnings = []
    if needed and threshold.rate and not threshold.supports_rate and threshold.expected_rate is not None:
        warnings.append(
            f"the threshold rests on {threshold.normals} new images, from which a false-alarm rate of "
            f"{threshold.expected_rate:.1%} is to be expected; {threshold.rate:.3g} (threshold.rate) needs "
            f"{needed * normals_needed(threshold.rate)} new images"
        )
    if (jump := _jump(threshold, champion)) is not None:
        warnings.append(jump)
    if needed and threshold.decided_by and threshold.without is not None:
        warnings.append(
            f"one image alone decides the threshold, {threshold.decided_by}: without it {threshold.without:.4g} in place of "
            f"{threshold.value:.4g}. Look whether it shows a good part"
        )
    return warnings


def _jump(threshold: Threshold, champion: Artifact) -> str | None:
    """How a threshold jumped against the champion's; None if it did not.

    The champion's good images tell the scale: what it is known to give good parts reaches from the median of their scores up to
    the highest of them, or to its threshold where that is higher. A threshold below that median would stop every second of
    those parts; one that lies above that top by more than the whole reach lets pass what scores twice as far off.
    """
    old = champion.threshold
    if old is None or not len(champion.normal_scores):
        return None
    median = float(np.median(champion.normal_scores))
    top = max(old.value, float(np.max(champion.normal_scores)))
    if min(median, old.value) <= threshold.value <= top + (top - median):
        return None
    went = f"the threshold jumped from {old.value:.4g} to {threshold.value:.4g}"
    if threshold.value < median:
        return f"{went}, below {median:.4g}, the median of the champion's good images"
    return f"{went}, more than twice as far above {median:.4g}, the median of the champion's good images, as it or any of them"
