"""What a search brought: the first setting that was tried and the selected one, side by side on validation.

The test images are scored for the selected trial alone, so that the two can be compared on validation only; which chose the one,
so that its lead is rather too large.
"""

from __future__ import annotations

from dataclasses import dataclass

from detectors.scoring.operating_point import Counts
from detectors.scoring.ranked_by import RANKING_SCORE, ranks_by
from studies.search import threshold_words
from studies.search.operating_point import OperatingPoint, counts_from, pooled
from studies.search.view import StudyView, TrialView


@dataclass(frozen=True)
class Side:
    """One of the two settings on validation."""

    trial: int
    counts: Counts | None
    """At the trial's own threshold; None where it has none."""
    value: float | None
    """Image AUROC, of painted defects the ranking score."""


@dataclass(frozen=True)
class Gain:
    """Both settings; the same one twice where the first setting stayed the best."""

    first: Side
    selected: Side
    tried: int
    """Finished trials."""
    painted: bool
    """Whether the defects of validation are painted ones."""
    where: str = "validation"
    """The images, for a person."""

    @property
    def line(self) -> str:
        """For a person."""
        where = f"on {self.where}, with painted defects" if self.painted else f"on {self.where}"
        if self.first.trial == self.selected.trial:
            return (
                f"{where}, the first setting (trial {self.first.trial}) stayed the best of {self.tried}: "
                f"it {self._figures(self.first)}"
            )
        return (
            f"{where}, the first setting (trial {self.first.trial}) {self._figures(self.first)}; the search's "
            f"(trial {self.selected.trial}) {self._figures(self.selected)}"
        )

    def _figures(self, side: Side) -> str:
        name = "ranking score" if self.painted else "image AUROC"
        figure = f"{name} {side.value:.3f}" if side.value is not None else ""
        counts = side.counts if side.counts is not None and side.counts.defective else None
        found = threshold_words.found(counts) if counts is not None else ""
        if not found:
            return f"has {figure}" if figure else "has no figures"
        return f"{found}, {figure}" if figure else found


def gain(view: StudyView) -> Gain | None:
    """What the search brought; None with less than two finished trials, before one is selected, or without validation."""
    finished = [trial for trial in view.trials() if trial.state == "COMPLETE"]
    selected = next((trial for trial in finished if trial.selected), None)
    if selected is None or len(finished) < 2 or view.config.protocol == "paper" or view.is_in_sample:
        return None
    painted = ranks_by(selected.metrics, "val").endswith(RANKING_SCORE)
    where = "all labelled images" if view.is_nested else "validation"
    return Gain(_side(view, finished[0]), _side(view, selected), len(finished), painted, where)


def _side(view: StudyView, trial: TrialView) -> Side:
    points = []
    for key, images in view.header.counts.items():
        product, _, name = key.rpartition("/")
        if name == "validation":
            before = f"product/{product}/val/" if product else "val/"
            points.append(OperatingPoint(product, counts_from(trial.metrics, images, before), None))
    return Side(trial.number, pooled(points), trial.metrics.get(ranks_by(trial.metrics, "val")))
