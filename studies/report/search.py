"""What a report shows of a search: how it went, what it found, what each parameter did, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any

from detectors.scoring.evaluation import METRICS
from studies.file.config import StudyConfig, metric_of
from studies.file.encoding import encode
from studies.file.keys import ParameterKey
from studies.file.sections import COST_METRICS
from studies.report import wording as words
from studies.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Figure,
    Key,
    Labels,
    Mark,
    Scale,
    Shape,
    Table,
    Tick,
    bars,
    scale,
    shortened,
)
from studies.search.view import StudyView, TrialView
from studies.show import insight, tables
from studies.worker.products import SLOWEST

STATES = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "INFEASIBLE": "misses a constraint",
}
"""As a person reads them; the last one is a finished trial as well."""
COUNTED = STATES | {"INFEASIBLE": "missing a constraint"}
"""The same of several."""
MARKS: dict[str, Shape] = {
    "PRUNED": "triangle",
    "FAIL": "cross",
    "RUNNING": "ring",
    "COMPLETE": "dot",
    "INFEASIBLE": "ring",
}
MIN_LINES = 3
"""Finished trials that parallel coordinates need to say anything."""
MOST_AXES, MOST_EFFECTS = 9, 8
"""Parameters that are drawn, the most important ones."""
PLOT_X, PLOT_Y = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)


@dataclass(frozen=True)
class Search:
    """A study's trials, and where the page shows them."""

    view: StudyView
    id: str
    """Of the study within the page."""

    @cached_property
    def trials(self) -> list[TrialView]:
        """All, by number."""
        return self.view.trials()

    @property
    def config(self) -> StudyConfig:
        """The study file."""
        return self.view.config

    @property
    def objective(self) -> str:
        """The first one."""
        return next(iter(self.config.objectives))

    @property
    def value_name(self) -> str:
        """What a trial's value is, and on which images."""
        return self.on_images(self.objective)

    def on_images(self, name: str) -> str:
        """A metric of the search in words."""
        where = "test" if self.config.protocol == "paper" else "validation"
        return f"{words.metric(name)} on {where}" if name in METRICS else words.metric(name)

    @property
    def sign(self) -> int:
        """1 where more of the first objective is better, else -1."""
        return 1 if self.config.direction == "maximize" else -1

    @cached_property
    def finished(self) -> list[TrialView]:
        """Trials with a value."""
        return [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]

    @cached_property
    def importances(self) -> dict[str, float]:
        """As `insight.importances`."""
        return insight.importances(self.view)

    @cached_property
    def varied(self) -> list[str]:
        """Parameters that differ between trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.params)
        return [name for name in names if len({str(trial.params.get(name)) for trial in self.trials}) > 1]

    def target(self, trial: TrialView) -> str:
        """Id of the trial's row."""
        return f"{self.id}-t{trial.number}"

    def state(self, trial: TrialView) -> str:
        """Key of `STATES`."""
        return "INFEASIBLE" if trial.feasible is False else trial.state

    def describe(self, trial: TrialView) -> str:
        """What the pointer shows of a trial."""
        value = f"{words.metric(self.objective)} {trial.value:.4f}" if trial.value is not None else ""
        fps = f"{trial.metrics['fps']:.3g} per second" if "fps" in trial.metrics else ""
        varied = words.setting({name: trial.params[name] for name in self.varied if name in trial.params})
        told = [STATES[self.state(trial)], value, fps, varied, shortened(trial.failure, 200)]
        return f"trial {trial.number}: {'; '.join(filter(None, told))}"


def figures(search: Search) -> list[Figure]:
    """Every chart that there is something to draw for."""
    made = (history, trade_off, importances, effects, parallel, timeline)
    return [figure for make in made if (figure := make(search)) is not None]


