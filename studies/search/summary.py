"""A study in words and files: the note above its MLflow run, ``config.yaml``, ``trials.csv``, ``search_space.json``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import yaml

from detectors.files import write_json, write_text
from detectors.scoring.operating_point import Counts
from detectors.scoring.ranked_by import RANKING_SCORE, ranks_by
from studies.file.encoding import encode
from studies.search import advice_words, nested, threshold_words
from studies.search.choice import sentences
from studies.search.gain import gain
from studies.search.operating_point import points_on_test, pooled
from studies.search.space import SearchSpace
from studies.search.view import StudyView, TrialView

IN_SAMPLE = (
    "the good images are too few to hold any out: its figures are on images that it was fitted to and say nothing, and no "
    "threshold can be promised"
)
"""On a study whose images are `detectors.data.splits.Splits.in_sample`."""


def write_files(view: StudyView, space: SearchSpace) -> None:
    """Write what the parent run shows as artifacts."""
    folder = view.folder / "summary"
    write_text(folder / "config.yaml", yaml.safe_dump(view.config.to_json(), sort_keys=False))
    write_json(folder / "search_space.json", dict(space.describe()))
    write_text(folder / "trials.csv", trials_csv(view))


def trials_csv(view: StudyView) -> str:
    """All trials with parameters and metrics, one a line; spreadsheets read it."""
    rows = [trial_row(trial) for trial in view.trials()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def trial_row(trial: TrialView) -> dict[str, Any]:
    """A trial with its parameters and figures as one flat row; lists of strides as ``8+16``."""
    test = trial.test_metrics
    return {
        "number": trial.number,
        "state": trial.state,
        "selected": trial.selected,
        "feasible": trial.feasible,
        **{name: encode(value) for name, value in trial.params.items()},
        **trial.metrics,
        **test,
        "failure": trial.failure,
    }


def headline(metrics: Mapping[str, float], prefix: str, counts: Counts | None = None) -> str:
    """``finds 42 of 58 defects at 1 false alarm in 41 good images; image AUROC 0.912 (95 % interval 0.84 to 0.97)`` of one set.

    Of painted defects the ranking score stands in the place of the AUROC.

    Args:
        counts: at the threshold; without them the first half is left out, and without an AUROC the second.
    """
    return "; ".join(
        filter(
            None,
            (
                threshold_words.found(counts) if counts is not None else "",
                _auroc(metrics, prefix),
            ),
        )
    )


def _auroc(metrics: Mapping[str, float], prefix: str) -> str:
    name = ranks_by(metrics, prefix)
    value = metrics.get(name)
    if value is None:
        return ""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    seeds = metrics.get("seeds")
    mean, spread = metrics.get(f"{name}_seeds_mean"), metrics.get(f"{name}_seeds_std")
    over = (
        f"; {mean:.3f} ± {spread:.3f} over {seeds:g} seeds" if seeds and mean is not None and spread is not None else ""
    )
    what = "ranking score on painted defects" if is_painted(metrics, prefix) else "image AUROC"
    return f"{what} {value:.3f}{interval}{over}"


def is_painted(metrics: Mapping[str, float], prefix: str) -> bool:
    """Whether the figures of a set are on painted defects, of the second version of recipes."""
    return ranks_by(metrics, prefix).endswith(RANKING_SCORE)


def note(view: StudyView, reason: str = "") -> str:
    """Markdown above the parent run: what came of it first, for MLflow's pages fold all but three lines away."""
    trials = view.trials()
    states = {
        state: sum(trial.state == state for trial in trials) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
    }
    counted = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count) or "none yet"
    what = f"**{view.config.detector_label}** on **{view.header.experiment}**"
    selected = next((trial for trial in trials if trial.selected), None)
    lines = [
        f"{what}. {figure}." if selected is not None and (figure := _honest_figure(view, selected)) else f"{what}."
    ]
    if selected is not None and (estimate := view.nested()) is not None:
        lines += [f"{text[0].upper()}{text[1:]}." for text in nested.sentences(estimate)]
    if selected is not None:
        setting = ", ".join(f"{name} {_short(value)}" for name, value in selected.params.items())
        lines.append(f"Selected: trial {selected.number} ({setting}).")
        if (choice := view.choice()) is not None:
            lines += [f"{text[0].upper()}{text[1:]}." for text in sentences(choice, view.config)]
        if (found := gain(view)) is not None:
            lines.append(f"{found.line[0].upper()}{found.line[1:]}.")
        for point in points_on_test(view, selected):
            if point.threshold is not None:
                lines += [
                    f"{line[0].upper()}{line[1:]}." for line in threshold_words.lines(point.threshold, point.product)
                ]
    if selected is not None and (help_most := advice_words.lines(view, selected)):
        lines.append("What would help most:\n\n" + "\n".join(f"- {line}" for line in help_most))
    ended = f" The search ended: {reason}." if reason else ""
    count = len(view.ledger()) if view.keeps_test else 0
    scorings = f" Test was scored {count} time(s) in this study." if count else ""
    lines.append(f"Trials: {counted}; protocol {view.config.protocol}.{ended}{scorings}")
    lines += [f"**The ledger of the test images is at fault: {fault}.**" for fault in view.ledger_faults()]
    if again := ", ".join(str(number) for number in sorted(view.remeasured)):
        lines.append(f"Measured on a busy machine, and their speed once more after the search: trial {again}.")
    name = view.address
    lines.append(
        f"Commands: `study report {name}` makes one page of it, which lies in `report/` among this run's artifacts; "
        f"`study show {name}`, `study predict {name} IMAGE...`, `study promote {name}`."
    )
    if view.header.dropped:
        lines.append(f"Without weights on this machine and left out: {', '.join(view.header.dropped)}.")
    if view.header.experiment.startswith("rendered/"):
        lines.append("The images were rendered: a demonstration, not a result.")
    return "\n\n".join(lines)


def _honest_figure(view: StudyView, selected: TrialView) -> str:
    """What the selected trial is worth on test, or its choice by a nested estimate; empty where neither was measured."""
    if view.is_in_sample:
        return f"Beware: **{IN_SAMPLE}**"
    if view.is_nested:
        estimate = view.nested()
        return "" if estimate is None else f"By a {nested.CALLED}: **{nested.headline(estimate)}**"
    if selected.config.protocol == "paper":
        figure = headline(selected.metrics, "test")
        return f"On the whole test set, which chose it: **{figure}**" if figure else ""
    figure = headline(selected.test_metrics, "test", pooled(points_on_test(view, selected)))
    return f"On test, which the search never saw: **{figure}**" if figure else ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(encode(value))
