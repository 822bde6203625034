"""The metrics of a study's own run in MLflow: the selected trial's on validation and on test, and how the best value grew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from detectors.scoring.evaluation import FALSE_ALARMS, RECALL, SEG_F1
from detectors.scoring.ranked_by import RANKING_SCORE, ranks_by
from studies.file.config import metric_of
from studies.search.attributes import INTERRUPTED
from studies.search.nested import NESTED
from studies.search.operating_point import metrics_on_test
from studies.search.view import StudyView, TrialView
from tracking.records import Point

OF_THE_THRESHOLD = ("threshold", "threshold_normals", "threshold_expected_rate")
"""Metrics of a refit: its image threshold, the good images it rests on, and the false-alarm rate to expect."""
ON_TEST = tuple(
    f"test/{name}{end}"
    for name, ends in (
        ("image_auroc", ("", "_low", "_high")),
        (RANKING_SCORE, ("", "_low", "_high")),
        (RECALL, ("", "_low", "_high")),
        (FALSE_ALARMS, ("", "_low", "_high")),
        ("pixel_aupro", ("",)),
        ("pixel_aupro_05", ("",)),
        (SEG_F1, ("",)),
    )
    for end in ends
)
BY_NESTED = tuple(
    f"{NESTED}/{name}{end}" for name in ("image_auroc", RECALL, FALSE_ALARMS) for end in ("", "_low", "_high")
)
"""Metrics of a study that keeps no images for test: those of its nested estimate."""
COUNTED = {"COMPLETE": "trials/complete", "PRUNED": "trials/pruned", "FAIL": "trials/failed"}
"""{state: metric that counts the trials in it}"""
BEST = "best/"
"""What the names of the curves begin with; each goes on with the name of an objective's metric."""


def study_figures(view: StudyView) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """What holds for the study now, and the curves of the best value so far; see `StudyRecord`."""
    trials = view.trials()
    return tuple(_latest(view, trials)), tuple(_curves(view, trials))


def _latest(view: StudyView, trials: Sequence[TrialView]) -> Iterator[Point]:
    config = view.config
    selected = next((trial for trial in trials if trial.selected), None)
    aims = [metric_of(config, name) for name in (*config.objectives, *config.constraints)]
    found = selected.metrics if selected is not None else {}
    searched = dict.fromkeys([*aims, ranks_by(found, "val"), f"val/{RECALL}", f"val/{FALSE_ALARMS}", "fps"])
    final = selected.final if selected is not None else None
    tested = metrics_on_test(view, selected) if selected is not None else {}
    ended = selected.outcome.finished if selected is not None else None
    yield from _points(searched, found, ended or view.header.created)
    on_test = [name for name in (*ON_TEST, *OF_THE_THRESHOLD) if name not in searched]
    # The threshold may have been chosen anew since the refit.
    tested_at = (final.threshold_set or final.finished) if final is not None else ended
    yield from _points(on_test, tested, tested_at or view.header.created)
    if view.is_nested:
        estimate = view.nested()
        yield from _points(
            BY_NESTED, estimate.metrics if estimate else {}, estimate.time if estimate else view.header.created
        )
    last = max((end for trial in trials if (end := trial.outcome.finished) is not None), default=view.header.created)
    # One that was interrupted is tried again.
    states = [trial.state for trial in trials if trial.failure != INTERRUPTED]
    counts_of = {name: float(sum(each == state for each in states)) for state, name in COUNTED.items()}
    yield from _points(counts_of, counts_of, last)


def _points(names: Iterable[str], values: Mapping[str, float], seconds: float) -> Iterator[Point]:
    """A point for each name; one that has no value takes back what was written before."""
    for name in names:
        yield Point(name, float(values.get(name, math.nan)), int(seconds * 1000))


def _curves(view: StudyView, trials: Sequence[TrialView]) -> Iterator[Point]:
    """For each objective the best value so far of the trials that meet the constraints, after each trial that finished.

    Trials count in the order in which the storage heard of them: a later one never comes before one that was written.
    """
    ended = sorted(
        (moment, trial.number, trial)
        for trial in trials
        if trial.state in ("COMPLETE", "PRUNED") and (moment := trial.frozen.datetime_complete) is not None
    )
    for place, (name, way) in enumerate(view.config.objectives.items()):
        better = max if way == "maximize" else min
        best: float | None = None
        for step, (moment, _, trial) in enumerate(ended, start=1):
            if trial.feasible and trial.frozen.values:
                value = trial.frozen.values[place]
                best = value if best is None else better(best, value)
            if best is not None:
                yield Point(f"{BEST}{metric_of(view.config, name)}", best, int(moment.timestamp() * 1000), step)
