"""CutPaste as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; h x w positions of the finest grid.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detectors.data.images import Size
from detectors.graphs import Scores, Upsampling, joined, upsamplings


class CutpasteGraph(nn.Module):
    """The network's last map, judged by the second stage."""

    def __init__(self, network: nn.Module, second_stage: nn.Module, grids: Sequence[Size], last: Size) -> None:
        """Args: `network` and `second_stage` as in `detectors.heads.cutpaste.head`; `grids` by ascending stride; `last` of
        the last map."""
        super().__init__()
        self.network, self.second_stage = network, second_stage
        self.upsamplings, self.last = upsamplings(grids), Upsampling(grids[0], last)

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        scores, relevance = self.second_stage(self.network(joined(self.upsamplings, maps)))
        return self.last(relevance), scores
