"""Shapes of painted defects: soft masks of a wanted area in a window around a centre.

As in `detectors.data.synthetic_defects`, element-wise IEEE arithmetic and rational turns only, so that every machine paints the
same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.data.synthetic_defects import Floats, perlin_noise

FEATHER = 0.3
"""Width of the soft rim of an ellipse, relative to its radius."""
BAR_RATIO = (4.0, 12.0)
"""Length of a bar over its thickness."""
BLOB_FILL = 0.4
"""Share of its window that a blob covers."""


class Shape(NamedTuple):
    """A window of the image and how much of what is painted there shows."""

    top: int
    left: int
    alpha: Floats
    """[h, w] in [0, 1]."""

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.top, self.top + self.alpha.shape[0]), slice(self.left, self.left + self.alpha.shape[1])


Draw = Callable[[tuple[int, int], tuple[int, int], float, np.random.Generator], Shape]
"""(height and width of the image, row and column of the centre, wanted area in pixels, generator) -> shape"""


def ellipse(size: tuple[int, int], centre: tuple[int, int], area: float, rng: np.random.Generator) -> Shape:
    """An ellipse with a soft rim; one axis is up to twice the other."""
    ratio = sqrt(rng.uniform(1.0, 2.0))
    short, long = sqrt(area / pi) / ratio, sqrt(area / pi) * ratio
    top, left, v, u = _turned(size, centre, long * (1 + FEATHER / 2), rng)
    radius = np.sqrt((v / np.float32(short)) ** 2 + (u / np.float32(long)) ** 2)
    return Shape(top, left, _clipped((np.float32(1 + FEATHER / 2) - radius) / np.float32(FEATHER)))


def bar(size: tuple[int, int], centre: tuple[int, int], area: float, rng: np.random.Generator) -> Shape:
    """A thin rectangle at any angle; its edge is one pixel wide."""
    ratio = sqrt(rng.uniform(*BAR_RATIO))
    return _rectangle(size, centre, sqrt(area) / ratio / 2, sqrt(area) * ratio / 2, rng)


def box(size: tuple[int, int], centre: tuple[int, int], area: float, rng: np.random.Generator) -> Shape:
    """A rectangle at any angle; one side is up to twice the other."""
    ratio = sqrt(rng.uniform(1.0, 2.0))
    return _rectangle(size, centre, sqrt(area) / ratio / 2, sqrt(area) * ratio / 2, rng)


def blob(size: tuple[int, int], centre: tuple[int, int], area: float, rng: np.random.Generator) -> Shape:
    """What is left of a bump where noise exceeds a level: an irregular stain with a sharp rim."""
    half = max(2, round(sqrt(area / BLOB_FILL) / 2))
    top, left = max(0, centre[0] - half), max(0, centre[1] - half)
    bottom, right = min(size[0], centre[0] + half + 1), min(size[1], centre[1] + half + 1)
    noise = perlin_noise((bottom - top, right - left), (rng.uniform(1, 4), rng.uniform(1, 4)), rng)
    y = (np.arange(top, bottom, dtype=np.float32) - centre[0])[:, None] / np.float32(half + 1)
    x = (np.arange(left, right, dtype=np.float32) - centre[1])[None] / np.float32(half + 1)
    strength = (noise + 1) * np.maximum(1 - y * y - x * x, 0)
    wanted = min(max(1, round(area)), strength.size)
    level = np.partition(strength, strength.size - wanted, axis=None)[strength.size - wanted]
    return Shape(top, left, ((strength >= level) & (strength > 0)).astype(np.float32))


def _rectangle(
    size: tuple[int, int], centre: tuple[int, int], half_short: float, half_long: float, rng: np.random.Generator
) -> Shape:
    reach = sqrt(half_short * half_short + half_long * half_long) + 1
    top, left, v, u = _turned(size, centre, reach, rng)
    across = _clipped(np.float32(half_short + 0.5) - np.abs(v))
    along = _clipped(np.float32(half_long + 0.5) - np.abs(u))
    return Shape(top, left, across * along)


def _turned(
    size: tuple[int, int], centre: tuple[int, int], reach: float, rng: np.random.Generator
) -> tuple[int, int, Floats, Floats]:
    """Top and left of the window within `reach` of the centre, and the coordinates [h, w] across and along at a random angle."""
    whole = int(reach) + 1
    top, left = max(0, centre[0] - whole), max(0, centre[1] - whole)
    bottom, right = min(size[0], centre[0] + whole + 1), min(size[1], centre[1] + whole + 1)
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(centre[0]))[:, None]
    x = (np.arange(left, right, dtype=np.float32) - np.float32(centre[1]))[None]
    cos, sin = rational_turn(rng.uniform(-1.0, 1.0))
    return top, left, cos * y - sin * x, sin * y + cos * x


def rational_turn(half: float) -> tuple[np.float32, np.float32]:
    """Cosine and sine of twice the angle whose tangent is `half`; -1 to 1 is a half turn in all, and no sine is needed."""
    return np.float32((1 - half * half) / (1 + half * half)), np.float32(2 * half / (1 + half * half))


def _clipped(values: NDArray[np.float32]) -> Floats:
    clipped: Floats = np.minimum(np.maximum(values, np.float32(0)), np.float32(1))
    return clipped
