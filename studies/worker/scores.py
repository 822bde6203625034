"""What a detector said of each test image, ``scores.json``, and the images that show most of it, ``gallery/``."""

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
from detectors.files import told_plainly, write_json
from detectors.runtime.overlays import OUTLINE, RGB, overlay, side_by_side
from studies.worker.plots import colour_range

SCORES_FILE, GALLERY = "scores.json", "gallery"
"""Within the artifacts of a job that was scored on test."""
SIDE = 256
"""Height, in pixels, that an image of the gallery has at most."""
QUALITY = 85

Group = Literal["defective", "good", "typical"]
MOST: dict[Group, int] = {"defective": 6, "good": 6, "typical": 4}
"""Images of each group: defective ones of the lowest scores, good ones of the highest, and hits as most are."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoredImage(_Part):
    """One test image."""

    name: str
    """Its key within the data set."""
    label: Literal[0, 1]
    """0 good, 1 defective."""
    defect_type: str
    score: float
    verdict: Literal["good", "defective"] | None
    """None where the detector has no threshold."""


class Shown(_Part):
    """One image of the gallery."""

    image: int = Field(validation_alias=AliasChoices("image", "picture"))
    """Its place among the scored ones."""
    group: Group
    file: str = Field(pattern=rf"^{GALLERY}/[a-z]+-\d+\.jpg$")
    panels: list[Literal["image", "mask", "heat map"]]
    """What stands side by side in it; the mask only where there is a defect, and where it is known."""

    @field_validator("panels", mode="before")
    @classmethod
    def _words_of_version_0_1(cls, value: Any) -> Any:
        return ["image" if panel == "picture" else panel for panel in value] if isinstance(value, list) else value


class Scores(_Part):
    """All of ``scores.json``."""

    threshold: float | None
    """Images that score at least this count as defective."""
    images: list[ScoredImage] = Field(validation_alias=AliasChoices("images", "pictures"))
    gallery: list[Shown]

    @property
    def values(self) -> NDArray[np.float64]:
        """[N]"""
        return np.array([image.score for image in self.images], dtype=np.float64)

    @property
    def labels(self) -> NDArray[np.int8]:
        """[N], 0 good, 1 defective."""
        return np.array([image.label for image in self.images], dtype=np.int8)


def read_scores(artifacts: Path) -> Scores | None:
    """What `write_scores` left in a folder; None where there is nothing, or nothing valid."""
    try:
        return Scores.model_validate_json((artifacts / SCORES_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def write_scores(prediction: Prediction, image_set: ImageSet, artifacts: Path, *, threshold: float | None) -> Scores:
    """Write ``scores.json`` and the gallery; raises `InputError` where the place cannot be written."""
    values, labels = prediction.scores.numpy(), image_set.labels
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
    scores: NDArray[np.float32], labels: NDArray[np.int8], *, threshold: float | None
) -> list[tuple[int, Group]]:
    """Indices for the gallery, each with its group, at most `MOST` of each; none is there twice.

    First the defective images of the lowest scores, then the good ones of the highest, the worst ahead. Typical are the hits
    (without a threshold, the defective images) whose scores lie around the median, as far as they are not there already.
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
    """The image, dark, with the mask [H, W] filled: where the defect is, and on what."""
    dark = (rgb * 0.4).astype(np.uint8)
    dark[mask] = OUTLINE
    return dark


def _save_jpeg(rgb: RGB, path: Path) -> None:
    height, width = rgb.shape[:2]
    image = Image.fromarray(rgb)
    if height > SIDE:
        image = image.resize((round(width * SIDE / height), SIDE), Image.Resampling.LANCZOS)
    with told_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="JPEG", quality=QUALITY)
