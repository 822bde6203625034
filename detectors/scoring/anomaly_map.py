"""Patch scores -> pixel map -> image score.

Notation: B images, h x w positions, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.data.images import Size


class AnomalyMap(nn.Module):
    """Bilinear upsampling to the image, then Gaussian smoothing (PaDiM and PatchCore use sigma = 4 pixels).

    Both are linear and act on rows and columns alike, so that each is one small matrix and the map is
    ``rows @ scores @ columns.T``: a few matrix products instead of an interpolation and two convolutions over all pixels.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: Size, image_size: Size, *, smoothing_sigma: float = 4.0) -> None:
        """Args: `smoothing_sigma` in pixels of the map; 0 leaves the upsampled scores as they are."""
        super().__init__()
        self.grid, self.image_size, self.smoothing_sigma = grid, image_size, smoothing_sigma
        for name, size, length in (("rows", image_size[0], grid[0]), ("columns", image_size[1], grid[1])):
            matrix = gaussian_matrix(size, smoothing_sigma) @ bilinear_matrix(size, length)
            self.register_buffer(name, matrix.float(), persistent=False)

    def forward(self, patch_scores: Tensor) -> Tensor:
        """[B, h, w] -> [B, H, W]."""
        return self.rows @ patch_scores @ self.columns.T


def bilinear_matrix(size: int, length: int) -> Tensor:
    """float64 [size, length]: what `torch.nn.functional.interpolate` (bilinear, align_corners=False) does to one axis."""
    identity = torch.eye(length, dtype=torch.float64)[None]
    return functional.interpolate(identity, size=size, mode="linear", align_corners=False)[0].T


def gaussian_matrix(size: int, sigma: float, *, reach: int | None = None) -> Tensor:
    """float64 [size, size]: Gaussian smoothing of one axis, mirrored at the borders (edge repeated).

    Args:
        reach: of the window to either side; by default 4 sigma, rounded as `scipy.ndimage.gaussian_filter` does, which the
            papers' implementations use.
    """
    if sigma <= 0:
        return torch.eye(size, dtype=torch.float64)
    reach = int(4 * sigma + 0.5) if reach is None else reach
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    at = (torch.arange(size)[:, None] + offsets) % (2 * size)
    at = torch.where(at < size, at, 2 * size - 1 - at)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, at, kernel.expand(size, -1))


def resampled(maps: Tensor, size: Size) -> Tensor:
    """[B, H, W] -> [B, *size], bilinearly; for maps of different sizes to be judged against the same masks.

    Where a map is reduced, each pixel is a mean over what it covers: a peak between two of them is not passed over.
    """
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def image_scores(maps: Tensor, *, top_share: float = 0.0) -> Tensor:
    """[B, H, W] -> [B]: the mean of each map's highest pixels.

    Args:
        top_share: of the pixels, 0 to 1, rounded up to whole ones; 0 for the highest alone.
    """
    pixels = maps.flatten(1)
    count = math.ceil(round(top_share * pixels.shape[1], 6))
    return pixels.topk(count, dim=1).values.mean(dim=1) if count > 1 else pixels.amax(dim=1)
