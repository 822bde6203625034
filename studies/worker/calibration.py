"""What the threshold of a refit rests on, ``calibration.json``: from it the threshold is chosen anew without scoring an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detectors.base import Prediction
from detectors.data.samples import Sample
from detectors.files import write_json
from detectors.scoring.metrics import UndefinedMetricError
from detectors.scoring.operating_point import (
    Costs,
    GoodScores,
    PixelSpread,
    RateRow,
    Threshold,
    at_rates,
    choose_threshold,
)
from studies.file.sections import ThresholdConfig
from studies.worker.good_images import DIGEST

CALIBRATION = "calibration.json"
"""File within the folder of a final job."""
Origin = Literal["fold", "left out", "validation", "images"]
"""Of a good image: from a fold of train that its scorer was fitted without, from train and left out of the only fit, held out for
validation, or from ``threshold.images``."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoodImage(_Part):
    """A good image that its scorer was not fitted on."""

    file: str
    """Where it lay."""
    score: float = Field(allow_inf_nan=False)
    origin: Origin


class LabelledImage(_Part):
    """An image of validation."""

    name: str
    """Key within the data set."""
    label: Literal[0, 1]
    """0 good, 1 defective."""
    defect_type: str
    score: float = Field(allow_inf_nan=False)


class Calibration(_Part):
    """The content of ``calibration.json``."""

    folds: int | None
    """Folds that were asked for; None for the default."""
    parts: int
    """Folds that train was scored in; 0 where there are none."""
    images: str | None = None
    """Folder of ``threshold.images``, with the digest of its images; None where none was given."""
    good: list[GoodImage]
    labelled: list[LabelledImage]
    """The images of validation; empty under protocol ``paper``."""
    pixel: float | None
    """Threshold for pixels from the maps of the good images."""

    @property
    def good_scores(self) -> GoodScores:
        """The scores that the threshold rests on: those of ``threshold.images`` alone where there are any."""
        chosen = [image for image in self.good if image.origin == "images"] or self.good
        return GoodScores(
            np.array([image.score for image in chosen], dtype=np.float64),
            source=self._source(chosen),
            names=[image.file for image in chosen],
            out_of_fold=sum(image.origin in ("fold", "left out") for image in chosen),
        )

    @property
    def scores(self) -> NDArray[np.float64]:
        """Of the images of validation [N]."""
        return np.array([image.score for image in self.labelled], dtype=np.float64)

    @property
    def labels(self) -> NDArray[np.int8]:
        """Of the images of validation [N]: 0 good, 1 defective."""
        return np.array([image.label for image in self.labelled], dtype=np.int8)

    @property
    def defect_types(self) -> list[str]:
        """Of the images of validation [N]."""
        return [image.defect_type for image in self.labelled]

    def threshold(self, section: ThresholdConfig) -> Threshold | None:
        """The threshold by a section of the study file; None where these scores do not define it."""
        costs = None
        if section.cost_miss is not None and section.cost_alarm is not None and section.share_defective is not None:
            costs = Costs(section.cost_miss, section.cost_alarm, section.share_defective)
        try:
            return choose_threshold(
                rule=section.rule,
                good=self.good_scores,
                rate=section.rate,
                scores=self.scores,
                labels=self.labels,
                source="validation",
                costs=costs,
                value=section.value,
                pixel=self.pixel,
            )
        except UndefinedMetricError:
            return None

    def at_rates(self) -> list[RateRow]:
        """What thresholds for several false-alarm rates catch on validation.

        Raises:
            UndefinedMetricError: there is no good image.
        """
        return at_rates(self.good_scores, self.scores, self.labels, self.defect_types)

    def _source(self, chosen: Sequence[GoodImage]) -> str:
        origins = {image.origin for image in chosen}
        if "images" in origins:
            return (self.images or "images").partition(DIGEST)[0]
        names = []
        if "fold" in origins:
            names.append(f"train in {self.parts} folds")
        if "left out" in origins:
            names.append("images of train that were left out of the fit")
        if "validation" in origins:
            names.append("validation")
        return " and ".join(names)


class Collector:
    """Collects the scores of good images, and the spread of their pixels."""

    def __init__(self) -> None:
        self.good: list[GoodImage] = []
        self._spread = PixelSpread()

    @property
    def pixel(self) -> float | None:
        """Threshold for pixels; None before the first image."""
        return self._spread.threshold

    def add(self, samples: Iterable[Sample], prediction: Prediction, origin: Origin) -> None:
        """Add good images, with the prediction of each by a detector that was not fitted on it."""
        for sample, score in zip(samples, prediction.scores.tolist(), strict=True):
            self.good.append(GoodImage(file=str(sample.file), score=score, origin=origin))
        self._spread.add(prediction.maps)

    def calibration(
        self, *, folds: int | None, parts: int, images: str | None, labelled: list[LabelledImage]
    ) -> Calibration:
        """What was collected, with the images of validation; the arguments are fields of `Calibration`."""
        return Calibration(folds=folds, parts=parts, images=images, good=self.good, labelled=labelled, pixel=self.pixel)


def labelled_images(samples: Sequence[Sample], scores: Sequence[float]) -> list[LabelledImage]:
    """The images of validation with their scores [N]."""
    return [
        LabelledImage(name=sample.key, label=1 if sample.label else 0, defect_type=sample.defect_type, score=score)
        for sample, score in zip(samples, scores, strict=True)
    ]


def write_calibration(calibration: Calibration, folder: Path) -> None:
    """Write the file into the folder of a final job. Raises `InputError` where it cannot be written."""
    write_json(folder / CALIBRATION, calibration.model_dump(mode="json"))


def read_calibration(folder: Path) -> Calibration | None:
    """What `write_calibration` wrote; None where there is no valid file, as in studies of version 0.2 and before."""
    try:
        return Calibration.model_validate_json((folder / CALIBRATION).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def threshold_metrics(threshold: Threshold | None) -> dict[str, float]:
    """The threshold as figures of a refit; empty without one."""
    if threshold is None:
        return {}
    known = {
        "threshold": threshold.value,
        "threshold_normals": threshold.normals,
        "threshold_expected_rate": threshold.expected_rate,
    }
    return {name: float(value) for name, value in known.items() if value is not None}
