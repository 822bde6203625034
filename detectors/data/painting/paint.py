"""Painting one defect into an image."""

from __future__ import annotations

import numpy as np

from detectors.data.images import MIN_SIDE
from detectors.data.painting.contents import Scene
from detectors.data.painting.recipe import KINDS, Painting
from detectors.data.painting.shapes import Shape
from detectors.data.synthetic_defects import (
    MAX_ATTEMPTS,
    MIN_MASK_AREA,
    RGB,
    VISIBLE_CHANGE,
    Mask,
    foreground,
    overlaps,
    place,
)
from detectors.errors import InputError

SHOWN_SHARE = 0.25
"""Share of the wanted area, at least, whose change is visible; a defect that shows less is painted elsewhere."""


def paint(rgb: RGB, recipe: Painting) -> tuple[RGB, Mask]:
    """Paint one defect into a copy of the image uint8 [H, W, 3]; returns it with the mask bool [H, W], never empty.

    The mask holds the pixels that changed by more than `VISIBLE_CHANGE` levels. Where the image shows an object before a plain
    ground, the mask overlaps the object. Of `MAX_ATTEMPTS` places the first is taken where enough of the defect shows, else the
    one where most does; where nothing would show anywhere, the brightness changes.

    Raises:
        InputError: not an 8-bit RGB image with sides of at least `MIN_SIDE` pixels.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"a painted defect needs uint8 [H, W, 3], sides of {MIN_SIDE} or more, not {rgb.dtype} {list(rgb.shape)}"
        )
    scene = Scene(rgb, foreground(rgb))
    area = max(1.0, recipe.area * rgb.shape[0] * rgb.shape[1])
    wanted = max(1.0, MIN_MASK_AREA * rgb.shape[0] * rgb.shape[1], SHOWN_SHARE * area)
    draw, fill = KINDS[recipe.kind]
    best: tuple[int, Shape, RGB, Mask] | None = None
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.Generator(np.random.PCG64([recipe.seed, attempt, *recipe.kind.encode()]))
        shape = draw(scene.size, place(scene.ground, scene.size, rng), area, rng)
        pixels, visible = _blended(scene, shape, fill(scene, shape, rng), recipe.opacity)
        shown = int(visible.sum())
        on_object = scene.ground is None or overlaps(_whole(visible, shape, scene), scene.ground)
        if on_object and shown > (best[0] if best else 0):
            best = shown, shape, pixels, visible
        if best and best[0] >= wanted:
            break
    if best is None:
        rng = np.random.Generator(np.random.PCG64([recipe.seed, MAX_ATTEMPTS]))
        shape = draw(scene.size, place(scene.ground, scene.size, rng), max(area, wanted), rng)
        old = rgb[shape.window]
        # An eighth of the range, towards its other end: what shows on an image of one colour too.
        pixels, visible = _blended(scene, shape, np.where(old < 128, old + 32, old - 32), 1.0)
        best = int(visible.sum()), shape, pixels, visible
    _, shape, pixels, visible = best
    changed = rgb.copy()
    changed[shape.window] = pixels
    return changed, _whole(visible, shape, scene)


def _blended(scene: Scene, shape: Shape, content: np.ndarray, opacity: float) -> tuple[RGB, Mask]:
    """The window's pixels with the content over them, and where they changed visibly."""
    old = scene.rgb[shape.window]
    before = old.astype(np.float32)
    alpha = (shape.alpha * np.float32(opacity))[..., None]
    mixed = before + (content.astype(np.float32) - before) * alpha
    pixels = np.rint(np.minimum(np.maximum(mixed, 0), 255)).astype(np.uint8)
    difference = np.abs(pixels.astype(np.int16) - old) > VISIBLE_CHANGE
    return pixels, difference[..., 0] | difference[..., 1] | difference[..., 2]


def _whole(visible: Mask, shape: Shape, scene: Scene) -> Mask:
    """The mask [H, W] of a window's mask."""
    mask = np.zeros(scene.size, dtype=bool)
    mask[shape.window] = visible
    return mask
