"""PaDiM as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; P = h * w positions of the finest grid; d channels used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detectors.data.images import Size
from detectors.embedding import Embedding, nearest_positions
from detectors.graphs import Scores, normalized, plain


class PadimGraph(nn.Module):
    """Mahalanobis distance at every position."""

    def __init__(self, mean: Tensor, whitening: Tensor, embedding: Embedding, grids: Mapping[int, Size]) -> None:
        """Args: `mean` [P, d] and `whitening` [P, d, d] as in `detectors.heads.padim.head`."""
        super().__init__()
        self.grid, self.normalizes = grids[embedding.strides[0]], embedding.normalize
        self.register_buffer("mean", plain(mean)[:, None])
        # Vectors from the left, [1, d] @ [d, d], are several times faster than [d, d] @ [d, 1] in ONNX Runtime.
        self.register_buffer("factors", plain(whitening).transpose(1, 2).contiguous())
        self.used: list[tuple[int, str, str | None]] = []
        for index, stride in enumerate(embedding.strides):
            if not len(embedding.channels[stride]):
                continue
            channels, positions = f"channels{index}", f"positions{index}"
            self.register_buffer(channels, plain(embedding.channels[stride]))
            coarse = grids[stride] != self.grid
            if coarse:
                self.register_buffer(positions, nearest_positions(self.grid, grids[stride]))
            self.used.append((index, channels, positions if coarse else None))

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        parts = []
        for index, channels, positions in self.used:
            values = maps[index].index_select(1, self.get_buffer(channels)).flatten(2)
            values = normalized(values, dim=1) if self.normalizes else values
            parts.append(values if positions is None else values.index_select(2, self.get_buffer(positions)))
        apart = torch.cat(parts, dim=1).permute(2, 0, 1) - self.get_buffer("mean")
        distances = (apart @ self.get_buffer("factors")).square().sum(dim=2).sqrt()
        return distances.T.reshape(-1, *self.grid), None
