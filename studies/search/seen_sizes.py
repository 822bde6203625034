"""What a study's backbones are given to look at: the sizes of images and tiles that each takes, near to what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectors.backbones.architecture import check_takes, patch_of
from detectors.backbones.weights import BackboneSpec
from detectors.data.images import Size
from detectors.errors import InputError
from studies.file.config import StudyConfig
from studies.file.keys import IMAGE_SIZE, LOOKS, TILES
from studies.file.looks import NO_TILES, check_look, input_size, look_of, parse_tiles, written_tiles
from studies.file.parts import DetectorPart
from studies.file.sizes import parse_size, written_size


def seen_sizes(
    config: StudyConfig, backbones: Iterable[str], ideas: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, ...]:
    """A line for each backbone and size, or tiles, that it does not take as they are, with what it gets.

    Args:
        backbones: those that have weights.
        ideas: settings that are tried besides the search.

    Raises:
        InputError: an image is too large for a look, or a backbone takes neither a size nor the one nearest to it.
    """
    there, lines = set(backbones), dict[str, None]()
    for part in config.parts.values():
        looks = _looks(part, config.data.size, ideas)
        for size, tiles in looks:
            check_look(size, parse_tiles(tiles))
        for name in sorted(there & set(part.backbones)):
            if part.head.trained and BackboneSpec.parse(name).members:
                raise InputError(
                    f"backbone {name}: several at once are for detectors that do not train, and {part.detector} does; take one"
                )
            for size, tiles in looks:
                seen, cut = look_of({"backbone": name, IMAGE_SIZE: written_size(size), TILES: tiles}, size)
                check_takes(name, input_size(seen, cut))
                asked, given = _words(size, tiles), _words(seen, written_tiles(cut))
                if asked != given:
                    lines[f"{name} takes multiples of {patch_of(name)} pixels: {given} for it instead of {asked}"] = (
                        None
                    )
    return tuple(lines)


def _words(size: Size, tiles: str) -> str:
    image = f"images of {size[0]} x {size[1]}"
    return image if tiles == NO_TILES else f"{image} in tiles of {tiles}"


def _looks(part: DetectorPart, default: Size, ideas: Sequence[Mapping[str, Any]]) -> list[tuple[Size, str]]:
    """The sizes and tiles that trials of a detector may ask for together, the smallest first."""
    own = {name: _values(part, name, value) for name, value in ((IMAGE_SIZE, written_size(default)), (TILES, NO_TILES))}
    pairs = {(size, tiles) for size in own[IMAGE_SIZE] for tiles in own[TILES]}
    for setting in (*part.baselines, *ideas):
        if setting.keys() & set(LOOKS):
            named = {name: [setting[name]] if name in setting else own[name] for name in LOOKS}
            pairs |= {(size, tiles) for size in named[IMAGE_SIZE] for tiles in named[TILES]}
    return sorted({(parse_size(size), written_tiles(parse_tiles(tiles))) for size, tiles in pairs})


def _values(part: DetectorPart, name: str, default: Any) -> list[Any]:
    """What the search of a detector draws a name from, or its fixed value."""
    dimension = part.search.get(name)
    return list(dimension.choices or ()) if dimension is not None else [part.fixed.get(name, default)]