def history(search: Search) -> Figure | None:
    """Value of each trial in its order, and the best one so far."""
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
        marks.append(_mark(search, trial, point))
        rows.append((trial.number, STATES[state], value if trial.state == "COMPLETE" else None, best))
    if best is not None:
        steps.append((across(numbers[-1]), up(best)))
        marks.insert(0, Mark("line", "best", tuple(steps)))
    chart = Chart(
        "value of each trial and the best so far",
        tuple(marks),
        Axis("trial", across.ticks(8, whole=True)),
        Axis(search.value_name, up.ticks() if search.finished else ()),
        legend=(*_legend(search, search.trials), *([Key("line", "best", "best so far")] if best is not None else [])),
    )
    heads = ("trial", "state", search.value_name, "best so far")
    return Figure(
        "How the search went" if search.config.search else "What was tried",
        _history_says(search),
        chart,
        Table(heads, tuple(rows), tuple(search.target(trial) for trial in search.trials)),
    )


def _history_says(search: Search) -> str:
    counts = {state: sum(search.state(trial) == state for trial in search.trials) for state in STATES}
    told = [f"{count} {COUNTED[state]}" for state, count in counts.items() if count]
    said = f"{words.several(len(search.trials), 'trial')}: {words.listed(told)}."
    if search.config.protocol == "paper":
        return said
    sound = [trial for trial in search.finished if trial.feasible]
    if len(sound) > 1:
        best = max(sound, key=lambda trial: (search.sign * (trial.value or 0.0), -trial.number))
        after = sum(trial.number > best.number for trial in sound)
        those = " that meet the constraints" if search.config.constraints else ""
        said += f" The best value came with trial {best.number}"
        said += f"; none of those finished after it{those} beat it ({after})." if after else "."
    return said


def trade_off(search: Search) -> Figure | None:
    """Accuracy against speed, or against the cost that the study aims at as well; the front is what nothing beats in both."""
    name = search.objective if search.objective in METRICS else "image_auroc"
    costs = [objective for objective in search.config.objectives if objective in COST_METRICS]
    cost = costs[0] if costs else "fps"
    key, more = metric_of(search.config, name), _more_is_better(search.config, cost)
    drawn = [trial for trial in search.finished if key in trial.metrics and cost in trial.metrics]
    if not drawn:
        return None
    costs_of = [trial.metrics[cost] for trial in drawn]
    limits = {limited: float(text.strip()[2:]) for limited, text in search.config.constraints.items()}
    shown = [*costs_of, *([limits[cost]] if cost in limits else [])]
    log = min(shown) > 0 and max(shown) > 5 * min(shown)
    across = scale(shown, PLOT_X, log=log, margin=0.08)
    up = scale(
        [*(trial.metrics[key] for trial in drawn), *([limits[name]] if name in limits else [])], PLOT_Y, margin=0.08
    )
    better = 1 if more else -1
    front = _front(drawn, lambda trial: (trial.metrics[key], better * trial.metrics[cost]))
    at = {trial.number: (across(trial.metrics[cost]), up(trial.metrics[key])) for trial in drawn}
    labels = Labels(PLOT_X[0], PLOT_X[1], TOP - 10, PLOT_Y[0])
    marks = _limit_lines(search.config, cost, name, across, up, labels)
    ordered = sorted((trial for trial in drawn if trial.number in front), key=lambda trial: trial.metrics[cost])
    if len(ordered) > 1:
        marks.append(Mark("line", "front", tuple(at[trial.number] for trial in ordered)))
    # What matters most is drawn last and named first.
    drawn_last = sorted(drawn, key=lambda trial: (trial.selected, trial.number in front))
    marks += [_mark(search, trial, at[trial.number]) for trial in drawn_last]
    for trial in reversed(drawn_last):
        if trial.selected or trial.number in front:
            labels.avoid(at[trial.number])
    for trial in reversed(drawn_last):
        if trial.selected or trial.number in front:
            marks += labels.place(at[trial.number], f"#{trial.number}", target=search.target(trial))
    chart = Chart(
        f"{words.metric(name)} against {words.metric(cost)}",
        tuple(marks),
        Axis(words.metric(cost), across.ticks(7)),
        Axis(search.on_images(name), up.ticks()),
        legend=(
            *_legend(search, drawn),
            *([Key("line", "front", "no trial is better in both")] if len(ordered) > 1 else []),
            *([Key("line", "limit", "constraint")] if {cost, name} & set(limits) else []),
        ),
    )
    rows = sorted(drawn, key=lambda trial: (trial.number not in front, -trial.metrics[key]))
    return Figure(
        f"{words.metric(name)[0].upper()}{words.metric(name)[1:]} against {'speed' if cost in SLOWEST else 'cost'}",
        _trade_off_says(search, ordered, key, cost),
        chart,
        Table(
            ("trial", search.on_images(name), words.metric(cost), "on the front", "state"),
            tuple(
                (t.number, t.metrics[key], t.metrics[cost], t.number in front, STATES[search.state(t)]) for t in rows
            ),
            tuple(search.target(trial) for trial in rows),
        ),
    )


