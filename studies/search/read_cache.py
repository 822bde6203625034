"""What a storage's only writer has read of it, kept true by what it writes."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial


class ReadCache:
    """Optuna's trials and the attributes of studies as one thread read them, which alone may use it; any may call `forget`.

    Trials are replaced and never changed, so that a list that was handed out stays what it was.
    """

    def __init__(self) -> None:
        self._reader = threading.get_ident()
        self._attributes: dict[tuple[str, int], dict[str, Any]] = {}
        self._trials: dict[int, dict[int, FrozenTrial]] = {}
        self._stale: set[int] = set()

    @property
    def is_readers(self) -> bool:
        """Whether the calling thread is the one that reads."""
        return threading.get_ident() == self._reader

    def forget(self) -> None:
        """Read all anew."""
        self._attributes, self._trials, self._stale = {}, {}, set()

    # Attributes of studies

    def attributes(self, kind: str, study_id: int, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A copy of a study's attributes of a kind."""
        if (kind, study_id) not in self._attributes:
            self._attributes[kind, study_id] = read()
        return dict(self._attributes[kind, study_id])

    def forget_attributes(self, kind: str, study_id: int) -> None:
        """They were written."""
        self._attributes.pop((kind, study_id), None)

    # Trials

    def trials(
        self, study_id: int, read: Callable[[], Iterable[FrozenTrial]], read_one: Callable[[int], FrozenTrial]
    ) -> list[FrozenTrial]:
        """A study's trials by number; do not change them."""
        known = self._trials.get(study_id)
        if known is not None:
            for trial_id in self._stale & known.keys():
                self._refresh(known, trial_id, read_one)
            if [trial.number for trial in known.values()] != list(range(len(known))):
                known = None  # somebody else has made one, which is missing here
        if known is None:
            known = self._trials[study_id] = {trial._trial_id: trial for trial in read()}
            self._stale -= known.keys()
        return list(known.values())

    def trial(self, trial_id: int, read_one: Callable[[int], FrozenTrial]) -> FrozenTrial:
        """A copy of one trial, whose mappings may be written to."""
        known = next((trials for trials in self._trials.values() if trial_id in trials), None)
        if known is None:
            return read_one(trial_id)
        if trial_id in self._stale:
            self._refresh(known, trial_id, read_one)
        return _copied(known[trial_id])

    def make_trial(self, study_id: int, trial_id: int) -> None:
        """A trial was made, and is read when it is asked for."""
        if study_id in self._trials:
            self._trials[study_id][trial_id] = FrozenTrial.__new__(FrozenTrial)
            self._stale.add(trial_id)

    def make_stale(self, trial_id: int) -> None:
        """A trial was written in a way that only the database knows in full, and is read when it is asked for."""
        self._stale.add(trial_id)

    def set_param(self, trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> None:
        """A parameter was written."""

        def change(trial: FrozenTrial) -> None:
            trial.params[name] = distribution.to_external_repr(internal)
            trial.distributions[name] = distribution

        self._change(trial_id, change)

    def set_attribute(self, trial_id: int, kind: str, key: str, value: Any) -> None:
        """An attribute was written: ``user_attrs`` or ``system_attrs``; the database keeps it as JSON."""
        stored = json.loads(json.dumps(value))
        self._change(trial_id, lambda trial: getattr(trial, kind).update({key: stored}))

    def _refresh(self, known: dict[int, FrozenTrial], trial_id: int, read_one: Callable[[int], FrozenTrial]) -> None:
        known[trial_id] = read_one(trial_id)
        self._stale.discard(trial_id)

    def _change(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> None:
        for trials in self._trials.values():
            if trial_id in trials and trial_id not in self._stale:
                trials[trial_id] = _copied(trials[trial_id])
                change(trials[trial_id])


def _copied(trial: FrozenTrial) -> FrozenTrial:
    """A trial with mappings of its own; what they hold is shared."""
    copied = copy.copy(trial)
    copied.params, copied.distributions = dict(trial.params), dict(trial.distributions)
    copied.user_attrs, copied.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    copied.intermediate_values = dict(trial.intermediate_values)
    return copied
