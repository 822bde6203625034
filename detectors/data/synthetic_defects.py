"""Synthetic defects with exact masks: CutPaste, scars and noise-shaped stains painted into good images.

A defect depends on the image and its `DefectRecipe` alone. Geometry and colour use element-wise IEEE arithmetic,
square roots and rational rotations only (no sine, no BLAS), so that every machine paints the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.data.images import MIN_SIDE
from detectors.errors import InputError

DEFECT_KINDS: tuple[str, ...] = ("cutpaste", "scar", "perlin")
SYNTHESIS_VERSION = 1
"""Raised whenever a recipe would paint other pixels, so that stored features of the old ones are not found again."""
VISIBLE_CHANGE = 6
"""A pixel belongs to the mask when a channel changed by more than this many of its 255 levels."""
MIN_MASK_AREA = 8 / 256**2
"""Smallest share of the image that a mask covers (at least one pixel): 8 pixels at 256 x 256."""
MAX_ATTEMPTS = 16
"""Sub-seeds tried for a defect that shows, on the object where there is one; then a blot that always shows."""

_THUMBNAIL = 64
_FOREGROUND_SHARE = (0.01, 0.85)
_BORDER_AGREEMENT = 0.85
_MIN_CONTRAST = 20.0

RGB = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DefectRecipe:
    """Which defect to paint. Raises `InputError` for an unknown `kind` or a negative `seed`."""

    kind: str
    """One of `DEFECT_KINDS`."""
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in DEFECT_KINDS:
            raise InputError(f"synthetic defect {self.kind!r} is unknown; choose one of {', '.join(DEFECT_KINDS)}")
        if self.seed < 0:
            raise InputError(f"synthetic defect seed {self.seed} is negative; use 0 or more")

    @property
    def identity(self) -> str:
        """Text that changes whenever the painted pixels may: kind, seed and `SYNTHESIS_VERSION`."""
        return f"{self.kind}:{self.seed}:v{SYNTHESIS_VERSION}"


class _Window(NamedTuple):
    """A rectangle of the image and what is painted there."""

    top: int
    left: int
    pixels: RGB
    """[h, w, 3], the new content; unchanged outside of the defect's shape."""


class Jitter(NamedTuple):
    """How far colours move: levels added (either sign) and relative strength of contrast, saturation and hue."""

    shift: tuple[float, float]
    strength: float


PATCH_JITTER = Jitter((8.0, 28.0), 0.1)
SCAR_JITTER = Jitter((12.0, 48.0), 0.1)
STAIN_JITTER = Jitter((24.0, 72.0), 0.4)


