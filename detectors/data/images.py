"""Reading images and masks from disk: bounded, upright, 8-bit RGB, one clear error per bad file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from detectors.errors import InputError

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe"})
IMAGE_SUFFIXES = JPEG_SUFFIXES.union(
    (".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".jp2", ".tga")
)
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "TGA")
"""PIL's decoders that are tried; the others stay shut (EPS, for one, would hand the bytes to Ghostscript)."""
MAX_PIXELS = 100_000_000
"""Largest image that is decoded: 100 megapixels, about 300 MB as RGB."""
MAX_FILE_BYTES = 512 * 2**20
MIN_SIDE = 8
"""Smallest side, in pixels, that can hold a defect at all; a 1-pixel image is an accident."""
RESIZE_RULE = "pillow-bilinear-antialias"
"""Name of the resize that `resize_image` performs; part of every feature key and detector artifact."""

Size = tuple[int, int]
"""Height and width in pixels."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its EXIF orientation."""

# `MAX_PIXELS` speaks more clearly than PIL's warning. Set once: `warnings.catch_warnings` around each
# image is not safe with several reading threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_image(path: Path) -> bool:
    """Whether the file name is that of an image PIL reads (hidden files are not)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def open_image(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image, upright by its EXIF orientation, in its own mode (the first frame of several).

    Raises:
        InputError: not there, not an image, truncated, larger than `max_pixels`, smaller than `MIN_SIDE`.
    """
    name = name or _name_of(source)
    limit = f"{max_pixels / 1e6:g} megapixels"
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{name}: {source.stat().st_size / 1e6:.0f} MB is more than an image may have")
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(f"{name}: {width} x {height} pixels is more than the limit of {limit}; reduce it")
            if min(width, height) < MIN_SIDE:
                raise InputError(f"{name}: {width} x {height} pixels is too small; each side needs at least {MIN_SIDE}")
            image.load()
            return _upright(image)
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name}: more pixels than the limit of {limit}; reduce it") from None
    except UnidentifiedImageError:
        # PIL's own message repeats the path, or shows the address of a buffer.
        raise InputError(f"{name}: not a readable image (unknown format); replace or remove it") from None
    except Exception as error:
        # Damaged bytes make decoders raise nearly anything: struct.error, TypeError, OverflowError, zlib.error ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: not a readable image ({reason}); replace or remove it") from None


def _name_of(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "the image sent"


def _upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image by its EXIF orientation; one whose EXIF block is damaged stays as it is."""
    try:
        method = _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the pixels are sound; a camera's broken notes are no reason to refuse them
        return image
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """8-bit RGB, [H, W, 3]. Gray is repeated, alpha dropped, 16-bit gray keeps its upper byte."""
    if image.mode.startswith("I"):
        gray = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise InputError("float images have no defined range; save them as 8- or 16-bit")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL warns at each image
    return np.asarray(image.convert("RGB"))


def read_image(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image to 8-bit RGB, [H, W, 3]. Raises `InputError` as `open_image` does."""
    name = name or _name_of(source)
    image = open_image(source, name=name, max_pixels=max_pixels)
    try:
        return to_rgb(image)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def read_mask(path: Path, size: Size) -> NDArray[np.bool_]:
    """Decode a mask to bool [H, W]: any pixel that is neither black nor transparent is defective.

    In a JPEG, whose black is never quite black beside an edge, any pixel brighter than half.

    Raises:
        InputError: unreadable, or not of the image's `size`.
    """
    image = open_image(path)
    if (image.height, image.width) != size:
        raise InputError(
            f"{path}: the mask is {image.width} x {image.height} but its image is {size[1]} x {size[0]}; "
            "export the mask at the image's size"
        )
    floor = 127 if path.suffix.lower() in JPEG_SUFFIXES else 0
    if image.mode in {"1", "L", "F"} or image.mode.startswith("I"):
        # As they are: conversion to 8 bits may lose a small value of 16, e.g. a class number.
        return np.asarray(image) > floor
    rgba = np.asarray(image.convert("RGBA"))
    marked: NDArray[np.bool_] = (rgba[:, :, :3] > floor).any(axis=2) & (rgba[:, :, 3] > 0)
    return marked


def resize_image(rgb: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to `size` by `RESIZE_RULE` (the whole image, no crop)."""
    if rgb.shape[:2] == size:
        return rgb
    return np.array(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Resize bool [H, W] to `size`: a pixel is defective when more than half of its area was.

    A defect too thin for that keeps the pixels it covers most, so that no defective image ends with an empty mask.
    """
    if mask.shape == size:
        return mask
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX))
    resized = share > 0.5
    if mask.any() and not resized.any():
        resized = share >= share.max()
    return resized
