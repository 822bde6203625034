"""Charts of what the parameters of a search did: importance, effect of each value, parallel coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from studies.file.encoding import encode
from studies.file.keys import ParameterKey
from studies.report import phrases
from studies.report.charts import (
    BOTTOM,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Figure,
    Key,
    Mark,
    Scale,
    Table,
    Tick,
    bars,
    scale,
    shortened,
)
from studies.report.search import STATES, Search
from studies.show import insight

MIN_LINES = 3
"""Fewest finished trials for which parallel coordinates are drawn."""


MOST_AXES, MOST_EFFECTS = 9, 8
"""Most parameters that parallel coordinates and the chart of effects show; the most important ones are kept."""


def importances(search: Search) -> Figure | None:
    """How much of the difference between good and other trials each parameter explains; None if that is not known."""
    shares = search.importances
    if not shares:
        return None
    first = next(iter(shares))
    return Figure(
        "What mattered",
        f"{first} explains most of the difference between good and other trials ({phrases.percent(shares[first])}). "
        "What hardly matters can be fixed at the selected value.",
        bars("importance of each parameter", [(name, value, phrases.percent(value)) for name, value in shares.items()]),
        Table(("parameter", "importance"), tuple(shares.items())),
    )


def effects(search: Search) -> Figure | None:
    """Mean and best value of the trials with each choice, the most important parameters first; None without choices."""
    order = list(dict.fromkeys(ParameterKey.parse(key).name for key in search.importances))
    known = [effect for effect in insight.effects(search.view) if effect.parameter in order]
    if not known:
        return None
    drawn = [effect for name in order[:MOST_EFFECTS] for effect in known if effect.parameter == name]
    left, row = 190.0, 20.0
    across = scale([value for effect in drawn for value in (effect.mean, effect.best)], (left, WIDTH - RIGHT))
    marks: list[Mark] = []
    y = TOP
    for index, effect in enumerate(drawn):
        if not index or drawn[index - 1].parameter != effect.parameter:
            y += row
            marks.append(
                Mark("label", "group", ((left - 8, y + 4),), text=shortened(effect.parameter, 25), anchor="end")
            )
        y += row
        title = f"{effect.parameter} {effect.value}: {phrases.several(effect.trials, 'trial')}"
        text = shortened(f"{effect.value} ({effect.trials})", 25)
        marks += [
            Mark("label", "tick", ((left - 8, y + 4),), text=text, anchor="end", title=title),
            Mark("line", "span", ((across(effect.mean), y), (across(effect.best), y))),
            Mark("dot", "complete", ((across(effect.mean), y),), title=f"{title}, mean {effect.mean:.4f}"),
            Mark("diamond", "chosen", ((across(effect.best), y),), title=f"{title}, best {effect.best:.4f}"),
        ]
    chart = Chart(
        "mean and best value for each choice",
        tuple(marks),
        Axis(search.value_name, across.ticks(5)),
        legend=(Key("dot", "complete", "mean"), Key("diamond", "chosen", "best")),
        height=y + 20 + BOTTOM,
        left=left,
    )
    return Figure(
        "What each choice did",
        "Trials with the same choice, or from the same range; in brackets how many. A mean over few trials says little, and the "
        "search looked longer where it was promising.",
        chart,
        Table(
            ("parameter", "value", "trials", "mean", "best"),
            tuple((effect.parameter, effect.value, effect.trials, effect.mean, effect.best) for effect in known),
        ),
    )


@dataclass(frozen=True)
class _Coordinate:
    """One axis of the parallel coordinates."""

    name: str
    place: Callable[[Any], float]
    """Pixel of a value."""
    ticks: tuple[Tick, ...]


def parallel(search: Search) -> Figure | None:
    """Every finished trial as a line through its parameters to its value (parallel coordinates).

    None with fewer than `MIN_LINES` finished trials, or when they do not differ.
    """
    trials = search.finished
    names = [name for name in search.varied if len({str(trial.params.get(name)) for trial in trials}) > 1]
    if len(trials) < MIN_LINES or not names:
        return None
    shares = {ParameterKey.parse(key).name: share for key, share in reversed(search.importances.items())}
    kept = set(sorted(names, key=lambda name: -shares.get(name, 0.0))[:MOST_AXES])
    drawn = [name for name in names if name in kept]
    columns: dict[str, list[Any]] = {name: [trial.params.get(name) for trial in trials] for name in drawn}
    if search.objective != "fps":
        columns["fps"] = [trial.metrics.get("fps") for trial in trials]
    columns[search.objective] = [trial.value for trial in trials]
    columns = {name: values for name, values in columns.items() if len({str(value) for value in values}) > 1}
    bottom, top = HEIGHT - 34, 52.0
    axes = [_coordinate(name, values, _is_log(search, name), (bottom, top)) for name, values in columns.items()]
    step = max(100.0, (2 * WIDTH - 120) / max(1, len(axes) - 1))
    places = [60 + step * index for index in range(len(axes))]
    # The best are drawn last, over the others.
    order = sorted(
        range(len(trials)), key=lambda index: (trials[index].selected, search.sign * (trials[index].value or 0.0))
    )
    marks: list[Mark] = []
    for rank, index in enumerate(order):
        trial = trials[index]
        points = tuple(
            (round(x, 1), axis.place(values[index]))
            for x, axis, values in zip(places, axes, columns.values(), strict=True)
        )
        css = "path chosen" if trial.selected else f"path q{5 * rank // len(order)}"
        css += " off" if trial.feasible is False else ""
        marks.append(Mark("line", css, points, title=search.describe(trial), target=search.target(trial)))
    for index, (x, axis) in enumerate(zip(places, axes, strict=True)):
        marks.append(Mark("line", "axis", ((x, bottom), (x, top))))
        label = shortened(phrases.metric(axis.name), 22)
        marks.append(Mark("label", "group", ((x, 20.0 if index % 2 else 36.0),), text=label, anchor="middle"))
        marks += [
            Mark("label", "tick halo", ((x + 5, tick.at + 4),), text=shortened(tick.text, 16), title=tick.text)
            for tick in axis.ticks
        ]
    left_out = f" The {MOST_AXES} most important parameters are drawn." if len(names) > len(drawn) else ""
    chart = Chart(
        "every finished trial as a line through its parameters",
        tuple(marks),
        legend=(
            Key("line", "path q0", "worst fifth"),
            Key("line", "path q2", "middle"),
            Key("line", "path q4", "best fifth"),
            *([Key("line", "path chosen", "selected")] if any(trial.selected for trial in trials) else []),
            *([Key("line", "path q4 off", STATES["INFEASIBLE"])] if any(t.feasible is False for t in trials) else []),
        ),
        width=120 + step * (len(axes) - 1),
    )
    best_first = [trials[index] for index in reversed(order)]
    return Figure(
        "Which settings go together",
        "Each line is a finished trial, the stronger its colour the better; where strong lines meet, a setting is good."
        + left_out,
        chart,
        Table(
            ("trial", *drawn, search.value_name),
            tuple((trial.number, *(trial.params.get(name) for name in drawn), trial.value) for trial in best_first),
            tuple(search.target(trial) for trial in best_first),
        ),
        wide=True,
    )


def _is_log(search: Search, name: str) -> bool:
    """Whether the study file samples this parameter on a logarithmic scale."""
    dimensions = search.config.search
    return any(dimensions[key].log for key in dimensions if ParameterKey.parse(key).name == name)


def _coordinate(name: str, values: Sequence[Any], log: bool, pixels: tuple[float, float]) -> _Coordinate:
    """An axis for numbers, or for choices at equal distances; a trial without the parameter passes below the axis.

    Args:
        pixels: bottom and top of the axis.
    """
    bottom, top = pixels
    below = bottom + 16
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        low, high = min(known), max(known)
        along = Scale(low, high if high > low else low + 1, bottom, top, log=log and low > 0)
        ticks = tuple(Tick(along(value), f"{value:.3g}") for value in dict.fromkeys((low, high)))
        inner = [tick for tick in along.ticks(4) if all(abs(tick.at - end.at) > 22 for end in ticks)]
        return _Coordinate(name, lambda value: below if value is None else along(value), (*ticks, *inner))
    choices = list(dict.fromkeys(str(encode(value)) for value in sorted(known, key=str)))
    step = (top - bottom) / max(1, len(choices) - 1)
    at = {choice: round(bottom + step * index, 1) for index, choice in enumerate(choices)}
    ticks = tuple(Tick(y, choice) for choice, y in at.items())
    return _Coordinate(name, lambda value: below if value is None else at[str(encode(value))], ticks)
