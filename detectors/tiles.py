"""Large images cut into tiles, which a detector looks at one by one, and their maps put together without seams.

Notation: B images of H x W pixels, T tiles of a x b pixels each, row by row.

The tiles of an axis lie evenly from one border to the other and overlap by at least as much as was asked for, so that nothing is
padded and a defect on the border of one tile lies within its neighbour. Where tiles overlap, a map is their weighted mean: each
weighs the less the nearer its border is, nothing at the border itself, so that the map has no step where a tile ends. An image's
score is that of its highest tile. A single tile is the image itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from detectors.data.images import Size
from detectors.errors import InputError

LEAST_SIDE, MOST_SIDE = 32, 2048
"""Of a tile, in pixels."""
MOST_TILES = 4096
"""Of an image."""


@dataclass(frozen=True)
class Tiles:
    """Squares that an image is cut into.

    Raises:
        InputError: a side that is out of range, or an overlap of more than half of it.
    """

    side: int
    """In pixels of the resized image; a tile is not larger than the image."""
    overlap: int = 0
    """Pixels that neighbours share at least."""

    def __post_init__(self) -> None:
        if not LEAST_SIDE <= self.side <= MOST_SIDE:
            raise InputError(f"tiles: a side of {self.side} pixels is out of range; give {LEAST_SIDE} to {MOST_SIDE}")
        if not 0 <= self.overlap <= self.side // 2:
            raise InputError(
                f"tiles: an overlap of {self.overlap} pixels is out of range; give 0 to half of the side, {self.side // 2}"
            )


@dataclass(frozen=True)
class TileGrid:
    """The tiles of images of one size.

    Raises:
        InputError: more than `MOST_TILES`.
    """

    image_size: Size
    tiles: Tiles

    def __post_init__(self) -> None:
        counts = [len(_starts(length, min(self.tiles.side, length), self.tiles.overlap)) for length in self.image_size]
        if counts[0] * counts[1] > MOST_TILES:
            height, width = self.image_size
            raise InputError(
                f"tiles: {counts[0] * counts[1]} tiles of an image of {height} x {width} pixels are too many (at most "
                f"{MOST_TILES}); give a larger side"
            )

    @cached_property
    def size(self) -> Size:
        """Height and width of each tile."""
        height, width = self.image_size
        return min(self.tiles.side, height), min(self.tiles.side, width)

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """First row and column of each tile, [T]."""
        rows, columns = (
            _starts(length, side, self.tiles.overlap) for length, side in zip(self.image_size, self.size, strict=True)
        )
        return tuple((row, column) for row in rows for column in columns)

    def __len__(self) -> int:
        """T."""
        return len(self.corners)

    def cut(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B * T, C, a, b]: the tiles of the first image, then those of the second and so on."""
        height, width = self.size
        parts = [images[:, :, row : row + height, column : column + width] for row, column in self.corners]
        return torch.stack(parts, dim=1).flatten(0, 1)

    def join(self, maps: Tensor) -> Tensor:
        """The tiles' maps of one image, [T, a, b] -> [H, W]."""
        if len(self) == 1:
            return maps[0]
        (height, width), joined = self.size, maps.new_zeros(self.image_size)
        down, across = (weights.to(maps) for weights in self._weights)
        for (row, column), tile in zip(self.corners, maps, strict=True):
            # No tile begins where another one of the same axis does.
            weights = down[self._places[0][row], :, None] * across[self._places[1][column]]
            joined[row : row + height, column : column + width] += tile * weights
        return joined

    @cached_property
    def _places(self) -> tuple[dict[int, int], dict[int, int]]:
        """{first row: which row of tiles}, and the same of columns."""
        rows, columns = (sorted({corner[axis] for corner in self.corners}) for axis in (0, 1))
        return {start: place for place, start in enumerate(rows)}, {start: place for place, start in enumerate(columns)}

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Of each row and column of tiles, float64 [tiles of the axis, pixels of a tile]; they add up to 1 at every pixel."""
        down, across = (
            _tapered(sorted(starts), side, length)
            for starts, side, length in zip(self._places, self.size, self.image_size, strict=True)
        )
        return down, across


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where the tiles of an axis begin: as few as overlap enough, spread evenly from border to border."""
    if length <= side:
        return [0]
    count = 1 + -(-(length - side) // (side - overlap))
    return [round(place * (length - side) / (count - 1)) for place in range(count)]


def _tapered(starts: list[int], side: int, length: int) -> Tensor:
    """Weights [n, side] of the n tiles of an axis, which fall linearly towards a neighbour through what both cover."""
    weights = torch.ones(len(starts), side, dtype=torch.float64)
    for place, (first, second) in enumerate(itertools.pairwise(starts)):
        shared = first + side - second
        # At the middle of each pixel, so that the ramps of two overlaps that follow each other make one line.
        ramp = (torch.arange(shared, dtype=torch.float64) + 0.5) / max(1, shared)
        weights[place, side - shared :] *= 1 - ramp
        weights[place + 1, :shared] *= ramp
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + side]
    return weights
