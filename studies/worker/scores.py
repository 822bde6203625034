"""The score of each test image, ``scores.json``, and the most instructive images beside their heat maps, ``gallery/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from detectors.base import Prediction
from detectors.data.samples import ImageSet
from detectors.files import os_errors_as_input_errors, write_json
from detectors.runtime.overlays import OUTLINE, RGB, overlay, side_by_side
from detectors.scoring.evaluation import operating_metrics
from detectors.scoring.operating_point import count
from studies.worker.plots import colour_range

SCORES_FILE, GALLERY = "scores.json", "gallery"
"""File and folder within the artifacts of a job that was scored on test."""
SIDE = 256
"""Largest height of an image of the gallery, in pixels."""
QUALITY = 85
"""Of its JPEG file, from 0 to 100."""

Group = Literal["defective", "good", "typical"]
MOST: dict[Group, int] = {"defective": 6, "good": 6, "typical": 4}
"""Most images of each group: the defective ones with the lowest scores, the good ones with the highest, and typical hits."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoredImage(_Part):
    """One test image."""

    name: str
    """Key of the image within the data set."""
    label: Literal[0, 1]
    """0 good, 1 defective."""
    defect_type: str
    score: float
    verdict: Literal["good", "defective"] | None
    """None if the detector has no threshold."""


class Shown(_Part):
    """One image of the gallery."""

    image: int = Field(validation_alias=AliasChoices("image", "picture"))
    """Index of the image in `Scores.images`."""
    group: Group
    file: str = Field(pattern=rf"^{GALLERY}/[a-z]+-\d+\.jpg$")
    panels: list[Literal["image", "mask", "heat map"]]
    """What is shown side by side; the mask only if there is a defect and its mask is known."""

    @field_validator("panels", mode="before")
    @classmethod
    def _words_of_version_0_1(cls, value: Any) -> Any:
        return ["image" if panel == "picture" else panel for panel in value] if isinstance(value, list) else value


class Scores(_Part):
    """The content of ``scores.json``."""

    threshold: float | None
    """Score from which on an image counts as defective; None if the detector has no threshold."""
    images: list[ScoredImage] = Field(validation_alias=AliasChoices("images", "pictures"))
    gallery: list[Shown]

    @property
    def values(self) -> NDArray[np.float64]:
        """Scores of the images [N]."""
        return np.array([image.score for image in self.images], dtype=np.float64)

    @property
    def labels(self) -> NDArray[np.int8]:
        """Labels of the images [N]: 0 good, 1 defective."""
        return np.array([image.label for image in self.images], dtype=np.int8)

    def at(self, threshold: float) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics of the operating point at a threshold, and the recall of each type of defect; no image is scored."""
        return operating_metrics(
            count(self.values, self.labels, [image.defect_type for image in self.images], threshold)
        )

    def judged_at(self, threshold: float) -> Scores:
        """The same scores with the verdicts of another threshold."""
        images = [
            image.model_copy(update={"verdict": "defective" if image.score >= threshold else "good"})
            for image in self.images
        ]
        return self.model_copy(update={"threshold": threshold, "images": images})


def read_scores(artifacts: Path) -> Scores | None:
    """What `write_scores` wrote into a folder; None if there is no valid file."""
    try:
        return Scores.model_validate_json((artifacts / SCORES_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def write_scores(prediction: Prediction, image_set: ImageSet, artifacts: Path, *, threshold: float | None) -> Scores:
    """Write ``scores.json`` and the gallery into the folder `artifacts`.

    Args:
        prediction: scores [N] and maps [N, H, W] of the set.
        threshold: score from which on an image counts as defective; None without a threshold.

    Raises:
        InputError: the folder cannot be written.
    """
    values, labels = prediction.scores.numpy().astype(np.float64), image_set.labels
    alarms = values >= threshold if threshold is not None else None
    scores = Scores(
        threshold=threshold,
        images=[
            ScoredImage(
                name=sample.key,
                label=1 if sample.label else 0,
                defect_type=sample.defect_type,
                score=float(values[index]),
                verdict=None if alarms is None else "defective" if alarms[index] else "good",
            )
            for index, sample in enumerate(image_set.samples)
        ],
        gallery=_write_gallery(prediction, image_set, artifacts, choose(values, labels, threshold=threshold)),
    )
    write_json(artifacts / SCORES_FILE, scores.model_dump(mode="json"))
    return scores


def choose(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.int8], *, threshold: float | None
) -> list[tuple[int, Group]]:
    """Indices of the images of the gallery, each with its group; at most `MOST` of each group, and no image twice.

    First come the defective images with the lowest scores, then the good ones with the highest, the worst mistakes first. Typical
    images are hits (without a threshold, defective images) with scores around the median that are not in the first group.

    Args:
        scores: [N].
        labels: [N], 0 good, 1 defective.
    """
    order = [int(index) for index in np.argsort(scores, kind="stable")]
    defective = [index for index in order if labels[index]]
    good = [index for index in reversed(order) if not labels[index]]
    hits = [index for index in defective if threshold is None or scores[index] >= threshold]
    worst = defective[: MOST["defective"]]
    by_distance = sorted(range(len(hits)), key=lambda rank: abs(rank - len(hits) // 2))
    typical = [hits[rank] for rank in by_distance if hits[rank] not in worst][: MOST["typical"]]
    groups: list[tuple[Group, Sequence[int]]] = [
        ("defective", worst),
        ("good", good[: MOST["good"]]),
        ("typical", typical),
    ]
    return [(index, group) for group, indices in groups for index in indices]


def _write_gallery(
    prediction: Prediction, image_set: ImageSet, artifacts: Path, chosen: Sequence[tuple[int, Group]]
) -> list[Shown]:
    """Write the images of the gallery."""
    maps = prediction.maps.numpy()
    low, high = colour_range(maps, image_set.labels)
    shown = []
    for rank, (index, group) in enumerate(chosen, start=1):
        rgb, mask = image_set.load(index)
        panels: dict[Literal["image", "mask", "heat map"], RGB] = {"image": rgb}
        if mask is not None and mask.any():
            panels["mask"] = _marked(rgb, mask)
        panels["heat map"] = overlay(rgb, maps[index], low=low, high=high)
        file = f"{GALLERY}/{group}-{rank}.jpg"
        _save_jpeg(side_by_side(*panels.values()), artifacts / file)
        shown.append(Shown(image=index, group=group, file=file, panels=list(panels)))
    return shown


def _marked(rgb: RGB, mask: NDArray[np.bool_]) -> RGB:
    """The image, darkened, with the mask [H, W] filled."""
    dark = (rgb * 0.4).astype(np.uint8)
    dark[mask] = OUTLINE
    return dark


def _save_jpeg(rgb: RGB, path: Path) -> None:
    height, width = rgb.shape[:2]
    image = Image.fromarray(rgb)
    if height > SIDE:
        image = image.resize((round(width * SIDE / height), SIDE), Image.Resampling.LANCZOS)
    with os_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="JPEG", quality=QUALITY)
