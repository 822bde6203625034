"""What a fitted detector says of single images: the one path of command, MLflow model and service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.base import Prediction
from detectors.runtime.overlays import contour, overlay, side_by_side
from detectors.scoring.operating_point import GoodScores, Threshold, choose_threshold


class Model(Protocol):
    """A fitted detector, however it is stored and whatever runs it: `Artifact`, `Exported`."""

    @property
    def threshold(self) -> Threshold | None:
        """None where the detector was saved without one."""

    @property
    def normal_scores(self) -> NDArray[np.float64]:
        """Ascending image scores of held-out normals."""

    def resize(self, rgb: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] of any size -> uint8 [1, 3, h, w] as the detector wants it."""

    def predict(self, images: Tensor) -> Prediction:
        """uint8 [B, 3, h, w] -> Prediction. Raises `NumericalError` where a score is not finite."""


@dataclass(frozen=True)
class Verdict:
    """Of one image."""

    score: float
    """Image anomaly score; larger is worse."""
    threshold: float | None
    """None where the detector was saved without one."""
    verdict: Literal["good", "defective"] | None
    """``defective`` from the threshold on; None without a threshold."""
    normals_below: float | None
    """Share of the held-out good images that score less, 0 to 1; None where none are known."""
    anomaly_map: NDArray[np.float32]
    """[h, w] at the detector's image size; larger is worse."""


@dataclass(frozen=True)
class AtThreshold:
    """A model that is run at another threshold than its own; nothing that is stored changes."""

    model: Model
    threshold: Threshold

    @property
    def normal_scores(self) -> NDArray[np.float64]:
        """The model's."""
        return self.model.normal_scores

    def resize(self, rgb: NDArray[np.uint8]) -> Tensor:
        """As the model does."""
        return self.model.resize(rgb)

    def predict(self, images: Tensor) -> Prediction:
        """As the model does."""
        return self.model.predict(images)


def given_threshold(model: Model, value: float) -> Threshold:
    """A threshold that a person gives, with the false-alarm rate that the model's good images let expect.

    Raises:
        InputError: `value` is not finite.
    """
    good = GoodScores(model.normal_scores, "good images")
    own = model.threshold
    return choose_threshold(rule="value", value=value, good=good, pixel=own.pixel if own else None)


def judge(model: Model, images: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
    """Judge RGB images, uint8 [H, W, 3] of any sizes, in one batch on the detector's device.

    Raises:
        NumericalError: a score is not finite.
    """
    if not images:
        return []
    normals = model.normal_scores
    prediction = model.predict(torch.cat([model.resize(rgb) for rgb in images]))
    limit = model.threshold.value if model.threshold else None
    maps = prediction.maps.cpu().numpy()
    return [
        Verdict(
            score=score,
            threshold=limit,
            verdict=None if limit is None else ("defective" if score >= limit else "good"),
            normals_below=float(np.searchsorted(normals, score) / len(normals)) if len(normals) else None,
            anomaly_map=anomaly_map,
        )
        for score, anomaly_map in zip(map(float, prediction.scores.cpu()), maps, strict=True)
    ]


def heat_map(model: Model, rgb: NDArray[np.uint8], verdict: Verdict) -> NDArray[np.uint8]:
    """The image with its anomaly map over it, uint8 [H, W, 3] of the image's size.

    Colours start where normals end, so that a good part looks like its photograph. A defective one has a line around what is
    above the threshold (`contour_level`).
    """
    low, high = colour_range(model, verdict)
    drawn = overlay(rgb, verdict.anomaly_map, low=low, high=high)
    return drawn if verdict.verdict != "defective" else contour(drawn, verdict.anomaly_map, contour_level(verdict))


def image_and_heat_map(model: Model, rgb: NDArray[np.uint8], verdict: Verdict) -> NDArray[np.uint8]:
    """Both beside each other, uint8 [H, W', 3]."""
    return side_by_side(rgb, heat_map(model, rgb, verdict))


def colour_range(model: Model, verdict: Verdict) -> tuple[float, float]:
    """Anomaly values of the first and the last colour."""
    normals = model.normal_scores
    limit = verdict.threshold if verdict.threshold is not None else float(verdict.anomaly_map.max())
    # An image's score is the height of its map's highest peak: what most good parts stay below everywhere is not coloured.
    low = float(np.quantile(normals, 0.1)) if len(normals) else 0.5 * limit
    return low, limit + max(limit - low, 0.25 * abs(limit))


def contour_level(verdict: Verdict) -> float:
    """Anomaly value at which the map is as far below its peak as the threshold is below the score.

    The threshold itself where an image's score is its map's peak. PatchCore scores images by a rule of its own, so that only
    the distance can be carried over; either way the level is reached somewhere in an image called defective, and in no other.

    Raises:
        ValueError: there is no threshold.
    """
    if verdict.threshold is None:
        raise ValueError("no threshold, no level")
    return float(verdict.anomaly_map.max()) - (verdict.score - verdict.threshold)
