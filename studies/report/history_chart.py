"""The chart of a search's history: the value of each trial in order, and the best value so far."""

from __future__ import annotations

from typing import Any

from studies.report import phrases
from studies.report.charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    Axis,
    Chart,
    Figure,
    Key,
    Mark,
    Scale,
    Table,
    scale,
)
from studies.report.search import COUNTED, PLOT_X, STATES, Search, trial_legend, trial_mark


def history(search: Search) -> Figure | None:
    """The value of each trial in order, and the best value so far; None without trials."""
    if not search.trials:
        return None
    numbers = [trial.number for trial in search.trials]
    across = Scale(min(numbers) - 0.7, max(numbers) + 0.7, *PLOT_X)
    floor = HEIGHT - BOTTOM - 16
    up = scale([trial.value or 0.0 for trial in search.finished], (floor - 8, TOP))
    best: float | None = None
    steps: list[tuple[float, float]] = []
    marks: list[Mark] = []
    rows: list[tuple[Any, ...]] = []
    for trial in search.trials:
        state, value, x = search.state(trial), trial.value, across(trial.number)
        if state == "COMPLETE" and value is not None and (best is None or search.sign * (value - best) > 0):
            steps += [] if best is None else [(x, up(best))]
            steps.append((x, up(value)))
            best = value
        point = (x, floor if value is None or trial.state != "COMPLETE" else up(value))
        marks.append(trial_mark(search, trial, point))
        rows.append((trial.number, STATES[state], value if trial.state == "COMPLETE" else None, best))
    if best is not None:
        steps.append((across(numbers[-1]), up(best)))
        marks.insert(0, Mark("line", "best", tuple(steps)))
    chart = Chart(
        "value of each trial and the best so far",
        tuple(marks),
        Axis("trial", across.ticks(8, whole=True)),
        Axis(search.value_name, up.ticks() if search.finished else ()),
        legend=(
            *trial_legend(search, search.trials),
            *([Key("line", "best", "best so far")] if best is not None else []),
        ),
    )
    heads = ("trial", "state", search.value_name, "best so far")
    return Figure(
        "How the search went" if search.config.search else "What was tried",
        _caption(search),
        chart,
        Table(heads, tuple(rows), tuple(search.target(trial) for trial in search.trials)),
    )


def _caption(search: Search) -> str:
    """How the trials ended, and with which one the best value came."""
    counts = {state: sum(search.state(trial) == state for trial in search.trials) for state in STATES}
    parts = [f"{count} {COUNTED[state]}" for state, count in counts.items() if count]
    text = f"{phrases.several(len(search.trials), 'trial')}: {phrases.listed(parts)}."
    if search.config.protocol == "paper":
        return text
    feasible = [trial for trial in search.finished if trial.feasible]
    if len(feasible) > 1:
        best = max(feasible, key=lambda trial: (search.sign * (trial.value or 0.0), -trial.number))
        after = sum(trial.number > best.number for trial in feasible)
        those = " that meet the constraints" if search.config.constraints else ""
        text += f" The best value came with trial {best.number}"
        text += f"; of the {after} later trials{those}, none was better." if after else "."
    return text
