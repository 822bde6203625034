"""Whether a stored threshold and stored scores can be those of a detector: values that no fit gives are refused.

All functions raise `ValueError` with a message that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.data.images import Size
from detectors.scoring.operating_point import Threshold

MAX_NORMALS = 10**7
"""Images that a threshold can rest on."""
GRID_SLACK = 2
"""Positions that a grid may have more or less than image size by stride."""
FAR = 100.0
"""How many times the largest normal's distance from zero, or from the smallest one, a threshold that comes from normals may
lie beyond them. Thresholds lie at or just above a normal; the room is for rules that add a margin."""


def check_normal_scores(scores: Sequence[float]) -> None:
    """Scores of normals [n]: finite and ascending."""
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"normal_scores: entry {int(np.argmin(np.isfinite(values)))} is not a finite number")
    if (np.diff(values) < 0).any():
        raise ValueError(f"normal_scores: not ascending at entry {int(np.argmax(np.diff(values) < 0)) + 1}")


def check_grid(grid: Size, image_size: Size, stride: int) -> None:
    """A head's grid is that of the finest stride on images of this size, up to a row or column that a backbone pads or drops."""
    for positions, side in zip(grid, image_size, strict=True):
        if abs(positions - side / stride) > GRID_SLACK:
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} positions on images of {image_size[0]} x {image_size[1]} pixels at stride "
                f"{stride}"
            )


def check_threshold(threshold: Threshold, normal_scores: NDArray[np.float64]) -> None:
    """A threshold's fields within their ranges, and its value not far off the normals that it was taken from.

    Args:
        normal_scores: ascending [n]; may be empty.
    """
    for name in ("normals", "defective"):
        if not 0 <= (count := getattr(threshold, name)) <= MAX_NORMALS:
            raise ValueError(f"threshold: '{name}' must be from 0 to {MAX_NORMALS}, got {count}")
    for name in ("rate", "expected_rate", "f1"):
        if (share := getattr(threshold, name)) is not None and not 0 <= share <= 1:
            raise ValueError(f"threshold: '{name}' must be from 0 to 1, got {share:g}")
    if not math.isfinite(threshold.value):
        raise ValueError(f"threshold: 'value' must be a finite number, got {threshold.value}")
    # The best F1 may lie anywhere between the normals and the defects, and these have no bound.
    if threshold.rule != "false_alarm_rate" or not len(normal_scores):
        return
    low, high = float(normal_scores[0]), float(normal_scores[-1])
    reach = FAR * max(high - low, abs(high), abs(low), 1e-30)
    if not low - reach <= threshold.value <= high + reach:
        raise ValueError(
            f"threshold: 'value' {threshold.value:g} lies far off the scores of the normals, {low:g} to {high:g}"
        )
