"""Which of the finished trials is taken where the images do not tell the best ones apart.

A maximum over trials is optimistic, and the trial that reaches it is often not the best one: with a few dozen labelled images,
the order of the leading settings is chance. So a trial ties with the leader where its distance to it is at most `WITHIN` times
the standard error of that distance over other images like these (a paired bootstrap, `detectors.scoring.paired`), and ties go to
what is known beforehand: the prior's order (`studies.search.portfolio`), then the better localisation where masks exist, then
speed, then the earlier trial.

Why half a standard error, and no test at 95 %. A test protects one side: it keeps what it cannot refute. Here neither side
deserves that, for to take a worse setting for a tie costs as much as to follow a lead that is chance. At 1.6 standard errors the
prior would overrule leads that are real nine times in ten. A correction for the number of trials, which makes the statement hold
for the best of all of them at once (Hsu, "Simultaneous confidence intervals for all distances from the best", 1981), goes further
the same way, and would leave the choice to the prior alone wherever images are few. That many trials were compared makes the
leader's value too good; it is no reason to take its lead for smaller than it is. Breiman's rule of one standard error (Breiman
et al., "Classification and Regression Trees", 1984, section 3.4.3) is of the same kind. The factor was set by a simulation,
before any image was looked at: ``benchmarks/tie_rule.py``, whose figures are in benchmarks/README.md.

It applies to one objective of the detector's quality. With several objectives the first one's best value selects, and so it does
for an objective of cost, under protocol ``paper``, and for trials whose scores were not kept. Pixel metrics whose replicates do
not follow from single images (all but ``seg_f1``) tie only where they are equal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from detectors.scoring.evaluation import LOWER_METRICS, METRICS
from studies.file.config import StudyConfig
from studies.search.noise import Spread

CHOICE = "choice"
"""Attribute of a study: the `Choice` at the end of its last search."""
WITHIN = 0.5
"""Standard errors of the difference to the leader within which a trial ties with it."""
MOST_COMPARED = 50
"""Trials that are compared with the leader: the best by value."""

Reason = Literal["value", "prior", "localisation", "speed", "order"]
"""What decided: the value alone, or between trials that tie the prior and so on."""


class Preference(NamedTuple):
    """What decides between trials that tie; the lowest is taken."""

    prior: float
    """Place in the prior's order; infinite where it has none."""
    localisation: float
    """The AUPRO on validation, negative; 0 where it is not known."""
    speed: float
    """Images per second, negative."""
    order: int
    """Number of the trial."""


@dataclass(frozen=True)
class Candidate:
    """A feasible finished trial."""

    number: int
    values: tuple[float, ...]
    """The first objective of the trial, and of each fresh fit of its setting."""
    preference: Preference
    spread: Spread | None = None
    """Over the images, of the mean of `values`; None where no scores were kept."""

    @property
    def value(self) -> float:
        """What it is ranked by: the mean over its fits."""
        return fmean(self.values)


class Choice(BaseModel):
    """Which trial was taken, and why."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    trial: int
    leader: int
    """The trial with the best value; of equal ones the faster, then the earlier."""
    tied: list[int]
    """The leader and all that tie with it, in the order of preference."""
    by: Reason
    values: dict[int, float] = {}
    """{trial: what it was ranked by} of those that tie, and of all that were fitted again."""
    basis: str = ""
    """What it was made of, as `basis_of` gives it."""
    rerank: int = 0
    """The study file's ``rerank`` at that time."""
    fresh_fits: int = 0
    """How often each of the best settings was fitted again before."""
    tied_before: int = 0
    """Trials that tied before they were fitted again."""


def applies(config: StudyConfig) -> bool:
    """Whether trials of a study can tie at all."""
    objective = next(iter(config.objectives))
    return len(config.objectives) == 1 and config.protocol != "paper" and objective in (*METRICS, *LOWER_METRICS)


