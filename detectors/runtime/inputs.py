"""An image however a caller holds it: a path, a PIL image or a numpy array; checked, and given as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detectors.data.images import MAX_PIXELS, MIN_SIDE, read_image, to_rgb
from detectors.errors import InputError

Source = str | Path | Image.Image | NDArray[np.uint8]
"""A path of an image file, a PIL image of any mode but float, uint8 [H, W, 3] in RGB order, or uint8 [H, W] in gray."""


def as_rgb(source: Source, *, name: str = "the image") -> NDArray[np.uint8]:
    """One image as uint8 [H, W, 3], RGB, upright.

    Args:
        name: of an image that is no file, for messages.

    Raises:
        InputError: no such file, no image, a wrong type, dtype or shape, too small or too large.

    >>> import numpy as np
    >>> as_rgb(np.zeros((32, 48), np.uint8)).shape
    (32, 48, 3)
    >>> as_rgb(np.zeros((32, 48, 3)), name="frame 7")
    Traceback (most recent call last):
    detectors.errors.InputError: frame 7: an array of float64; give uint8, 0 to 255
    """
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Image.Image):
        _check_size(*source.size, name)
        try:
            return to_rgb(ImageOps.exif_transpose(source))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        except Exception as error:  # a file that PIL opened and reads only now
            raise InputError(f"{name}: not a readable image ({' '.join(str(error).split())})") from None
    raise InputError(
        f"{name}: {type(source).__name__} is no image; give a path, a PIL image, or uint8 [H, W, 3] or [H, W]"
    )


def _from_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise InputError(f"{name}: an array of {array.dtype}; give uint8, 0 to 255")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        shape = " x ".join(map(str, array.shape)) or "no axes"
        raise InputError(f"{name}: an array of {shape}; give [H, W, 3] in RGB order, or [H, W] in gray")
    _check_size(array.shape[1], array.shape[0], name)
    rgb = np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array
    return np.ascontiguousarray(rgb)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels is more than the limit of {MAX_PIXELS / 1e6:g} megapixels; reduce it"
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name}: {width} x {height} pixels is too small; each side needs at least {MIN_SIDE}")
