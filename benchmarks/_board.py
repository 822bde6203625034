"""A board: solder pads, traces, a chip with two rows of legs, resistors and printed marks, always in the same places."""

from __future__ import annotations

from collections.abc import Iterable
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
    lit,
    over,
    placed,
    soften,
    towards,
    varied,
    wander,
)
from numpy.random import Generator, default_rng

Trace = tuple[Point, ...]


@dataclass(frozen=True)
class Board:
    """A board as it lies under the camera; places on it are in its own frame, with its middle at 0."""

    place: Point
    angle: float
    lacquer: Colour
    paint: Colour
    solder: Colour
    seed: int
    traces: tuple[Trace, ...]
    resistors: tuple[tuple[float, float, float], ...]
    """(x, y, angle)"""
    bridge: tuple[tuple[Point, ...], float] | None = None
    """Solder along these points, and its width."""
    smudge: tuple[int, Point] | None = None
    """The mark that was wiped while wet, and how far."""
    scratch: Stroke | None = None


LEGS: tuple[tuple[Point, ...], tuple[Point, ...]] = tuple(
    tuple((side * 0.135, -0.185 + 0.034 * k) for k in range(8)) for side in (-1, 1)
)  # type: ignore[assignment]
RESISTORS = tuple((x, 0.25, np.pi / 2) for x in (-0.32, -0.16, 0.0, 0.16, 0.32))
CONTACTS: tuple[Point, ...] = tuple((-0.36 + 0.08 * k, -0.4) for k in range(10))


def trace_layout() -> tuple[Trace, ...]:
    """The traces from the legs to the vias beside them, from the resistors to the edge and from the contacts inwards."""
    traces: list[Trace] = []
    for side, legs in zip((-1, 1), LEGS, strict=True):
        for k, (x, y) in enumerate(legs):
            end = -0.25 + 0.056 * k
            bend, slant = side * (0.2 + 0.012 * abs(k - 3.5)), side * abs(end - y)
            traces.append(((x, y), (bend, y), (bend + slant, end), (side * 0.4, end)))
    for x, y, _ in RESISTORS:
        traces += [((x, y + 0.03), (x, 0.36), (x + 0.03, 0.39), (x + 0.03, 0.55)), ((x, y - 0.03), (x, 0.19))]
    traces += [((x, y), (x, -0.34), (x + 0.02, -0.32), (x + 0.02, -0.29)) for x, y in CONTACTS]
    return tuple(traces)


def glyphs(rng: Generator, place: Point, height: float, count: int) -> tuple[Stroke, ...]:
    """Printed signs: strokes between the nodes of a 2 by 3 raster."""
    strokes = []
    for k in range(count):
        left = place[0] + 0.8 * height * k
        nodes = [(left + 0.5 * height * a, place[1] + 0.5 * height * b) for a in (0, 1) for b in (0, 1, 2)]
        order = rng.permutation(6)[: int(rng.integers(4, 6))]
        strokes.append(Stroke(tuple(nodes[n] for n in order), 0.15 * height))
    return tuple(strokes)


def mark_layout() -> tuple[tuple[Stroke, ...], ...]:
    """The printed marks, which are the same on every board."""
    rng = default_rng(4)
    places = [((x + 0.035, 0.235), 0.024, 3) for x, _, _ in RESISTORS]
    places += [
        ((-0.2, 0.125), 0.034, 9),
        ((0.16, 0.13), 0.028, 4),
        ((-0.45, -0.455), 0.022, 5),
        ((-0.05, -0.27), 0.026, 4),
    ]
    frame = (Stroke(((-0.115, -0.22), (0.115, -0.22), (0.115, 0.085), (-0.115, 0.085), (-0.115, -0.22)), 0.004),)
    return (*(glyphs(rng, *place) for place in places), frame)


TRACES, MARKS = trace_layout(), mark_layout()


