"""The white table below the screw: its light, its dust, and the screw's shadow on it."""

from __future__ import annotations

from math import cos, hypot, pi, sin, sqrt

import numpy as np
from scipy import ndimage

from detectors.data.rendered.camera import Layer
from detectors.data.rendered.screw import Floats, Scene


def draw_ground(rng: np.random.Generator, scene: Scene, size: int) -> Floats:
    """Brightness of the table without the screw, [size, size]: uneven light, clouds, fibres' texture and specks."""
    line = (np.arange(size) + 0.5) / size - 0.5
    right, up = line[None, :], -line[:, None]
    gradient = rng.normal(0.0, 0.012, 2)
    ground = scene.tone + gradient[0] * right + gradient[1] * up - rng.uniform(0.02, 0.06) * (right**2 + up**2)
    for cells, strength in ((7, 0.005), (25, 0.0022), (75, 0.0016)):
        cloud = rng.standard_normal((cells, cells)) * strength
        ground += _stretch(_stretch(cloud, size).T, size)
    for _ in range(int(rng.poisson(5.0))):
        _speck(ground, rng)
    return np.asarray(ground)


def _stretch(values: Floats, rows: int) -> Floats:
    """Linear interpolation of [n, m] to [rows, m]."""
    place = np.linspace(0.0, len(values) - 1.0, rows)
    index = np.minimum(place.astype(np.intp), len(values) - 2)
    share = (place - index)[:, None]
    return values[index] * (1.0 - share) + values[index + 1] * share


def _speck(ground: Floats, rng: np.random.Generator) -> None:
    """Lay one grain of dust or short fibre on the ground, in place."""
    size = ground.shape[0]
    x, y = rng.uniform(-0.5, 0.5, 2)
    radius, turn = rng.uniform(0.0012, 0.0032), rng.uniform(0.0, pi)
    longer, depth = rng.uniform(1.0, 4.0), rng.uniform(0.008, 0.030)
    reach = 3.0 * radius * longer
    columns, rows = (
        slice(max(0, int((at - reach + 0.5) * size)), max(0, int((at + reach + 0.5) * size) + 1)) for at in (x, y)
    )
    line = (np.arange(size) + 0.5) / size - 0.5
    u, v = line[None, columns] - x, line[rows, None] - y
    along, across = (u * cos(turn) + v * sin(turn)) / longer, v * cos(turn) - u * sin(turn)
    ground[rows, columns] -= depth * np.exp(-(along**2 + across**2) / (2.0 * radius * radius))


def in_shadow(ground: Floats, layer: Layer, scene: Scene) -> Floats:
    """The ground [size, size] in the screw's soft shadow, widest and darkest at the raised head."""
    size = ground.shape[0]
    right, up, _ = scene.light
    away = hypot(right, up)
    down, across = round(up / away * 0.030 * size), round(-right / away * 0.030 * size)
    margin = max(abs(down), abs(across))
    near = _blur(layer.cover, 0.012 * size)
    wide = _blur(np.pad(0.25 * layer.cover + 1.1 * layer.height, margin), 0.050 * size)
    wide = wide[margin - down : margin - down + size, margin - across : margin - across + size]
    return ground * (1.0 - 0.17 * near) * (1.0 - 0.42 * np.minimum(wide, 1.0))


def _blur(values: Floats, sigma: float) -> Floats:
    """Nearly Gaussian blur: three box filters, whose time does not grow with sigma."""
    width = max(1, round(sqrt(4.0 * sigma * sigma + 1.0)))
    for _ in range(3):
        values = ndimage.uniform_filter(values, width, mode="constant")
    return values
