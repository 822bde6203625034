"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from studies.file.encoding import encode


def console(*, stderr: bool = False) -> Console:
    """A console for standard output, or standard error, that is 200 columns wide if the output is a file or a pipe."""
    detected = Console(stderr=stderr)
    return detected if detected.is_terminal else Console(stderr=stderr, width=200)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table with numbers on the right and words on the left of their columns; long text is wrapped, never cut."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(shown(value)) for value in row))
    return drawn


@dataclass(frozen=True)
class Fitted:
    """A table that leaves out columns if the terminal is too narrow for all of them, and prints a line about it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str
    spare: Sequence[str]
    """Columns that may be left out, in this order."""
    elsewhere: str
    """Where the columns that were left out can be seen."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: list[str] = []
        while (drawn := self._without(left_out)) and len(left_out) < len(self.spare):
            if Measurement.get(console, options.update_width(10_000), drawn).maximum <= options.max_width:
                break
            left_out.append(self.spare[len(left_out)])
        yield drawn
        if left_out:
            names = ", ".join(name.replace("\n", "_") for name in left_out)
            yield Text(f"no room for {names}: {self.elsewhere}", style="dim")

    def _without(self, left_out: Sequence[str]) -> Table:
        kept = [index for index, column in enumerate(self.columns) if column not in left_out]
        rows = [[row[index] for index in kept] for row in self.rows]
        return table([self.columns[index] for index in kept], rows, title=self.title)


def shown(value: Any) -> str:
    """A value as text for people: ``-`` for None, ``yes`` or ``no``, and a float with about three significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.1f}" if 10 <= abs(value) < 100 else f"{value:.4g}"
        )
    return str(encode(value))
