"""Near copies: images that differ by no more than saving again, a shift of a few pixels or another brightness does.

Parts of one product look alike by nature, more so in a fixture, so two images count as near copies only if what is left of
their difference is small against the contrast of the image *and* against what is left between any two images of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 64
"""Height and width that images are compared at: saving as JPEG is averaged away, a shift is a fraction of a pixel."""
BORDER = 2
"""Pixels of a thumbnail at each edge that a shift brings new content into; not compared."""
COARSE = 16
"""Height and width at which candidates are looked for among all pairs."""
MIN_CORRELATION = 0.8
"""Candidates correlate so much at least; a texture without structure, shifted by one pixel in 256, does by 0.88."""
MAX_NEIGHBOURS = 4
"""Candidates that are compared closely, for each image: its nearest."""
MAX_RESIDUAL = 0.05
"""Near copies differ by this share of the contrast (the standard deviation) at most: 0.25 % of the variance."""
MAX_OF_TYPICAL = 0.25
"""And by this share of what two images of the set differ by in general (the median)."""
TYPICAL_PAIRS = 500
MAX_IMAGES = 5000
"""So many images are compared with one another, 80 MB of thumbnails; of more, the first."""
BLOCK = 512
"""Images whose correlations with all others are held in memory at a time."""

Thumbnail = NDArray[np.float32]
"""Gray values [THUMBNAIL, THUMBNAIL], 0 to 255."""


@dataclass(frozen=True)
class NearCopy:
    """Two images that differ hardly."""

    first: int
    second: int
    """Their places in the list, `first` before `second`."""
    residual: float
    """What is left of their difference, as a share of the contrast; 0 to `MAX_RESIDUAL`."""


def thumbnail(rgb: NDArray[np.uint8]) -> Thumbnail:
    """Gray values of an image [H, W, 3], averaged over its area."""
    gray = Image.fromarray(rgb).convert("L").convert("F")
    values = np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
    return _smoothed(_smoothed(values).T).T


def _smoothed(values: Thumbnail) -> Thumbnail:
    """Rows weighted 1, 2, 1: what is finer than a pixel of the thumbnail would not follow a shift by its gradient."""
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    smoothed: Thumbnail = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / np.float32(4)
    return smoothed


def near_copies(thumbnails: Sequence[Thumbnail]) -> list[NearCopy]:
    """The pairs that differ hardly, nearest first, among the first `MAX_IMAGES` images.

    An image without any contrast is a near copy of none.
    """
    images = [np.asarray(image, dtype=np.float32) for image in thumbnails[:MAX_IMAGES]]
    pairs = _candidates(images)
    if not pairs:
        return []
    most = min(MAX_RESIDUAL, MAX_OF_TYPICAL * _typical(images))
    found = [NearCopy(first, second, _residual(images[first], images[second])) for first, second in pairs]
    return sorted((pair for pair in found if pair.residual <= most), key=lambda pair: pair.residual)


def _candidates(images: Sequence[Thumbnail]) -> list[tuple[int, int]]:
    """Pairs of images that correlate, for each image with its nearest ones."""
    step = THUMBNAIL // COARSE
    coarse = np.array([image.reshape(COARSE, step, COARSE, step).mean(axis=(1, 3)).ravel() for image in images])
    if len(coarse) < 2:
        return []
    coarse -= coarse.mean(axis=1, keepdims=True)
    length = np.linalg.norm(coarse, axis=1, keepdims=True)
    coarse /= np.where(length > 0, length, np.inf)
    n_nearest = min(MAX_NEIGHBOURS, len(coarse) - 1)
    pairs = set()
    for start in range(0, len(coarse), BLOCK):
        alike = coarse[start : start + BLOCK] @ coarse.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf
        nearest = np.argpartition(-alike, n_nearest - 1, axis=1)[:, :n_nearest]
        for row, column in zip(np.repeat(rows, n_nearest), nearest.ravel(), strict=True):
            if alike[row, column] >= MIN_CORRELATION:
                first, second = sorted((start + int(row), int(column)))
                pairs.add((first, second))
    return sorted(pairs)


def _typical(images: Sequence[Thumbnail]) -> float:
    """What is left between two images of the set in general: the median over pairs that are spread over it.

    1, which is nothing in common, where there are only two images.
    """
    n = len(images)
    if n < 3:
        return 1.0
    rng = np.random.default_rng(0)
    firsts = rng.integers(0, n, TYPICAL_PAIRS)
    seconds = (firsts + rng.integers(1, n, TYPICAL_PAIRS)) % n
    return float(np.median([_residual(images[a], images[b]) for a, b in zip(firsts, seconds, strict=True)]))


def _residual(first: Thumbnail, second: Thumbnail) -> float:
    """What is left of the difference of two images after gain, offset and a small shift: a share of the contrast.

    `second` is fitted by least squares with `first`, a constant and the gradients half way between the two: a shifted
    image is the image plus shift times gradient (Lucas and Kanade, 1981), up to the third order if both have a part in
    the gradient. At most 1; 1 where there is no contrast.
    """
    inside = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    contrasts = first[inside].std(), second[inside].std()
    if min(contrasts) == 0:
        return 1.0
    base, wanted = first / contrasts[0], second / contrasts[1]
    down, across = np.gradient((base + wanted) / 2)
    terms = np.stack([term[inside].ravel() for term in (base, down, across)]).astype(np.float64)
    target = wanted[inside].ravel().astype(np.float64)
    terms, target = terms - terms.mean(axis=1, keepdims=True), target - target.mean()
    # By the normal equations, 3 x 3: thousands of pairs are compared.
    weights, *_ = np.linalg.lstsq(terms @ terms.T, terms @ target, rcond=1e-9)
    return min(1.0, float(np.std(target - weights @ terms)))
