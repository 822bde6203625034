"""The camera above the screw: its rays, and the screw as they see it, without the table.

Notation as in the package.
"""

from __future__ import annotations

from math import cos, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.data.rendered.damage import Damage
from detectors.data.rendered.screw import CREST_RADIUS, HEAD_END, HEAD_RADIUS, LENGTH, Floats, Scene, bounding_radius
from detectors.data.rendered.shading import shade_face, shade_surface
from detectors.data.rendered.surface import march, relief

SUPERSAMPLING = 2
"""Samples along each side of a pixel."""


class Camera:
    """Where the rays of an image meet the screw's plane; only pixels that may show the screw are kept."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.size = size
        line = (np.arange(size) + 0.5) / size - 0.5
        c, s = cos(scene.angle), sin(scene.angle)
        x, y = self._turn(scene, line[None, :], -line[:, None])
        kept = (np.abs(y) < bounding_radius(x) + 1.0 / size) & (x > -0.05) & (x < LENGTH)
        self._pixels: NDArray[np.intp] = np.flatnonzero(kept)
        x, y = x.ravel()[self._pixels], y.ravel()[self._pixels]
        within = ((np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5) / (size * scene.scale)
        right, up = (offset.ravel() for offset in np.meshgrid(within, within))
        self.X: Floats = (x[:, None] + right * c + up * s).ravel()
        """[N] place of each ray along the axis' projection, 0 at the middle of the head's face."""
        self.Y: Floats = (y[:, None] + up * c - right * s).ravel()
        """[N] place across it."""

    @staticmethod
    def _turn(scene: Scene, right: Floats, up: Floats) -> tuple[Floats, Floats]:
        """X and Y of places in the image."""
        right, up = (right - scene.place[0]) / scene.scale, (up - scene.place[1]) / scene.scale
        c, s = cos(scene.angle), sin(scene.angle)
        return right * c + up * s + 0.5 * LENGTH * cos(scene.tilt), up * c - right * s

    def pixels(self, values: Floats) -> Floats:
        """Mean over each pixel's samples, [size, size], of values [N]; 0 where there is no ray."""
        image = np.zeros(self.size * self.size)
        samples = values.reshape(-1, SUPERSAMPLING**2)
        image[self._pixels] = sum(samples[:, index] for index in range(SUPERSAMPLING**2)) / SUPERSAMPLING**2
        return image.reshape(self.size, self.size)


class Layer(NamedTuple):
    """The screw without its ground, in pixels [size, size]; and in samples [N], to be changed by a defect."""

    cover: Floats
    """Share of the pixel that the screw covers."""
    glow: Floats
    """Brightness of the screw times `cover`."""
    height: Floats
    """`cover` times the height above the table, 0 at the tip to 1 at the head."""
    samples: Floats
    """[N] brightness, NaN where the ray misses the screw."""


def render(scene: Scene, damage: Damage, camera: Camera, *, before: Layer | None = None) -> Layer:
    """The screw as it is seen. With the sound screw `before`, only the rays near the damage are cast again."""
    X, Y = camera.X, camera.Y
    if before is None:
        samples = _cast(X, Y, scene, damage)
    else:
        low, high = damage.region()
        # A place on the surface appears up to its radius times the sine of the tilt beside its place on the axis.
        margin = (HEAD_RADIUS if low < HEAD_END else CREST_RADIUS) * sin(scene.tilt) + 0.005
        near = (low * cos(scene.tilt) - margin < X) & (high * cos(scene.tilt) + margin > X)
        samples = before.samples.copy()
        samples[near] = _cast(X[near], Y[near], scene, damage)
    hit = ~np.isnan(samples)
    cover = camera.pixels(hit.astype(np.float64))
    height = camera.pixels(np.where(hit, 1.0 - np.clip(X / LENGTH, 0.0, 1.0), 0.0))
    return Layer(cover, camera.pixels(np.where(hit, samples, 0.0)), height, samples)


def _cast(X: Floats, Y: Floats, scene: Scene, damage: Damage) -> Floats:
    """Brightness [N] that the rays see, NaN where they miss the screw."""
    samples = np.full_like(X, np.nan)
    z = X / sin(scene.tilt)
    candidates = np.flatnonzero(np.abs(z) < HEAD_RADIUS)
    yc, zc = Y[candidates], z[candidates]
    rim = relief(np.zeros_like(yc), yc, zc, scene, damage).radius
    face = candidates[np.sqrt(yc * yc + zc * zc) < rim]
    samples[face] = shade_face(Y[face], z[face], scene, damage)
    rest = np.ones(X.size, dtype=bool)
    rest[face] = False
    others = np.flatnonzero(rest)
    Z = march(X[others], Y[others], scene, damage)
    met = ~np.isnan(Z)
    hits = others[met]
    samples[hits] = shade_surface(X[hits], Y[hits], Z[met], scene, damage)
    return samples
