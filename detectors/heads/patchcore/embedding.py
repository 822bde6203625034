"""Patch features of PatchCore (equations 1 to 3 of arXiv 2106.08265).

Notation: N images, C channels of a stride, D channels of all strides together, h x w positions of the finest grid, P of them in a
block.

Each stride's map is averaged over a window around every position, coarser maps are brought to the finest grid bilinearly, and all
are concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detectors.data.images import Size
from detectors.features import Features, normalized
from detectors.heads.patchcore.whitening import Whitening
from detectors.working_memory import portion

BLOCK_BYTES = 64 * 2**20
"""Patch features in memory at once."""


@dataclass(frozen=True)
class PatchEmbedding:
    """How features become patch features: the window, and the whitening if there is one.

    The index of a patch is position * N + image.
    """

    reach: int
    """Of the window that maps are averaged over, in positions; 0 leaves them as they are."""
    whitening: Whitening | None = None
    normalize: bool = False
    """Whether the averaged features of each stride are divided by their length (L2), before they are whitened."""

    def blocks(self, features: Features, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Slices of positions that are whole rows of the grid, with their patch features, float32 [P, D, N]."""
        height, width = features.grids[features.strides[0]]
        length = max(1, portion(BLOCK_BYTES) // (4 * width * channel_count(features) * len(features)))
        for row in range(0, height, length):
            rows = slice(row, min(row + length, height))
            values = patch_features(features, rows, reach=self.reach, device=device, normalize=self.normalize)
            values = values.flatten(0, 1)
            yield (
                slice(rows.start * width, rows.stop * width),
                values if self.whitening is None else self.whitening(values),
            )

    def take(self, features: Features, indices: Tensor, device: torch.device) -> Tensor:
        """Some of the patches, by their indices, int64 [K] on the CPU; float32 [K, D]."""
        images = len(features)
        taken = torch.empty(len(indices), channel_count(features), device=device)
        positions, image = indices.div(images, rounding_mode="floor"), indices % images
        for block, values in self.blocks(features, device):
            here = ((positions >= block.start) & (positions < block.stop)).nonzero().flatten()
            local = (positions[here] - block.start).to(device)
            taken[here.to(device)] = values[local, :, image[here].to(device)]
        return taken

    def projected(self, features: Features, device: torch.device, dimension: int, *, seed: int) -> Tensor:
        """Every patch in a random projection to d dimensions, or as it is where `dimension` is 0; float32 [h * w * N, d]."""
        (height, width), channels = features.grids[features.strides[0]], channel_count(features)
        matrix = gaussian_projection(channels, dimension, seed=seed).to(device) if dimension else None
        points = torch.empty(height * width, len(features), dimension or channels, device=device)
        for block, values in self.blocks(features, device):
            rows = values.transpose(1, 2)
            if matrix is None:
                points[block] = rows
            else:
                torch.matmul(rows, matrix, out=points[block])
        return points.flatten(0, 1)


def channel_count(features: Features) -> int:
    """D, of all strides together."""
    return sum(values.shape[1] for values in features.maps.values())


def gaussian_projection(channels: int, dimension: int, *, seed: int) -> Tensor:
    """A random Gaussian matrix, float32 [D, d], that keeps distances up to little (Johnson and Lindenstrauss 1984)."""
    matrix = np.random.default_rng([seed, 0]).standard_normal((channels, dimension)) / math.sqrt(dimension)
    return torch.from_numpy(matrix.astype(np.float32))


def patch_features(
    features: Features, rows: slice, *, reach: int, device: torch.device, normalize: bool = False
) -> Tensor:
    """Patch features of some rows of the finest grid, [R, w, D, N].

    Every value is computed from its own image alone, by the same operations in the same order for any number of images.

    Args:
        rows: a slice of the finest grid's rows.
        reach: of the window that maps are averaged over; 0 leaves them as they are.
        normalize: divide each stride's part by its length (L2).
    """
    strides = features.strides
    height, width = features.grids[strides[0]]
    channels = [features.maps[stride].shape[1] for stride in strides]
    result = torch.empty(rows.stop - rows.start, width, sum(channels), len(features), device=device)
    for stride, part in zip(strides, result.split(channels, dim=2), strict=True):
        grid = features.grids[stride]
        values = features.maps[stride].unflatten(0, grid)
        if grid == (height, width):
            _window_mean(values, rows, reach, out=part, device=device)
        else:
            _upsample(values, rows, (height, width), reach, out=part, device=device)
        if normalize:
            normalized(part, dim=2)
    return result


def _upsample(values: Tensor, rows: slice, fine: Size, reach: int, *, out: Tensor, device: torch.device) -> None:
    """Bilinear (align_corners=False) from the averaged coarse map [a, b, C, N] to some rows of the fine grid."""
    down, across = _between(fine[0], len(values)), _between(fine[1], values.shape[1])
    needed = slice(down[rows.start][0], down[rows.stop - 1][1] + 1)
    coarse = torch.empty(needed.stop - needed.start, *values.shape[1:], device=device)
    _window_mean(values, needed, reach, out=coarse, device=device)
    wide = torch.empty(len(coarse), fine[1], *values.shape[2:], device=device)
    for column, (left, right, share) in enumerate(across):
        torch.lerp(coarse[:, left], coarse[:, right], share, out=wide[:, column])
    for row, (above, below, share) in enumerate(down[rows]):
        torch.lerp(wide[above - needed.start], wide[below - needed.start], share, out=out[row])


def _between(size: int, length: int) -> list[tuple[int, int, float]]:
    """For each of `size` positions the two of `length` that it lies between, and the share of the second."""
    centres = [max(0.0, (position + 0.5) * length / size - 0.5) for position in range(size)]
    return [(int(centre), min(int(centre) + 1, length - 1), centre - int(centre)) for centre in centres]


def _window_mean(values: Tensor, rows: slice, reach: int, *, out: Tensor, device: torch.device) -> None:
    """Mean over the window around each position, cut at the borders; [h, w, C, N] -> `out` [rows, w, C, N]."""
    height, width = values.shape[:2]
    first = max(0, rows.start - reach)
    around = values[first : rows.stop + reach].to(device)
    here = slice(rows.start - first, rows.stop - first)
    if not reach:
        out.copy_(around[here])
        return
    down = around[here].clone()
    for shift in range(1, reach + 1):
        for signed in (-shift, shift):
            top, bottom = max(0, -signed - here.start), min(here.stop, len(around) - signed) - here.start
            if top < bottom:
                down[top:bottom] += around[here.start + top + signed : here.start + bottom + signed]
    out.copy_(down)
    for shift in range(1, min(reach, width - 1) + 1):
        out[:, shift:] += down[:, :-shift]
        out[:, :-shift] += down[:, shift:]
    inside = [_inside(rows, height, reach), _inside(slice(0, width), width, reach)]
    out /= torch.outer(*(torch.tensor(counts, device=device) for counts in inside))[..., None, None]


def _inside(positions: slice, size: int, reach: int) -> list[float]:
    """How many positions of an axis the window around each of some positions holds."""
    return [float(min(size, at + reach + 1) - max(0, at - reach)) for at in range(positions.start, positions.stop)]
