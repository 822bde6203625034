"""A tray: two-coloured capsules in six wells, all the same way round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from _drawing import Colour, Floats, Grid, Point, Product, between, distance, hump, lit, over, placed, step, varied
from numpy.random import Generator, default_rng


@dataclass(frozen=True)
class Capsule:
    """A capsule: a body with a cap pushed over its upper half."""

    shift: Point
    angle: float
    radius: float
    half: float
    """Half the length of its axis, without the round ends."""
    cap: Colour
    body: Colour
    slip: Point = (0.0, 0.0)
    """How far (along the axis) and by what angle the cap has come off."""
    dent: tuple[float, float, float, float] | None = None
    """(x, y, radius, depth)"""


@dataclass(frozen=True)
class Tray:
    """Six wells, three beside one another in two rows, each with a capsule or None."""

    shift: Point
    plastic: Colour
    seed: int
    capsules: tuple[Capsule | None, ...]


WELLS: tuple[Point, ...] = tuple((x, y) for y in (0.27, 0.73) for x in (0.2, 0.5, 0.8))


def sound_tray(rng: Generator) -> Tray:
    red, cream = varied(rng, (0.66, 0.19, 0.16), 0.015), varied(rng, (0.86, 0.80, 0.62), 0.012)
    capsules = tuple(
        Capsule(
            tuple(rng.normal(0, 0.005, 2).tolist()), rng.normal(0, 0.04), rng.normal(0.068, 0.0006), rng.normal(0.088, 0.002),
            varied(rng, red, 0.012), varied(rng, cream, 0.01),
        )
        for _ in WELLS
    )  # fmt: skip
    x, y = rng.normal(0, 0.006, 2).tolist()
    return Tray((x, y), varied(rng, (0.56, 0.6, 0.62), 0.015), int(rng.integers(2**32)), capsules)


def render_tray(tray: Tray, grid: Grid) -> Floats:
    rng = default_rng(tray.seed)
    grain = 1 + 0.012 * grid.noise(rng, 160) + 0.012 * grid.noise(rng, 5)
    centres = [(x + tray.shift[0], y + tray.shift[1]) for x, y in WELLS]
    wells = [
        distance(
            np.maximum(np.abs(grid.x - x) - 0.05, 0),
            np.maximum(np.abs(grid.y - y) - 0.13, 0),
        )
        for x, y in centres
    ]
    matt, _ = lit(-0.035 * step(0.075, 0.045, np.minimum.reduce(wells)), grid.pixel)
    image = np.asarray(tray.plastic, dtype=np.float32) * (grain * matt)[..., None]
    for centre, capsule in zip(centres, tray.capsules, strict=True):
        if capsule:
            window = grid.window(centre, (0.16, 0.24))
            place = (centre[0] + capsule.shift[0], centre[1] + capsule.shift[1])
            image[window] = lay_capsule(capsule, place, grid.part(window), image[window])
    return image


def shell(here: Grid, radius: float, half: float, seam: float | None) -> tuple[Floats, Floats]:
    """Share of each pixel that a rod with round ends covers (above `seam`, where given), and its heights."""
    away = distance(here.x, np.maximum(np.abs(here.y) - half, 0))
    outline = away - radius
    if seam is not None:
        outline = np.maximum(outline, here.y - seam)
    return here.cover(outline), np.sqrt(np.maximum(radius * radius - away * away, 1e-6))


def lay_capsule(capsule: Capsule, place: Point, grid: Grid, image: Floats) -> Floats:
    """The window [h, w, 3] with the capsule in it."""
    here = grid.seen_from(place, capsule.angle)
    off, tilt = capsule.slip
    above = grid.seen_from(placed([(0.0, -off)], place, capsule.angle)[0], capsule.angle + tilt)
    shade = distance(here.x - 0.012, np.maximum(np.abs(here.y - 0.012) - capsule.half, 0))
    image = image * (1 - 0.5 * step(capsule.radius + 0.02, capsule.radius - 0.01, shade))[..., None]
    pressed = np.zeros_like(here.x)
    if capsule.dent:
        x, y, r, depth = capsule.dent
        pressed = depth * hump(distance(here.x - x, here.y - y), r)
    for frame, radius, seam, colour in (
        (here, capsule.radius, None, capsule.body),
        (above, capsule.radius * 1.05, -0.002, capsule.cap),
    ):
        cover, height = shell(frame, radius, capsule.half, seam)
        matt, gleam = lit(height - pressed, grid.pixel)
        face = np.asarray(colour, dtype=np.float32) * (0.25 + 0.75 * np.minimum(matt, 1.4))[..., None]
        image = over(image, face + 0.45 * gleam[..., None], cover)
    return image


def with_one(tray: Tray, rng: Generator, change: Callable[[Capsule], Capsule | None]) -> Tray:
    """The tray with one of its capsules changed."""
    capsules, k = list(tray.capsules), int(rng.integers(len(WELLS)))
    sound = capsules[k]
    assert sound is not None
    capsules[k] = change(sound)
    return replace(tray, capsules=tuple(capsules))


def missing_capsule(tray: Tray, rng: Generator, amount: float) -> Tray:
    return with_one(tray, rng, lambda capsule: None)


def turned_capsule(tray: Tray, rng: Generator, amount: float) -> Tray:
    """A capsule that lies askew in its well, or upside down."""
    if amount > 0.7:
        return with_one(tray, rng, lambda capsule: replace(capsule, angle=capsule.angle + np.pi))
    askew = float(rng.choice([-1, 1])) * between(0.12, 0.45, amount)
    return with_one(tray, rng, lambda capsule: replace(capsule, angle=capsule.angle + askew))


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """The colour with a share of another in it."""
    r, g, b = (between(a, b, share) for a, b in zip(colour, other, strict=True))
    return r, g, b


def wrong_colour(tray: Tray, rng: Generator, amount: float) -> Tray:
    """A capsule with a half of another product's colour."""
    other = ((0.70, 0.38, 0.12), (0.45, 0.15, 0.35))[int(rng.integers(2))]
    share = between(0.2, 1.0, amount)
    if rng.random() < 0.5:
        return with_one(tray, rng, lambda capsule: replace(capsule, cap=mixed(capsule.cap, other, share)))
    return with_one(tray, rng, lambda capsule: replace(capsule, body=mixed(capsule.body, other, share)))


def dented(tray: Tray, rng: Generator, amount: float) -> Tray:
    x, y = rng.uniform([-0.03, -0.1], [0.03, 0.1]).tolist()
    return with_one(
        tray,
        rng,
        lambda capsule: replace(capsule, dent=(x, y, between(0.016, 0.03, amount), between(0.004, 0.018, amount))),
    )


def ajar(tray: Tray, rng: Generator, amount: float) -> Tray:
    tilt = float(rng.choice([-1, 1])) * between(0.02, 0.12, amount)
    return with_one(tray, rng, lambda capsule: replace(capsule, slip=(between(0.01, 0.035, amount), tilt)))


TRAY = Product(
    sound_tray,
    render_tray,
    {
        "missing": missing_capsule,
        "turned": turned_capsule,
        "wrong_colour": wrong_colour,
        "dent": dented,
        "ajar": ajar,
    },
    (0.0, 1.0),
)
