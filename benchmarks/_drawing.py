"""What the drawn products of `objects.py` are made of: coordinates, inked lines, noise, light, a camera, masks.

Lengths are shares of the image's width, x to the right and y down, brightness 0 to 1, angles radians. Drawings have twice
the side of the photograph that is taken of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.floating[Any]]
Point = tuple[float, float]
Colour = tuple[float, float, float]

LIGHT = (-0.451, -0.551, 0.702)
"""Towards the lamp, a unit vector: above the object, on the left and behind it."""
BETWEEN_LAMP_AND_CAMERA = (-0.244, -0.299, 0.923)
"""The unit vector along which a glossy surface faces when it mirrors the lamp."""
VISIBLE = 5 / 255
"""A pixel belongs to a defect where it changes a colour channel by more than this."""


class Stroke(NamedTuple):
    """A line through points; a filled polygon where its width is 0."""

    points: tuple[Point, ...]
    width: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Places [H, W] of a drawing's pixels, and their side."""

    x: Floats
    y: Floats
    pixel: float

    @classmethod
    def of(cls, size: int) -> Grid:
        """The drawing for a photograph of `size` pixels."""
        line = ((np.arange(2 * size) + 0.5) / (2 * size)).astype(np.float32)
        x, y = np.meshgrid(line, line)
        return cls(x, y, 0.5 / size)

    @property
    def side(self) -> int:
        """Pixels along an edge of the whole drawing."""
        return round(1 / self.pixel)

    def window(self, centre: Point, half: Point) -> tuple[slice, slice]:
        """Rows and columns within `half` of the centre."""
        (x, y), n = centre, self.side
        rows = slice(max(0, int((y - half[1]) * n)), int((y + half[1]) * n) + 1)
        return rows, slice(max(0, int((x - half[0]) * n)), int((x + half[0]) * n) + 1)

    def part(self, window: tuple[slice, slice]) -> Grid:
        """The places of a window."""
        return Grid(self.x[window], self.y[window], self.pixel)

    def seen_from(self, centre: Point, angle: float) -> Grid:
        """The same pixels in the frame of something that stands at `centre`, turned by `angle`."""
        c, s = float(np.cos(angle)), float(np.sin(angle))
        x, y = self.x - centre[0], self.y - centre[1]
        return Grid(x * c + y * s, y * c - x * s, self.pixel)

    def cover(self, outline: Floats) -> Floats:
        """Share 0 to 1 of each pixel that lies inside, of signed distances (negative inside)."""
        return np.clip(0.5 - outline / self.pixel, 0.0, 1.0)

    def ink(self, strokes: Iterable[Stroke]) -> Floats:
        """Share 0 to 1 of each pixel of the whole drawing that strokes cover."""
        scale = 2 * self.side
        sheet = Image.new("L", (scale, scale))
        pen = ImageDraw.Draw(sheet)
        for stroke in strokes:
            points = [(x * scale, y * scale) for x, y in stroke.points]
            if not stroke.width:
                pen.polygon(points, fill=255)
                continue
            width = max(1, round(stroke.width * scale))
            pen.line(points, fill=255, width=width, joint="curve")
            for x, y in (points[0], points[-1]):
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
        return np.asarray(sheet.reduce(2), dtype=np.float32) / 255

    def noise(self, rng: Generator, cells: int) -> Floats:
        """Smooth noise of about unit variance over the whole drawing, `cells` bumps along an edge."""
        coarse = Image.fromarray(rng.standard_normal((cells + 1, cells + 1)).astype(np.float32))
        return np.asarray(coarse.resize((self.side, self.side), Image.Resampling.BICUBIC))


def over(image: Floats, colour: Colour | Floats, share: Floats) -> Floats:
    """The image [H, W, 3] with a colour laid over a share 0 to 1 of each pixel."""
    return image + (np.asarray(colour, dtype=np.float32) - image) * share[..., None]


def step(low: float, high: float, value: Floats) -> Floats:
    """0 at `low` and beyond, 1 at `high` and beyond, smooth between; `low` may be the larger."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return share * share * (3 - 2 * share)


def hump(value: Floats, width: float) -> Floats:
    """Gaussian bump of height 1 about 0."""
    return np.exp(-((value / width) ** 2))


def ripples(rng: Generator, x: Floats, y: Floats, per_width: float, waves: int = 5) -> Floats:
    """Noise in -1 to 1 at any places, of plane waves with about `per_width` periods along the image's width."""
    total = np.zeros_like(x)
    for angle, rate, phase in rng.uniform([0, 0.6, 0], [np.pi, 1.4, 2 * np.pi], (waves, 3)).tolist():
        k = 2 * np.pi * per_width * rate
        total += np.sin(k * float(np.cos(angle)) * x + k * float(np.sin(angle)) * y + phase)
    return total / waves


