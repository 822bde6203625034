"""The threshold of a finished detector: what others would catch and stop, and setting it, without a search or a look at test."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.files import new_folder
from detectors.runtime.artifact import DESCRIPTION, read_description, with_threshold
from detectors.scoring.operating_point import Counts, RateRow, Threshold, count
from studies.file.sections import ThresholdConfig
from studies.release.promotion import Promoter, Promotion
from studies.search import summary, thresholds
from studies.search.holding import held_study
from studies.search.records import study_record, trial_record
from studies.search.stores import Stores
from studies.search.thresholds import Operating
from studies.search.view import StudyView, TrialView
from studies.worker.calibration import Calibration, read_calibration, write_calibration
from studies.worker.jobs import DETECTOR
from tracking.registry import Version

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ProductThreshold:
    """The threshold of one product's detector, and what others would do; all counts are of validation."""

    product: str
    """Empty where the study is over a single one."""
    threshold: Threshold | None
    """The one that the detector has; None where it has none."""
    counts: Counts | None
    """What it catches of validation; None without a threshold."""
    rows: list[RateRow]
    """Thresholds for false-alarm rates from 0.1 % to 10 %; empty where there are no good images."""


@dataclass(frozen=True)
class ThresholdChange:
    """A threshold that was set."""

    product: str
    before: Threshold | None
    after: Threshold
    counts: Counts
    """What it catches of validation."""


def look(view: StudyView, trial: TrialView, product: str | None, *, device: torch.device) -> list[ProductThreshold]:
    """The thresholds of a trial's detectors, and what others would do.

    Raises:
        InputError: detectors, or the images of validation where the refit kept no scores, cannot be read.
    """
    wanted = {name: one for name, one in thresholds.sections(view, trial).items() if product in (None, name)}
    return [
        _looked_at(point.product, point.present, point.calibration)
        for point in thresholds.operating(view, trial, wanted, device=device)
    ]


def set_for_study(
    view: StudyView,
    trial: TrialView,
    section: ThresholdConfig,
    product: str | None,
    *,
    device: torch.device,
    reread: bool = False,
    tell: Tell = lambda text: None,
) -> list[ThresholdChange]:
    """Set the thresholds of the detectors that a study selected, and bring its runs in MLflow up to date.

    Args:
        product: one of several; None sets all, by the same rule.
        reread: score the images that the section names again, for there may be others by now.

    Raises:
        InputError: the study is being run, or the scores do not define such a threshold.
    """
    stores = Stores.open(view.home, lambda notice: None)
    with held_study(view.header.name, view.home, stores.storage, tell=tell):
        wanted = {name: section for name in trial.detectors if product in (None, name)}
        points = thresholds.operating(view, trial, wanted, device=device, reread=reread)
        chosen = thresholds.choose(points, wanted)
        view.keep_threshold_section(section, trial.number, product)
        thresholds.write(trial, points, chosen)
        changed = StudyView(view.study, view.header, view.home)
        projection = stores.projection
        projection.open(study_record(changed, state="FINISHED", note=summary.note(changed)))
        projection.write_trial(
            trial_record(changed, next(one for one in changed.trials() if one.number == trial.number))
        )
    return [_change(point, chosen[point.product]) for point in points]


def set_for_version(
    promoter: Promoter, version: Version, section: ThresholdConfig
) -> tuple[ThresholdChange, Promotion]:
    """Register a version's detector with another threshold as a new version, and take that through the gate.

    Raises:
        InputError: the study that the version comes from is not in the storage, or the scores do not define such a threshold.
    """
    view, product = promoter.study_of(version)
    point = _point_of(promoter, version, view, product, section, reread=section.images is not None)
    (threshold,) = thresholds.choose([point], {product: section}).values()
    folder = _copy(promoter, version, threshold, point.calibration)
    new = promoter.register_rethresholded(version, folder, threshold)
    return _change(point, threshold), promoter.promote_version(new)


def look_at_version(promoter: Promoter, version: Version) -> ProductThreshold:
    """The threshold of a registered version, and what others would do. Raises as `set_for_version`."""
    view, product = promoter.study_of(version)
    point = _point_of(promoter, version, view, product, ThresholdConfig(), reread=False)
    return _looked_at(product, point.present, point.calibration)


