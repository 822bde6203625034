"""FastFlow as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; h x w positions of the finest grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from detectors.data.images import Size
from detectors.graphs import Scores, upsamplings

if TYPE_CHECKING:
    from detectors.flows.convolutional import ConvolutionalFlow  # FrEIA takes a second to import


class FastflowGraph(nn.Module):
    """Mean over strides of what the flows find surprising."""

    def __init__(self, flows: Mapping[int, ConvolutionalFlow], grids: Mapping[int, Size], *, likelihood: bool) -> None:
        """Args: `flows` by ascending stride; `likelihood` as for `ConvolutionalFlow.surprise`."""
        super().__init__()
        self.likelihood = likelihood
        strides = list(flows)
        self.grid = grids[strides[0]]
        self.flows = nn.ModuleList(deepcopy(flow).cpu() for flow in flows.values())
        self.upsamplings = upsamplings([grids[stride] for stride in strides])

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        parts = zip(self.upsamplings, self.flows, maps, strict=True)
        levels = [
            upsampling(cast("ConvolutionalFlow", flow).surprise(values, likelihood=self.likelihood))
            for upsampling, flow, values in parts
        ]
        return torch.stack(levels).mean(dim=0), None
