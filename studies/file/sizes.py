"""Image sizes, as a study file and a trial's setting write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from detectors.data.images import Size
from detectors.errors import InputError
from studies.file.keys import IMAGE_SIZE

LEAST_SIDE, MOST_SIDE = 32, 2048
"""Of an image that is looked at as a whole, in pixels."""
MOST_OF_TILED, MOST_PIXELS = 8192, 2**24
"""The longest side, and the pixels, of an image that is cut into tiles."""


def parse_size(value: Any, *, most: int = MOST_OF_TILED) -> Size:
    """Height and width in pixels of a side (256), a pair ([384, 512]) or a text (``384x512``).

    Args:
        most: pixels of the longest side.

    Raises:
        InputError: it is none of these, or a side is out of range.
    """
    sides = value
    if isinstance(value, int) and not isinstance(value, bool):
        sides = [value, value]
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", value, flags=re.ASCII):
        sides = [int(side) for side in value.split("x")]
    whole = isinstance(sides, list | tuple) and all(isinstance(s, int) and not isinstance(s, bool) for s in sides)
    if not whole or len(sides) != 2:
        raise InputError(f"image_size: {value!r} is no size in pixels; give 256, or [height, width]")
    for side in sides:
        if not LEAST_SIDE <= side <= most:
            raise InputError(f"a side of {side} pixels is out of range; give {LEAST_SIDE} to {most}")
    return sides[0], sides[1]


def written_size(size: Size) -> int | str:
    """A size as a setting holds it: the side of a square, else ``384x512``.

    >>> written_size((256, 256)), written_size((384, 512))
    (256, '384x512')
    """
    return size[0] if size[0] == size[1] else f"{size[0]}x{size[1]}"


def size_of(setting: Mapping[str, Any], default: Size) -> Size:
    """Height and width of the images of a trial; those of its study where its setting says nothing."""
    return parse_size(setting[IMAGE_SIZE]) if IMAGE_SIZE in setting else default
