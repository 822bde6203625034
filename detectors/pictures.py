"""Pictures of what a detector sees: heat map over the image, outline of the defect."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from detectors.files import told_plainly

RGB = NDArray[np.uint8]
OUTLINE = (0, 230, 118)
"""Colour of a mask's outline: set apart from every colour of the heat map, for colour-blind eyes too."""


def overlay(rgb: RGB, anomaly_map: NDArray[np.float32], *, low: float, high: float, opacity: float = 0.55) -> RGB:
    """Heat map over a picture, [H, W, 3].

    Args:
        anomaly_map: [H, W], resized to the picture where it differs.
        low: score drawn as plain picture; normals stay below it.
        high: score from which on the colour is the strongest.
    """
    heat = np.asarray(
        Image.fromarray(anomaly_map.astype(np.float32)).resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)
    )
    level = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    colour = colour_table()[(255 * level).astype(np.uint8)].astype(np.float32)
    # The colour fades in with the score, so that normal regions look as they do in the photograph.
    weight = (opacity * np.sqrt(level))[:, :, None]
    return (rgb * (1 - weight) + colour * weight + 0.5).astype(np.uint8)


def outline(rgb: RGB, mask: NDArray[np.bool_], *, colour: tuple[int, int, int] = OUTLINE) -> RGB:
    """A copy of the picture with the border of a mask [H, W] drawn, one to three pixels wide by the picture's size."""
    width = 1 + min(rgb.shape[:2]) // 256
    border = ndimage.binary_dilation(mask, iterations=min(width, 3)) & ~mask
    drawn = rgb.copy()
    drawn[border] = colour
    return drawn


def side_by_side(*pictures: RGB, gap: int = 4) -> RGB:
    """Pictures of equal height in a row with white gaps, [H, W', 3]."""
    spacer = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (picture, spacer)][:-1]
    return np.concatenate(row, axis=1)


def save_png(picture: RGB, path: Path) -> Path:
    """Write a picture. Raises `InputError` where the place cannot be written."""
    with told_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, format="PNG", compress_level=4)
    return path


@lru_cache(maxsize=1)
def colour_table() -> NDArray[np.uint8]:
    """uint8 [256, 3], matplotlib's inferno: rises in lightness, so it reads in gray and for colour-blind eyes."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