def _more_is_better(config: StudyConfig, cost: str) -> bool:
    return config.objectives[cost] == "maximize" if cost in config.objectives else cost in SLOWEST


def _front(trials: Sequence[TrialView], values: Callable[[TrialView], tuple[float, float]]) -> set[int]:
    """Numbers of the trials that meet the constraints and that none of these beats; more of both values is better."""
    sound = [trial for trial in trials if trial.feasible]
    front: set[int] = set()
    best = float("-inf")
    for trial in sorted(sound, key=lambda trial: (values(trial)[1], values(trial)[0]), reverse=True):
        if values(trial)[0] > best:
            best = values(trial)[0]
            front.add(trial.number)
    return front


def _limit_lines(config: StudyConfig, cost: str, name: str, across: Scale, up: Scale, labels: Labels) -> list[Mark]:
    """The constraints on either axis; others cannot be drawn."""
    marks: list[Mark] = []
    for limited, condition in config.constraints.items():
        text, value = f"{limited} {condition.strip()}", float(condition.strip()[2:])
        if limited == cost:
            x = across(value)
            marks.append(Mark("line", "limit", ((x, PLOT_Y[0]), (x, TOP)), title=text))
            # At the foot: the trials that a person asks about are at the top.
            marks += labels.place((x - 4, PLOT_Y[0] - 8), text, css="limit-name")
            labels.avoid((x, PLOT_Y[0]), (x, TOP), radius=1.0)
        elif limited == name:
            y = up(value)
            marks.append(Mark("line", "limit", ((PLOT_X[0], y), (PLOT_X[1], y)), title=text))
            marks += labels.place((PLOT_X[0], y - 6), text, css="limit-name")
            labels.avoid((PLOT_X[0], y), (PLOT_X[1], y), radius=1.0)
    return marks


def _trade_off_says(search: Search, front: Sequence[TrialView], key: str, cost: str) -> str:
    others = [name for name in search.config.constraints if name not in (cost, key.rpartition("/")[2])]
    missing = [trial for trial in search.finished if trial.feasible is False and key in trial.metrics]
    beyond = f" Constraints on {words.listed([words.metric(name) for name in others])} count as well." if others else ""
    if front and missing:
        ahead = max(missing, key=lambda trial: trial.metrics[key])
        if ahead.metrics[key] > max(trial.metrics[key] for trial in front):
            limits = words.listed([f"{name} {limit}" for name, limit in search.config.constraints.items()])
            beyond += f" Trial {ahead.number} reaches {ahead.metrics[key]:.3f}, but does not meet {limits}."
    if not front:
        return f"No finished trial meets the constraints.{beyond}"
    if len(front) == 1:
        return f"Trial {front[0].number} is the best in both: nothing has to be traded.{beyond}"
    best = max(front, key=lambda trial: trial.metrics[key])
    other = (max if _more_is_better(search.config, cost) else min)(front, key=lambda trial: trial.metrics[cost])
    return (
        f"Between trial {best.number} ({words.metric(key)} {best.metrics[key]:.3f}, {words.metric(cost)} "
        f"{best.metrics[cost]:.3g}) and trial {other.number} ({other.metrics[key]:.3f}, {other.metrics[cost]:.3g}) one is "
        f"traded for the other; a trial off the line is beaten in both.{beyond}"
    )


def importances(search: Search) -> Figure | None:
    """How much each parameter tells good trials from others."""
    shares = search.importances
    if not shares:
        return None
    first = next(iter(shares))
    return Figure(
        "What mattered",
        f"{first} explains most of the difference between good and other trials ({words.percent(shares[first])}). "
        "What hardly matters can be fixed at the selected value.",
        bars("importance of each parameter", [(name, value, words.percent(value)) for name, value in shares.items()]),
        Table(("parameter", "importance"), tuple(shares.items())),
    )


