"""A conditional normalizing flow of affine coupling blocks, for vectors that know their position on a grid.

Notation: C channels, split into a passive part Ca and an active part Cb; H hidden units of a subnet; D entries of a position's
code; h x w grid; P positions; M vectors.

A flow maps a vector x one to one onto z, which is standard normal; with J the Jacobian of that map,

    log p(x) = log N(z; 0, I) + log |det J|.

The blocks are FrEIA `InvertibleModule`s in a `SequenceINN`: with explicit codes, [M, C] and [M, D], both directions and
autograd work as everywhere in FrEIA. `detectors.flows.passes` computes likelihoods and gradients of the same parameters several
times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn
from torch.nn import functional

from detectors.data.images import Size
from detectors.features import Features
from detectors.flows.constants import DEVIATION_FLOOR, LOG_2PI, SUBNET_SCALE


def axis_code(length: int, dimension: int) -> Tensor:
    """Sine and cosine code of the places along one axis, float32 [dimension, length] (arXiv 1706.03762, section 3.5)."""
    pairs = (dimension + 1) // 2
    frequencies = torch.exp(torch.arange(pairs, dtype=torch.float64) * (-math.log(10_000.0) / pairs))
    angles = frequencies[:, None] * torch.arange(length, dtype=torch.float64)
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)[:dimension].float()


class CouplingBlock(InvertibleModule):
    """Affine coupling with soft clamp, an affine map of each channel, and a fixed permutation.

    With (a_s, a_t) = 0.1 * subnet(x1, code) and alpha the clamp,

        u = (x1, x2 * exp(alpha * tanh(a_s)) + a_t),    y = permuted(scale * u + offset),

    as in FrEIA's `AllInOneBlock`, whose permutation is a product with a dense matrix; here it is an index.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(
        self,
        dims_in: Sequence[tuple[int, ...]],
        dims_c: Sequence[tuple[int, ...]],
        *,
        hidden_ratio: float,
        clamp: float,
        generator: torch.Generator,
    ) -> None:
        """Args: `dims_in` [(C,)]; `dims_c` [(D,)]; `hidden_ratio` is H / (Ca + D); `generator` draws all that is random."""
        super().__init__(dims_in, dims_c)
        ((channels,),), ((code,),) = dims_in, dims_c
        self.active = channels // 2
        self.passive = channels - self.active
        self.clamp = clamp
        inputs = self.passive + code
        self.hidden = max(1, round(hidden_ratio * inputs))
        self.vector_weight = _uniform(self.hidden, self.passive, fan_in=inputs, generator=generator)
        self.code_weight = _uniform(self.hidden, code, fan_in=inputs, generator=generator)
        self.hidden_bias = _uniform(self.hidden, fan_in=inputs, generator=generator)
        self.out_weight = _uniform(2 * self.active, self.hidden, fan_in=self.hidden, generator=generator)
        self.out_bias = _uniform(2 * self.active, fan_in=self.hidden, generator=generator)
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.offset = nn.Parameter(torch.zeros(channels))
        permutation = torch.randperm(channels, generator=generator)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())

    def forward(
        self, x_or_z: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], Tensor]:
        """([M, C],), ([M, D],) -> ([M, C],), log-determinants [M], of the direction asked for; as FrEIA calls it."""
        (vectors,), (code,) = x_or_z, c
        shift = functional.linear(code, self.code_weight, self.hidden_bias)
        if rev:
            u = (vectors[:, self.inverse_permutation] - self.offset) * torch.exp(-self.log_scale)
            u1, u2 = u.split([self.passive, self.active], dim=1)
            s, a_t = self._coefficients(u1, shift)
            return (torch.cat([u1, (u2 - a_t) * torch.exp(-s)], dim=1),), -s.sum(dim=1) - self.log_scale.sum()
        x1, x2 = vectors.split([self.passive, self.active], dim=1)
        s, a_t = self._coefficients(x1, shift)
        u = torch.cat([x1, x2 * torch.exp(s) + a_t], dim=1)
        y = (u * torch.exp(self.log_scale) + self.offset)[:, self.permutation]
        return (y,), s.sum(dim=1) + self.log_scale.sum()

    def output_dims(self, input_dims: list[tuple[int]]) -> list[tuple[int]]:
        """Those of the input."""
        return input_dims

    def _coefficients(self, x1: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """alpha * tanh(a_s) and a_t, each [M, Cb], from the passive part [M, Ca] and the code's share [M, H]."""
        hidden = torch.relu(functional.linear(x1, self.vector_weight) + shift)
        a_s, a_t = (SUBNET_SCALE * functional.linear(hidden, self.out_weight, self.out_bias)).chunk(2, dim=1)
        return self.clamp * torch.tanh(a_s), a_t


class Flow(nn.Module):
    """One conditional flow for the vectors of one grid.

    Each channel is standardised first, by `mean` and `deviation`, so that learning starts alike for every backbone; the
    likelihoods are those of the standardised vectors.
    """

    mean: Tensor
    deviation: Tensor
    row_code: Tensor
    column_code: Tensor

    def __init__(
        self,
        channels: int,
        grid: Size,
        *,
        coupling_blocks: int,
        condition_dimension: int,
        hidden_ratio: float,
        clamp: float,
        generator: torch.Generator,
    ) -> None:
        """Raises `ValueError` for fewer than two channels: a block needs a passive and an active one."""
        super().__init__()
        if channels < 2:
            raise ValueError(f"a flow needs at least 2 channels, not {channels}")
        self.channels, self.grid = channels, grid
        self.sequence = SequenceINN(channels)
        for _ in range(coupling_blocks):
            self.sequence.append(
                CouplingBlock,
                cond=0,
                cond_shape=(condition_dimension,),
                hidden_ratio=hidden_ratio,
                clamp=clamp,
                generator=generator,
            )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        half = condition_dimension // 2
        self.register_buffer("column_code", axis_code(grid[1], half), persistent=False)
        self.register_buffer("row_code", axis_code(grid[0], condition_dimension - half), persistent=False)

    @torch.no_grad()
    def standardise_to(self, features: Features) -> None:
        """Take the mean and deviation of each channel of one stride's features."""
        mean, deviation = features.channel_scale(floor=DEVIATION_FLOOR)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    @property
    def blocks(self) -> Sequence[CouplingBlock]:
        """First to last."""
        return self.sequence.module_list

    def codes(self, positions: Tensor) -> Tensor:
        """Codes [P, D] of positions of the grid, counted row by row: the column's part, then the row's."""
        row, column = positions // self.grid[1], positions % self.grid[1]
        return torch.cat([self.column_code[:, column], self.row_code[:, row]]).T

    def log_likelihood(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """log p [M] of vectors [M, C], each at its position, int64 [M]; differentiable, through FrEIA."""
        z, log_determinant = self.sequence((vectors - self.mean) / self.deviation, [self.codes(positions)])
        return log_determinant - 0.5 * (z.square().sum(dim=1) + self.channels * LOG_2PI)


def _uniform(*shape: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn as `torch.nn.Linear` draws its own."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
