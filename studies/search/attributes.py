"""What a study keeps in the user attributes of an Optuna trial, typed; the stored form is that of version 0.1."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from optuna.trial import FrozenTrial, Trial
from pydantic import BaseModel, ConfigDict

from studies.file.encoding import Setting

JOB, OUTCOME, OVERRIDES, DISCARDED, ORIGIN = "job", "outcome", "overrides", "discarded", "origin"
IDEA, GRID = "idea", "grid"
"""Names of the attributes; `TrialAttributes` says what each holds."""
INTERRUPTED = "interrupted"
"""The failure of a trial that was running when its driver was stopped, and the origin of the one that takes it up again."""


class _Stored(BaseModel):
    """A part of the attributes. What a later version adds is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: ClassVar[str]
    """Of the attribute."""

    def write(self, trial: Trial) -> None:
        """Store it with a trial; a default is not stored."""
        trial.set_user_attr(self.name, self.model_dump(exclude_defaults=True))


REMEASURED = "remeasured"
"""Attribute of a study, for a trial's own do not change any more once its end was told: {number as text: `Remeasured`}."""


PROBED = "probed"
"""Attribute of a study: {number of a trial as text: {resample as text: first objective of that fit on validation}}."""


class Remeasured(BaseModel):
    """Speed that was measured again after a trial had ended."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    metrics: dict[str, float] = {}
    time: float | None = None
    """Seconds since the epoch."""


class Submission(_Stored):
    """What was submitted to a worker last."""

    name = JOB

    attempt: int = 0
    """From 1 on; 0 where nothing was submitted."""
    params: Setting = {}
    """The full setting."""
    memory_halvings: int = 0
    """How many attempts ran out of memory."""


class TrialOutcome(_Stored):
    """What came of a trial. It counts only when Optuna knows the trial's state: a driver may be killed between the two."""

    name = OUTCOME

    metrics: dict[str, float] = {}
    """Those of the search, with the prefix of their set; empty where the trial failed or was pruned."""
    seconds: dict[str, float] = {}
    """Wall time of each stage."""
    environment: dict[str, str] = {}
    """Host, device, threads and versions."""
    undefined: dict[str, str] = {}
    """Metrics that these images do not define, and why."""
    started: float | None = None
    """Seconds since the epoch; None where the worker left no result."""
    finished: float | None = None
    failure: str = ""
    """``<kind>: <message>``, or empty."""
    pruned: bool = False


class TrialAttributes(BaseModel):
    """All attributes of one trial."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    job: Submission = Submission()
    outcome: TrialOutcome = TrialOutcome()
    overrides: dict[str, Any] = {}
    """Values outside the search, such as a baseline's."""
    origin: str = "search"
    """Where the setting comes from: ``search``, ``baseline``, ``person``, ``warm``, ``grid`` or ``interrupted``."""
    discarded: str | None = None
    """Why the trial does not count, such as a setting that was tried before."""
    baseline: str | None = None
    """The baseline that the setting is, as canonical text."""
    idea: str | None = None
    """The person's own setting, as canonical text."""
    warm: str | None = None
    """The setting of a warm start, as canonical text."""
    warm_from: str | None = None
    """Where that comes from: ``padim_screw trial 7``."""
    grid: str | None = None
    """The setting of the grid, as canonical text."""

    @classmethod
    def of(cls, trial: FrozenTrial | Trial) -> Self:
        """The attributes of a trial."""
        return cls.model_validate(trial.user_attrs)

    def stored(self) -> dict[str, Any]:
        """As Optuna stores them, for a trial that is to be queued."""
        return self.model_dump(exclude_defaults=True)