def _looked_at(product: str, present: Threshold | None, calibration: Calibration) -> ProductThreshold:
    rows = calibration.at_rates() if len(calibration.good_scores.values) else []
    counts = _counts(calibration, present) if present is not None else None
    return ProductThreshold(product, present, counts, rows)


def _counts(calibration: Calibration, threshold: Threshold) -> Counts:
    return count(calibration.scores, calibration.labels, calibration.defect_types, threshold.value)


def _change(point: Operating, after: Threshold) -> ThresholdChange:
    return ThresholdChange(point.product, point.present, after, _counts(point.calibration, after))


def _point_of(
    promoter: Promoter, version: Version, view: StudyView, product: str, section: ThresholdConfig, *, reread: bool
) -> Operating:
    """What the threshold of a version rests on: the scores that were kept with the very detector, else those of validation.

    Args:
        reread: score the images that `section` names; else what is kept stands, whatever images it rests on.
    """
    fetched = promoter.registry.fetch(version)
    present = read_description(fetched)
    threshold = Threshold.from_json(present.threshold) if present.threshold else None
    for folder in promoter.origins(version):
        calibration = read_calibration(folder)
        if calibration is not None and read_description(folder / DETECTOR).tensors_sha256 == present.tensors_sha256:
            if not reread:
                return Operating(product, folder, threshold, calibration)
            break
    else:
        folder = promoter.home.root / "thresholds" / present.tensors_sha256[:32]
        if not (folder / DETECTOR).is_dir():
            with new_folder(folder) as temporary:
                shutil.copytree(fetched, temporary / DETECTOR)
    detectors = {product: folder / DETECTOR}
    points = thresholds.calibrated(view, detectors, {product: section}, device=promoter.device, reread=reread)
    return Operating(product, points[0].folder, threshold, points[0].calibration)


def _copy(promoter: Promoter, version: Version, threshold: Threshold, calibration: Calibration) -> Path:
    """The version's detector with another threshold, in a folder of its own."""
    fetched = promoter.registry.fetch(version)
    digest = hashlib.sha256(f"{file_sha256(fetched / DESCRIPTION)} {threshold.to_json()}".encode()).hexdigest()[:16]
    folder = promoter.home.root / "thresholds" / version.name / digest / DETECTOR
    write_calibration(calibration, folder.parent)
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            shutil.copytree(fetched, temporary, dirs_exist_ok=True)
            with_threshold(temporary, threshold, normal_scores=np.sort(calibration.good_scores.values))
    return folder


def section_of(
    *,
    rate: float | None = None,
    value: float | None = None,
    cost_miss: float | None = None,
    cost_alarm: float | None = None,
    share_defective: float | None = None,
    images: Path | None = None,
    present: ThresholdConfig,
) -> ThresholdConfig | None:
    """The section that a person asks for; None where nothing is asked for.

    Args:
        present: the study's section, whose folds stay, and its images where none are given.

    Raises:
        InputError: options that contradict each other, or a value out of range.
    """
    costs = {"cost_miss": cost_miss, "cost_alarm": cost_alarm, "share_defective": share_defective}
    given = [name for name, one in costs.items() if one is not None]
    if given and len(given) < len(costs):
        missing = next(name for name in costs if name not in given)
        raise InputError(f"a threshold by costs needs --{missing.replace('_', '-')} as well")
    asked = [name for name, one in (("--rate", rate), ("--value", value), ("costs", cost_miss)) if one is not None]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} contradict each other; give one of them")
    if not asked and images is None:
        return None
    raw: dict[str, Any] = {"folds": present.folds, "images": images if images is not None else present.images}
    if given:
        raw |= {"rule": "cost", **costs}
    elif value is not None:
        raw |= {"rule": "value", "value": value}
    elif rate is not None:
        raw |= {"rule": "false_alarm_rate", "rate": rate}
    else:
        raw = present.model_dump() | {"images": images}
    return ThresholdConfig.checked(raw)
