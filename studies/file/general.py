"""A study file for a detector that comes without one: what a head of a person's own is searched over."""

from __future__ import annotations

import math
from typing import Any

from detectors.backbones.bundled import BUNDLED, SMALLEST
from detectors.base import Head, Parameter

BACKBONES = (*BUNDLED, "resnet18")
LAYERS = ([8, 16], [4, 8, 16], [16], [16, 32])
LEFT_ALONE = frozenset({"epochs", "patience"})
"""Parameters that decide how long a fit takes: a search over all that is allowed would never end."""
LOGARITHMIC = 100.0
"""A range whose ends differ by this factor is searched by its logarithm."""


def study_of(head: type[Head]) -> dict[str, Any]:
    """The plain form of a study over everything that a head lets be searched, on a folder of images.

    A parameter without two finite bounds keeps its default. The first trials are the defaults.
    """
    searched = {one.name: range_of(one) for one in head.searchable if one.name not in LEFT_ALONE and range_of(one)}
    defaults = {one.name: one.default for one in head.searchable if one.name in searched}
    return {
        "name": head.name,
        "detector": head.name,
        "data": {"dataset": "folder", "image_size": 256},
        "protocol": "auto",
        "search": {
            "backbone": {"choices": list(BACKBONES)},
            "layers": {"choices": [list(layers) for layers in LAYERS]},
            **searched,
            "smoothing_sigma": {"float": [1.0, 8.0]},
        },
        "budget": {"trials": 30, "timeout": "2h", "stagnation": 15},
        "baselines": [
            {"backbone": backbone, "layers": list(LAYERS[0]), **defaults, "smoothing_sigma": 4.0}
            for backbone in (SMALLEST, "resnet18")
        ],
    }


def range_of(parameter: Parameter) -> dict[str, Any] | None:
    """All allowed values of a parameter, as a study file writes them; None where they have no end."""
    if parameter.kind == "choice":
        return {"choices": list(parameter.choices)}
    if not (math.isfinite(parameter.low) and math.isfinite(parameter.high)):
        return None
    low, high = parameter.low, parameter.high
    logarithmic = {"log": True} if low > 0 and high / low >= LOGARITHMIC else {}
    return {parameter.kind: [int(low), int(high)] if parameter.kind == "int" else [low, high], **logarithmic}