def sound_board(rng: Generator) -> Board:
    x, y = rng.normal(0.5, 0.004, 2).tolist()
    resistors = tuple(
        (x + rng.normal(0, 0.0015), y + rng.normal(0, 0.0015), a + rng.normal(0, 0.02)) for x, y, a in RESISTORS
    )
    return Board(
        (x, y), rng.normal(0, 0.007), varied(rng, (0.10, 0.34, 0.20), 0.012), varied(rng, (0.86, 0.87, 0.82), 0.02),
        varied(rng, (0.68, 0.68, 0.66), 0.02), int(rng.integers(2**32)), TRACES, resistors,
    )  # fmt: skip


def box(centre: Point, half: Point, angle: float = 0.0) -> tuple[Point, ...]:
    """The corners of a rectangle."""
    (a, b) = half
    return placed([(-a, -b), (a, -b), (a, b), (-a, b)], centre, angle)


def inked(board: Board, grid: Grid, strokes: Iterable[Stroke]) -> Floats:
    """Share of each pixel that strokes in the board's frame cover."""
    return grid.ink(Stroke(placed(s.points, board.place, board.angle), s.width) for s in strokes)


def render_board(board: Board, grid: Grid) -> Floats:
    rng = default_rng(board.seed)
    fibres = 1 + 0.025 * grid.noise(rng, 120) + 0.02 * grid.noise(rng, 6)
    vias = [trace[-1] for trace in TRACES[:16]]
    copper = inked(board, grid, [Stroke(t, 0.009) for t in board.traces] + [Stroke((v, v), 0.024) for v in vias])
    raised = soften(copper, 1.2)
    matt, _ = lit(0.0018 * raised, grid.pixel)
    image = np.asarray(board.lacquer, dtype=np.float32) * (fibres * matt * (1 + 0.55 * copper))[..., None]
    image = over(image, (0.05, 0.06, 0.05), inked(board, grid, [Stroke((v, v), 0.010) for v in vias]))
    image = over(image, board.paint, printed(board, grid) * np.clip(0.88 + 0.05 * grid.noise(rng, 60), 0, 1))
    if board.scratch:
        line = inked(board, grid, [board.scratch])
        image = over(image, (0.42, 0.55, 0.42), 0.55 * line)
        image = over(image, (0.80, 0.52, 0.34), 0.8 * line * copper)
    return mounted(board, grid, soldered(board, grid, image, rng))


def printed(board: Board, grid: Grid) -> Floats:
    """Share of each pixel that has paint on it."""
    paint = inked(
        board, grid, [s for k, mark in enumerate(MARKS) if not board.smudge or k != board.smudge[0] for s in mark]
    )
    if not board.smudge:
        return paint
    mark, (dx, dy) = board.smudge
    copies = 6
    for k in range(copies):
        a, b = dx * k / copies, dy * k / copies
        wiped = inked(board, grid, [Stroke(tuple((x + a, y + b) for x, y in s.points), s.width) for s in MARKS[mark]])
        paint = np.maximum(paint, wiped * (0.75 if k == 0 else 0.5 * (1 - k / copies)))
    return paint


def soldered(board: Board, grid: Grid, image: Floats, rng: Generator) -> Floats:
    """The board [H, W, 3] with its solder: legs' and resistors' pads, contacts, and what went astray."""
    pads = [Stroke(box(leg, (0.02, 0.0095))) for legs in LEGS for leg in legs]
    pads += [Stroke(box((x, y + s * 0.032), (0.021, 0.014))) for x, y, _ in RESISTORS for s in (-1, 1)]
    pads += [Stroke((c, c), 0.046) for c in CONTACTS]
    if board.bridge:
        pads.append(Stroke(*board.bridge))
    solder = inked(board, grid, pads)
    matt, gleam = lit(0.006 * soften(solder, 2.5) + 0.00015 * grid.noise(rng, 70), grid.pixel)
    image = over(image, np.asarray(board.solder, dtype=np.float32) * matt[..., None] + 0.2 * gleam[..., None], solder)
    return over(image, (0.07, 0.07, 0.06), inked(board, grid, [Stroke((c, c), 0.02) for c in CONTACTS]))


