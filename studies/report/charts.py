"""Charts as plain data in pixels. A template draws them as inline SVG: colours then follow the reader's theme and the printer,
points are links into the page, and a file of 200 trials stays small, which a plotting library's script or outlined fonts prevent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.ticker import LogLocator, MaxNLocator

Shape = Literal["dot", "ring", "diamond", "triangle", "cross", "line", "bar", "label"]
Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]

WIDTH, HEIGHT = 480.0, 300.0
"""Of a chart that stands beside another one; small enough for its letters to be read on a phone."""
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 14.0, 46.0
LETTER = 8.0
"""Width that a letter of a label takes, bold ones included."""


@dataclass(frozen=True)
class Mark:
    """One thing that is drawn."""

    shape: Shape
    css: str
    """Class, which gives the colour."""
    points: tuple[Point, ...]
    """One; of a line two or more, of a bar two opposite corners."""
    title: str = ""
    """Shown where the pointer rests on it."""
    target: str = ""
    """Id of the element that it links to."""
    text: str = ""
    """Of a label."""
    anchor: Anchor = "start"


@dataclass(frozen=True)
class Tick:
    """A place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """What stands below or left of a chart."""

    name: str
    ticks: tuple[Tick, ...] = ()


@dataclass(frozen=True)
class Key:
    """An entry of the legend."""

    shape: Shape
    css: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A whole chart; the plot lies within the margins."""

    name: str
    """What a screen reader says it is."""
    marks: tuple[Mark, ...]
    x: Axis | None = None
    y: Axis | None = None
    legend: tuple[Key, ...] = ()
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    top: float = TOP

    @property
    def right(self) -> float:
        """Where the plot ends."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Where the plot ends."""
        return self.height - BOTTOM


@dataclass(frozen=True)
class Table:
    """Heads and rows; `targets` are the ids of the elements that the rows' first cells link to."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A chart with what it says, and the same in a table."""

    title: str
    says: str
    chart: Chart
    table: Table
    wide: bool = False
    """Whether it takes the whole width of the page."""


@dataclass(frozen=True)
class Scale:
    """Values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value, rounded to what can be seen; values beyond the ends stay at the ends."""
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6, *, whole: bool = False) -> tuple[Tick, ...]:
        """Round values within the range, with `whole` only whole numbers."""
        if self.log:
            values = LogLocator(base=10, subs=(1, 2, 5), numticks=12).tick_values(self.low, self.high)
        else:
            locator = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=whole)
            values = locator.tick_values(self.low, self.high)
        slack = (self.high - self.low) * 1e-9
        inside = [float(value) for value in values if self.low - slack <= value <= self.high + slack]
        return tuple(Tick(self(value), number(value)) for value in inside)


def scale(
    values: Iterable[float],
    pixels: tuple[float, float],
    *,
    log: bool = False,
    margin: float = 0.05,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Scale:
    """One that holds all of `values`, with some air on both sides as far as `within` allows."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(found), max(found)
    if log:
        air = max((high / low) ** margin, 1.1)
        return Scale(low / air, high * air, *pixels, log=True)
    air = (high - low) * margin or max(abs(high) * margin, 1e-3)
    return Scale(max(low - air, within[0]), min(high + air, within[1]), *pixels)


def number(value: float) -> str:
    """Of a tick: no digit too much."""
    rounded = float(f"{value:.5g}")
    return f"{rounded:g}" if abs(rounded) < 1e5 else f"{rounded:.0f}"


@dataclass
class Labels:
    """Places names beside points so that none lies on another, or leaves it out where there is no room."""

    left: float
    right: float
    top: float
    bottom: float
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(self, point: Point, text: str, *, css: str = "name", target: str = "") -> list[Mark]:
        """The label as a list, empty where it finds no place."""
        width, height = LETTER * len(text), 14.0
        x, y = point
        places: Sequence[tuple[float, float, Anchor]] = (
            (x + 9, y + 4, "start"),
            (x - 9, y + 4, "end"),
            (x, y - 10, "middle"),
            (x, y + 19, "middle"),
        )
        for at_x, at_y, anchor in places:
            begin = at_x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (begin, at_y - height + 3, begin + width, at_y + 3)
            inside = self.left <= box[0] and box[2] <= self.right and self.top <= box[1] and box[3] <= self.bottom
            if inside and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                return [
                    Mark("label", css, ((round(at_x, 1), round(at_y, 1)),), text=text, anchor=anchor, target=target)
                ]
        return []

    def avoid(self, point: Point, end: Point | None = None, *, radius: float = 7.0) -> None:
        """Keep names off a point, or off an upright or level line from there to its end."""
        (x, x_end), (y, y_end) = (sorted(pair) for pair in zip(point, end or point, strict=True))
        self.taken.append((x - radius, y - radius, x_end + radius, y_end + radius))


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def bars(name: str, rows: Sequence[tuple[str, float, str]], *, css: str = "accent", most: float | None = None) -> Chart:
    """Horizontal bars of (name, value from 0 on, text behind the bar)."""
    left = min(210.0, 14 + LETTER * max((len(label) for label, _, _ in rows), default=0))
    behind = 14 + LETTER * max((len(text) for _, _, text in rows), default=0)
    across = Scale(0.0, most or max((value for _, value, _ in rows), default=1.0) or 1.0, left, WIDTH - RIGHT - behind)
    marks: list[Mark] = []
    for index, (label, value, text) in enumerate(rows):
        y = 10.0 + 26 * index
        end = across(value)
        marks += [
            Mark("label", "tick", ((left - 8, y + 14),), text=shortened(label, 28), anchor="end", title=label),
            Mark("bar", css, ((left, y), (max(end, left + 1), y + 18)), title=f"{label}: {text}"),
            Mark("label", "tick", ((max(end, left + 1) + 6, y + 14),), text=text),
        ]
    return Chart(name, tuple(marks), height=20.0 + 26 * len(rows), left=left)


def shortened(text: str, most: int) -> str:
    """At most so many letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
