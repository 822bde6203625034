"""The nested estimate of a study that keeps no labelled images for test: what its choice among the trials is worth.

Every trial has scored every labelled image (`studies.worker.validation_scores`), by detectors that were fitted to train alone.
From these scores the choice is made again and again, each time without some of the images, and those judge it
(`detectors.scoring.nested`). It is the rule of the search: the first objective, the constraints, and ties by the prior, speed and
order (`studies.search.choice`), each from the other images alone. Two things are left out. The better localisation, which decides
ties too, would need every pixel's score. And the best settings are not fitted again for each fold.

A trial's threshold for this comes, as the search's do, from good images that its detector did not see: the labelled ones outside
the fold and, where the trial kept them, those of train out of fold. They are fewer than the refit's threshold rests on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from detectors.data.samples import Sample
from detectors.scoring import nested
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from detectors.scoring.metrics import UndefinedMetricError
from detectors.scoring.operating_point import expected_false_alarm_rate, normals_needed
from detectors.scoring.paired import ScoredImages, draw, metric_replicates, metric_value
from studies.file.config import StudyConfig, metric_of
from studies.file.resolving import BY_IMAGE
from studies.file.sections import ThresholdConfig
from studies.search.candidates import basis, preference_of
from studies.search.choice import Candidate, applies, decide
from studies.search.noise import Spread
from studies.search.samplers import derive_seed
from studies.search.selection import Remeasured, is_feasible, metrics_of
from studies.search.threshold_words import percent
from studies.worker.calibration import Calibration, GoodImage, LabelledImage
from studies.worker.jobs import ARTIFACTS
from studies.worker.validation_scores import read_validation_scores

NESTED = "nested"
"""Attribute of a study: its `Estimate`; and what the names of its metrics begin with, as those on test begin with ``test``."""
CALLED = "nested estimate"


class Estimate(BaseModel):
    """A nested estimate, as it is stored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    metrics: dict[str, float]
    """``nested/image_auroc``, ``nested/image_recall`` and ``nested/false_alarm_rate`` with the ends of their 95 % intervals; the
    latter two only where each fold has a threshold."""
    chosen: dict[int, int]
    """{trial: number of folds in which it was chosen}, the most frequent first."""
    folds: int
    repeats: int
    good: int
    defective: int
    """Labelled images."""
    normals: float = 0.0
    """Good images that the threshold of a fold rests on, on average."""
    rate: float | None = None
    """The false-alarm rate that was asked for; None for another rule."""
    basis: str = ""
    """What it was made of, as `basis_of` gives it."""
    time: float = 0.0
    """When, in seconds since the epoch."""


