"""What is tried next: retries, ideas, earlier winners, baselines, the grid, each detector's turn, then what the sampler draws."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from studies.file.encoding import Setting, canonical, encode
from studies.file.keys import DETECTOR_KEY
from studies.search.attributes import DISCARDED, GRID, IDEA, INTERRUPTED, TrialAttributes
from studies.search.notices import Remark
from studies.search.opened import OpenStudy
from studies.search.samplers import derive_seed, make_sampler
from studies.search.tried_first import ORIGINS, First, tried_first

DUPLICATES_BEFORE_RANDOM, DUPLICATES_BEFORE_END = 10, 60
"""Repeated suggestions in a row after which the sampler is replaced by chance, and after which the space counts as exhausted."""
UNANSWERED = (INTERRUPTED, "bad_input", "crashed: the driver")
"""Beginnings of failures that say nothing of the setting: it may be tried again. Any other was met in every attempt."""


@dataclass(frozen=True)
class Attempt:
    """A trial that is to be submitted, for the so-manyeth time."""

    trial: Trial
    attempt: int = 1
    memory_halvings: int = 0
    """How many attempts ran out of memory."""


class Queue:
    """The trials to come. Whatever it takes from Optuna is either submitted or discarded.

    Optuna holds what waits, so that a killed driver loses nothing; only retries are kept here, and those are trials that
    still run for Optuna.
    """

    def __init__(self, opened: OpenStudy) -> None:
        self._opened, self._study = opened, opened.study
        self._config, self._space = opened.config, opened.space
        self._retries: deque[Attempt] = deque()
        self._exhausted = False

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left to try."""
        return self._exhausted and not self._retries

    def fill(self) -> None:
        """Queue what is tried first, each setting once over all runs of the study; what cannot be tried is told."""
        for first in tried_first(self._opened.plan):
            if first.skipped:
                # The plan tells which backbones are left out, and needs no line on each baseline that names one.
                if first.kind != "baseline":
                    self._opened.notify(Remark(f"{first.name} skipped: {first.skipped}"))
            elif not self._is_known(first):
                if first.remark or first.source:
                    self._opened.notify(Remark(": ".join(filter(None, (f"{first.name} is tried first", first.remark)))))
                self._enqueue(
                    first.setting, origin=ORIGINS[first.kind], name=first.kind, warm_from=first.source or None
                )

    def _is_known(self, first: First) -> bool:
        """Whether a setting was queued before. A person's idea is found a duplicate when its turn comes, if it was tried."""
        states = (TrialState.WAITING,) if first.kind == IDEA else ()
        known = [TrialAttributes.of(frozen) for frozen in self._opened.all_trials(*states)]
        return any(getattr(attributes, first.kind) == canonical(first.setting) for attributes in known)

    def retry(self, attempt: Attempt, *, first: bool = False) -> None:
        """Keep a running trial for another attempt, behind the others or before them."""
        if first:
            self._retries.appendleft(attempt)
        else:
            self._retries.append(attempt)

    def requeue(self, number: int) -> None:
        """Queue an interrupted trial's setting as a new trial.

        Call it before the trial's end is told: where the driver is killed in between, the second one is found a duplicate.
        """
        frozen = self._opened.frozen(number)
        attributes = TrialAttributes.of(frozen)
        params = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}
        queued = TrialAttributes(
            origin=INTERRUPTED,
            overrides=attributes.overrides,
            grid=attributes.grid,
            warm_from=attributes.warm_from,
        )
        self._study.enqueue_trial(params=params, user_attrs=queued.stored())

    def drop_retries(self) -> None:
        """Forget the attempts that wait; their trials still run for Optuna."""
        self._retries.clear()

    def take(self) -> tuple[Attempt, Setting] | None:
        """The next attempt with its full setting; None where there is nothing to try any more."""
        while self._retries:
            attempt = self._retries.popleft()
            number = attempt.trial.number
            self._reseed(number)
            params = self.suggest(attempt.trial)
            if attempt.attempt > 1 or not self._is_duplicate(number, params):
                return attempt, params
            self.discard(attempt.trial)
        for repeated in range(DUPLICATES_BEFORE_END):
            # Before anything is queued: the number that the next trial has in a study without a queue.
            count = len(self._opened.all_trials())
            if not self._has_more():
                break
            trial = self._reseed(count, at_random=repeated >= DUPLICATES_BEFORE_RANDOM).ask()
            params = self.suggest(trial)
            if not self._is_duplicate(trial.number, params):
                self._tell_changes(trial, params)
                return Attempt(trial), params
            self.discard(trial)
        self._exhausted = True
        return None

    def suggest(self, trial: Trial) -> Setting:
        """The full setting of a trial: what it holds already stays, the rest is drawn."""
        return self._space.suggest(trial, TrialAttributes.of(trial).overrides)

    def discard(self, trial: Trial) -> None:
        """Close a trial that repeats another one; it counts nowhere."""
        trial.set_user_attr(DISCARDED, "the same setting was tried before")
        self._study.tell(trial, state=TrialState.FAIL)

    def _tell_changes(self, trial: Trial, params: Setting) -> None:
        """Say what the backbone or the layers that were drawn only now do not allow of a setting that leaves them open."""
        attributes = TrialAttributes.of(trial)
        given: dict[str, Any] = json.loads(attributes.idea or attributes.warm or attributes.baseline or "{}")
        told_before = self._space.bounded(given) if given else {}
        changes = [
            f"{name} {encode(value)} became {encode(params[name])} with this backbone and these layers"
            for name, value in given.items()
            if name not in told_before and params.get(name, value) != value
        ]
        if changes:
            self._opened.notify(Remark(f"trial {trial.number}: {'; '.join(changes)}"))

    def _has_more(self) -> bool:
        """Queue what comes next by the study file's order; False where only what waits is tried and nothing does."""
        is_grid = self._config.sampler.name == "grid"
        if not self._is_anything_waiting():
            if is_grid:
                self._enqueue_next_of_grid()
            elif self._config.budget.each:
                self._enqueue_next_in_turn()
        return (bool(self._config.search) and not is_grid) or self._is_anything_waiting()

    def _is_anything_waiting(self) -> bool:
        return bool(self._opened.all_trials(TrialState.WAITING))

    def _enqueue(self, setting: Mapping[str, Any], *, origin: str, name: str, warm_from: str | None = None) -> None:
        """Queue a setting; it is stored as canonical text under the attribute `name`, by which it is known again."""
        searched, overrides = self._space.optuna_params(setting)
        attributes = TrialAttributes(
            overrides=overrides, origin=origin, warm_from=warm_from, **{name: canonical(setting)}
        )
        self._study.enqueue_trial(params=searched, user_attrs=attributes.stored())

    def _enqueue_next_of_grid(self) -> None:
        """Queue the first setting of the grid that was not tried yet."""
        tried = {TrialAttributes.of(trial).grid for trial in self._opened.all_trials()}
        for setting in self._space.grid():
            if canonical(setting) not in tried:
                self._enqueue(setting, origin="grid", name=GRID)
                return

    def _enqueue_next_in_turn(self) -> None:
        """Queue a trial of the detector that had the fewest, while one has not had its share; its setting is drawn as ever."""
        counts = Counter(frozen.params.get(DETECTOR_KEY) for frozen in self._opened.all_trials())
        name = min(self._config.detectors, key=lambda name: counts[name])
        if self._space.draws_detector and counts[name] < self._config.budget.each:
            self._study.enqueue_trial(params={DETECTOR_KEY: name})

    def _reseed(self, number: int, *, at_random: bool = False) -> optuna.Study:
        """The study with a sampler for this trial alone: a resumed study would otherwise draw the same trials again."""
        seed = derive_seed(self._config.sampler.seed, "sampler", number)
        self._study.sampler = make_sampler(self._config, seed, at_random)
        return self._study

    def _is_duplicate(self, number: int, params: Mapping[str, Any]) -> bool:
        """Whether another trial has this setting and its outcome counts or will."""
        text = canonical(params)
        for frozen in self._opened.all_trials():
            attributes = TrialAttributes.of(frozen)
            if frozen.number == number or not attributes.job.attempt or canonical(attributes.job.params) != text:
                continue
            if frozen.state != TrialState.FAIL or not attributes.outcome.failure.startswith(UNANSWERED):
                return True
        return False
