"""The thresholds of a trial's saved detectors, one for each product: as they are, and chosen anew without a fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from detectors.data.splits import Splits
from detectors.errors import InputError
from detectors.files import os_errors_as_input_errors, write_json
from detectors.runtime.artifact import read_description
from detectors.scoring.operating_point import Threshold
from studies.file import datasets
from studies.file.sections import ThresholdConfig
from studies.search.view import StudyView, TrialView
from studies.worker.calibration import Calibration
from studies.worker.jobs import ARTIFACTS, DETECTOR, RESULT_FILE, TrialResult, read_result
from studies.worker.products import combine
from studies.worker.recalibration import calibration_for, folds_changed, follows, set_threshold


@dataclass(frozen=True)
class Operating:
    """What the threshold of one product's detector rests on."""

    product: str
    """Empty where the study is over a single one."""
    folder: Path
    """Of the final job, in which the detector lies."""
    present: Threshold | None
    calibration: Calibration


def thresholds(trial: TrialView) -> dict[str, Threshold | None]:
    """{product: the threshold of the trial's saved detector, None without one}"""
    return {product: _present(folder.parent) for product, folder in trial.detectors.items()}


def must_be_refitted(view: StudyView, trial: TrialView) -> bool:
    """Whether the threshold is to rest on other folds, which only a refit can score."""
    detectors = trial.detectors
    return any(folds_changed(detectors[name].parent, one) for name, one in sections(view, trial).items())


def follow_section(view: StudyView, trial: TrialView) -> bool:
    """Whether every threshold of a trial is the one that the study's section gives."""
    wanted = sections(view, trial)
    if not _is_combined(trial):
        return False
    return all(
        follows(folder.parent, _present(folder.parent), wanted[product], _category(view, product))
        for product, folder in trial.detectors.items()
    )


def sections(view: StudyView, trial: TrialView) -> dict[str, ThresholdConfig]:
    """{product: how the threshold of its detector is chosen}"""
    return {product: view.threshold_section(trial.number, product) for product in trial.detectors}


def operating(
    view: StudyView,
    trial: TrialView,
    wanted: Mapping[str, ThresholdConfig],
    *,
    device: torch.device,
    reread: bool = False,
) -> list[Operating]:
    """What thresholds rest on.

    Args:
        wanted: {product of the trial: how its threshold is chosen}
        reread: score ``threshold.images`` again although their scores are kept.

    Raises:
        InputError: images that are to be scored, or the detectors, cannot be read.
    """
    chosen = {name: folder for name, folder in trial.detectors.items() if name in wanted}
    return calibrated(view, chosen, wanted, device=device, reread=reread)


def calibrated(
    view: StudyView,
    detectors: Mapping[str, Path],
    wanted: Mapping[str, ThresholdConfig],
    *,
    device: torch.device,
    reread: bool = False,
) -> list[Operating]:
    """What the thresholds of saved detectors rest on, each in the folder of its job. Raises as `operating`.

    Args:
        detectors: {product: folder of the detector}
    """
    splits = _splits(view)
    return [
        Operating(
            name,
            folder.parent,
            _present(folder.parent),
            calibration_for(
                folder.parent,
                wanted[name],
                _category(view, name),
                splits=partial(_of_product, splits, name),
                home=view.home,
                device=device,
                reread=reread,
            ),
        )
        for name, folder in detectors.items()
    ]


def choose(points: list[Operating], wanted: Mapping[str, ThresholdConfig]) -> dict[str, Threshold]:
    """The thresholds that these sections give, by product; nothing is written.

    Raises:
        InputError: the scores do not define one.
    """
    chosen = {}
    for point in points:
        section = wanted[point.product]
        threshold = point.calibration.threshold(section)
        if threshold is None:
            needs = "labelled defects" if section.rule in ("f1_max", "cost") else "good images"
            raise InputError(f"no threshold by rule {section.rule}: it needs {needs} in validation; take another rule")
        chosen[point.product] = threshold
    return chosen


def write(trial: TrialView, points: list[Operating], chosen: Mapping[str, Threshold]) -> None:
    """Give the detectors of a trial their new thresholds, and the trial its figures with them.

    Raises:
        InputError: a folder cannot be written, or a detector in it was changed.
    """
    for point in points:
        set_threshold(point.folder, chosen[point.product], point.calibration)
    if set(trial.detectors) == {""}:
        return
    before = read_result(trial.final_folder)
    results = {product: read_result(folder.parent) for product, folder in trial.detectors.items()}
    known: dict[str, TrialResult] = {product: one for product, one in results.items() if one is not None}
    if before is None or len(known) < len(results):
        return
    for product, folder in trial.detectors.items():
        with os_errors_as_input_errors(trial.final_folder):
            shutil.copytree(folder.parent / ARTIFACTS, trial.final_folder / ARTIFACTS / product, dirs_exist_ok=True)
    combined = combine(before, known, started=before.started, pruned=False)
    write_json(trial.final_folder / ARTIFACTS / "metrics.json", combined.model_dump(mode="json"))
    write_json(trial.final_folder / RESULT_FILE, combined.model_dump(mode="json"))


def _is_combined(trial: TrialView) -> bool:
    """Whether the result over several products has the thresholds of each."""
    if set(trial.detectors) == {""}:
        return True
    combined = read_result(trial.final_folder)
    each = {name: read_result(folder.parent) for name, folder in trial.detectors.items()}
    stored = {name: one.threshold for name, one in each.items() if one is not None and one.threshold is not None}
    return combined is not None and (combined.threshold or {}).get("products", {}) == stored


def _present(folder: Path) -> Threshold | None:
    """The threshold of the detector in a job's folder."""
    result = read_result(folder)
    if result is None:
        # A first detector, whose trial has not been judged.
        stored = read_description(folder / DETECTOR).threshold
        return Threshold.from_json(stored) if stored is not None else None
    return Threshold.from_json(result.threshold) if result.threshold is not None else None


def _category(view: StudyView, product: str) -> str:
    return product or str(view.config.data.category)


def _of_product(splits: Callable[[], dict[str, Splits]], product: str) -> Splits:
    return splits()[product]


def _splits(view: StudyView) -> Callable[[], dict[str, Splits]]:
    """Reads the study's image sets by product, once."""

    @cache
    def read() -> dict[str, Splits]:
        images = datasets.load(view.config, view.home)
        if images.digest != view.header.splits_digest:
            raise InputError(
                f"the images of {images.experiment} are not those that the study was run with; restore them, or start a new "
                "study with --fresh"
            )
        return {part.category if images.several else "": part.splits for part in images.parts}

    return read
