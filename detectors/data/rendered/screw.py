"""A sound screw: its measures, its profiles, and all that differs from one image to the next, defects aside.

Screws lie as a turntable with `_STOPS` stops presents them, with some play; all else (roll, light, metal, dust) varies
freely. Good and defective images draw all of this alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin, sqrt, tau

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]

LENGTH = 0.85
HEAD_END = 0.14
NECK_END = 0.378
PITCH = 0.061
HEAD_RADIUS = 0.130
NECK_RADIUS = 0.0470
CREST_RADIUS = 0.0620
RECESS_RADIUS = 0.060
TOOTH_HALF_WIDTH = 0.17
"""Half of a thread ridge's foot, in pitches."""
_STOPS = 12
"""Orientations over the full turn. A detector that compares position by position sees each of them several times in 80
images; with orientations from a continuum it could learn nothing from so few."""
_SWING = 0.010
"""Standard deviation of the orientation about its stop."""
_SHIFT = 0.003
"""Standard deviation of the position along each side of the image."""
_TABLE_STEP = 2e-4
_TABLE_START = -0.1


def _table(knots: list[tuple[float, float]]) -> Floats:
    """A profile over s, monotone between its knots (s, value), sampled every `_TABLE_STEP` from `_TABLE_START` on."""
    places, values = zip(*knots, strict=True)
    grid = np.arange(_TABLE_START, places[-1], _TABLE_STEP)
    return np.asarray(PchipInterpolator(places, values)(grid), dtype=np.float64)


# Radii fall below zero beyond the tip, so that rays pass there without a special case.
CORE = _table(
    [
        (-0.1, -0.174),
        (0.0, 0.1262),
        (0.003, 0.1292),
        (0.008, 0.1300),
        (0.014, 0.1285),
        (0.030, 0.1140),
        (0.060, 0.0860),
        (0.080, 0.0680),
        (0.100, 0.0545),
        (0.122, 0.0475),
        (0.140, 0.0470),
        (0.371, 0.0466),
        (0.379, 0.0440),
        (0.388, 0.0372),
        (0.400, 0.0365),
        (0.680, 0.0350),
        (0.740, 0.0285),
        (0.800, 0.0165),
        (0.838, 0.0055),
        (LENGTH, 0.0),
        (1.2, -0.5),
    ]
)
TOOTH = _table(
    [
        (-0.1, 0.0),
        (0.376, 0.0),
        (0.386, 0.0080),
        (0.410, 0.0250),
        (0.440, 0.0258),
        (0.680, 0.0258),
        (0.740, 0.0210),
        (0.800, 0.0130),
        (0.835, 0.0040),
        (LENGTH, 0.0),
        (1.2, 0.0),
    ]
)


def profile_at(table: Floats, s: Floats) -> Floats:
    """A profile [N] at s [N], linear between its samples."""
    place = (np.clip(s, _TABLE_START, 1.19) - _TABLE_START) / _TABLE_STEP
    index = place.astype(np.intp)
    left = table[index]
    return left + (table[index + 1] - left) * (place - index)


def bounding_radius(X: Floats) -> Floats:
    """Distance [N] from the axis that the screw keeps within, defects included."""
    return np.where(X < HEAD_END + 0.03, HEAD_RADIUS + 0.003, CREST_RADIUS + 0.004)


@dataclass(frozen=True)
class Scene:
    """What differs from image to image: pose, light, the screw's own tolerances and its metal."""

    angle: float
    """Of the axis in the image, head to tip; counter-clockwise from right."""
    place: tuple[float, float]
    """Of the screw's middle: right of and above the image's."""
    tilt: float
    """How far the axis dips from the image's plane: the screw rests on its head's rim and its tip."""
    scale: float
    phase: float
    """Where the thread starts, in turns."""
    crest: float
    """Relative height of the thread."""
    recess_angle: float
    light: tuple[float, float, float]
    """Unit vector towards the softbox: right, up, towards the camera."""
    key: float
    fill: float
    albedo: float
    tone: float
    """Brightness of the table."""
    grain: Floats
    """[256, 256] smooth noise of unit variance that repeats seamlessly: the metal's unevenness."""


def draw_scene(rng: np.random.Generator, metal: np.random.Generator) -> Scene:
    """An image's scene; the screw's metal has a stream of its own."""
    azimuth = rng.normal(2.0, 0.10)
    height = rng.normal(0.80, 0.03)
    noise = metal.standard_normal((256, 256))
    fine, coarse = (ndimage.gaussian_filter(noise, sigma, mode="wrap") for sigma in (1.0, 4.0))
    grain = 3.2 * fine + 6.0 * coarse
    return Scene(
        angle=(rng.integers(_STOPS) + 0.5) * tau / _STOPS + rng.normal(0.0, _SWING),
        place=(rng.normal(0.0, _SHIFT), rng.normal(0.0, _SHIFT)),
        tilt=rng.normal(0.275, 0.008),
        scale=rng.normal(1.0, 0.005),
        phase=rng.uniform(0.0, 1.0),
        crest=rng.normal(1.0, 0.025),
        recess_angle=rng.uniform(0.0, tau / 6),
        light=_unit(cos(azimuth) * cos(height), sin(azimuth) * cos(height), sin(height)),
        key=rng.normal(0.42, 0.02),
        fill=rng.normal(0.185, 0.008),
        albedo=rng.normal(1.0, 0.02),
        tone=rng.uniform(0.785, 0.820),
        grain=grain / grain.std(),
    )


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    length = sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


def grain_at(scene: Scene, row: Floats, column: Floats) -> Floats:
    """The metal's unevenness [N] at texture coordinates, in cells."""
    return np.asarray(ndimage.map_coordinates(scene.grain, [row, column], order=1, mode="grid-wrap"))


def smooth_step(low: float, high: float, value: Floats) -> Floats:
    """0 at `low` to 1 at `high` (which may be the smaller), with flat ends."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
