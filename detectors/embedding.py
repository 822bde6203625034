"""Several strides aligned on the finest grid.

Notation: N images, P positions of the finest grid, d chosen channels out of the D of all strides together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detectors.data.images import Size
from detectors.features import Features, normalized


def nearest_positions(fine: Size, coarse: Size) -> Tensor:
    """For each position of the fine grid, row by row, the position of the coarse grid above it; int64 [P].

    The same choice as nearest-neighbour upsampling: row y takes row floor(y * coarse / fine).
    """
    rows = torch.arange(fine[0]) * coarse[0] // fine[0]
    columns = torch.arange(fine[1]) * coarse[1] // fine[1]
    return (rows[:, None] * coarse[1] + columns[None, :]).reshape(-1)


def channel_order(channels: int, *, seed: int) -> Tensor:
    """A fixed random permutation of the channels, int64 [D].

    Its first d entries are PaDiM's random subset of size d (arXiv 2011.08785, section 3.1), so that subsets of
    different sizes are nested and trials differ in the size alone.
    """
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).permutation(channels))


@dataclass(frozen=True)
class Embedding:
    """Which channels of which strides make up the embedding of a position."""

    channels: Mapping[int, Tensor]
    """{stride: ascending int64 indices of the channels that are used}"""
    normalize: bool = False
    """Whether the chosen channels of each stride are divided by their length (L2)."""

    @classmethod
    def random_subset(
        cls, channels: Mapping[int, int], n_features: int, *, seed: int, normalize: bool = False
    ) -> Embedding:
        """The first `n_features` of the fixed permutation over all channels, {stride: C}.

        Raises:
            ValueError: `n_features` is not between 1 and the number of channels.
        """
        strides = sorted(channels)
        total = sum(channels[stride] for stride in strides)
        if not 1 <= n_features <= total:
            raise ValueError(f"n_features={n_features}: strides {strides} offer 1 to {total} channels")
        chosen = channel_order(total, seed=seed)[:n_features].sort().values
        picked, first = {}, 0
        for stride in strides:
            last = first + channels[stride]
            picked[stride] = chosen[(chosen >= first) & (chosen < last)] - first
            first = last
        return cls(channels=picked, normalize=normalize)

    @property
    def dimension(self) -> int:
        """d, the length of one position's vector."""
        return sum(len(indices) for indices in self.channels.values())

    @property
    def strides(self) -> Sequence[int]:
        """Strides in ascending order, those without a chosen channel included: they fix the grid."""
        return sorted(self.channels)

    def gather(self, features: Features, positions: slice) -> Tensor:
        """Vectors of some positions of the finest grid, [P, d, N], a copy.

        Args:
            positions: a slice of the finest grid's positions.
        """
        fine = features.grids[self.strides[0]]
        parts = []
        for stride in self.strides:
            channels = self.channels[stride].to(features.device)
            if not len(channels):
                continue
            values = features.maps[stride]
            if features.grids[stride] == fine:
                part = values[positions].index_select(1, channels)
                parts.append(normalized(part, dim=1) if self.normalize else part)
            else:
                at = nearest_positions(fine, features.grids[stride])[positions].to(features.device)
                # Many fine positions share one coarse position: cut the channels once for each of these.
                distinct, where = at.unique(return_inverse=True)
                part = values[distinct].index_select(1, channels)
                parts.append((normalized(part, dim=1) if self.normalize else part)[where])
        return torch.cat(parts, dim=1)