def effects(search: Search) -> Figure | None:
    """Mean and best value of the trials with each choice, the most important parameters ahead."""
    order = list(dict.fromkeys(ParameterKey.parse(key).name for key in search.importances))
    found = [effect for effect in insight.effects(search.view) if effect.parameter in order]
    if not found:
        return None
    drawn = [effect for name in order[:MOST_EFFECTS] for effect in found if effect.parameter == name]
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
        told = f"{effect.parameter} {effect.value}: {words.several(effect.trials, 'trial')}"
        text = shortened(f"{effect.value} ({effect.trials})", 25)
        marks += [
            Mark("label", "tick", ((left - 8, y + 4),), text=text, anchor="end", title=told),
            Mark("line", "span", ((across(effect.mean), y), (across(effect.best), y))),
            Mark("dot", "complete", ((across(effect.mean), y),), title=f"{told}, mean {effect.mean:.4f}"),
            Mark("diamond", "chosen", ((across(effect.best), y),), title=f"{told}, best {effect.best:.4f}"),
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
            tuple((effect.parameter, effect.value, effect.trials, effect.mean, effect.best) for effect in found),
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
    """Every finished trial as a line through its parameters to its value."""
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
        label = shortened(words.metric(axis.name), 22)
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
    """Whether the study file draws this parameter by its logarithm."""
    dimensions = search.config.search
    return any(dimensions[key].log for key in dimensions if ParameterKey.parse(key).name == name)


def _coordinate(name: str, values: Sequence[Any], log: bool, pixels: tuple[float, float]) -> _Coordinate:
    """An axis for numbers, or for choices at equal distances; a trial without the parameter passes below it."""
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


def timeline(search: Search) -> Figure | None:
    """When each trial ran; long times in which none did are cut out."""
    spans = {trial.number: span for trial in search.trials if (span := _span(trial)) is not None}
    if not spans:
        return None
    trials = sorted((trial for trial in search.trials if trial.number in spans), key=lambda trial: spans[trial.number])
    shift, breaks, total = _without_gaps([spans[trial.number] for trial in trials])
    across = Scale(0.0, total or 1.0, 16.0, 2 * WIDTH - RIGHT)
    unit, name = (3600.0, "hours") if total > 7200 else (60.0, "minutes") if total > 300 else (1.0, "seconds")
    ends: list[float] = []
    marks: list[Mark] = []
    for trial in trials:
        begin, end = spans[trial.number]
        lane = next((index for index, free in enumerate(ends) if free <= begin), len(ends))
        ends[lane:] = [end, *ends[lane + 1 :]]
        y, x = 14.0 + 30 * lane, across(shift(begin))
        x_end = max(across(shift(end)), x + 2)
        state = search.state(trial)
        css = "chosen" if trial.selected else state.lower()
        title = f"{search.describe(trial)}; {words.duration(end - begin)}"
        marks.append(Mark("bar", css, ((x, y), (x_end, y + 20)), title=title, target=search.target(trial)))
        if trial.state in ("FAIL", "PRUNED"):
            shape = MARKS[trial.state]
            marks.append(Mark(shape, f"{state.lower()} over", (((x + x_end) / 2, y + 10),), title=title))
    height = 30.0 * len(ends) + 14 + BOTTOM
    marks += [
        Mark(
            "line",
            "break",
            ((across(at), 4.0), (across(at), height - BOTTOM)),
            title=f"{words.duration(gap)} without a trial",
        )
        for at, gap in breaks
    ]
    scaled = Scale(0.0, (total or 1.0) / unit, across.start, across.end)
    chart = Chart(
        "when each trial ran",
        tuple(marks),
        Axis(f"{name} since the first trial began" + (", without the breaks" if breaks else ""), scaled.ticks(10)),
        legend=(*_legend(search, trials, bars=True), *([Key("line", "break", "a break")] if breaks else [])),
        width=2 * WIDTH,
        height=height,
        left=16.0,
    )
    stages = {trial.number: stage_seconds(trial) for trial in trials}
    heads = list(dict.fromkeys(stage for found in stages.values() for stage in found))
    rows = tuple(
        (
            trial.number,
            STATES[search.state(trial)],
            words.moment(spans[trial.number][0]),
            spans[trial.number][1] - spans[trial.number][0],
            *(stages[trial.number].get(stage) for stage in heads),
        )
        for trial in trials
    )
    return Figure(
        "What it cost",
        _timeline_says(search, spans, stages.values()),
        chart,
        Table(
            ("trial", "state", "began", "seconds", *(f"{stage} s" for stage in heads)),
            rows,
            tuple(search.target(trial) for trial in trials),
        ),
        wide=True,
    )


def _timeline_says(search: Search, spans: dict[int, tuple[float, float]], stages: Iterable[dict[str, float]]) -> str:
    seconds = [end - begin for begin, end in spans.values()]
    said = (
        f"All trials together worked {words.duration(sum(seconds))}, "
        f"{words.duration(sum(seconds) / len(seconds))} each on average."
    )
    totals: dict[str, float] = {}
    for found in stages:
        for stage, value in found.items():
            totals[stage] = totals.get(stage, 0.0) + value
    if sum(totals.values()) > 0:
        largest = sorted(totals, key=lambda stage: -totals[stage])[:3]
        whole = sum(totals.values())
        parts = words.listed([f"{stage} {words.percent(totals[stage] / whole)}" for stage in largest])
        said += f" Most of the work: {parts}."
    if (saved := insight.savings(search.view)) is not None:
        text = tables.savings_text(saved)
        said += f" {text[0].upper()}{text[1:]}."
    return said


def stage_seconds(trial: TrialView) -> dict[str, float]:
    """Seconds of each kind of work: those of several sets and products together."""
    found: dict[str, float] = {}
    for stage, seconds in trial.outcome.get("seconds", {}).items():
        kind = stage.rpartition(": ")[2].partition(" (")[0]
        kind = words.STAGES.get(kind, kind)
        found[kind] = found.get(kind, 0.0) + seconds
    return found


def _span(trial: TrialView) -> tuple[float, float] | None:
    """Begin and end in seconds since the epoch; None of a trial that is running or left neither."""
    outcome = trial.outcome
    begin = outcome.get("started", _timestamp(trial.frozen.datetime_start))
    end = outcome.get("finished", _timestamp(trial.frozen.datetime_complete))
    if begin is None or end is None or trial.state == "RUNNING":
        return None
    return begin, max(begin, end)


def _timestamp(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def _without_gaps(
    spans: Sequence[tuple[float, float]],
) -> tuple[Callable[[float], float], list[tuple[float, float]], float]:
    """How to shift a time so that long breaks are gone; where those were, with their seconds; and what remains in all.

    Args:
        spans: of the trials, by their begin.
    """
    busy: list[list[float]] = []
    for begin, end in spans:
        if busy and begin <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([begin, end])
    worked = sum(end - begin for begin, end in busy)
    pause = 0.02 * worked
    cuts: list[tuple[float, float]] = []
    breaks: list[tuple[float, float]] = []
    cut = 0.0
    for (_, end), (begin, _) in pairwise(busy):
        gap = begin - end
        if gap > max(0.1 * worked, 60.0):
            breaks.append((end - busy[0][0] - cut + pause / 2, gap))
            cut += gap - pause
            cuts.append((begin, cut))

    def shift(time: float) -> float:
        return time - busy[0][0] - max((amount for after, amount in cuts if time >= after), default=0.0)

    return shift, breaks, shift(busy[-1][1])


def _mark(search: Search, trial: TrialView, point: tuple[float, float]) -> Mark:
    state = search.state(trial)
    title, target = search.describe(trial), search.target(trial)
    if trial.selected:
        return Mark("diamond", "chosen", (point,), title=f"selected: {title}", target=target)
    return Mark(MARKS[state], state.lower(), (point,), title=title, target=target)


def _legend(search: Search, trials: Sequence[TrialView], *, bars: bool = False) -> list[Key]:
    states = {search.state(trial) for trial in trials if not trial.selected}
    keys = [
        Key("bar" if bars else MARKS[state], state.lower(), text) for state, text in STATES.items() if state in states
    ]
    if any(trial.selected for trial in trials):
        keys.append(Key("bar" if bars else "diamond", "chosen", "selected"))
    return keys
