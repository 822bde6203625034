"""Charts as plain data in pixels, which a template draws as inline SVG.

Colours then follow the reader's theme and the printer, points are links into the page, and the page of a study with 200 trials
stays small; the script or the outlined fonts of a plotting library would prevent that.
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
"""Size in pixels of a chart that stands beside another one; its letters can be read on a phone."""

LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 14.0, 46.0
"""Margins of the plot within a chart, in pixels."""
LETTER = 8.0
"""Pixels that a letter of a label takes at most, bold or not."""


@dataclass(frozen=True)
class Mark:
    """One shape of a chart: a point, line, bar or label. Positions are pixels from the upper left corner."""

    shape: Shape
    css: str
    """Class in the style sheet, which gives the colour."""
    points: tuple[Point, ...]
    """Two or more points for a line, two opposite corners for a bar, one point for every other shape."""
    title: str = ""
    """Text that appears when the pointer rests on the shape."""
    target: str = ""
    """Id of the page's element that the shape links to; empty for no link."""
    text: str = ""
    """Text of a label; other shapes have none."""
    anchor: Anchor = "start"
    """Which end of a label lies at its point."""


@dataclass(frozen=True)
class Tick:
    """A value that is written on an axis."""

    at: float
    """Pixel on the axis."""
    text: str


@dataclass(frozen=True)
class Axis:
    """The name and the ticks below or left of a chart."""

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
    """What a screen reader reads out."""
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
        """Pixel at which the plot ends on the right."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Pixel at which the plot ends at the bottom."""
        return self.height - BOTTOM


@dataclass(frozen=True)
class Table:
    """Column names and rows of values."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    targets: tuple[str, ...] = ()
    """Ids of the page's elements that the first cells of the rows link to, one for each row; empty for no links."""


@dataclass(frozen=True)
class Figure:
    """A chart with a caption, and its values as a table."""

    title: str
    caption: str
    chart: Chart
    table: Table
    wide: bool = False
    """Whether the chart takes the whole width of the page."""


@dataclass(frozen=True)
class Scale:
    """Converts values to pixels, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value, rounded to a tenth; values beyond an end are put at that end."""
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6, *, whole: bool = False) -> tuple[Tick, ...]:
        """At most about `most` round values within the range; only whole numbers with `whole`."""
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
    """A scale that contains all of `values` and a margin on both sides.

    Args:
        values: those that are not finite are ignored, and with `log` those that are not above 0.
        pixels: where the lowest and the highest value lie.
        margin: share of the range that is added on each side.
        within: the scale does not go beyond these values (not used with `log`).
    """
    usable = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(usable), max(usable)
    if log:
        air = max((high / low) ** margin, 1.1)
        return Scale(low / air, high * air, *pixels, log=True)
    air = (high - low) * margin or max(abs(high) * margin, 1e-3)
    return Scale(max(low - air, within[0]), min(high + air, within[1]), *pixels)


def number(value: float) -> str:
    """A number as a tick or a caption shows it, with at most five significant digits."""
    rounded = float(f"{value:.5g}")
    return f"{rounded:g}" if abs(rounded) < 1e5 else f"{rounded:.0f}"


@dataclass
class Labels:
    """Places names beside points so that none covers another; a name for which there is no room is left out.

    The four sides bound the area in which names may lie; `taken` are the boxes (left, top, right, bottom) in use. All in pixels.
    """

    left: float
    right: float
    top: float
    bottom: float
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(self, point: Point, text: str, *, css: str = "name", target: str = "") -> list[Mark]:
        """The label in a list; an empty list if there is no room for it."""
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
        """Keep names off a point, or off the vertical or horizontal line from the point to `end`; `radius` in pixels."""
        (x, x_end), (y, y_end) = (sorted(pair) for pair in zip(point, end or point, strict=True))
        self.taken.append((x - radius, y - radius, x_end + radius, y_end + radius))


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def bars(name: str, rows: Sequence[tuple[str, float, str]], *, css: str = "accent", most: float | None = None) -> Chart:
    """Horizontal bars.

    Args:
        rows: (name, value of at least 0, text behind the bar).
        css: class of the bars, which gives their colour.
        most: value of the longest possible bar; default the largest one in `rows`.
    """
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
    """The text cut to at most `most` letters, with an ellipsis at the end if it was longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