def soften(share: Floats, sigma: float) -> Floats:
    """Gaussian blur of shares 0 to 1 [H, W], sigma in pixels of the drawing."""
    sheet = Image.fromarray(np.rint(share * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(sheet, dtype=np.float32) / 255


def out_of_focus(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of a photograph [H, W, C], sigma in its pixels."""
    reach = int(3 * sigma + 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for _ in range(2):
        padded = np.pad(image, [(reach, reach), (0, 0), (0, 0)], mode="edge")
        image = np.zeros_like(image)
        for k, weight in enumerate((weights / weights.sum()).tolist()):
            image += weight * padded[k : k + len(image)]
        image = image.swapaxes(0, 1)
    return image


def distance(x: Floats, y: Floats) -> Floats:
    """Length of vectors; several times as fast as hypot, which guards against numbers that do not occur here."""
    return np.sqrt(x * x + y * y)


def lit(height: Floats, pixel: float) -> tuple[Floats, Floats]:
    """Brightness of a matt surface (1 where flat) and gleam 0 to 1 of a glossy one, of its heights."""
    down, right = np.gradient(height, pixel)
    steep = 1 / np.sqrt(1 + down * down + right * right)
    matt = (LIGHT[2] - LIGHT[0] * right - LIGHT[1] * down) * steep
    mirrored = BETWEEN_LAMP_AND_CAMERA
    gleam = np.clip((mirrored[2] - mirrored[0] * right - mirrored[1] * down) * steep, 0, 1)
    for _ in range(5):
        gleam *= gleam
    return np.maximum(matt / LIGHT[2], 0), gleam


def wander(
    rng: Generator, start: Point, angle: float, length: float, turn: float, steps: int = 14
) -> tuple[Point, ...]:
    """A line that bends as it goes, by about `turn` a step."""
    points = [start]
    for _ in range(steps):
        angle += turn * float(rng.standard_normal())
        x, y = points[-1]
        points.append((x + length / steps * float(np.cos(angle)), y + length / steps * float(np.sin(angle))))
    return tuple(points)


def placed(points: Sequence[Point], centre: Point, angle: float) -> tuple[Point, ...]:
    """Points of a frame that stands at `centre`, turned by `angle`, in the image."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return tuple((centre[0] + x * c - y * s, centre[1] + x * s + y * c) for x, y in points)


def varied(rng: Generator, colour: Colour, spread: float) -> Colour:
    """A colour of another lot: brighter or darker, and a little shifted."""
    level, (r, g, b) = rng.normal(0, spread), rng.normal(0, spread / 3, 3).tolist()
    return colour[0] + level + r, colour[1] + level + g, colour[2] + level + b


def reduced(drawing: Floats) -> Floats:
    """Half as many pixels along each edge."""
    return (drawing[::2, ::2] + drawing[1::2, ::2] + drawing[::2, 1::2] + drawing[1::2, 1::2]) / 4


def photograph(drawing: Floats, rng: Generator) -> NDArray[np.uint8]:
    """A photograph [size, size, 3] under light of uneven level, slightly out of focus, with the sensor's noise."""
    image = reduced(drawing)
    line = (np.arange(len(image)) / len(image) - 0.5).astype(np.float32)
    across, along, level = rng.uniform([-0.12, -0.12, 0.95], [0.12, 0.12, 1.05]).tolist()
    image *= ((1 + across * line[None, :] + along * line[:, None]) * level)[..., None]
    image = out_of_focus(image, rng.uniform(0.35, 0.75))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * (0.006 + 0.012 * np.sqrt(np.clip(image, 0, 1)))
    return np.rint(np.clip(image + grain, 0, 1) * 255).astype(np.uint8)


def changed(sound: Floats, damaged: Floats) -> NDArray[np.uint8]:
    """The mask [size, size], 0 or 255, of what differs between two drawings."""
    return np.where(np.abs(reduced(damaged) - reduced(sound)).max(axis=2) > VISIBLE, 255, 0).astype(np.uint8)


class Product(NamedTuple):
    """How a product is drawn: a scene is what varies between its images."""

    sound: Callable[[Generator], Any]
    """The scene of a sound product, drawn by lot."""
    render: Callable[[Any, Grid], Floats]
    """The drawing [H, W, 3] of a scene."""
    defects: dict[str, Callable[[Any, Generator, float], Any]]
    """{kind: how it changes a scene, by lot and by an amount, 0 (barely visible) to 1 (clear)}"""
    strength: tuple[float, float]
    """The amounts of the faintest and the clearest defect."""


def between(low: float, high: float, amount: float) -> float:
    """From `low` at amount 0 to `high` at 1."""
    return low + (high - low) * amount


def towards(angle: float, far: float) -> Point:
    """The point at this distance from the origin."""
    return far * float(np.cos(angle)), far * float(np.sin(angle))


def blot(rng: Generator, grid: Grid, centre: Point, radius: float) -> Floats:
    """Share 0 to 1 of a spot with a soft, uneven edge."""
    x, y = grid.x - centre[0], grid.y - centre[1]
    return step(1.0, 0.45, distance(x, y) / radius + 0.35 * ripples(rng, x, y, 0.5 / radius))
