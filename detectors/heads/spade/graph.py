"""SPADE as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; N normal images; per stride C channels and P positions on a grid a x b; D pooled channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detectors.data.images import Size
from detectors.graphs import MAX_PARTS, PRODUCT_BYTES, Scores, normalized, plain, upsamplings


class SpadeGraph(nn.Module):
    """Retrieval by the largest products, then correspondences in the images retrieved.

    Who is nearest is found by matrix products, |m|^2 - 2 q m; how far that is, by direct differences.
    """

    def __init__(
        self,
        pooled: Tensor,
        banks: Mapping[int, Tensor],
        grids: Mapping[int, Size],
        *,
        n_neighbors: int,
        n_correspondences: int,
        pooled_strides: Sequence[int],
        scores_by_retrieval: bool,
        normalizes: bool = False,
    ) -> None:
        """Args: `pooled` [N, D]; `banks` {stride: [N, P, C]}; `n_neighbors` is at most N."""
        super().__init__()
        self.strides = tuple(sorted(banks))
        self.grids = tuple(grids[stride] for stride in self.strides)
        self.pooled_strides = tuple(self.strides.index(stride) for stride in pooled_strides)
        self.n_neighbors, self.scores_by_retrieval, self.normalizes = n_neighbors, scores_by_retrieval, normalizes
        self.register_buffer("pooled", plain(pooled))
        self.register_buffer("squares", plain(pooled).square().sum(dim=1))
        self.upsamplings = upsamplings(self.grids)
        self.counts, self.steps = [], []
        for index, stride in enumerate(self.strides):
            bank = plain(banks[stride])
            self.register_buffer(f"bank{index}", bank)
            candidates = n_neighbors * bank.shape[1]
            self.counts.append(min(n_correspondences, candidates))
            self.steps.append(max(1, PRODUCT_BYTES // (4 * candidates), -(-bank.shape[1] // MAX_PARTS)))

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        maps = tuple(normalized(values, dim=1) for values in maps) if self.normalizes else maps
        pooled = torch.cat([maps[index].mean(dim=(2, 3)) for index in self.pooled_strides], dim=1)
        known = self.get_buffer("pooled")
        products = self.get_buffer("squares") - 2 * (pooled @ known.T)
        nearest = products.topk(self.n_neighbors, dim=1, largest=False).indices
        scores = torch.stack([self._correspond(index, maps[index], nearest) for index in range(len(maps))]).mean(dim=0)
        if not self.scores_by_retrieval:
            return scores, None
        there = known.index_select(0, nearest.flatten()).reshape(-1, self.n_neighbors, known.shape[1])
        return scores, (there - pooled[:, None]).square().sum(dim=2).mean(dim=1)

    def _correspond(self, index: int, values: Tensor, nearest: Tensor) -> Tensor:
        """Mean distances of one stride's positions on the finest grid, [B, h, w]."""
        bank, count = self.get_buffer(f"bank{index}"), self.counts[index]
        positions, channels = bank.shape[1:]
        candidates = bank.index_select(0, nearest.flatten()).reshape(-1, self.n_neighbors * positions, channels)
        squares, distances = candidates.square().sum(dim=2)[:, None], []
        for queries in values.flatten(2).transpose(1, 2).split(self.steps[index], dim=1):
            products = squares - 2 * (queries @ candidates.transpose(1, 2))
            who = products.topk(count, dim=2, largest=False).indices
            there = candidates.gather(1, who.flatten(1)[:, :, None].expand(-1, -1, channels))
            there = there.reshape(-1, queries.shape[1], count, channels)
            distances.append((there - queries[:, :, None]).square().sum(dim=3).sqrt().mean(dim=2))
        level: Tensor = self.upsamplings[index](torch.cat(distances, dim=1).reshape(-1, *self.grids[index]))
        return level