def mounted(board: Board, grid: Grid, image: Floats) -> Floats:
    """The board with its parts: the chip, its legs and the resistors."""
    legs = [Stroke(((x * 0.7, y), (x * 1.03, y)), 0.009) for side in LEGS for x, y in side]
    chip = [Stroke(box((0, -0.066), (0.098, 0.142)))]
    ends = [Stroke(box((x, y), (0.0185, 0.034), angle - np.pi / 2)) for x, y, angle in board.resistors]
    bodies = [Stroke(box((x, y), (0.0185, 0.022), angle - np.pi / 2)) for x, y, angle in board.resistors]
    shadow = np.roll(soften(inked(board, grid, chip + ends), 3.0), round(0.008 * grid.side), (0, 1))
    image = image * (1 - 0.4 * shadow)[..., None]
    for strokes, colour, high in (
        (legs + ends, (0.76, 0.76, 0.73), 0.003),
        (bodies + chip, (0.14, 0.13, 0.14), 0.005),
    ):
        cover = inked(board, grid, strokes)
        matt, _ = lit(high * soften(cover, 2.0), grid.pixel)
        image = over(image, np.asarray(colour, dtype=np.float32) * matt[..., None], cover)
    signs = (*glyphs(default_rng(9), (-0.06, -0.08), 0.03, 5), Stroke(((-0.07, -0.18), (-0.07, -0.18)), 0.022))
    return over(image, (0.45, 0.45, 0.44), 0.8 * inked(board, grid, signs))


def broken_trace(board: Board, rng: Generator, amount: float) -> Board:
    """A trace with a piece etched away."""
    traces, k = list(board.traces), int(rng.integers(16))
    a, b, c, d = traces.pop(k)
    gap, at = between(0.008, 0.05, amount), rng.uniform(0.2, 0.5)
    length = float(np.hypot(d[0] - c[0], d[1] - c[1]))
    sign = 1 if d[0] > c[0] else -1
    start = c[0] + sign * at * max(length - gap, 0)
    traces += [
        (a, b, c, (start, c[1])),
        ((start + sign * (gap + 0.009), c[1]), (max(abs(d[0]), abs(start) + gap + 0.009) * sign, d[1])),
    ]
    return replace(board, traces=tuple(traces))


def displaced_part(board: Board, rng: Generator, amount: float) -> Board:
    """A resistor that slid and turned in the oven."""
    resistors, k = list(board.resistors), int(rng.integers(len(RESISTORS)))
    x, y, angle = resistors[k]
    dx, dy = towards(rng.uniform(0, 2 * np.pi), between(0.005, 0.022, amount))
    resistors[k] = (x + dx, y + dy, angle + float(rng.choice([-1, 1])) * between(0.06, 0.6, amount))
    return replace(board, resistors=tuple(resistors))


def solder_bridge(board: Board, rng: Generator, amount: float) -> Board:
    """Solder between neighbouring legs."""
    legs, k = LEGS[int(rng.integers(2))], int(rng.integers(7))
    (x, y), (_, below) = legs[k], legs[k + 1]
    x += (1 if x > 0 else -1) * rng.uniform(0.0, 0.012)
    line = (
        (x, y + 0.006),
        (x + rng.normal(0, 0.003), (y + below) / 2),
        (x, between(y + 0.016, below - 0.004, min(1, 2 * amount))),
    )
    return replace(board, bridge=(line, between(0.006, 0.022, amount)))


def smudged_mark(board: Board, rng: Generator, amount: float) -> Board:
    return replace(
        board,
        smudge=(int(rng.integers(len(MARKS) - 1)), towards(rng.uniform(0, 2 * np.pi), between(0.006, 0.04, amount))),
    )


def scratched_board(board: Board, rng: Generator, amount: float) -> Board:
    start = tuple(rng.uniform(-0.35, 0.35, 2).tolist())
    line = wander(rng, start, rng.uniform(0, 2 * np.pi), between(0.06, 0.3, amount), 0.04)
    return replace(board, scratch=Stroke(line, between(0.003, 0.006, amount)))


BOARD = Product(
    sound_board,
    render_board,
    {
        "broken_trace": broken_trace,
        "displaced_part": displaced_part,
        "solder_bridge": solder_bridge,
        "smudged_mark": smudged_mark,
        "scratch": scratched_board,
    },
    (0.3, 1.0),
)
