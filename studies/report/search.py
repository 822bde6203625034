"""A study's trials as the charts and tables of a report read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from detectors.scoring.evaluation import METRICS
from studies.file.config import StudyConfig
from studies.report import phrases
from studies.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Key,
    Mark,
    Shape,
    shortened,
)
from studies.search.view import StudyView, TrialView
from studies.show import insight

STATES = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "INFEASIBLE": "misses a constraint",
}
"""Names of the states of a trial for readers. INFEASIBLE is a state of the report alone: a finished trial that misses a
constraint."""


COUNTED = STATES | {"INFEASIBLE": "missing a constraint"}
"""The names behind a count of trials, as in \"3 missing a constraint\"."""


MARKS: dict[str, Shape] = {
    "PRUNED": "triangle",
    "FAIL": "cross",
    "RUNNING": "ring",
    "COMPLETE": "dot",
    "INFEASIBLE": "ring",
}
"""Shape that marks a trial in this state."""


PLOT_X, PLOT_Y = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)
"""Pixels of the lowest and the highest value along the two axes of a chart of the usual size."""


@dataclass(frozen=True)
class Search:
    """A study's trials, with the ids of their rows in the page."""

    view: StudyView
    id: str
    """Id of the study's element in the page."""

    @cached_property
    def trials(self) -> list[TrialView]:
        """All trials, by number."""
        return self.view.trials()

    @property
    def config(self) -> StudyConfig:
        """The configuration of the study."""
        return self.view.config

    @property
    def objective(self) -> str:
        """Name of the first objective, by which trials are ranked."""
        return next(iter(self.config.objectives))

    @property
    def value_name(self) -> str:
        """The first objective in words, with the images that it is measured on: ``image AUROC on validation``."""
        return self.on_images(self.objective)

    def on_images(self, name: str) -> str:
        """A metric in words; one that is measured on images is followed by the image set that the search used."""
        where = "test" if self.config.protocol == "paper" else "validation"
        return f"{phrases.metric(name)} on {where}" if name in METRICS else phrases.metric(name)

    @property
    def sign(self) -> int:
        """1 if a higher value of the first objective is better, else -1."""
        return 1 if self.config.direction == "maximize" else -1

    @cached_property
    def finished(self) -> list[TrialView]:
        """Trials that are complete and have a value."""
        return [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]

    @cached_property
    def importances(self) -> dict[str, float]:
        """Importance of each parameter, as `insight.importances` returns it."""
        return insight.importances(self.view)

    @cached_property
    def varied(self) -> list[str]:
        """Names of the parameters whose values differ between trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.params)
        return [name for name in names if len({str(trial.params.get(name)) for trial in self.trials}) > 1]

    def target(self, trial: TrialView) -> str:
        """Id of the trial's row in the table of all trials."""
        return f"{self.id}-t{trial.number}"

    def state(self, trial: TrialView) -> str:
        """State of a trial, a key of `STATES`."""
        return "INFEASIBLE" if trial.feasible is False else trial.state

    def describe(self, trial: TrialView) -> str:
        """State, value, speed, setting and failure of a trial in one line, which appears when the pointer rests on it."""
        value = f"{phrases.metric(self.objective)} {trial.value:.4f}" if trial.value is not None else ""
        fps = f"{trial.metrics['fps']:.3g} per second" if "fps" in trial.metrics else ""
        varied = phrases.setting({name: trial.params[name] for name in self.varied if name in trial.params})
        parts = [STATES[self.state(trial)], value, fps, varied, shortened(trial.failure, 200)]
        return f"trial {trial.number}: {'; '.join(filter(None, parts))}"


def trial_mark(search: Search, trial: TrialView, point: tuple[float, float]) -> Mark:
    """The mark of a trial at `point` (pixels), which links to the trial's row; the selected trial is a diamond."""
    state = search.state(trial)
    title, target = search.describe(trial), search.target(trial)
    if trial.selected:
        return Mark("diamond", "chosen", (point,), title=f"selected: {title}", target=target)
    return Mark(MARKS[state], state.lower(), (point,), title=title, target=target)


def trial_legend(search: Search, trials: Sequence[TrialView], *, bars: bool = False) -> list[Key]:
    """The legend of the states that occur among `trials`; with `bars` for a chart that draws trials as bars."""
    states = {search.state(trial) for trial in trials if not trial.selected}
    keys = [
        Key("bar" if bars else MARKS[state], state.lower(), text) for state, text in STATES.items() if state in states
    ]
    if any(trial.selected for trial in trials):
        keys.append(Key("bar" if bars else "diamond", "chosen", "selected"))
    return keys