def apply_defect(rgb: RGB, recipe: DefectRecipe) -> tuple[RGB, Mask]:
    """Paint one defect into a copy of the image uint8 [H, W, 3]; returns it with the mask bool [H, W], never empty.

    The mask holds exactly the pixels that changed by more than `VISIBLE_CHANGE`; no pixel changes unmasked otherwise.
    Where the image shows an object before a plain ground, the mask overlaps the object.

    Raises:
        InputError: not an 8-bit RGB image with sides of at least `MIN_SIDE` pixels.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"a synthetic defect needs uint8 [H, W, 3], sides of {MIN_SIDE} or more, not {rgb.dtype} {list(rgb.shape)}"
        )
    height, width = rgb.shape[:2]
    smallest = max(1, round(MIN_MASK_AREA * height * width))
    ground = foreground(rgb)
    paint = _PAINTERS[recipe.kind]
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.Generator(np.random.PCG64([recipe.seed, attempt, *recipe.kind.encode()]))
        changed, mask = _paste(rgb, paint(rgb, place(ground, (height, width), rng), rng))
        if mask.sum() >= smallest and (ground is None or overlaps(mask, ground)):
            return changed, mask
    rng = np.random.Generator(np.random.PCG64([recipe.seed, MAX_ATTEMPTS]))
    return _paste(rgb, _blot(rgb, place(ground, (height, width), rng)))


def foreground(rgb: RGB) -> Mask | None:
    """Coarse mask [h, w] (longer side at most 64) of an object before a plain ground, or None where there is none.

    The ground is the median colour of the image's rim. It is plain when at least 85 % of the rim stays within the
    limit of that colour: the largest of 20 levels, four times the rim's median deviation, and two fifths of the
    object's contrast (99th percentile), which leaves its shadow out. What exceeds the limit, by majority of 3 x 3, is
    the object; it has to cover 1-85 % of the image.
    """
    height, width = rgb.shape[:2]
    longest = max(height, width, _THUMBNAIL)
    size = max(1, width * _THUMBNAIL // longest), max(1, height * _THUMBNAIL // longest)
    small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX)).astype(np.int16)
    rim = np.concatenate([small[0], small[-1], small[1:-1, 0], small[1:-1, -1]])
    ground = np.median(rim, axis=0)
    contrast = np.abs(small - ground).max(axis=2)
    deviation = np.abs(rim - ground).max(axis=1)
    limit = max(_MIN_CONTRAST, 4 * float(np.median(deviation)), 0.4 * float(np.percentile(contrast, 99)))
    plain = float(np.mean(deviation <= limit)) >= _BORDER_AGREEMENT
    padded = np.pad(contrast > limit, 1).astype(np.int8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    mask: Mask = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] >= 5
    low, high = _FOREGROUND_SHARE
    return mask if plain and low <= float(mask.mean()) <= high else None


def perlin_noise(size: tuple[int, int], cells: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Gradient noise [h, w] in about [-1, 1] with `cells` lattice cells along height and width (Perlin, 1985)."""
    (height, width), (rows, columns) = size, cells
    y, i, fade_y = _lattice(height, rows)
    x, j, fade_x = _lattice(width, columns)
    slopes = _DIRECTIONS[rng.integers(len(_DIRECTIONS), size=(int(i[-1]) + 2, int(j[-1]) + 2))]
    # Along x first, one line per lattice row: level + slope * y is all that remains to be done per pixel.
    gx, gy = slopes[..., 0], slopes[..., 1]
    level = gx[:, j] * x * (1 - fade_x) + gx[:, j + 1] * (x - 1) * fade_x
    slope = gy[:, j] * (1 - fade_x) + gy[:, j + 1] * fade_x
    y, fade_y = y[:, None], fade_y[:, None]
    above = level[i] + slope[i] * y
    below = level[i + 1] + slope[i + 1] * (y - 1)
    noise: Floats = (above + (below - above) * fade_y) * np.float32(sqrt(2))
    return noise


def _lattice(length: int, cells: float) -> tuple[Floats, NDArray[np.intp], Floats]:
    """Per pixel: place within its cell [0, 1), index of the cell, and the quintic fade 6t^5 - 15t^4 + 10t^3."""
    place = (np.arange(length) + 0.5) * (cells / length)
    index = place.astype(np.intp)
    t = (place - index).astype(np.float32)
    return t, index, t * t * t * (t * (t * 6 - 15) + 10)


_DIRECTIONS: Floats = np.array(
    [(a * x, b * y) for a in (1, -1) for b in (1, -1) for x, y in ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, 0.6))],
    dtype=np.float32,
)
"""[16, 2] unit gradients with exact components."""


