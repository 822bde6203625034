"""The chart of accuracy against speed or another cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectors.scoring.evaluation import METRICS
from studies.file.config import StudyConfig, metric_of
from studies.file.sections import COST_METRICS
from studies.report import phrases
from studies.report.charts import (
    TOP,
    Axis,
    Chart,
    Figure,
    Key,
    Labels,
    Mark,
    Scale,
    Table,
    scale,
)
from studies.report.search import PLOT_X, PLOT_Y, STATES, Search, trial_legend, trial_mark
from studies.search.view import TrialView
from studies.worker.products import SLOWEST


def trade_off(search: Search) -> Figure | None:
    """Accuracy against speed, or against a cost that is an objective of the study, with the Pareto front.

    None if no finished trial has both figures.
    """
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
    # The selected trial and those on the front are drawn over the others, and get their names first.
    drawn_last = sorted(drawn, key=lambda trial: (trial.selected, trial.number in front))
    marks += [trial_mark(search, trial, at[trial.number]) for trial in drawn_last]
    for trial in reversed(drawn_last):
        if trial.selected or trial.number in front:
            labels.avoid(at[trial.number])
    for trial in reversed(drawn_last):
        if trial.selected or trial.number in front:
            marks += labels.place(at[trial.number], f"#{trial.number}", target=search.target(trial))
    chart = Chart(
        f"{phrases.metric(name)} against {phrases.metric(cost)}",
        tuple(marks),
        Axis(phrases.metric(cost), across.ticks(7)),
        Axis(search.on_images(name), up.ticks()),
        legend=(
            *trial_legend(search, drawn),
            *([Key("line", "front", "no trial is better in both")] if len(ordered) > 1 else []),
            *([Key("line", "limit", "constraint")] if {cost, name} & set(limits) else []),
        ),
    )
    rows = sorted(drawn, key=lambda trial: (trial.number not in front, -trial.metrics[key]))
    return Figure(
        f"{phrases.metric(name)[0].upper()}{phrases.metric(name)[1:]} against {'speed' if cost in SLOWEST else 'cost'}",
        _caption(search, ordered, key, cost),
        chart,
        Table(
            ("trial", search.on_images(name), phrases.metric(cost), "on the front", "state"),
            tuple(
                (t.number, t.metrics[key], t.metrics[cost], t.number in front, STATES[search.state(t)]) for t in rows
            ),
            tuple(search.target(trial) for trial in rows),
        ),
    )


def _more_is_better(config: StudyConfig, cost: str) -> bool:
    """Whether a higher value of the cost metric is better: the study's objectives decide, else whether it is a speed."""
    return config.objectives[cost] == "maximize" if cost in config.objectives else cost in SLOWEST


def _front(trials: Sequence[TrialView], values: Callable[[TrialView], tuple[float, float]]) -> set[int]:
    """Numbers of the trials on the Pareto front: they meet the constraints and no other such trial is better in both values.

    Args:
        values: the two values of a trial; more is better in both.
    """
    sound = [trial for trial in trials if trial.feasible]
    front: set[int] = set()
    best = float("-inf")
    for trial in sorted(sound, key=lambda trial: (values(trial)[1], values(trial)[0]), reverse=True):
        if values(trial)[0] > best:
            best = values(trial)[0]
            front.add(trial.number)
    return front


def _limit_lines(config: StudyConfig, cost: str, name: str, across: Scale, up: Scale, labels: Labels) -> list[Mark]:
    """The constraints on the two metrics of the chart as lines with names; others cannot be drawn."""
    marks: list[Mark] = []
    for limited, condition in config.constraints.items():
        text, value = f"{limited} {condition.strip()}", float(condition.strip()[2:])
        if limited == cost:
            x = across(value)
            marks.append(Mark("line", "limit", ((x, PLOT_Y[0]), (x, TOP)), title=text))
            # At the bottom, because the best trials are at the top.
            marks += labels.place((x - 4, PLOT_Y[0] - 8), text, css="limit-name")
            labels.avoid((x, PLOT_Y[0]), (x, TOP), radius=1.0)
        elif limited == name:
            y = up(value)
            marks.append(Mark("line", "limit", ((PLOT_X[0], y), (PLOT_X[1], y)), title=text))
            marks += labels.place((PLOT_X[0], y - 6), text, css="limit-name")
            labels.avoid((PLOT_X[0], y), (PLOT_X[1], y), radius=1.0)
    return marks


def _caption(search: Search, front: Sequence[TrialView], key: str, cost: str) -> str:
    """What has to be given up for what.

    Args:
        front: the trials on the Pareto front.
        key: metric of the accuracy, as in `TrialView.metrics`.
        cost: metric of the other axis.
    """
    others = [name for name in search.config.constraints if name not in (cost, key.rpartition("/")[2])]
    missing = [trial for trial in search.finished if trial.feasible is False and key in trial.metrics]
    beyond = (
        f" Constraints on {phrases.listed([phrases.metric(name) for name in others])} count as well." if others else ""
    )
    if front and missing:
        ahead = max(missing, key=lambda trial: trial.metrics[key])
        if ahead.metrics[key] > max(trial.metrics[key] for trial in front):
            limits = phrases.listed([f"{name} {limit}" for name, limit in search.config.constraints.items()])
            beyond += f" Trial {ahead.number} reaches {ahead.metrics[key]:.3f}, but does not meet {limits}."
    if not front:
        return f"No finished trial meets the constraints.{beyond}"
    if len(front) == 1:
        return f"Trial {front[0].number} is the best in both: nothing has to be traded.{beyond}"
    best = max(front, key=lambda trial: trial.metrics[key])
    other = (max if _more_is_better(search.config, cost) else min)(front, key=lambda trial: trial.metrics[cost])
    return (
        f"Between trial {best.number} ({phrases.metric(key)} {best.metrics[key]:.3f}, {phrases.metric(cost)} "
        f"{best.metrics[cost]:.3g}) and trial {other.number} ({other.metrics[key]:.3f}, {other.metrics[cost]:.3g}) one is "
        f"traded for the other; a trial off the line is beaten in both.{beyond}"
    )