def basis_of(config: StudyConfig, trials: Sequence[FrozenTrial], remeasured: Remeasured) -> str:
    """What a stored estimate must have been made of to stand: that of the choice, the threshold's rule and the constraints."""
    told = [config.threshold.model_dump(mode="json"), config.constraints, basis(config, trials, remeasured)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def estimate(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    remeasured: Remeasured,
    *,
    folder: Callable[[int], Path],
    samples: Sequence[Sample],
    groups: Sequence[int],
    time: float,
) -> Estimate | None:
    """The nested estimate of a study's choice among its trials; None where no trial can be chosen or its scores are gone.

    Args:
        folder: gives the folder of a trial.
        samples: the labelled images [N], in the order of validation.
        groups: [N] a number for the content of each: copies lie in one fold.
        time: now, in seconds since the epoch.
    """
    labels = np.array([sample.label for sample in samples], dtype=np.int8)
    known = _known(config, trials, remeasured, folder=folder, keys=[sample.key for sample in samples])
    if not known:
        return None
    rule = _Rule(config, known, labels)
    folds = nested.repeated_folds(
        [sample.defect_type for sample in samples], labels, groups, seed=derive_seed(config.sampler.seed, NESTED, 0)
    )
    found = nested.nested_estimate(
        np.stack([one.scores for one in known]), labels, folds, choose=rule.choose, alarm=rule.alarm, groups=groups
    )
    named = (
        ("image_auroc", found.auroc, found.auroc_interval),
        (RECALL, found.recall, found.recall_interval),
        (FALSE_ALARMS, found.false_alarm_rate, found.false_alarm_interval),
    )
    metrics: dict[str, float] = {}
    for name, value, interval in named:
        if value is not None and interval is not None:
            ends = (("", value), ("_low", interval.low), ("_high", interval.high))
            metrics |= {f"{NESTED}/{name}{end}": figure for end, figure in ends}
    return Estimate(
        metrics=metrics,
        chosen={known[place].trial.number: count for place, count in found.chosen.items()},
        folds=found.folds,
        repeats=found.repeats,
        good=int((labels == 0).sum()),
        defective=int((labels == 1).sum()),
        normals=fmean(rule.normals) if rule.normals else 0.0,
        rate=rule.section.rate if rule.section.rule == "false_alarm_rate" else None,
        basis=basis_of(config, trials, remeasured),
        time=time,
    )


def headline(found: Estimate) -> str:
    """``image AUROC 0.912 (95 % interval 0.840 to 0.970); finds 78 % (61 to 89 %) of the defects at 5 % (1 to 24 %) false
    alarms``"""
    metrics = found.metrics
    low, high = metrics[f"{NESTED}/image_auroc_low"], metrics[f"{NESTED}/image_auroc_high"]
    text = f"image AUROC {metrics[f'{NESTED}/image_auroc']:.3f} (95 % interval {low:.3f} to {high:.3f})"
    if f"{NESTED}/{RECALL}" not in metrics:
        return text
    return f"{text}; finds {_share(metrics, RECALL)} of the defects at {_share(metrics, FALSE_ALARMS)} false alarms"


def sentences(found: Estimate) -> list[str]:
    """What a nested estimate is, how it came about and what its threshold rests on, a sentence each, without the figures."""
    total = found.folds * found.repeats
    counts = [f"trial {number} in {count}" for number, count in list(found.chosen.items())[:3]]
    others = total - sum(list(found.chosen.values())[:3])
    said = [
        f"a nested estimate is no figure on test: of the {found.good} good and {found.defective} defective images none is kept "
        f"for it, and each was judged by a trial that was chosen without it, in {found.folds} folds, {found.repeats} times over",
        f"of {total} folds that chose, {', '.join(counts)}{f', others in {others}' if others else ''}",
    ]
    if f"{NESTED}/{RECALL}" in found.metrics:
        normals = round(found.normals)
        text = f"its thresholds rest on {normals} good image{'' if normals == 1 else 's'} outside the fold"
        if found.rate and normals and (expected := expected_false_alarm_rate(normals, found.rate)) > found.rate:
            text += f", which support {percent(expected)} false alarms; {percent(found.rate)} needs {normals_needed(found.rate)}"
        said.append(text)
    return said


def _share(metrics: Mapping[str, float], name: str) -> str:
    low, high = (percent(metrics[f"{NESTED}/{name}_{end}"]) for end in ("low", "high"))
    return f"{percent(metrics[f'{NESTED}/{name}'])} ({low.removesuffix(' %')} to {high})"


@dataclass(frozen=True)
class _Known:
    """A trial that can be chosen, with its scores."""

    trial: FrozenTrial
    metrics: Mapping[str, float]
    scores: NDArray[np.float64]
    """Of the labelled images [N]."""
    out_of_fold: tuple[float, ...]
    """Of good images of train, by twins that did not see them; empty where the trial kept none."""


def _known(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    remeasured: Remeasured,
    *,
    folder: Callable[[int], Path],
    keys: Sequence[str],
) -> list[_Known]:
    costs = config.model_copy(
        update={"constraints": {n: c for n, c in config.constraints.items() if n not in BY_IMAGE}}
    )
    known = []
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            continue
        metrics = metrics_of(trial, remeasured)
        stored = read_validation_scores(folder(trial.number) / ARTIFACTS)
        if stored is not None and stored.keys == list(keys) and is_feasible(costs, metrics):
            scores = np.array(stored.scores, dtype=np.float64)
            known.append(_Known(trial, metrics, scores, tuple(stored.out_of_fold or ())))
    return known


class _Rule:
    """The rule of the search, on some of the images."""

    def __init__(self, config: StudyConfig, known: Sequence[_Known], labels: NDArray[np.int8]) -> None:
        self.config, self.known, self.labels = config, known, labels
        section = config.threshold
        # A given value belongs to one detector, not to every setting.
        self.section = ThresholdConfig(rate=section.rate) if section.rule == "value" else section
        self.objective = next(iter(config.objectives))
        self.by_images = [name for name in (self.objective, *config.constraints) if name in BY_IMAGE]
        self.seed = derive_seed(config.sampler.seed, "noise", 0)
        self.normals: list[int] = []
        """Good images that each threshold of a fold rested on."""

    def choose(self, rows: NDArray[np.int64]) -> int:
        """The place of the trial that is chosen on these images [n]."""
        labels = self.labels[rows]
        try:
            counts = draw(labels, seed=self.seed) if applies(self.config) and self.objective in BY_IMAGE else None
        except UndefinedMetricError:  # a single image of a label is left
            counts = None
        candidates, feasible = [], []
        for place, one in enumerate(self.known):
            images = self._images(place, rows)
            figures = {name: metric_value(name, images) for name in self.by_images}
            value = figures.get(self.objective)
            spread = None
            if value is None:
                value = float(one.trial.values[0])
            elif counts is not None:
                spread = Spread(("outside",), metric_replicates(self.objective, images, counts))
            metrics = {**one.metrics, **{metric_of(self.config, name): figure for name, figure in figures.items()}}
            preference = preference_of(self.config, one.trial, metrics)._replace(localisation=0.0)
            candidates.append(Candidate(one.trial.number, (value,), preference, spread))
            feasible.append(is_feasible(self.config, metrics))
        # Where no trial meets the constraints on fewer images, the search would go on; here the best one stands for it.
        allowed = [one for one, meets in zip(candidates, feasible, strict=True) if meets] or candidates
        choice = decide(allowed, maximize=self.config.direction == "maximize", ties=counts is not None)
        if choice is None:
            raise RuntimeError("there is no trial to choose from")
        return next(place for place, one in enumerate(self.known) if one.trial.number == choice.trial)

    def alarm(self, place: int, rows: NDArray[np.int64]) -> float | None:
        """The threshold that the trial at this place would have from these images [n]; None where they define none."""
        value, normals = self._threshold(place, rows)
        self.normals.append(normals)
        return value

    def _threshold(self, place: int, rows: NDArray[np.int64]) -> tuple[float | None, int]:
        """The threshold, and the good images that it rests on."""
        one = self.known[place]
        labelled = [
            LabelledImage(
                name=str(row), label=1 if self.labels[row] else 0, defect_type="", score=float(one.scores[row])
            )
            for row in rows
        ]
        good = [
            GoodImage(file=image.name, score=image.score, origin="validation") for image in labelled if not image.label
        ]
        good += [GoodImage(file="", score=score, origin="fold") for score in one.out_of_fold]
        threshold = Calibration(folds=None, parts=0, good=good, labelled=labelled, pixel=None).threshold(self.section)
        return (None, 0) if threshold is None else (threshold.value, len(good))

    def _images(self, place: int, rows: NDArray[np.int64]) -> ScoredImages:
        operating = {RECALL, FALSE_ALARMS} & set(self.by_images)
        threshold = self._threshold(place, rows)[0] if operating else None
        return ScoredImages(scores=self.known[place].scores[rows], labels=self.labels[rows], threshold=threshold)


def to_json(found: Estimate | None) -> dict[str, Any] | None:
    """As data for `json.dumps`; None where there is none."""
    if found is None:
        return None
    return found.model_dump(mode="json", exclude={"basis"}) | {
        "text": [f"{CALLED}: {headline(found)}", *sentences(found)]
    }
