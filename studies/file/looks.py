"""How a trial looks at images beside its detector's settings: their size and the tiles that they are cut into, as study files and
trials' settings write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from detectors.backbones.architecture import fitting_size
from detectors.data.images import Size
from detectors.errors import InputError
from detectors.tiles import TileGrid, Tiles
from studies.file.keys import IMAGE_SIZE, TILES, ParameterKey
from studies.file.sizes import MOST_PIXELS, MOST_SIDE, parse_size, size_of, written_size

NO_TILES = "none"


def parse_tiles(value: Any) -> Tiles | None:
    """Tiles of ``{side: 320, overlap: 32}``, a text ``320+32``, or a side alone; None of ``none``, or nothing.

    Raises:
        InputError: it is none of these, or out of range.
    """
    if value is None or value == NO_TILES:
        return None
    parts: Any = value
    if isinstance(value, int) and not isinstance(value, bool):
        parts = {"side": value}
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}(\+[0-9]{1,5})?", value, flags=re.ASCII):
        parts = dict(zip(("side", "overlap"), map(int, value.split("+")), strict=False))
    if (
        not isinstance(parts, Mapping)
        or "side" not in parts
        or not parts.keys() <= {"side", "overlap"}
        or not all(isinstance(part, int) and not isinstance(part, bool) for part in parts.values())
    ):
        raise InputError(
            f"tiles: {value!r} is neither none nor tiles; give {{side: 320, overlap: 32}}, both in pixels of the resized image"
        )
    return Tiles(**parts)


def written_tiles(tiles: Tiles | None) -> str:
    """Tiles as a setting holds them: ``320+32``, or ``none``.

    >>> written_tiles(Tiles(320, 32)), written_tiles(None)
    ('320+32', 'none')
    """
    return NO_TILES if tiles is None else f"{tiles.side}+{tiles.overlap}"


def tiles_of(setting: Mapping[str, Any]) -> Tiles | None:
    """The tiles of a trial; None where it looks at whole images."""
    return parse_tiles(setting.get(TILES))


def look_of(setting: Mapping[str, Any], default: Size) -> tuple[Size, Tiles | None]:
    """Height and width of a trial's images, and the tiles that they are cut into: the nearest that its backbone takes.

    Args:
        setting: of the trial, with its backbone.
        default: size of a study's images, where the setting says nothing.

    Raises:
        InputError: unknown backbone, or a setting that is no size, or no tiles.
    """
    name, size, tiles = str(setting["backbone"]), size_of(setting, default), tiles_of(setting)
    if tiles is None:
        return fitting_size(name, size), None
    side = fitting_size(name, (tiles.side, tiles.side))[0]
    tiles = replace(tiles, side=side, overlap=min(tiles.overlap, side // 2))
    # Where a tile is as wide as the image, the image has to fit; elsewhere tiles of any image do.
    whole = fitting_size(name, size)
    height, width = (near if length < side else length for length, near in zip(size, whole, strict=True))
    return (height, width), tiles


def input_size(size: Size, tiles: Tiles | None) -> Size:
    """Height and width of what the backbone is given."""
    return size if tiles is None else TileGrid(size, tiles).size


def check_look(size: Size, tiles: Tiles | None) -> None:
    """Raise `InputError` for an image that is too large to be looked at as a whole, or even by tiles."""
    height, width = size
    if tiles is None and max(size) > MOST_SIDE:
        raise InputError(
            f"image_size: {height} x {width} pixels are too many for one look (at most {MOST_SIDE} each way); "
            "cut images into tiles (`tiles: {side: 512, overlap: 64}`)"
        )
    if tiles is not None:
        TileGrid(size, tiles)  # raises where there are too many
    if height * width > MOST_PIXELS:
        raise InputError(f"image_size: {height} x {width} pixels are more than a detector takes ({MOST_PIXELS})")


WRITTEN: Mapping[str, Callable[[Any], int | str]] = {
    IMAGE_SIZE: lambda value: written_size(parse_size(value)),
    TILES: lambda value: written_tiles(parse_tiles(value)),
}
"""How each is written in a setting."""


def with_looks_written(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study's plain form in which sizes and tiles are written alike wherever a trial may have them: `search`, `fixed`,
    `baselines`.

    What is neither stays as it is, for a message that names its place.
    """
    result = dict(raw)
    if isinstance(search := raw.get("search"), dict):
        result["search"] = {name: _choices(name, value) for name, value in search.items()}
    if isinstance(fixed := raw.get("fixed"), dict):
        result["fixed"] = {name: _written(name, value) for name, value in fixed.items()}
    if isinstance(baselines := raw.get("baselines"), list):
        result["baselines"] = [
            {name: _written(name, value) for name, value in base.items()} if isinstance(base, dict) else base
            for base in baselines
        ]
    return result


def _choices(name: Any, dimension: Any) -> Any:
    if isinstance(dimension, dict) and isinstance(dimension.get("choices"), list) and _kind(name):
        return dimension | {"choices": [_written(name, choice) for choice in dimension["choices"]]}
    return dimension


def _written(name: Any, value: Any) -> Any:
    kind = _kind(name)
    if kind is None:
        return value
    try:
        return WRITTEN[kind](value)
    except InputError:
        # As a text, which the checks refuse with the reason; a mapping would be none of the values that a choice may be.
        if not isinstance(value, Mapping):
            return value
        is_known = value.keys() <= {"side", "overlap"} and isinstance(value.get("side"), int)
        return f"{value['side']}+{value.get('overlap', 0)}" if is_known else str(dict(value))


def _kind(name: Any) -> str | None:
    """Which of both a key of the study file names, under a detector's name or without; None for any other."""
    try:
        key = ParameterKey.parse(name).name if isinstance(name, str) else ""
    except InputError:
        return None
    return key if key in WRITTEN else None
