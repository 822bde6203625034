"""What a trial made of each validation image, ``validation_scores.json``: by it trials are compared image by image.

It lies among the artifacts of the trial, so that it goes wherever they go: from a node to the driver, to MLflow, and it stays
when checkpoints are cleaned away. Of several products each has a file of its own, in the folder of its artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.base import Prediction
from detectors.data.painting.painted_set import PaintedSet
from detectors.data.samples import ImageSet
from detectors.files import write_json
from detectors.scoring.operating_point import Threshold
from detectors.scoring.paired import ScoredImages

VALIDATION_SCORES_FILE = "validation_scores.json"
"""Within the artifacts of a job that was scored on validation."""
MOST_IMAGES = 20_000
"""Of a larger set no scores are kept: the file would have megabytes in every trial, and chance is hardly left."""


class ValidationScores(BaseModel):
    """The content of ``validation_scores.json``; all lists are in the order of `keys` [N]."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    keys: list[str]
    """Keys of the images within the data set."""
    labels: list[Literal[0, 1]]
    """0 good, 1 defective."""
    scores: list[float]
    """Raw, in double precision."""
    threshold: float | None = None
    """Score from which on an image counts as defective."""
    weights: list[float] | None = None
    """None for 1 each."""
    groups: list[str] | None = None
    """Images of one group depend on each other, such as those painted into one good image; None where each is its own."""
    folds: list[int] | None = None
    """The turn in which each image was held out; None where one detector scored all."""
    out_of_fold: list[float] | None = None
    """Scores of good images of train by detectors that were fitted without them, which the threshold rests on too; in no order.
    None where the trial has none."""
    pixels: list[tuple[int, int, int]] | None = None
    """Pixels of each image that are both marked and defective, that are marked, and that are defective; None where no objective
    needs them."""

    @property
    def images(self) -> tuple[object, ...]:
        """What the scores of two trials must share to be compared image by image."""
        return tuple(self.keys), tuple(self.labels), self.weights, self.groups, self.folds

    def scored(self) -> ScoredImages:
        """As the bootstrap takes them. Raises `InputError` where the lists contradict each other."""
        return ScoredImages(
            scores=np.array(self.scores, dtype=np.float64),
            labels=np.array(self.labels, dtype=np.int8),
            weights=None if self.weights is None else np.array(self.weights, dtype=np.float64),
            groups=None if self.groups is None else tuple(self.groups),
            folds=None if self.folds is None else np.array(self.folds, dtype=np.int64),
            threshold=self.threshold,
            pixels=None if self.pixels is None else np.array(self.pixels, dtype=np.int64).reshape(-1, 3),
        )


def write_validation_scores(
    prediction: Prediction,
    image_set: ImageSet,
    artifacts: Path,
    *,
    threshold: Threshold | None,
    masks: NDArray[np.bool_] | None = None,
    out_of_fold: Sequence[float] = (),
) -> None:
    """Write ``validation_scores.json`` into a folder, unless the set has more than `MOST_IMAGES`.

    Args:
        prediction: what the trial is judged by: scores [N] and maps [N, H, W].
        masks: of the images of `ImageSet.with_pixels`, bool [n, H, W], for an objective that depends on how many pixels are
            marked; None where none does.
        out_of_fold: scores of good images of train by detectors that were fitted without them.

    Raises:
        InputError: the folder cannot be written.
    """
    if len(image_set) > MOST_IMAGES:
        return
    painted, rows = image_set.painted, image_set.with_pixels
    scores = ValidationScores(
        keys=[sample.key for sample in image_set.samples],
        labels=[1 if sample.label else 0 for sample in image_set.samples],
        scores=prediction.scores.double().tolist(),
        threshold=None if threshold is None else threshold.value,
        weights=None if painted is None else _weights(painted),
        groups=None if painted is None else [str(source) for source in painted.sources],
        folds=None if painted is None else painted.folds.tolist(),
        out_of_fold=list(out_of_fold) or None,
        pixels=_pixels(prediction, threshold, masks, rows),
    )
    write_json(artifacts / VALIDATION_SCORES_FILE, scores.model_dump(mode="json", exclude_none=True))


def read_validation_scores(artifacts: Path) -> ValidationScores | None:
    """What `write_validation_scores` wrote into a folder; None if there is no valid file."""
    try:
        return ValidationScores.model_validate_json((artifacts / VALIDATION_SCORES_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _weights(painted: PaintedSet) -> list[float]:
    """1 of each good image, and of the painted ones so that their cells count alike."""
    weights = np.ones(len(painted.cells))
    weights[painted.painted] = painted.weights
    return [float(weight) for weight in weights]


def _pixels(
    prediction: Prediction,
    threshold: Threshold | None,
    masks: NDArray[np.bool_] | None,
    rows: Sequence[int],
) -> list[tuple[int, int, int]] | None:
    """Counts of each image, 0 of one without a mask; None where there are no masks or no threshold of pixels."""
    if masks is None or threshold is None or threshold.pixel is None:
        return None
    counts = [(0, 0, 0)] * len(prediction)
    for row, mask in zip(rows, masks, strict=True):
        marked = prediction.maps[row].numpy() >= threshold.pixel
        hits, named, real = (int(np.count_nonzero(part)) for part in (marked & mask, marked, mask))
        counts[row] = (hits, named, real)
    return counts
