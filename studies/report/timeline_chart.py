"""The chart of when each trial ran and what its time went to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import pairwise

from studies.report import phrases
from studies.report.charts import (
    BOTTOM,
    RIGHT,
    WIDTH,
    Axis,
    Chart,
    Figure,
    Key,
    Mark,
    Scale,
    Table,
)
from studies.report.search import MARKS, STATES, Search, trial_legend
from studies.search.view import TrialView
from studies.show import insight, study_tables


def timeline(search: Search) -> Figure | None:
    """When each trial ran, without the long breaks in which none did; None if no trial has ended."""
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
        title = f"{search.describe(trial)}; {phrases.duration(end - begin)}"
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
            title=f"{phrases.duration(gap)} without a trial",
        )
        for at, gap in breaks
    ]
    scaled = Scale(0.0, (total or 1.0) / unit, across.start, across.end)
    chart = Chart(
        "when each trial ran",
        tuple(marks),
        Axis(f"{name} since the first trial began" + (", without the breaks" if breaks else ""), scaled.ticks(10)),
        legend=(*trial_legend(search, trials, bars=True), *([Key("line", "break", "a break")] if breaks else [])),
        width=2 * WIDTH,
        height=height,
        left=16.0,
    )
    stages = {trial.number: stage_seconds(trial) for trial in trials}
    heads = list(dict.fromkeys(stage for seconds in stages.values() for stage in seconds))
    rows = tuple(
        (
            trial.number,
            STATES[search.state(trial)],
            phrases.moment(spans[trial.number][0]),
            spans[trial.number][1] - spans[trial.number][0],
            *(stages[trial.number].get(stage) for stage in heads),
        )
        for trial in trials
    )
    return Figure(
        "What it cost",
        _caption(search, spans, stages.values()),
        chart,
        Table(
            ("trial", "state", "began", "seconds", *(f"{stage} s" for stage in heads)),
            rows,
            tuple(search.target(trial) for trial in trials),
        ),
        wide=True,
    )


def _caption(search: Search, spans: dict[int, tuple[float, float]], stages: Iterable[dict[str, float]]) -> str:
    """How long the trials took and what most of the time went to.

    Args:
        spans: begin and end of each trial, seconds since the epoch.
        stages: seconds of each kind of work, one dictionary for each trial.
    """
    seconds = [end - begin for begin, end in spans.values()]
    text = (
        f"All trials together worked {phrases.duration(sum(seconds))}, "
        f"{phrases.duration(sum(seconds) / len(seconds))} each on average."
    )
    totals: dict[str, float] = {}
    for seconds_of in stages:
        for stage, value in seconds_of.items():
            totals[stage] = totals.get(stage, 0.0) + value
    if sum(totals.values()) > 0:
        largest = sorted(totals, key=lambda stage: -totals[stage])[:3]
        whole = sum(totals.values())
        parts = phrases.listed([f"{stage} {phrases.percent(totals[stage] / whole)}" for stage in largest])
        text += f" Most of the work: {parts}."
    if (saved := insight.savings(search.view)) is not None:
        savings = study_tables.savings_text(saved)
        text += f" {savings[0].upper()}{savings[1:]}."
    return text


def stage_seconds(trial: TrialView) -> dict[str, float]:
    """Seconds that a trial spent on each kind of work, summed over its image sets and products."""
    totals: dict[str, float] = {}
    for stage, seconds in trial.outcome.seconds.items():
        kind = stage.rpartition(": ")[2].partition(" (")[0]
        kind = phrases.STAGES.get(kind, kind)
        totals[kind] = totals.get(kind, 0.0) + seconds
    return totals


def _span(trial: TrialView) -> tuple[float, float] | None:
    """Begin and end in seconds since the epoch; None for a trial that is running or whose times are not known."""
    outcome = trial.outcome
    begin = outcome.started if outcome.started is not None else _timestamp(trial.frozen.datetime_start)
    end = outcome.finished if outcome.finished is not None else _timestamp(trial.frozen.datetime_complete)
    if begin is None or end is None or trial.state == "RUNNING":
        return None
    return begin, max(begin, end)


def _timestamp(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def _without_gaps(
    spans: Sequence[tuple[float, float]],
) -> tuple[Callable[[float], float], list[tuple[float, float]], float]:
    """Cut the long breaks out of a timeline.

    Args:
        spans: begin and end of the trials in seconds since the epoch, sorted by begin.

    Returns:
        A function that converts a time to seconds since the first begin without the breaks; (place, length) of each break in
        seconds, the place on the cut timeline; the length of the cut timeline in seconds.
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
