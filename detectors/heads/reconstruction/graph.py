"""A reconstruction detector as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; h x w positions of the finest grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from detectors.data.images import Size
from detectors.graphs import Scores, joined, upsamplings


class ReconstructionGraph(nn.Module):
    """A network's residual of the maps joined on the finest grid."""

    def __init__(self, network: nn.Module, grids: Mapping[int, Size]) -> None:
        """Args: `network` as in `detectors.heads.reconstruction.head`; `grids` of all strides."""
        super().__init__()
        self.network = deepcopy(network).cpu()
        self.upsamplings = upsamplings([grids[stride] for stride in sorted(grids)])

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        scores: Scores = self.network(joined(self.upsamplings, maps))
        return scores
