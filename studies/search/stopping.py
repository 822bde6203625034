"""When a search ends: the budget, the goal, stagnation, or nothing left to try."""

from __future__ import annotations

from collections.abc import Callable

from studies.search.opened import OpenStudy
from studies.search.queue import Queue
from studies.search.view import StudyView


class Stopping:
    """The limits of one run, whose time counts from the making of this object."""

    def __init__(self, opened: OpenStudy, queue: Queue, *, clock: Callable[[], float]) -> None:
        """Args: `clock` gives seconds that never go back."""
        self._opened, self._config, self._queue, self._clock = opened, opened.config, queue, clock
        self._begin = clock()

    def reason(self, running: int) -> str | None:
        """Why no other trial is to start, in words; None while one may.

        Args:
            running: trials under way, which count towards the budget.
        """
        budget, finished = self._config.budget, self._opened.count_finished()
        if finished + running >= budget.trials:
            return f"{finished} of {budget.trials} trials are done"
        if self._queue.is_exhausted:
            what = "configuration of the search space" if self._config.search else "baseline"
            return f"every {what} was tried"
        if budget.timeout is not None and self._clock() - self._begin > budget.timeout:
            return f"the time limit of {budget.timeout:.0f} s is reached"
        return reached(self._opened.view)


def reached(view: StudyView) -> str | None:
    """Which aim of the budget the finished trials have reached, the goal or stagnation, in words; None for neither."""
    budget = view.config.budget
    if budget.goal is not None and _is_goal_met(view, budget.goal):
        return f"the goal of {budget.goal:g} is reached"
    if budget.stagnation is not None and _trials_since_best(view) >= budget.stagnation:
        return f"no better trial among the last {budget.stagnation}"
    return None


def _is_goal_met(view: StudyView, goal: float) -> bool:
    best = view.best()
    if best is None or best.value is None:
        return False
    return best.value >= goal if view.config.direction == "maximize" else best.value <= goal


def _trials_since_best(view: StudyView) -> int:
    """Feasible trials after the one of them that set the present best value.

    One that misses a constraint could not be selected, however good: it neither sets the mark nor counts as a try to beat it.
    """
    sign = 1 if view.config.direction == "maximize" else -1
    values = [sign * trial.value for trial in view.trials() if trial.feasible and trial.value is not None]
    return len(values) - 1 - values.index(max(values)) if values else 0
