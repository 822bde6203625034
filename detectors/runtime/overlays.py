"""Images of what a detector sees: heat map over the image, outline of the defect, sheets of many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from detectors.files import new_file

RGB = NDArray[np.uint8]
OUTLINE = (0, 230, 118)
"""Colour of a mask's outline: set apart from every colour of the heat map, for colour-blind eyes too."""
CONTOUR = (64, 196, 255)
"""Colour of the line around what a detector finds: not that of a mask, which somebody drew."""
SHEET_COLUMNS, SHEET_ROWS = 3, 8
SHEET_CELL = (480, 240)
"""Largest width and height in pixels that an image has on a sheet."""
CAPTION_PIXELS = 40


def overlay(rgb: RGB, anomaly_map: NDArray[np.float32], *, low: float, high: float, opacity: float = 0.55) -> RGB:
    """Heat map over an image, [H, W, 3].

    Args:
        anomaly_map: [H, W], resized to the image where it differs.
        low: score drawn as plain image; normals stay below it.
        high: score from which on the colour is the strongest.
    """
    heat = _resized(anomaly_map, rgb)
    level = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    colour = colour_table()[(255 * level).astype(np.uint8)].astype(np.float32)
    # The colour fades in with the score, so that normal regions look as they do in the photograph.
    weight = (opacity * np.sqrt(level))[:, :, None]
    return (rgb * (1 - weight) + colour * weight + 0.5).astype(np.uint8)


def outline(rgb: RGB, mask: NDArray[np.bool_], *, colour: tuple[int, int, int] = OUTLINE) -> RGB:
    """A copy of the image with the border of a mask [H, W] drawn, one to three pixels wide by the image's size."""
    width = 1 + min(rgb.shape[:2]) // 256
    border = ndimage.binary_dilation(mask, iterations=min(width, 3)) & ~mask
    drawn = rgb.copy()
    drawn[border] = colour
    return drawn


def contour(rgb: RGB, anomaly_map: NDArray[np.float32], level: float) -> RGB:
    """A copy of the image with a line around where its anomaly map [h, w] reaches `level`."""
    return outline(rgb, _resized(anomaly_map, rgb) >= level, colour=CONTOUR)


def _resized(anomaly_map: NDArray[np.float32], rgb: RGB) -> NDArray[np.float32]:
    if anomaly_map.shape == rgb.shape[:2]:
        return anomaly_map
    image = Image.fromarray(anomaly_map.astype(np.float32)).resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)
    return np.asarray(image)


def side_by_side(*images: RGB, gap: int = 4) -> RGB:
    """Images of equal height in a row with white gaps, [H, W', 3]."""
    spacer = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    row = [part for image in images for part in (image, spacer)][:-1]
    return np.concatenate(row, axis=1)


def sheet(files: Sequence[Path], captions: Sequence[tuple[str, str]]) -> RGB:
    """Up to `SHEET_COLUMNS` x `SHEET_ROWS` image files on one page, each with two lines below it."""
    columns, margin = min(SHEET_COLUMNS, len(files)), 12
    cells = list(zip(map(_thumbnail, files), captions, strict=True))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(image.height for image, _ in row) + CAPTION_PIXELS + margin for row in rows]
    page = Image.new("RGB", (columns * (SHEET_CELL[0] + margin) + margin, sum(heights) + margin), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for index, (image, lines) in enumerate(row):
            left = margin + index * (SHEET_CELL[0] + margin)
            page.paste(image, (left, top))
            for number, line in enumerate(lines):
                place = left, top + image.height + 2 + 18 * number
                draw.text(place, _shortened(line, font, SHEET_CELL[0]), fill="black", font=font)
        top += height
    return np.asarray(page)


def _thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.thumbnail(SHEET_CELL)
        return image.convert("RGB")


def _shortened(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The end of a line that is too wide: names of files differ there."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"…{line}") > width:
        line = line[1:]
    return f"…{line}"


def save_png(image: RGB, path: Path) -> Path:
    """Write an image, whole or not at all. Raises `InputError` where the place cannot be written."""
    with new_file(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", compress_level=4)
    return path


@lru_cache(maxsize=1)
def colour_table() -> NDArray[np.uint8]:
    """uint8 [256, 3], matplotlib's inferno: rises in lightness, so it reads in gray and for colour-blind eyes."""
    from matplotlib import colormaps  # takes a second; heat maps alone need it

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
