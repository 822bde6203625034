"""What would help most, in words: from the answers of `studies.search.advice`, and from what the study has and lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

from detectors.catalog import head_class
from detectors.errors import InputError
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file import library
from studies.search.answers import SHARES, Advice, stored_advice
from studies.search.operating_point import points_on_test, pooled
from studies.search.origin import Origin
from studies.search.threshold_words import is_painted_type
from studies.search.view import StudyView, TrialView

WORTH, LITTLE = 0.01, 0.005
"""A gain of the objective that is worth a remark, and one that is none."""
READY_RECALL = 0.5
"""A detector that finds less than this share of the defects at its threshold is not ready for a line."""


def lines(view: StudyView, selected: TrialView | None = None) -> list[str]:
    """What would help most, the most important first; one sentence each, without a full stop. Empty where nothing is selected."""
    selected = selected or view.selected()
    if selected is None:
        return []
    advice = stored_advice(view)
    if advice is not None and advice.trial != selected.number:
        advice = None
    measured = [] if advice is None else [*_conditions(view, advice), *_images(view, selected, advice)]
    return [*_readiness(view, selected), *measured, *_lacking(view)]


def _readiness(view: StudyView, selected: TrialView) -> Iterator[str]:
    """Why the detector is not ready for a line."""
    points = points_on_test(view, selected)
    counts = pooled(points)
    if any(point.threshold is None for point in points):
        yield "not ready: it has no threshold, so it calls no image defective"
    if counts is None or not counts.defective:
        return
    if all(map(is_painted_type, counts.per_defect)):
        yield (
            "not known to be ready: no real defect was scored; before it decides on a line, photograph the next defects and put "
            "them into a folder beside good/"
        )
    elif (recall := counts.recall) is not None and recall < READY_RECALL:
        yield f"not ready: at its threshold it misses {counts.defective - counts.caught} of {counts.defective} defects"
    for point in points:
        threshold = point.threshold
        if threshold is not None and threshold.normals_needed and not threshold.supports_rate:
            missing = max(1, threshold.normals_needed - threshold.normals)
            yield (
                f"{missing} more good images{f' of {point.product}' if point.product else ''} would let the threshold promise "
                "the false-alarm rate that is asked for"
            )


def _conditions(view: StudyView, advice: Advice) -> Iterator[str]:
    """Other sizes and detectors that did better on the same part of train, the best gain first."""
    found = [
        (answer.better_by, name)
        for name, answer in advice.answers.items()
        if answer.better_by is not None and answer.certain and answer.better_by >= WORTH
    ]
    for gain, name in sorted(found, reverse=True):
        kind, _, what = name.partition(" ")
        if kind == "size":
            height, _, width = what.partition("x")
            size = height if height == width else f"[{height},{width}]"
            command = shlex.join(["study", "run", view.address, "--fresh", "--set", f"data.image_size={size}"])
            yield f"larger images: at {what} pixels {_objective(view)} is {gain:.3f} better; try `{command}`"
        else:
            title, command = head_class(what).title, _search_of(what, view)
            then = f"try `{command}`" if command else f"search {what} too on these images"
            yield f"another detector: {title} with an untuned setting is {gain:.3f} better in {_objective(view)}; {then}"


def _search_of(detector: str, view: StudyView) -> str:
    """The command that searches another detector on the same images; empty where it takes a study file that is not there."""
    origin = Origin.from_json(view.header.origin) if view.header.origin is not None else None
    if origin is not None and origin.kind == "images" and origin.root:
        return shlex.join(["study", "run", detector, origin.root])
    data, name = view.config.data, f"{detector}_{view.config.data.category}"
    if name not in library.config_names():
        return ""
    with suppress(InputError):
        other = library.load(name).data
        if (other.dataset, other.category) == (data.dataset, data.category):
            return shlex.join(["study", "run", name])
    return ""


def _images(view: StudyView, selected: TrialView, advice: Advice) -> Iterator[str]:
    """What the learning curve says."""
    answers = [advice.answers.get(f"images {one:g}") for one in SHARES]
    if any(answer is None for answer in answers) or selected.value is None:
        return
    values = [answer.value for answer in answers if answer is not None] + [selected.value]
    sign = 1.0 if view.config.direction == "maximize" else -1.0
    steps = [sign * (after - before) for before, after in pairwise(values)]
    curve = ", ".join(f"{value:.3f}" for value in values)
    with_all = f"with a quarter, half and all of the good images {_objective(view)} is {curve}"
    if steps[-1] >= WORTH and steps[0] > 0:
        yield f"more good images: {with_all}; if it goes on so, twice as many add about {steps[-1]:.2f}"
    elif abs(steps[-1]) <= LITTLE:
        yield f"more good images of the same kind would add little: {with_all}"


def _lacking(view: StudyView) -> Iterator[str]:
    """What the images lack."""
    selected = view.selected()
    painted = RANKING_SCORE in view.config.objectives
    if selected is not None and not painted and "val/pixel_aupro" not in selected.metrics:
        yield "masks of the defects would show whether it looks at the right places, and let a search aim at that"


def _objective(view: StudyView) -> str:
    return next(iter(view.config.objectives)).replace("_", " ").replace("auroc", "AUROC")