def _cutpaste(rgb: RGB, centre: tuple[int, int], rng: np.random.Generator) -> _Window:
    """CutPaste (arXiv 2104.04015, section 3.1): 2-15 % of the image, aspect 0.3-1 or 1-3.3, pasted elsewhere."""
    height, width = rgb.shape[:2]
    area = rng.uniform(0.02, 0.15) * height * width
    aspect = rng.uniform(0.3, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, 3.3)
    h = min(max(2, round(sqrt(area * aspect))), height - 1)
    w = min(max(2, round(sqrt(area / aspect))), width - 1)
    top, left = _inside(centre[0] - h // 2, height - h), _inside(centre[1] - w // 2, width - w)
    source_top, source_left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    patch = rgb[source_top : source_top + h, source_left : source_left + w]
    return _Window(top, left, recolour(patch, PATCH_JITTER, rng))


def _scar(rgb: RGB, centre: tuple[int, int], rng: np.random.Generator) -> _Window:
    """CutPaste-Scar (section 3.2): 2-16 x 10-25 px at 256 px, turned by up to 45 degrees from upright or lying."""
    height, width = rgb.shape[:2]
    scale = sqrt(height * width) / 256
    thickness, length = max(1.0, rng.uniform(2, 16) * scale), max(3.0, rng.uniform(10, 25) * scale)
    h, w = (length, thickness) if rng.random() < 0.5 else (thickness, length)
    # The half-angle formulas need no sine; the tangent of 22.5 degrees bounds the turn at 45.
    half = rng.uniform(-(sqrt(2) - 1), sqrt(2) - 1)
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    reach = int(sqrt(h * h + w * w) / 2) + 1
    top, left = max(0, centre[0] - reach), max(0, centre[1] - reach)
    bottom, right = min(height, centre[0] + reach + 1), min(width, centre[1] + reach + 1)
    y, x = np.arange(top, bottom)[:, None] - centre[0], np.arange(left, right)[None] - centre[1]
    v, u = cos * y - sin * x, sin * y + cos * x
    inside = (np.abs(v) <= h / 2) & (np.abs(u) <= w / 2)
    source = rng.uniform(h / 2, max(h / 2, height - h / 2)), rng.uniform(w / 2, max(w / 2, width - w / 2))
    rows = np.clip((v[inside] + source[0]).astype(np.intp), 0, height - 1)
    columns = np.clip((u[inside] + source[1]).astype(np.intp), 0, width - 1)
    pixels = rgb[top:bottom, left:right].copy()
    pixels[inside] = recolour(rgb[rows, columns][None], SCAR_JITTER, rng)[0]
    return _Window(top, left, pixels)


def _perlin(rgb: RGB, centre: tuple[int, int], rng: np.random.Generator) -> _Window:
    """Stain shaped by thresholded noise as in DRAEM (arXiv 2108.07610, eq. 3), its texture the image's own, shuffled.

    DRAEM takes textures from another data set and lets the noise run over the whole image; here a bump around the
    centre keeps the defect in one place.
    """
    height, width = rgb.shape[:2]
    h = min(height, max(4, round(height * rng.uniform(0.12, 0.5))))
    w = min(width, max(4, round(width * rng.uniform(0.12, 0.5))))
    top, left = _inside(centre[0] - h // 2, height - h), _inside(centre[1] - w // 2, width - w)
    noise = perlin_noise((h, w), (rng.uniform(1, 6), rng.uniform(1, 6)), rng)
    y = (np.arange(top, top + h, dtype=np.float32) - centre[0])[:, None] / np.float32(h / 2)
    x = (np.arange(left, left + w, dtype=np.float32) - centre[1])[None] / np.float32(w / 2)
    strength = (noise + 1) * np.maximum(1 - y * y - x * x, 0)
    share = rng.uniform(0.08, 0.35)
    ranked = np.partition(strength, strength.size - 1 - int(share * strength.size), axis=None)
    inside = strength > max(float(ranked[strength.size - 1 - int(share * strength.size)]), 0.0)
    opacity = np.float32(rng.uniform(0.35, 1.0))
    old = rgb[top : top + h, left : left + w]
    texture = recolour(shuffled(rgb, (top, left, h, w), rng), STAIN_JITTER, rng)
    pixels = old.copy()
    before = old[inside].astype(np.float32)
    pixels[inside] = np.rint(before + (texture[inside] - before) * opacity).astype(np.uint8)
    return _Window(top, left, pixels)


def _blot(rgb: RGB, centre: tuple[int, int]) -> _Window:
    """A sixteenth of each side, every level moved by 64 towards the other end of its range: visible on any image."""
    height, width = rgb.shape[:2]
    h, w = max(2, height // 16), max(2, width // 16)
    top, left = _inside(centre[0] - h // 2, height - h), _inside(centre[1] - w // 2, width - w)
    old = rgb[top : top + h, left : left + w]
    return _Window(top, left, np.where(old < 128, old + 64, old - 64).astype(np.uint8))


_PAINTERS: dict[str, Callable[[RGB, tuple[int, int], np.random.Generator], _Window]] = {
    "cutpaste": _cutpaste,
    "scar": _scar,
    "perlin": _perlin,
}


def shuffled(rgb: RGB, box: tuple[int, int, int, int], rng: np.random.Generator) -> RGB:
    """Texture [h, w, 3] for the `box` (top, left, h, w): tiles from all over the image, flipped at random."""
    height, width = rgb.shape[:2]
    _, _, h, w = box
    tile = max(2, round(min(height, width) / int(rng.integers(4, 12))))
    texture = np.empty((h, w, 3), dtype=np.uint8)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            size = min(tile, h - top), min(tile, w - left)
            y, x = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
            flips = rng.integers(2, size=2) * 2 - 1
            source = rgb[y : y + size[0], x : x + size[1]]
            texture[top : top + size[0], left : left + size[1]] = source[:: flips[0], :: flips[1]]
    return texture


def recolour(pixels: RGB, jitter: Jitter, rng: np.random.Generator) -> RGB:
    """Brightness, contrast, saturation and hue of [h, w, 3] moved at random; a gray image stays gray.

    The brightness shift is never below the visible and turns round where it would leave the range, so that even a
    image of one colour changes.
    """
    shift = rng.uniform(*jitter.shift) * (1 if rng.random() < 0.5 else -1)
    contrast, saturation = rng.uniform(1 - jitter.strength, 1 + jitter.strength, size=2)
    half = rng.uniform(-jitter.strength, jitter.strength) * 0.8
    mean = float(pixels.sum(dtype=np.int64)) / pixels.size
    if not 0 <= mean + shift <= 255:
        shift = -shift
    values = pixels.astype(np.float32)
    gray = (values[..., 0] + values[..., 1] + values[..., 2]) / np.float32(3)
    moved = (gray - np.float32(mean)) * np.float32(contrast) + np.float32(mean + shift)
    # A turn about the gray axis by the angle 2 atan(half), Rodrigues' formula on the chroma alone.
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half) / sqrt(3)
    chroma = values - gray[..., None]
    along, across = np.float32(saturation * contrast * cos), np.float32(saturation * contrast * sin)
    turned = chroma * along + (chroma[..., [1, 2, 0]] - chroma[..., [2, 0, 1]]) * across
    return np.clip(np.rint(turned + moved[..., None]), 0, 255).astype(np.uint8)


def _paste(rgb: RGB, window: _Window) -> tuple[RGB, Mask]:
    """The image with the window's visibly changed pixels, and their mask; the other pixels stay as they are."""
    h, w = window.pixels.shape[:2]
    region = np.s_[window.top : window.top + h, window.left : window.left + w]
    difference = np.abs(window.pixels.astype(np.int16) - rgb[region]) > VISIBLE_CHANGE
    visible = difference[..., 0] | difference[..., 1] | difference[..., 2]
    changed, mask = rgb.copy(), np.zeros(rgb.shape[:2], dtype=bool)
    mask[region] = visible
    changed[region][visible] = window.pixels[visible]
    return changed, mask


def place(ground: Mask | None, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of the defect's centre: on the object where there is one, anywhere otherwise."""
    if ground is None:
        return int(rng.integers(size[0])), int(rng.integers(size[1]))
    rows, columns = np.nonzero(ground)
    chosen = int(rng.integers(len(rows)))
    y = (rows[chosen] + rng.random()) * size[0] / ground.shape[0]
    x = (columns[chosen] + rng.random()) * size[1] / ground.shape[1]
    return min(int(y), size[0] - 1), min(int(x), size[1] - 1)


def overlaps(mask: Mask, ground: Mask) -> bool:
    """Whether a pixel of the mask [H, W] lies on the coarse object mask."""
    rows, columns = np.nonzero(mask)
    return bool(ground[rows * ground.shape[0] // mask.shape[0], columns * ground.shape[1] // mask.shape[1]].any())


def _inside(start: int, last: int) -> int:
    return min(max(start, 0), last)
