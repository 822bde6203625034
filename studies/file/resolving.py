"""What a study file comes to for its images: without labelled defects the objective is the ranking score, and few labelled images
are not halved."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from detectors.data.samples import GOOD
from detectors.data.splits import ENOUGH_LABELLED, Protocol
from detectors.errors import InputError
from detectors.scoring.evaluation import FALSE_ALARMS, IMAGE_METRICS, RECALL
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file.config import StudyConfig
from studies.file.sections import COST_METRICS

BY_IMAGE = (*IMAGE_METRICS, RECALL, FALSE_ALARMS)
"""Metrics that follow from the score of each image, so that a choice by them can be made again without some of the images."""


def nested_below(config: StudyConfig) -> int:
    """Labelled images of validation below which none is kept for test, as `make_splits` takes it.

    Studies of before there was a choice, which have no version of recipes, or the first, keep their halves.

    Raises:
        InputError: the study file asks for it where it cannot be done.
    """
    aims = [name for name in (*config.objectives, *config.constraints) if name not in (*BY_IMAGE, *COST_METRICS)]
    if config.protocol in ("paper", "synthetic"):
        return 0
    if config.nested:
        if aims or config.data.is_several:
            why = f"{aims[0]} does not follow from the score of each image" if aims else "there are several products"
            raise InputError(
                f"nested: true is not possible where {why}; leave it out, and half of the images is kept for test"
            )
        return sys.maxsize
    if config.nested is False or aims or config.data.is_several or (config.recipes or 1) == 1:
        return 0
    return ENOUGH_LABELLED


def not_halved(counts: Mapping[str, int]) -> str:
    """What it means for a study that its labelled images are too few to keep some for test, in a line.

    Args:
        counts: {type: labelled images}, ``good`` among them.
    """
    good = counts.get(GOOD, 0)
    return (
        f"the {good} good and {sum(counts.values()) - good} defective labelled images are few: all of them choose, none is "
        "kept for test, and what the choice is worth is told by a nested estimate (nested: false keeps half of them for test)"
    )


def resolved(config: StudyConfig, protocol: Protocol) -> tuple[StudyConfig, tuple[str, ...]]:
    """The study with the objectives that its images define, and what a person is to know of it, a line each.

    Where the defects are painted, the metrics of whole images (`IMAGE_METRICS`) become the ranking score. Studies of the first
    version of recipes keep theirs.

    Args:
        protocol: that the images came to.

    Raises:
        InputError: a constraint on a metric of labelled images without any, or the ranking score with labelled defects.
    """
    named = (*config.objectives, *config.constraints)
    if protocol != "synthetic" or (config.recipes or 1) == 1:
        if RANKING_SCORE in named:
            raise InputError(
                f"{RANKING_SCORE} ranks by painted defects, and protocol {protocol} has real ones; take image_auroc, or search "
                "without labels with --set protocol=synthetic"
            )
        return config, ()
    for name, condition in config.constraints.items():
        if name in IMAGE_METRICS:
            raise InputError(
                f"constraint {name} {condition}: there are no labelled defects to measure it on, and on painted ones it would "
                "mean nothing; leave it out"
            )
    replaced = [name for name in config.objectives if name in IMAGE_METRICS]
    if not replaced:
        return config, ()
    objectives = {RANKING_SCORE if name in replaced else name: way for name, way in config.objectives.items()}
    lines = [
        f"there are no labelled defects: {' and '.join(replaced)} becomes the ranking score on painted ones, which orders "
        "settings and says nothing of how many real defects are found"
    ]
    if config.budget.goal is not None and next(iter(config.objectives)) in replaced:
        lines.append(f"the goal of {config.budget.goal:g} is now one of the ranking score")
    return config.model_copy(update={"objectives": objectives}), tuple(lines)
