"""Which values of a parameter a search reaches where backbone and layers bound it; baselines and ideas are held to the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectors.backbones.architecture import channels_by_layer, offer
from detectors.errors import InputError
from studies.file.parts import DEFAULT_LAYERS, DetectorPart
from studies.file.sections import Dimension, FloatRange


def cut(value: Any, bound: int | None) -> Any:
    """A value as it is tried: at most the bound, where there is one."""
    return value if bound is None else min(value, bound)


def reachable(dimension: Dimension, bound: int | None) -> FloatRange:
    """The ends of a range that a trial draws from; where the range lies above the bound, this is its only value.

    Raises:
        ValueError: `dimension` has choices.
    """
    low, high = dimension.bounds
    if bound is None or high <= bound:
        return low, high
    if low >= bound:
        return bound, bound
    step = dimension.step or 1
    return low, low + (bound - low) // step * step if dimension.int is not None else bound


def drawn_as(dimension: Dimension, value: Any, bound: int | None = None) -> Any:
    """The value that a trial draws to be tried with `value`; None where the search does not reach that.

    >>> drawn_as(Dimension(int=(50, 550)), 300, 152), drawn_as(Dimension(choices=[64, 128]), 40, 40)
    (152, 64)
    """
    if dimension.choices is not None:
        if value in dimension.choices:
            return value
        above = [one for one in dimension.choices if bound is not None and isinstance(one, int | float) and one > bound]
        return min(above, default=None) if value == bound else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high = dimension.bounds
    end = reachable(dimension, bound)[1]
    if low <= value <= high:
        return min(value, end)
    return end if value == bound and bound < low else None


def stands_for_itself(dimension: Dimension, value: Any, bound: int) -> bool:
    """Whether a searched value is not cut, or is the lowest of those that are cut to the same one."""
    if value <= bound:
        return True
    if dimension.choices is None:
        return bool(value == dimension.bounds[0])
    return bool(drawn_as(dimension, bound, bound) == value)


def unreachable(dimension: Dimension, value: Any) -> str:
    """Why the search does not reach a value, in words."""
    if dimension.choices is not None:
        return f"{value!r} is not among the choices {dimension.choices}"
    return f"{value!r} is outside the range {list(dimension.bounds)}"


def settled(part: DetectorPart, setting: Mapping[str, Any], name: str) -> Any:
    """The backbone or the layers that a setting is tried with; None where the search draws them."""
    if name in setting:
        return setting[name]
    if (dimension := part.search.get(name)) is not None:
        choices = dimension.choices or []
        return choices[0] if len(choices) == 1 else None
    return part.fixed.get(name, DEFAULT_LAYERS if name == "layers" else None)


def upper_bounds(part: DetectorPart, setting: Mapping[str, Any]) -> Mapping[str, int]:
    """{parameter: its highest value} with a setting's backbone and layers; empty where the search draws these.

    Raises:
        InputError: the backbone is unknown, or does not offer the layers.
    """
    backbone, layers = settled(part, setting, "backbone"), settled(part, setting, "layers")
    if backbone is None or layers is None:
        return {}
    check_offered(backbone, layers)
    channels = channels_by_layer(backbone)
    return part.head.upper_bounds({stride: channels[stride] for stride in layers})


def check_offered(backbone: str, layers: list[int]) -> None:
    """Raise `InputError` for layers that a backbone does not offer, with those that it does."""
    offered = channels_by_layer(backbone)
    if not set(layers) <= set(offered):
        raise InputError(f"{backbone} offers the layers {offer(backbone)}")
