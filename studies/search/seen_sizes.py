"""The sizes of images that a study's backbones are given: what each of them takes, near to what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectors.backbones.architecture import architecture_of, check_takes, fitting_size
from detectors.backbones.weights import BackboneSpec
from detectors.data.images import Size
from studies.file.config import StudyConfig
from studies.file.keys import IMAGE_SIZE
from studies.file.parts import DetectorPart
from studies.file.sizes import parse_size


def seen_sizes(
    config: StudyConfig, backbones: Iterable[str], ideas: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, ...]:
    """A line for each backbone and size that it does not take as it is, with the one that it gets.

    Args:
        backbones: those that have weights.
        ideas: settings that are tried besides the search.

    Raises:
        InputError: a backbone takes neither a size nor the one nearest to it.
    """
    there, lines = set(backbones), dict[str, None]()
    for part in config.parts.values():
        sizes = _sizes(part, config.data.size, ideas)
        for name in sorted(there & set(part.backbones)):
            for size in sizes:
                seen = fitting_size(name, size)
                check_takes(name, seen)
                if seen != size:
                    patch = architecture_of(BackboneSpec.parse(name).architecture).patch
                    lines[
                        f"{name} takes multiples of {patch} pixels: images are {seen[0]} x {seen[1]} for it instead of "
                        f"{size[0]} x {size[1]}"
                    ] = None
    return tuple(lines)


def _sizes(part: DetectorPart, default: Size, ideas: Sequence[Mapping[str, Any]]) -> list[Size]:
    """The sizes that trials of a detector may ask for, the smallest first."""
    dimension = part.search.get(IMAGE_SIZE)
    values = list(dimension.choices or ()) if dimension is not None else [part.fixed.get(IMAGE_SIZE, default)]
    values += [setting[IMAGE_SIZE] for setting in (*part.baselines, *ideas) if IMAGE_SIZE in setting]
    return sorted({parse_size(value) for value in values})
