"""What the heads' graphs share: each head is also a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; h x w positions of the finest grid.

A head's graph lies beside the head, in ``detectors/heads/<name>/graph.py``. It takes the backbone's maps in the order of the
strides, float32 [B, C, a, b], and returns patch scores [B, h, w] and image scores [B] or None, as its head's `score` does. Shapes
are fixed but for B, and no step depends on the values. The order of the work differs: a head goes through many images block by
block, a graph goes through a few at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectors.data.images import Size
from detectors.scoring.anomaly_map import bilinear_matrix

PRODUCT_BYTES = 16 * 2**20
"""Distances of one image's patches to the bank that are in memory at once."""
MAX_PARTS = 64
"""Parts that they are cut into at most: each is a piece of the graph of its own."""
Scores = tuple[Tensor, Tensor | None]


class Upsampling(nn.Module):
    """Bilinear upsampling [B, ..., a, b] -> [B, ..., h, w] as two matrix products; what lies on the fine grid passes as it is."""

    def __init__(self, fine: Size, coarse: Size) -> None:
        super().__init__()
        self.needed = fine != coarse
        self.register_buffer("down", bilinear_matrix(fine[0], coarse[0]).float())
        self.register_buffer("across", bilinear_matrix(fine[1], coarse[1]).float().T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        return self.get_buffer("down") @ values @ self.get_buffer("across") if self.needed else values


def upsamplings(grids: Sequence[Size]) -> nn.ModuleList:
    """From each of the grids, the finest first, to the first."""
    return nn.ModuleList(Upsampling(grids[0], grid) for grid in grids)


def joined(upsamplings: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """All maps' channels on the finest grid, as `Features.joined` has them."""
    return torch.cat([upsampling(values) for upsampling, values in zip(upsamplings, maps, strict=True)], dim=1)


def normalized(values: Tensor, *, dim: int) -> Tensor:
    """Vectors along `dim` divided by their length (L2), as `detectors.features.normalized` does."""
    return values / values.square().sum(dim=dim, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def plain(tensor: Tensor) -> Tensor:
    """A copy on the CPU that autograd may look at: a fit leaves inference tensors, which `torch.export` refuses."""
    return tensor.detach().cpu().clone()
