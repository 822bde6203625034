"""What a study keeps of the fits that were made to advise on it (`studies.search.advice`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from studies.search.view import StudyView

ADVICE = "advice"
"""Attribute of a study: `Advice`."""
SHARES = (0.25, 0.5)
"""Of train, for the learning curve."""
COMPARED_ON = 0.5
"""Share of train on which other conditions are compared: cheap, and the learning curve has the selected setting's value."""


class Answer(BaseModel):
    """The first objective of one fit under another condition."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    value: float
    better_by: float | None = None
    """Than the selected setting on the same part of train; None for the learning curve itself."""
    certain: bool = False
    """Whether chance does not explain it."""


class Advice(BaseModel):
    """What was asked for one trial: ``images 0.25``, ``images 0.5``, ``size 384x384``, ``detector patchcore``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    trial: int
    answers: dict[str, Answer] = {}
    complete: bool = False
    """Whether every question was asked that is to be."""


def stored_advice(view: StudyView) -> Advice | None:
    """What was answered so far; None where nothing was asked."""
    stored = view.study.user_attrs.get(ADVICE)
    return Advice.model_validate(stored) if stored else None
