"""A weave: twill of two colours that fills the image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from _drawing import Colour, Floats, Grid, Point, Product, Stroke, between, blot, hump, over, soften, varied, wander
from numpy.random import Generator, default_rng


@dataclass(frozen=True)
class Weave:
    """A two-coloured twill; places in it are in threads (x across the warp, y across the weft)."""

    angle: float
    phase: Point
    warp: Colour
    weft: Colour
    seed: int
    gap: tuple[int, float, float] | None = None
    """Warp thread and from where to where it is missing."""
    slub: tuple[int, float, float, float] | None = None
    """Warp thread, middle and half length of its thick place, and how much thicker it is."""
    skip: tuple[int, int, float, float, float] | None = None
    """First warp thread, number of threads, from where to where, and +1 or -1: they lie above or below throughout."""
    smear: tuple[float, float, float, float] | None = None
    """(x, y, radius, share), in the image"""
    fibre: Stroke | None = None


THREADS = 30
"""Along an edge of the image."""


def sound_weave(rng: Generator) -> Weave:
    phase = tuple(rng.uniform(0, 4, 2).tolist())
    return Weave(
        rng.normal(0, 0.012), phase, varied(rng, (0.25, 0.36, 0.47), 0.012), varied(rng, (0.70, 0.58, 0.40), 0.015),
        int(rng.integers(2**32)),
    )  # fmt: skip


def yarn(across: Floats, wave: Floats, width: Floats, along: Floats) -> tuple[Floats, Floats]:
    """Brightness and height of threads, of the place across (0 in the middle), its rise -1 to 1 and half its width."""
    share = np.clip(np.abs(across) / np.maximum(width, 1e-3), 0, 1)
    round_ = np.sqrt(1 - share * share)
    twist = 1 + 0.07 * np.sin(2 * np.pi * (1.6 * along + 1.2 * across))
    height = np.where(np.abs(across) < width, 0.45 * round_ + 0.5 * wave, -9)
    return (0.45 + 0.55 * round_) * (0.86 + 0.14 * wave) * twist, height


def render_weave(weave: Weave, grid: Grid) -> Floats:
    rng = default_rng(weave.seed)
    here = grid.seen_from((0.5, 0.5), weave.angle)
    u = here.x * THREADS + (weave.phase[0] + THREADS) + 0.10 * grid.noise(rng, 7)
    v = here.y * THREADS + (weave.phase[1] + THREADS) + 0.10 * grid.noise(rng, 7)
    i, j = np.floor(u), np.floor(v)
    warp_number, weft_number = i.astype(np.intp), j.astype(np.intp)
    wide = rng.normal(0.45, 0.015, (2, 99)).astype(np.float32)
    tint = rng.normal(1, 0.025, (2, 99)).astype(np.float32)
    width = wide[0][warp_number]
    rise = np.sin(np.pi / 2 * (v + i))
    if weave.gap:
        thread, start, end = weave.gap
        width = np.where((i == thread) & (v > start) & (v < end), 0, width)
    if weave.skip:
        thread, count, start, end, sign = weave.skip
        rise = np.where((i >= thread) & (i < thread + count) & (v > start) & (v < end), sign, rise)
    warp, warp_height = yarn(u - i - 0.5, rise, width, v)
    weft, weft_height = yarn(v - j - 0.5, -np.sin(np.pi / 2 * (u + j)), wide[1][weft_number], u)
    warp = warp * tint[0][warp_number]
    if weave.slub:
        thread, middle, length, more = weave.slub
        broad = wide[0][thread] * (1 + more * hump(v - middle, length))
        thick, thick_height = yarn(u - (thread + 0.5), np.sin(np.pi / 2 * (v + thread)), broad, v)
        higher = thick_height + 0.4 * (broad / wide[0][thread] - 1) > warp_height
        warp, warp_height = np.where(higher, thick * tint[0][thread], warp), np.maximum(warp_height, thick_height)
    return finish_weave(weave, grid, warp, (weft * tint[1][weft_number]), (warp_height, weft_height), rng)


def finish_weave(
    weave: Weave, grid: Grid, warp: Floats, weft: Floats, heights: tuple[Floats, Floats], rng: Generator
) -> Floats:
    """The cloth [H, W, 3] of both systems' brightness and heights, with what lies on it."""
    uneven = 1 + 0.02 * grid.noise(rng, 5) + 0.03 * grid.noise(rng, 250)
    on_top = (heights[0] > heights[1])[..., None]
    image = np.where(
        on_top,
        warp[..., None] * np.asarray(weave.warp, dtype=np.float32),
        weft[..., None] * np.asarray(weave.weft, dtype=np.float32),
    )
    image = np.where((np.maximum(*heights) < -1)[..., None], 0.07, image) * uneven[..., None]
    if weave.smear:
        x, y, r, share = weave.smear
        image = image * (1 - share * blot(default_rng(weave.seed), grid, (x, y), r))[..., None]
    if weave.fibre:
        line = grid.ink([weave.fibre])
        image = image * (1 - 0.4 * soften(line, 3.0))[..., None]
        image = over(image, (0.62, 0.22, 0.2), line)
    return image


def middle_thread(rng: Generator) -> tuple[int, float]:
    """A thread of the warp and a place on it, well within the image."""
    return int(rng.integers(THREADS // 2 + 8, THREADS * 3 // 2 - 4)), float(
        rng.uniform(THREADS / 2 + 8, THREADS * 1.5 - 4)
    )


def missing_thread(weave: Weave, rng: Generator, amount: float) -> Weave:
    thread, middle = middle_thread(rng)
    half = between(1.2, 9, amount)
    return replace(weave, gap=(thread, middle - half, middle + half))


def thick_thread(weave: Weave, rng: Generator, amount: float) -> Weave:
    thread, middle = middle_thread(rng)
    return replace(weave, slub=(thread, middle, between(1.2, 6, amount), between(0.35, 1.1, amount)))


def misweave(weave: Weave, rng: Generator, amount: float) -> Weave:
    """Threads that float above or below the others where they should cross."""
    thread, middle = middle_thread(rng)
    half, count = between(1.5, 3.5, amount), round(between(1, 4, amount))
    return replace(weave, skip=(thread, count, middle - half, middle + half, float(rng.choice([-1, 1]))))


def smeared(weave: Weave, rng: Generator, amount: float) -> Weave:
    x, y = rng.uniform(0.15, 0.85, 2).tolist()
    return replace(weave, smear=(x, y, between(0.05, 0.13, amount), between(0.12, 0.4, amount)))


def foreign_fibre(weave: Weave, rng: Generator, amount: float) -> Weave:
    start = tuple(rng.uniform(0.25, 0.75, 2).tolist())
    line = wander(rng, start, rng.uniform(0, 2 * np.pi), between(0.05, 0.25, amount), 0.35)
    return replace(weave, fibre=Stroke(line, between(0.0025, 0.006, amount)))


WEAVE = Product(
    sound_weave,
    render_weave,
    {
        "missing_thread": missing_thread,
        "thick_thread": thick_thread,
        "misweave": misweave,
        "smear": smeared,
        "fibre": foreign_fibre,
    },
    (0.35, 1.3),
)
