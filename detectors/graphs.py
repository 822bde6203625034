"""The heads as fixed graphs of plain tensor operations, which other runtimes can run.

Notation: B images; per stride C channels on a grid a x b; h x w positions of the finest grid, P = h * w; d or D channels used.

Each takes the backbone's maps in the order of the strides, float32 [B, C, a, b], and returns patch scores [B, h, w] and image
scores [B] or None, as its head's `score` does. Shapes are fixed but for B, and no step depends on the values. What differs from
the heads is the order of the work: they go through many images block by block, a graph goes through a few at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.data.images import Size
from detectors.embedding import Embedding, nearest_positions
from detectors.scoring.anomaly_map import bilinear_matrix

if TYPE_CHECKING:
    from detectors.flows.convolutional import ConvolutionalFlow
    from detectors.flows.coupling import FlowPass

PRODUCT_BYTES = 16 * 2**20
"""Distances of one image's patches to the bank that are in memory at once."""
MAX_PARTS = 64
"""Parts that they are cut into at most: each is a piece of the graph of its own."""
Scores = tuple[Tensor, Tensor | None]


class PadimGraph(nn.Module):
    """Mahalanobis distance at every position."""

    def __init__(self, mean: Tensor, whitening: Tensor, embedding: Embedding, grids: Mapping[int, Size]) -> None:
        """Args: `mean` [P, d] and `whitening` [P, d, d] as in `detectors.heads.padim.head`."""
        super().__init__()
        self.grid = grids[embedding.strides[0]]
        self.register_buffer("mean", _plain(mean)[:, None])
        # Vectors from the left, [1, d] @ [d, d], are several times faster than [d, d] @ [d, 1] in ONNX Runtime.
        self.register_buffer("factors", _plain(whitening).transpose(1, 2).contiguous())
        self.used: list[tuple[int, str, str | None]] = []
        for index, stride in enumerate(embedding.strides):
            if not len(embedding.channels[stride]):
                continue
            channels, positions = f"channels{index}", f"positions{index}"
            self.register_buffer(channels, _plain(embedding.channels[stride]))
            coarse = grids[stride] != self.grid
            if coarse:
                self.register_buffer(positions, nearest_positions(self.grid, grids[stride]))
            self.used.append((index, channels, positions if coarse else None))

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
        parts = []
        for index, channels, positions in self.used:
            values = maps[index].index_select(1, self.get_buffer(channels)).flatten(2)
            parts.append(values if positions is None else values.index_select(2, self.get_buffer(positions)))
        apart = torch.cat(parts, dim=1).permute(2, 0, 1) - self.get_buffer("mean")
        distances = (apart @ self.get_buffer("factors")).square().sum(dim=2).sqrt()
        return distances.T.reshape(-1, *self.grid), None


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
    ) -> None:
        """Args: `grids` by ascending stride; `extra` candidates beyond those asked for; `whitening` its centre and matrix."""
        super().__init__()
        self.grid, self.grids = grids[0], tuple(grids)
        self.reach, self.extra = reach, extra
        self.n_neighbors, self.reweighting = min(n_neighbors, len(bank)), min(reweighting, len(bank) - 1)
        self.weighs = reweighting > 0
        mean = _plain(bank).mean(dim=0)
        self.register_buffer("bank", _plain(bank) - mean)
        self.register_buffer("squares", self.get_buffer("bank").square().sum(dim=1))
        self.whitens = whitening is not None
        if whitening is not None:
            self.register_buffer("centre", _plain(whitening[0]))
            self.register_buffer("whitener", _plain(whitening[1]).T.contiguous())
        self.register_buffer("mean", mean)
        self.upsamplings = _upsamplings(self.grids)
        positions, per_position = self.grid[0] * self.grid[1], 4 * len(bank)
        self.step = max(1, PRODUCT_BYTES // per_position, -(-positions // MAX_PARTS))

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
        patches = self._patches(maps)
        found = [self._neighbours(part, self.n_neighbors) for part in patches.split(self.step, dim=1)]
        scores = torch.cat([distances.mean(dim=2) for distances, _ in found], dim=1)
        image_scores = None
        if self.weighs:
            nearest = torch.cat([indices[:, :, 0] for _, indices in found], dim=1)
            image_scores = self._weighted(scores, patches, nearest)
        return scores.reshape(-1, *self.grid), image_scores

    def _patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Patch features around the bank's mean, [B, P, D]."""
        parts = []
        for upsampling, values in zip(self.upsamplings, maps, strict=True):
            if self.reach:
                width = 2 * self.reach + 1
                values = functional.avg_pool2d(values, width, stride=1, padding=self.reach, count_include_pad=False)
            parts.append(upsampling(values))
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

    def _weighted(self, scores: Tensor, patches: Tensor, nearest: Tensor) -> Tensor:
        """Image scores of equation 7, from scores [B, P], patches [B, P, D] and the nearest of each, int64 [B, P]."""
        bank = self.get_buffer("bank")
        highest, position = scores.max(dim=1, keepdim=True)
        if not self.reweighting:
            return highest[:, 0]
        patch = patches.gather(1, position[:, :, None].expand(-1, 1, bank.shape[1]))
        own = nearest.gather(1, position)
        centre = bank.index_select(0, own[:, 0])[:, None]
        around = self._neighbours(centre, self.reweighting + 1)[1][:, 0]
        # Its nearest is itself, unless another patch of the bank is the very same: that one then makes way.
        others = around != own
        last = others[:, -1:] & ~others.all(dim=1, keepdim=True)
        others = torch.cat([others[:, :-1], last], dim=1)
        there = bank.index_select(0, around.flatten()).reshape(-1, *around.shape[1:], bank.shape[1])
        apart = (there - patch).square().sum(dim=2).sqrt().masked_fill(~others, float("-inf"))
        distance = (centre - patch).square().sum(dim=2).sqrt()
        weight = torch.softmax(torch.cat([distance, apart], dim=1), dim=1)[:, 1:].sum(dim=1)
        return highest[:, 0] * weight


class CflowGraph(nn.Module):
    """-log of the summed likelihoods of all strides, each against its peak."""

    def __init__(self, passes: Sequence[FlowPass], peaks: Tensor) -> None:
        """Args: `passes` by ascending stride; `peaks` as in `detectors.heads.cflow.head`."""
        super().__init__()
        self.grid = passes[0].grid
        self.flows = nn.ModuleList(_FlowGraph(one, float(peak)) for one, peak in zip(passes, peaks, strict=True))
        self.upsamplings = _upsamplings([one.grid for one in passes])

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
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
        self.register_buffer("mean", _plain(one.mean))
        self.register_buffer("deviation", _plain(one.deviation))
        self.parts = [(block.passive, block.active, block.clamp) for block in one.blocks]
        for index, block in enumerate(one.blocks):
            # Products with a matrix, channel by channel, are convolutions of width 1: the fastest form everywhere.
            tensors = {
                "vector_weight": block.vector_weight[:, :, None],
                "rows": block.rows[:, :, None],
                "columns": block.columns[:, None],
                "out_weight": _subnet_scale() * block.out_weight[:, :, None],
                "out_bias": _subnet_scale() * block.out_bias[:, 0],
                "scale": block.scale,
                "offset": block.offset,
                "permutation": block.permutation,
            }
            for name, tensor in tensors.items():
                self.register_buffer(f"{name}{index}", _plain(tensor))

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


class CutpasteGraph(nn.Module):
    """The network's last map, judged by the second stage."""

    def __init__(self, network: nn.Module, second_stage: nn.Module, grids: Sequence[Size], last: Size) -> None:
        """Args: `network` and `second_stage` as in `detectors.heads.cutpaste.head`; `grids` by ascending stride; `last` of
        the last map."""
        super().__init__()
        self.network, self.second_stage = network, second_stage
        self.upsamplings, self.last = _upsamplings(grids), Upsampling(grids[0], last)

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
        scores, relevance = self.second_stage(self.network(_joined(self.upsamplings, maps)))
        return self.last(relevance), scores


class FastflowGraph(nn.Module):
    """Mean over strides of what the flows find surprising."""

    def __init__(self, flows: Mapping[int, ConvolutionalFlow], grids: Mapping[int, Size], *, likelihood: bool) -> None:
        """Args: `flows` by ascending stride; `likelihood` as for `ConvolutionalFlow.surprise`."""
        super().__init__()
        self.likelihood = likelihood
        strides = list(flows)
        self.grid = grids[strides[0]]
        self.flows = nn.ModuleList(deepcopy(flow).cpu() for flow in flows.values())
        self.upsamplings = _upsamplings([grids[stride] for stride in strides])

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
        parts = zip(self.upsamplings, self.flows, maps, strict=True)
        levels = [
            upsampling(cast("ConvolutionalFlow", flow).surprise(values, likelihood=self.likelihood))
            for upsampling, flow, values in parts
        ]
        return torch.stack(levels).mean(dim=0), None


class ReconstructionGraph(nn.Module):
    """A network's residual of the maps joined on the finest grid."""

    def __init__(self, network: nn.Module, grids: Mapping[int, Size]) -> None:
        """Args: `network` as in `detectors.heads.reconstruction.head`; `grids` of all strides."""
        super().__init__()
        self.network = deepcopy(network).cpu()
        self.upsamplings = _upsamplings([grids[stride] for stride in sorted(grids)])

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
        scores: Scores = self.network(_joined(self.upsamplings, maps))
        return scores


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
    ) -> None:
        """Args: `pooled` [N, D]; `banks` {stride: [N, P, C]}; `n_neighbors` is at most N."""
        super().__init__()
        self.strides = tuple(sorted(banks))
        self.grids = tuple(grids[stride] for stride in self.strides)
        self.pooled_strides = tuple(self.strides.index(stride) for stride in pooled_strides)
        self.n_neighbors, self.scores_by_retrieval = n_neighbors, scores_by_retrieval
        self.register_buffer("pooled", _plain(pooled))
        self.register_buffer("squares", _plain(pooled).square().sum(dim=1))
        self.upsamplings = _upsamplings(self.grids)
        self.counts, self.steps = [], []
        for index, stride in enumerate(self.strides):
            bank = _plain(banks[stride])
            self.register_buffer(f"bank{index}", bank)
            candidates = n_neighbors * bank.shape[1]
            self.counts.append(min(n_correspondences, candidates))
            self.steps.append(max(1, PRODUCT_BYTES // (4 * candidates), -(-bank.shape[1] // MAX_PARTS)))

    def forward(self, *maps: Tensor) -> Scores:
        """As in the module's docstring."""
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
        squares, found = candidates.square().sum(dim=2)[:, None], []
        for queries in values.flatten(2).transpose(1, 2).split(self.steps[index], dim=1):
            products = squares - 2 * (queries @ candidates.transpose(1, 2))
            who = products.topk(count, dim=2, largest=False).indices
            there = candidates.gather(1, who.flatten(1)[:, :, None].expand(-1, -1, channels))
            there = there.reshape(-1, queries.shape[1], count, channels)
            found.append((there - queries[:, :, None]).square().sum(dim=3).sqrt().mean(dim=2))
        level: Tensor = self.upsamplings[index](torch.cat(found, dim=1).reshape(-1, *self.grids[index]))
        return level


def _subnet_scale() -> float:
    from detectors.flows.coupling import SUBNET_SCALE  # with FrEIA, a second that other detectors need not wait for

    return SUBNET_SCALE


class Upsampling(nn.Module):
    """Bilinear upsampling [B, ..., a, b] -> [B, ..., h, w] as two matrix products; what lies on the fine grid passes as it is."""

    def __init__(self, fine: Size, coarse: Size) -> None:
        super().__init__()
        self.needed = fine != coarse
        self.register_buffer("down", bilinear_matrix(fine[0], coarse[0]).float())
        self.register_buffer("across", bilinear_matrix(fine[1], coarse[1]).float().T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        return self.get_buffer("down") @ values @ self.get_buffer("across") if self.needed else values


def _upsamplings(grids: Sequence[Size]) -> nn.ModuleList:
    """From each of the grids, the finest first, to the first."""
    return nn.ModuleList(Upsampling(grids[0], grid) for grid in grids)


def _joined(upsamplings: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """All maps' channels on the finest grid, as `Features.joined` has them."""
    return torch.cat([upsampling(values) for upsampling, values in zip(upsamplings, maps, strict=True)], dim=1)


def _plain(tensor: Tensor) -> Tensor:
    """A copy on the CPU that autograd may look at: a fit leaves inference tensors, which `torch.export` refuses."""
    return tensor.detach().cpu().clone()
