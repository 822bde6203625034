"""What painted defects show in their window: pixels of another place, or the own ones moved, turned, recoloured or blurred."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.data.painting.shapes import Shape, rational_turn
from detectors.data.synthetic_defects import RGB, Floats, Jitter, Mask, place, recolour, shuffled

PASTED = Jitter((8.0, 28.0), 0.1)
SCAR = Jitter((12.0, 48.0), 0.1)
STAIN = Jitter((24.0, 72.0), 0.4)
TINT = Jitter((8.0, 48.0), 0.5)
"""How far the colours of each kind move."""


class Scene(NamedTuple):
    """An image that is painted into."""

    rgb: RGB
    """[H, W, 3]"""
    ground: Mask | None
    """Coarse mask [h, w] of the object before a plain ground, None where there is none."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


Content = Callable[[Scene, Shape, np.random.Generator], NDArray[np.generic]]
"""(scene, shape, generator) -> new pixels [h, w, 3] of the shape's window, of any number type"""


def pasted(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Another place of the object, its colours moved a little (CutPaste, arXiv 2104.04015, section 3.1)."""
    return recolour(_elsewhere(scene, shape, rng), PASTED, rng)


def scarred(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Another place of the object, its colours moved further (CutPaste-Scar, section 3.2)."""
    return recolour(_elsewhere(scene, shape, rng), SCAR, rng)


def swapped(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Another place of the object as it is, flipped at random: a piece that is repeated or stands in the wrong place."""
    flips = rng.integers(2, size=2) * 2 - 1
    return _elsewhere(scene, shape, rng)[:: flips[0], :: flips[1]]


def stained(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """The image's own texture, shuffled and recoloured (after DRAEM, arXiv 2108.07610, eq. 3)."""
    box = (shape.top, shape.left, *shape.alpha.shape)
    return recolour(shuffled(scene.rgb, box, rng), STAIN, rng)


def tinted(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """The own pixels with another brightness, contrast, saturation and hue."""
    return recolour(scene.rgb[shape.window], TINT, rng)


def turned(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """The own pixels, turned about the centre of the window by 20 degrees or more."""
    # The tangents of a quarter of 20 and of 180 degrees bound the turn.
    half = rng.uniform(0.1763, 1.0) * (1 if rng.random() < 0.5 else -1)
    cos, sin = rational_turn(half)
    rows, columns = _coordinates(shape)
    middle_y, middle_x = np.float32(rows.mean(dtype=np.float64)), np.float32(columns.mean(dtype=np.float64))
    y, x = rows - middle_y, columns - middle_x
    return _sampled(scene.rgb, cos * y - sin * x + middle_y, sin * y + cos * x + middle_x)


def shifted(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """The own pixels, moved by a quarter to three quarters of the window's half side."""
    reach = rng.uniform(0.25, 0.75) * max(4, min(shape.alpha.shape)) / 2
    cos, sin = rational_turn(rng.uniform(-1.0, 1.0))
    sign = 1 if rng.random() < 0.5 else -1
    rows, columns = _coordinates(shape)
    return _sampled(scene.rgb, rows + np.float32(sign * reach) * sin, columns + np.float32(sign * reach) * cos)


def missing(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """The ground before which the object lies, or where there is none the mean of the window's rim with its grain."""
    if scene.ground is not None:
        source = _place_on(~scene.ground, scene.size, rng)
        return scene.rgb[_fitted(source, shape, scene.size)]
    own = scene.rgb[shape.window].astype(np.float32)
    rim = np.concatenate([own[0], own[-1], own[:, 0], own[:, -1]])
    grain = own - _blurred(own, 2)
    return np.float32(rim.mean(axis=0, dtype=np.float64)) + grain


def blurred(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """The own pixels without their detail: means over windows of a tenth to a third of the shape's side, twice."""
    side = min(shape.alpha.shape)
    reach = max(1, round(side * rng.uniform(0.1, 0.33)))
    own = scene.rgb[shape.window].astype(np.float32)
    return _blurred(_blurred(own, reach), reach)


def _elsewhere(scene: Scene, shape: Shape, rng: np.random.Generator) -> RGB:
    """Pixels [h, w, 3] around another place, on the object where there is one."""
    return scene.rgb[_fitted(place(scene.ground, scene.size, rng), shape, scene.size)]


def _place_on(mask: Mask, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    return place(mask if mask.any() else None, size, rng)


def _fitted(centre: tuple[int, int], shape: Shape, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a window as large as the shape's around a centre, moved into the image."""
    height, width = shape.alpha.shape
    top = min(max(centre[0] - height // 2, 0), size[0] - height)
    left = min(max(centre[1] - width // 2, 0), size[1] - width)
    return slice(top, top + height), slice(left, left + width)


def _coordinates(shape: Shape) -> tuple[Floats, Floats]:
    """Row [h, 1] and column [1, w] of each pixel of the window, in the image."""
    height, width = shape.alpha.shape
    rows = np.arange(shape.top, shape.top + height, dtype=np.float32)[:, None]
    return rows, np.arange(shape.left, shape.left + width, dtype=np.float32)[None]


def _sampled(rgb: RGB, rows: Floats, columns: Floats) -> Floats:
    """The image at places between its pixels, bilinearly; beyond the border its last pixels are repeated."""
    height, width = rgb.shape[:2]
    rows, columns = np.broadcast_arrays(
        np.minimum(np.maximum(rows, 0), height - 1), np.minimum(np.maximum(columns, 0), width - 1)
    )
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    y, x = (rows - top)[..., None].astype(np.float32), (columns - left)[..., None].astype(np.float32)
    above = rgb[top, left] * (1 - x) + rgb[top, right] * x
    below = rgb[bottom, left] * (1 - x) + rgb[bottom, right] * x
    sampled: Floats = above * (1 - y) + below * y
    return sampled


def _blurred(pixels: Floats, reach: int) -> Floats:
    """Mean over a window of 2 `reach` + 1 pixels a side, the border repeated."""
    side = 2 * reach + 1
    for axis in (0, 1):
        padding = [(reach + 1, reach) if one == axis else (0, 0) for one in range(pixels.ndim)]
        total = np.cumsum(np.pad(pixels, padding, mode="edge"), axis=axis, dtype=np.float64)
        length = pixels.shape[axis]
        upper, lower = np.take(total, range(side, side + length), axis), np.take(total, range(length), axis)
        pixels = ((upper - lower) / side).astype(np.float32)
    return pixels
