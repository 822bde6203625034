"""The detector that a person has while the search goes on: that of the best trial so far, as it was fitted for its figures.

The first trial leaves its detector in its folder, with the threshold that its good images give: of a study without labels before
it is judged, of others when it has finished. One that beats it replaces it. Nothing is scored on test for it, and nothing is
promoted: the refit of the selected trial takes its place. In a study over several products it stays the first trial's, because a
trial's worker does not know the mean over them before all are done. See `detectors.runtime.artifact` for what is written, and
`LARGEST_MB` of `studies.worker.trial`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable

from studies.search.durations import duration
from studies.search.notices import Remark
from studies.search.opened import OpenStudy
from studies.search.usable_words import usable_now
from studies.search.view import TrialView
from studies.worker.jobs import DETECTOR, FIRST_DETECTOR, PRODUCTS


class Provisional:
    """Says which trial is to keep its detector, deletes those that are beaten, and tells when there is one to use."""

    def __init__(self, opened: OpenStudy, *, slots: int = 1) -> None:
        """Args: `slots` is how many trials run at the same time."""
        self._opened, self._slots = opened, max(1, slots)
        self._has_refit = any(trial.detectors for trial in opened.view.trials())
        present = opened.view.provisional()
        self._is_told = self._has_refit or bool(present)
        self._is_timed = self._has_refit or any(trial.state == "COMPLETE" for trial in present)

    @property
    def keep_above(self) -> float | None:
        """What a trial must reach for its detector to be kept; see `Job.keep_above`."""
        if self._has_refit or self._opened.config.protocol == "paper":
            return None
        present = self._opened.view.usable()
        if present is None or present.state != "COMPLETE":
            return -math.inf
        if self._opened.plan.images.several or present.value is None:
            return None
        return present.value if self._opened.config.direction == "maximize" else -present.value

    def update(self) -> None:
        """After a trial has ended or left a first detector: the best one is kept, the others go; the first one is told."""
        if self._has_refit:
            return
        usable = self._opened.view.usable()
        if usable is None or not usable.provisional:
            return
        others = [trial for trial in self._opened.view.with_own_detector() if trial.number != usable.number]
        # A worker may be writing that of a trial which still runs; it goes once the trial has ended.
        delete(trial for trial in others if trial.state != "RUNNING")
        if not self._is_told:
            self._is_told = True
            self._opened.notify(Remark(usable_now(self._opened.view, usable)))
        if not self._is_timed and usable.state == "COMPLETE":
            self._is_timed = True
            if (line := self._how_long(usable)) is not None:
                self._opened.notify(Remark(line))

    def _how_long(self, first: TrialView) -> str | None:
        """How long the rest of the search may take, judged by the first trial; None where nothing is left."""
        budget = self._opened.config.budget
        trials = budget.trials - self._opened.count_finished()
        if trials < 1:
            return None
        # Features are computed once; a measurement of speed has the machine for itself, the rest is divided among the slots.
        once = ("features", FIRST_DETECTOR)
        each = sum(seconds for stage, seconds in first.outcome.seconds.items() if not stage.startswith(once))
        seconds = trials * each / self._slots
        if budget.timeout is not None:
            seconds = min(seconds, budget.timeout)
        count = "1 more trial" if trials == 1 else f"up to {trials} more trials"
        return f"the search goes on with {count}, about {duration(seconds)}; Ctrl-C ends it and leaves this detector"


def delete(trials: Iterable[TrialView]) -> None:
    """Delete the detectors that trials kept; their figures stay."""
    for trial in trials:
        for folder in (trial.folder / DETECTOR, *(trial.folder / PRODUCTS).glob(f"*/{DETECTOR}")):
            shutil.rmtree(folder, ignore_errors=True)
