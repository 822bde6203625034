"""CFlow-AD as a fixed graph of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; h x w positions of the finest grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.flows.constants import SUBNET_SCALE
from detectors.flows.passes import FlowPass
from detectors.graphs import Scores, plain, upsamplings


class CflowGraph(nn.Module):
    """-log of the summed likelihoods of all strides, each against its peak."""

    def __init__(self, passes: Sequence[FlowPass], peaks: Tensor) -> None:
        """Args: `passes` by ascending stride; `peaks` as in `detectors.heads.cflow.head`."""
        super().__init__()
        self.grid = passes[0].grid
        self.flows = nn.ModuleList(_FlowGraph(one, float(peak)) for one, peak in zip(passes, peaks, strict=True))
        self.upsamplings = upsamplings([one.grid for one in passes])

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B, C, a, b] by ascending stride -> patch scores [B, h, w] and image scores [B] or None."""
        parts = zip(self.upsamplings, self.flows, maps, strict=True)
        stacked = torch.stack([upsampling(flow(values)) for upsampling, flow, values in parts])
        # Written out: some runtimes sum the plain exponentials, which underflow.
        highest = stacked.amax(dim=0)
        return -(highest + (stacked - highest).exp().sum(dim=0).log()), None


class _FlowGraph(nn.Module):
    """log p / C - peak of one stride's vectors, [B, C, a, b] -> [B, a, b]; the codes' share of the hidden units is fixed."""

    def __init__(self, one: FlowPass, peak: float) -> None:
        super().__init__()
        self.grid, self.channels, self.peak = one.grid, one.channels, peak
        self.constant = float(one.constant)
        self.register_buffer("mean", plain(one.mean))
        self.register_buffer("deviation", plain(one.deviation))
        self.parts = [(block.passive, block.active, block.clamp) for block in one.blocks]
        for index, block in enumerate(one.blocks):
            # Products with a matrix, channel by channel, are convolutions of width 1: the fastest form everywhere.
            tensors = {
                "vector_weight": block.vector_weight[:, :, None],
                "rows": block.rows[:, :, None],
                "columns": block.columns[:, None],
                "out_weight": SUBNET_SCALE * block.out_weight[:, :, None],
                "out_bias": SUBNET_SCALE * block.out_bias[:, 0],
                "scale": block.scale,
                "offset": block.offset,
                "permutation": block.permutation,
            }
            for name, tensor in tensors.items():
                self.register_buffer(f"{name}{index}", plain(tensor))

    def forward(self, values: Tensor) -> Tensor:
        x = (values.flatten(2) - self.get_buffer("mean")) / self.get_buffer("deviation")
        logarithms = []
        for index, (passive, active, clamp) in enumerate(self.parts):
            x1, x2 = x.split([passive, active], dim=1)
            shift = (self.get_buffer(f"rows{index}") + self.get_buffer(f"columns{index}")).flatten(1)
            hidden = (functional.conv1d(x1, self.get_buffer(f"vector_weight{index}")) + shift).relu()
            a = functional.conv1d(hidden, self.get_buffer(f"out_weight{index}"), self.get_buffer(f"out_bias{index}"))
            a_s, a_t = a.split([active, active], dim=1)
            s = clamp * a_s.tanh()
            logarithms.append(s.sum(dim=1))
            u = torch.cat([x1, x2 * s.exp() + a_t], dim=1)
            y = u * self.get_buffer(f"scale{index}") + self.get_buffer(f"offset{index}")
            x = y.index_select(1, self.get_buffer(f"permutation{index}"))
        log_likelihoods = sum(logarithms[1:], logarithms[0]) - 0.5 * x.square().sum(dim=1) + self.constant
        return (log_likelihoods / self.channels - self.peak).reshape(-1, *self.grid)