def decide(candidates: Sequence[Candidate], *, maximize: bool, ties: bool = True) -> Choice | None:
    """The choice among candidates; None where there are none.

    Args:
        maximize: whether more of the objective is better.
        ties: whether trials can tie; else the leader is taken.
    """
    if not candidates:
        return None
    sign = 1 if maximize else -1
    ranked = sorted(candidates, key=lambda one: (-sign * one.value, one.preference.speed, one.number))
    leader = ranked[0]
    tied = [leader]
    if ties:
        tied += [one for one in ranked[1:MOST_COMPARED] if _ties(leader, one, sign)]
        tied.sort(key=lambda one: one.preference)
    return Choice(
        trial=tied[0].number,
        leader=leader.number,
        tied=[one.number for one in tied],
        by=_what_decided(tied),
        values={one.number: one.value for one in tied},
    )


def best_first(candidates: Sequence[Candidate], choice: Choice, *, maximize: bool) -> list[Candidate]:
    """All candidates: the leader, the others that tie with it in the order of preference, then the rest by value."""
    sign = 1 if maximize else -1
    place = {number: index for index, number in enumerate(choice.tied)}

    def key(one: Candidate) -> tuple[float, ...]:
        if one.number == choice.leader:
            return (0,)
        if one.number in place:
            return (1, place[one.number])
        return (2, -sign * one.value, one.preference.speed, one.number)

    return sorted(candidates, key=key)


def basis_of(config: StudyConfig, finished: Iterable[tuple[int, float, bool]]) -> str:
    """A digest of what a choice follows from: number, value and feasibility of each finished trial, and the objective."""
    told = [list(config.objectives.items()), config.protocol, sorted(map(list, finished))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def sentences(choice: Choice, config: StudyConfig) -> list[str]:
    """What was done to choose among the best trials, for a person; empty where the best value alone decided."""
    said = []
    if choice.fresh_fits:
        figures = ", ".join(f"trial {number} {value:.4f}" for number, value in choice.values.items())
        times = "once" if choice.fresh_fits == 1 else f"{choice.fresh_fits} times"
        painted = ", with other painted defects" if config.protocol == "synthetic" else ""
        before = f" ({choice.tied_before} tied within noise)" if choice.tied_before > 1 else ""
        said.append(
            f"the best {_COUNTS.get(len(choice.values), str(len(choice.values)))}{before} were fitted again on other subsets "
            f"of train{painted}, {times} each: mean {next(iter(config.objectives))} of all fits {figures}"
        )
    if len(choice.tied) > 1:
        instead = ""
        if choice.trial != choice.leader:
            best = f"trial {choice.leader}, which has the best value ({choice.values[choice.leader]:.4f})"
            instead = f": trial {choice.trial} ({choice.values[choice.trial]:.4f}), not {best}"
        said.append(f"{len(choice.tied)} trials tie within noise; {_TAKEN[choice.by]}{instead}")
    return said


_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
_TAKEN: Mapping[Reason, str] = {
    "prior": "the one first in the prior was taken",
    "localisation": "the one that locates the defects best was taken",
    "speed": "the fastest was taken",
    "order": "the earliest was taken",
    "value": "the best was taken",
}


def _ties(leader: Candidate, other: Candidate, sign: int) -> bool:
    """Whether the distance between two candidates is within noise."""
    if leader.spread is None or other.spread is None or leader.spread.images != other.spread.images:
        return False
    lead = sign * (leader.value - other.value)
    if lead <= 0:
        return True
    if leader.spread.replicates is None or other.spread.replicates is None:
        return False
    over_images = float((leader.spread.replicates - other.spread.replicates).var())
    return lead <= WITHIN * math.sqrt(over_images + _over_fits(leader, other))


def _over_fits(first: Candidate, second: Candidate) -> float:
    """Variance of the difference of two means that comes from the fits; those of one place share the subset of train."""
    if len(first.values) != len(second.values) or len(first.values) < 2:
        return 0.0
    return variance(a - b for a, b in zip(first.values, second.values, strict=True)) / len(first.values)


def _what_decided(tied: Sequence[Candidate]) -> Reason:
    if len(tied) < 2:
        return "value"
    first, second = tied[0].preference, tied[1].preference
    names: tuple[Reason, ...] = ("prior", "localisation", "speed", "order")
    return next(name for name in names if getattr(first, name) != getattr(second, name))
