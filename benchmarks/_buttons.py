"""Buttons: one large button with four holes, turned freely, on cloth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from _drawing import (
    Colour,
    Floats,
    Grid,
    Point,
    Product,
    Stroke,
    between,
    blot,
    distance,
    hump,
    lit,
    over,
    placed,
    ripples,
    soften,
    step,
    towards,
    varied,
    wander,
)
from numpy.random import Generator, default_rng


@dataclass(frozen=True)
class Button:
    """A four-hole button on cloth; places on it are in its own frame."""

    centre: Point
    angle: float
    radius: float
    colour: Colour
    cloth: Colour
    seed: int
    holes: tuple[tuple[float, float, float], ...]
    """(x, y, radius)"""
    chips: tuple[tuple[float, float, float], ...] = ()
    crack: Stroke | None = None
    scratch: Stroke | None = None
    burn: tuple[float, float, float, float] | None = None
    """(x, y, radius, share)"""


def sound_button(rng: Generator) -> Button:
    x, y, radius = rng.uniform([0.47, 0.47, 0.345], [0.53, 0.53, 0.36]).tolist()
    holes = tuple(
        (*towards(np.pi / 4 + k * np.pi / 2, rng.normal(0.105, 0.0012)), rng.normal(0.036, 0.0008)) for k in range(4)
    )
    colour, cloth = varied(rng, (0.20, 0.34, 0.50), 0.02), varied(rng, (0.72, 0.67, 0.58), 0.015)
    return Button((x, y), rng.uniform(0, 2 * np.pi), radius, colour, cloth, int(rng.integers(2**32)), holes)


def cloth_under(button: Button, grid: Grid, rng: Generator) -> Floats:
    """The cloth [H, W, 3] with the button's shadow."""
    phase, turn = rng.uniform(0, 1, 2).tolist()
    lines = np.sin(2 * np.pi * (46 * (grid.x + (0.8 + 0.1 * turn) * grid.y) + phase))
    cross = np.sin(2 * np.pi * 60 * (grid.x - grid.y + phase))
    relief = 1 + 0.07 * lines + 0.035 * cross * (lines > 0) + 0.035 * grid.noise(rng, 90) + 0.02 * grid.noise(rng, 6)
    away = distance(grid.x - (button.centre[0] + 0.012), grid.y - (button.centre[1] + 0.016))
    shadow = 1 - 0.55 * step(button.radius + 0.03, button.radius - 0.02, away)
    return np.asarray(button.cloth, dtype=np.float32) * (relief * shadow)[..., None]


def render_button(button: Button, grid: Grid) -> Floats:
    rng = default_rng(button.seed)
    image = cloth_under(button, grid, rng)
    here = grid.seen_from(button.centre, button.angle)
    away = distance(here.x, here.y)
    hole = np.minimum.reduce([distance(here.x - x, here.y - y) - r for x, y, r in button.holes])
    solid = np.maximum(away - button.radius, -hole)
    marble = ripples(rng, here.x, here.y, 3)
    marble = np.sin(5 * marble + 9 * here.x) * 0.5 + ripples(rng, here.x, here.y, 14) * 0.5
    for x, y, r in button.chips:
        ragged = 0.25 * r * ripples(default_rng(button.seed), here.x, here.y, 0.6 / r)
        solid = np.maximum(solid, r + ragged - distance(here.x - x, here.y - y))
    rim = away / button.radius
    height = 0.016 * hump(rim - 0.86, 0.1) - 0.03 * step(0.92, 1.0, rim) - 0.01 * step(0.72, 0.55, rim)
    height -= 0.008 * hump(hole, 0.008) + 0.006 * hump(solid, 0.006)
    groove = grid.ink([button.scratch] if button.scratch else [])
    split = grid.ink([button.crack] if button.crack else [])
    height -= 0.0022 * soften(groove, 1.0) + 0.006 * soften(split, 1.2)
    matt, gleam = lit(height, grid.pixel)
    face = np.asarray(button.colour, dtype=np.float32) * (1 + 0.13 * marble)[..., None]
    face = over(face, (0.45, 0.53, 0.6), 0.3 * groove)
    if button.burn:
        x, y, r, share = button.burn
        face = over(face, (0.30, 0.24, 0.20), share * blot(default_rng(button.seed), here, (x, y), r))
    face = face * matt[..., None] + 0.22 * gleam[..., None]
    face = over(face, (0.06, 0.08, 0.1), 0.8 * split)
    return over(image, face, grid.cover(solid))


def missing_hole(button: Button, rng: Generator, amount: float) -> Button:
    """A hole that the drill only began, or missed."""
    holes, k = list(button.holes), int(rng.integers(4))
    x, y, r = holes.pop(k)
    if amount < 0.8:
        holes.append((x, y, r * between(0.82, 0.25, amount / 0.8)))
    return replace(button, holes=tuple(holes))


def chipped_rim(button: Button, rng: Generator, amount: float) -> Button:
    r = between(0.016, 0.065, amount)
    angle = rng.uniform(0, 2 * np.pi)
    bites = [
        (*towards(angle, button.radius + 0.35 * r), r),
        (*towards(angle + 1.1 * r / button.radius, button.radius), 0.6 * r),
    ]
    return replace(button, chips=tuple(bites))


def crack_from_hole(button: Button, rng: Generator, amount: float) -> Button:
    x, y, r = button.holes[int(rng.integers(4))]
    angle = float(np.arctan2(y, x)) + rng.normal(0, 0.5)
    dx, dy = towards(angle, r)
    line = wander(rng, (x + dx, y + dy), angle, between(0.05, 0.21, amount), 0.3)
    return replace(button, crack=Stroke(placed(line, button.centre, button.angle), between(0.0022, 0.005, amount)))


def scratched(button: Button, rng: Generator, amount: float) -> Button:
    start = towards(rng.uniform(0, 2 * np.pi), rng.uniform(0.18, 0.24))
    heading = float(np.arctan2(-start[1], -start[0])) + float(rng.choice([-1, 1])) * rng.uniform(0.6, 1.2)
    line = wander(rng, start, heading, between(0.08, 0.3, amount), 0.04)
    return replace(button, scratch=Stroke(placed(line, button.centre, button.angle), between(0.003, 0.0065, amount)))


def burnt(button: Button, rng: Generator, amount: float) -> Button:
    x, y = towards(rng.uniform(0, 2 * np.pi), rng.uniform(0.17, 0.27))
    return replace(button, burn=(x, y, between(0.04, 0.10, amount), between(0.3, 0.9, amount)))


BUTTONS = Product(
    sound_button,
    render_button,
    {
        "missing_hole": missing_hole,
        "chipped_rim": chipped_rim,
        "crack": crack_from_hole,
        "scratch": scratched,
        "burn": burnt,
    },
    (0.0, 1.0),
)
