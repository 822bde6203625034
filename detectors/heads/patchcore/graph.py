"""PatchCore as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; P = h * w positions of the finest grid; D channels of all strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.data.images import Size
from detectors.graphs import MAX_PARTS, PRODUCT_BYTES, Scores, normalized, plain, upsamplings
from detectors.heads.patchcore.window import allowed, reaches

OUTSIDE = 1e30
"""Added to a squared distance outside a window: a number that every runtime can sort."""


class PatchcoreGraph(nn.Module):
    """Distance to the nearest of the bank.

    Who is nearest is found by matrix products, |m|^2 - 2 q m, around the bank's mean; how far that is, by direct differences.
    """

    def __init__(
        self,
        bank: Tensor,
        grids: Sequence[Size],
        *,
        reach: int,
        n_neighbors: int,
        extra: int,
        reweighting: int,
        whitening: tuple[Tensor, Tensor] | None,
        normalizes: bool = False,
        windows: tuple[Tensor, int] | None = None,
    ) -> None:
        """Args: `grids` by ascending stride; `extra` candidates beyond those asked for; `whitening` its centre and matrix;
        `windows` the position of each patch of the bank, int64 [M], and the window's reach."""
        super().__init__()
        self.grid, self.grids = grids[0], tuple(grids)
        self.reach, self.extra, self.normalizes = reach, extra, normalizes
        self.n_neighbors, self.reweighting = min(n_neighbors, len(bank)), min(reweighting, len(bank) - 1)
        self.weighs = reweighting > 0
        bank = plain(bank).float()
        mean = bank.mean(dim=0)
        self.register_buffer("bank", bank - mean)
        self.register_buffer("squares", self.get_buffer("bank").square().sum(dim=1))
        self.whitens = whitening is not None
        if whitening is not None:
            self.register_buffer("centre", plain(whitening[0]))
            self.register_buffer("whitener", plain(whitening[1]).T.contiguous())
        self.register_buffer("mean", mean)
        self.upsamplings = upsamplings(self.grids)
        positions, per_position = self.grid[0] * self.grid[1], 4 * len(bank)
        self.step = max(1, PRODUCT_BYTES // per_position, -(-positions // MAX_PARTS))
        self.parts: list[tuple[int, int, str]] = []
        if windows is not None:
            self._cut(plain(windows[0]), windows[1])

    def _cut(self, where: Tensor, reach: int) -> None:
        """For each few rows of positions, the patches of the bank that lie in their windows, and in whose."""
        (height, width), wanted = self.grid, self.n_neighbors + self.extra
        reach_at = reaches(where, self.grid, reach=reach, count=wanted)
        step = -(-height // MAX_PARTS) * width
        for first in range(0, height * width, step):
            here = torch.arange(first, min(first + step, height * width))
            inside = allowed(where, here, reach_at[here], width)
            taken = inside.any(dim=0).nonzero().flatten()
            name = f"window{first}"
            self.register_buffer(f"{name}_patches", taken)
            # Added to what orders the patches: none outside the window comes before one inside.
            self.register_buffer(f"{name}_outside", torch.where(inside[:, taken], 0.0, OUTSIDE))
            self.parts.append((first, int(here[-1]) + 1, name))

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        patches = self._patches(maps)
        if self.parts:
            neighbours = [self._in_window(patches[:, first:last], name) for first, last, name in self.parts]
        else:
            neighbours = [self._neighbours(part, self.n_neighbors) for part in patches.split(self.step, dim=1)]
        scores = torch.cat([distances.mean(dim=2) for distances, _ in neighbours], dim=1)
        image_scores = None
        if self.weighs:
            nearest = torch.cat([indices[:, :, 0] for _, indices in neighbours], dim=1)
            image_scores = self._weighted(scores, patches, nearest)
        return scores.reshape(-1, *self.grid), image_scores

    def _patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Patch features around the bank's mean, [B, P, D]."""
        parts = []
        for upsampling, values in zip(self.upsamplings, maps, strict=True):
            if self.reach:
                width = 2 * self.reach + 1
                values = functional.avg_pool2d(values, width, stride=1, padding=self.reach, count_include_pad=False)
            values = upsampling(values)
            parts.append(normalized(values, dim=1) if self.normalizes else values)
        patches = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)
        if self.whitens:
            patches = (patches - self.get_buffer("centre")) @ self.get_buffer("whitener")
        return patches - self.get_buffer("mean")

    def _neighbours(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Distances and indices of the k nearest in the bank, [B, Q, D] -> [B, Q, k] each, ascending."""
        bank = self.get_buffer("bank")
        products = self.get_buffer("squares") - 2 * (queries @ bank.T)
        candidates = products.topk(min(k + self.extra, len(bank)), dim=2, largest=False).indices
        there = bank.index_select(0, candidates.flatten()).reshape(-1, *candidates.shape[1:], bank.shape[1])
        distances = (there - queries[:, :, None]).square().sum(dim=3).sqrt()
        nearest = distances.topk(k, dim=2, largest=False)
        return nearest.values, candidates.gather(2, nearest.indices)

    def _in_window(self, queries: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """As `_neighbours`, of positions that a part of the bank was cut for."""
        taken, outside = self.get_buffer(f"{name}_patches"), self.get_buffer(f"{name}_outside")
        bank = self.get_buffer("bank").index_select(0, taken)
        count = min(self.n_neighbors + self.extra, len(taken))
        products = self.get_buffer("squares").index_select(0, taken) - 2 * (queries @ bank.T) + outside
        candidates = products.topk(count, dim=2, largest=False).indices
        there = bank.index_select(0, candidates.flatten()).reshape(-1, *candidates.shape[1:], bank.shape[1])
        apart = (there - queries[:, :, None]).square().sum(dim=3).sqrt()
        beyond = outside.expand(queries.shape[0], -1, -1).gather(2, candidates)
        nearest = (apart + beyond).topk(self.n_neighbors, dim=2, largest=False)
        return nearest.values, taken.index_select(0, candidates.gather(2, nearest.indices).flatten()).reshape(
            nearest.indices.shape
        )

    def _weighted(self, scores: Tensor, patches: Tensor, nearest: Tensor) -> Tensor:
        """Image scores of equation 7, from scores [B, P], patches [B, P, D] and the nearest of each, int64 [B, P]."""
        bank = self.get_buffer("bank")
        highest, position = scores.max(dim=1, keepdim=True)
        if not self.reweighting:
            return highest[:, 0]
        patch = patches.gather(1, position[:, :, None].expand(-1, 1, bank.shape[1]))
        closest = nearest.gather(1, position)
        centre = bank.index_select(0, closest[:, 0])[:, None]
        around = self._neighbours(centre, self.reweighting + 1)[1][:, 0]
        # Its nearest is itself, unless another patch of the bank is the very same: that one then makes way.
        others = around != closest
        last = others[:, -1:] & ~others.all(dim=1, keepdim=True)
        others = torch.cat([others[:, :-1], last], dim=1)
        there = bank.index_select(0, around.flatten()).reshape(-1, *around.shape[1:], bank.shape[1])
        apart = (there - patch).square().sum(dim=2).sqrt().masked_fill(~others, float("-inf"))
        distance = (centre - patch).square().sum(dim=2).sqrt()
        weight = torch.softmax(torch.cat([distance, apart], dim=1), dim=1)[:, 1:].sum(dim=1)
        return highest[:, 0] * weight
