"""Checks of a study file across its sections, and against the parameters of its detectors.

Each function returns nothing and raises `ValueError` (`InputError` is one), whose message names the key, the value and what
would be valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectors import catalog
from detectors.backbones.weights import BackboneSpec
from detectors.base import Head
from detectors.errors import InputError
from detectors.runtime.description import MAX_BLOCKS
from studies.file.keys import DETECTOR_KEY, DRAWN_FROM_CHOICES, ParameterKey
from studies.file.looks import WRITTEN
from studies.file.messages import check_name, located
from studies.file.parts import DetectorPart
from studies.file.reach import check_offered, drawn_as, settled, unreachable, upper_bounds
from studies.file.sections import Baseline, DataConfig, Dimension, ParameterValue, PrunerConfig

STRIDES = ({4, 8, 16, 32}, {1, 2, 4}, {14})
"""Of pretrained networks, and of pixels."""
MIN_WILCOXON = 5
"""Products from which on a Wilcoxon test can tell two settings apart: with fewer its p-value cannot get small."""


def check_pruner(pruner: PrunerConfig, data: DataConfig, *, objectives: int) -> None:
    """A pruner needs a single objective, and each compares what it is made for: epochs or products."""
    if pruner.name != "none" and objectives > 1:
        raise ValueError(
            f"pruner {pruner.name} needs a single objective, for it compares one value per epoch; "
            "make the others constraints, or set pruner.name: none"
        )
    if pruner.name == "hyperband" and data.is_several:
        raise ValueError(
            "pruner hyperband compares epochs, but in a study over several products a step is a product; "
            "take wilcoxon, median or none"
        )
    if pruner.name == "wilcoxon":
        listed = len(data.category) if isinstance(data.category, list) else None
        if not data.is_several or (listed is not None and listed < MIN_WILCOXON):
            raise ValueError(
                f"pruner wilcoxon needs a study over at least {MIN_WILCOXON} products (data.category); "
                "take median or none"
            )


def check_ownership(
    heads: Mapping[str, type[Head]], search: Sequence[str], fixed: Sequence[str], baselines: Sequence[Baseline]
) -> None:
    """In a study over several detectors: every parameter is known to all of them, or stands under the name of one.

    Args:
        heads: by the detectors' names.
        search: names under ``search``, such as ``layers`` or ``padim.n_features``.
        fixed: names under ``fixed``.
    """
    if not search and not baselines:
        raise ValueError("nothing to try: give a search, or baselines")
    detectors = list(heads)
    first, *others = map(catalog.parameters_of, heads.values())
    common = [*DRAWN_FROM_CHOICES, *(name for name in first if all(name in other for other in others))]
    for section, names in (("search", search), ("fixed", fixed)):
        for name in names:
            with located(f"{section}.{name}"):
                _check_owner(ParameterKey.parse(name), detectors, common, section)
    for index, baseline in enumerate(baselines):
        if baseline.get(DETECTOR_KEY) not in detectors:
            raise ValueError(f"baselines.{index}: say which detector: one of {', '.join(detectors)}")


def _check_owner(key: ParameterKey, detectors: Sequence[str], common: Sequence[str], section: str) -> None:
    if key.backbone is not None:
        raise ValueError(f"a parameter is given for all backbones; leave out @{key.backbone}")
    if key.detector is None and key.name not in common:
        raise ValueError(
            f"not a parameter of every detector; give it under a detector's name "
            f"({section}.{ParameterKey(key.name, detector=detectors[0])}). For all of them: {', '.join(common)}"
        )
    if key.detector is not None and key.detector not in detectors:
        raise ValueError(f"this study is over {', '.join(detectors)}")


def check_part(part: DetectorPart, *, grid: bool) -> None:
    """Everything that the study says about one detector.

    Args:
        grid: whether the sampler tries every setting once, so that the search must be finite.
    """
    if both := set(part.search) & set(part.fixed):
        raise ValueError(f"{sorted(both)[0]} is both searched and fixed; keep one")
    for name, dimension in part.search.items():
        _check_dimension(part, name, dimension)
    for name, value in part.fixed.items():
        with located(f"fixed.{name}"):
            check_value(part, name, value)
    in_each_trial = not part.search and all("backbone" in baseline for baseline in part.baselines)
    if "backbone" not in {*part.search, *part.fixed} and not in_each_trial:
        raise ValueError("no backbone: give search.backbone or fixed.backbone")
    if not part.search and not part.baselines:
        raise ValueError("nothing to try: give a search, or baselines")
    for index, baseline in enumerate(part.baselines):
        with located(f"baselines.{index}"):
            check_baseline(part, baseline)
    if grid:
        _check_finite(part)


def _check_finite(part: DetectorPart) -> None:
    for name, dimension in part.search.items():
        if dimension.float is not None and dimension.step is None:
            raise ValueError(f"search.{name}: sampler grid needs choices, an int range or a float range with a step")


def check_baseline(part: DetectorPart, baseline: Mapping[str, ParameterValue]) -> None:
    """The values of a baseline: valid for the detector, and within what the search reaches where the parameter is searched.

    It reaches a value outside of its choices or its range that they are cut to, where backbone and layers bound the parameter.
    """
    for name, value in baseline.items():
        if name == DETECTOR_KEY:
            if value != part.detector:
                raise ValueError(f"detector: this study is of {part.detector}, not of {value!r}")
            continue
        check_value(part, name, value)
        dimension = part.search.get(name)
        if dimension is None or drawn_as(dimension, value) is not None:
            continue
        if drawn_as(dimension, value, upper_bounds(part, baseline).get(name)) is None:
            raise ValueError(f"{name}: {unreachable(dimension, value)}")


def check_layers(part: DetectorPart, baseline: Mapping[str, ParameterValue]) -> None:
    """The backbone of a baseline offers its layers, as far as the search leaves neither open."""
    backbone, layers = settled(part, baseline, "backbone"), settled(part, baseline, "layers")
    if backbone is not None and layers is not None:
        check_offered(backbone, layers)


def _check_dimension(part: DetectorPart, name: str, dimension: Dimension) -> None:
    """A searched parameter: known to the detector, and searched over values that it can take."""
    parameters = part.parameters
    with located(f"search.{name}"):
        check_name(name, (*DRAWN_FROM_CHOICES, *parameters), f"parameter of {part.detector}")
    if dimension.choices is not None:
        with located(f"search.{name}.choices"):
            for choice in dimension.choices:
                check_value(part, name, choice)
        return
    with located(f"search.{name}"):
        if name in DRAWN_FROM_CHOICES:
            raise ValueError("give choices; a range makes no sense here")
        if parameters[name].kind == "choice":
            raise ValueError(f"{name} is no number; give choices")
        if parameters[name].kind == "int" and dimension.int is None:
            raise ValueError(f"{name} is a whole number; give int: [low, high]")
        for bound in dimension.bounds:
            check_value(part, name, bound)


def check_value(part: DetectorPart, name: str, value: Any) -> None:
    """A parameter's value is one that the detector takes.

    Raises:
        InputError: the message names the parameter, the value and what would be valid.
    """
    if name == "backbone":
        if not isinstance(value, str):
            raise InputError(f"backbone: {value!r} is not a name")
        BackboneSpec.parse(value)
    elif name == "layers":
        _check_layers(value)
    elif name in WRITTEN:
        WRITTEN[name](value)
    else:
        parameters = part.parameters
        check_name(name, (*DRAWN_FROM_CHOICES, *parameters), f"parameter of {part.detector}")
        parameters[name].check(value)


def _check_layers(value: Any) -> None:
    """Raise `InputError` for anything but strides, or blocks, that one backbone can offer, in ascending order."""
    numbers = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in value)
    if not numbers or not value:
        raise InputError(f"layers: {value!r} is not a list of strides, e.g. [8, 16]")
    are_blocks = all(-MAX_BLOCKS <= layer < 0 for layer in value)
    if value != sorted(set(value)) or not (are_blocks or any(set(value) <= strides for strides in STRIDES)):
        raise InputError(
            f"layers: {value!r}: give distinct ascending strides out of 4, 8, 16, 32 (of pixels 1, 2, 4), or of a vision "
            "transformer 14 or 16, or blocks counted from the end, e.g. [-4, -1]"
        )
