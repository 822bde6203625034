"""Likelihoods and gradients of a conditional flow, computed by hand: several times faster than through FrEIA and autograd.

Notation: C channels, split into a passive part Ca and an active part Cb; H hidden units of a subnet; K blocks; h x w grid;
P positions, each with the vectors of N images; M = P * N vectors.

- The subnet's first layer is linear in (vector, code), and a code has a part for the row and a part for the column. The code's
  share of the hidden units is one matrix product per row and column of the grid, never one per vector.
- Vectors lie channel by channel, [C, M]: parts and permutations are blocks of rows, and no product needs a transpose.
- Everything happens in buffers that stay in the cache, and the gradient, written by hand, computes the hidden units once more
  instead of keeping them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.flows.constants import LOG_2PI, SUBNET_SCALE
from detectors.working_memory import portion

if TYPE_CHECKING:
    from detectors.flows.coupling import Flow  # FrEIA takes a second to import

CHUNK = 2048
"""Vectors that a pass works on at a time: the hidden units of more no longer fit into a core's cache."""
CHUNK_ON_GPU = 65_536
"""The same on a GPU, which wants to be busy."""


def training_loss(log_likelihoods: Tensor, channels: int) -> Tensor:
    """-logsigmoid(log p / C) of each vector: improbable ones count, and probable ones no more once they are."""
    return functional.softplus(log_likelihoods / -channels)


class Workspace:
    """Buffers by name. Fresh memory would cost a pass more than its arithmetic does."""

    def __init__(self, like: Tensor) -> None:
        """Args: `like` has the type and device of the buffers."""
        self._like = like.new_empty(0)
        self.device = like.device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The buffer of that name in a shape, with whatever it holds."""
        length = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[0] < length:
            buffer = self._buffers[name] = self._like.new_empty(length)
        return buffer[:length].view(shape)


class BlockWeights(NamedTuple):
    """What a pass needs of one block. `rows` [H, h] + `columns` [H, w] are the code's share of the hidden units and the bias."""

    passive: int
    active: int
    clamp: float
    rows: Tensor
    columns: Tensor
    vector_weight: Tensor
    out_weight: Tensor
    out_bias: Tensor
    scale: Tensor
    offset: Tensor
    permutation: Tensor
    inverse_permutation: Tensor


@torch.no_grad()
def block_weights(flow: Flow, index: int) -> BlockWeights:
    """Of one block of a flow, with its parameters as they are now."""
    block, half = flow.blocks[index], len(flow.column_code)
    code_weight = block.code_weight.detach()
    return BlockWeights(
        passive=block.passive,
        active=block.active,
        clamp=block.clamp,
        rows=torch.addmm(block.hidden_bias[:, None], code_weight[:, half:], flow.row_code),
        columns=code_weight[:, :half] @ flow.column_code,
        vector_weight=block.vector_weight.detach(),
        out_weight=block.out_weight.detach(),
        out_bias=block.out_bias.detach()[:, None],
        scale=torch.exp(block.log_scale)[:, None],
        offset=block.offset.detach()[:, None],
        permutation=block.permutation,
        inverse_permutation=block.inverse_permutation,
    )


class FlowPass:
    """Likelihoods and gradients of one flow with its parameters as they are now.

    Make a new one when the parameters have changed. Several threads may use it at once, each with a workspace of its own.
    """

    @torch.no_grad()
    def __init__(self, flow: Flow, blocks: Sequence[BlockWeights] | None = None) -> None:
        """Args: `blocks` are the `block_weights` of all blocks, where they are at hand."""
        self.grid, self.channels, self.device = flow.grid, flow.channels, flow.mean.device
        self.blocks = blocks or [block_weights(flow, index) for index in range(len(flow.blocks))]
        self.mean, self.deviation = flow.mean[:, None], flow.deviation[:, None]
        self.constant = sum(block.log_scale.sum() for block in flow.blocks) - 0.5 * flow.channels * LOG_2PI

    @torch.inference_mode()
    def grid_log_likelihood(self, values: Tensor, workspace: Workspace) -> Tensor:
        """log p of all vectors of B images, [h * w, C, B] -> [h * w, B]; some whole rows of the grid at a time."""
        height, width = self.grid
        out = values.new_empty(height * width, values.shape[2], device=self.device)
        chunk = portion(CHUNK if self.device.type == "cpu" else CHUNK_ON_GPU)
        most = max(1, chunk // width)
        for first in range(0, values.shape[2], most):
            images = slice(first, min(first + most, values.shape[2]))
            count = images.stop - images.start
            step = max(1, chunk // (width * count))
            for top in range(0, height, step):
                rows = slice(top, min(top + step, height))
                positions = slice(rows.start * width, rows.stop * width)
                x = workspace.take("x0", self.channels, rows.stop - rows.start, width, count)
                x.copy_(values[positions, :, images].unflatten(0, (-1, width)).permute(2, 0, 1, 3))
                out[positions, images] = self._rows_log_likelihood(x, rows, workspace).view(-1, count)
        return out

    def _rows_log_likelihood(self, x: Tensor, rows: slice, workspace: Workspace) -> Tensor:
        """log p [M] of vectors [C, rows, w, B], which are overwritten."""
        states = [x.flatten(1), workspace.take("x1", self.channels, x[0].numel())]
        self._standardise(states[0])
        total = workspace.take("total", x[0].numel()).zero_()
        here, there = states
        for block in self.blocks:
            hidden = workspace.take("hidden", len(block.rows), *x.shape[1:])
            row_share, column_share = block.rows[:, rows, None], block.columns[:, None]
            if x.shape[3] == 1:
                torch.add(row_share[..., None], column_share[..., None], out=hidden)
                hidden.flatten(1).addmm_(block.vector_weight, here[: block.passive])
            else:
                torch.mm(block.vector_weight, here[: block.passive], out=hidden.flatten(1))
                hidden += (row_share + column_share)[..., None]
            coefficients = workspace.take("coefficients", 2 * block.active, len(total))
            _couple(block, here, hidden.flatten(1).relu_(), coefficients, total, there, workspace)
            here, there = there, here
        return self._finish(here, total, workspace)

    @torch.no_grad()
    def add_gradients(
        self, x: Tensor, positions: Tensor, *, weight: float, gradients: FlowGradients, workspace: Workspace
    ) -> Tensor:
        """Add the gradients of weight * the sum of the vectors' training losses; returns that sum.

        Args:
            x: [C, P, N]
            positions: int64 [P]
        """
        channels, count, images = x.shape
        width = count * images
        states = workspace.take("states", len(self.blocks) + 1, channels, width)
        states[0].view(x.shape).copy_(x)
        self._standardise(states[0])
        total = workspace.take("total", width).zero_()
        row, column = positions // self.grid[1], positions % self.grid[1]
        shifts, coefficients = [], []
        for index, block in enumerate(self.blocks):
            shift = workspace.take(f"shift{index}", len(block.rows), count)
            torch.index_select(block.rows, 1, row, out=shift)
            shift += block.columns.index_select(1, column)
            hidden = _hidden(block, states[index], shift, workspace)
            a = workspace.take(f"coefficients{index}", 2 * block.active, width)
            _couple(block, states[index], hidden, a, total, states[index + 1], workspace)
            shifts.append(shift)
            coefficients.append(a)
        log_likelihoods = self._finish(states[-1], total, workspace)
        loss = training_loss(log_likelihoods, channels).sum()
        # The loss's derivative by log p, below zero: more likely is better.
        slope = log_likelihoods.div_(-channels).sigmoid_().mul_(-weight / channels)
        gradients.log_scale_sum += slope.sum()
        gradient, other = (workspace.take(name, channels, width) for name in ("gradient", "other"))
        torch.mul(states[-1], slope, out=gradient).neg_()
        for index in reversed(range(len(self.blocks))):
            _add_block_gradients(
                self.blocks[index],
                x=states[index],
                y=states[index + 1],
                shift=shifts[index],
                coefficients=coefficients[index],
                slope=slope,
                gradient=gradient,
                into=other,
                sums=gradients.blocks[index],
                at=(row, column),
                workspace=workspace,
            )
            gradient, other = other, gradient
        return loss

    def _standardise(self, x: Tensor) -> None:
        """[C, M], in place."""
        x.sub_(self.mean).div_(self.deviation)

    def _finish(self, z: Tensor, total: Tensor, workspace: Workspace) -> Tensor:
        """log p [M] from z [C, M] and the summed logarithms of the couplings' factors, in the memory of these."""
        squares = torch.mul(z, z, out=workspace.take("u", *z.shape))
        norms = torch.sum(squares, dim=0, out=workspace.take("sum", len(total)))
        return total.add_(norms, alpha=-0.5).add_(self.constant)


def _hidden(block: BlockWeights, x: Tensor, shift: Tensor, workspace: Workspace) -> Tensor:
    """relu(W x1 + shift), [H, M], from x [C, M] and the code's share [H, P]."""
    hidden = workspace.take("hidden", len(block.rows), x.shape[1])
    torch.mm(block.vector_weight, x[: block.passive], out=hidden)
    hidden.view(*shift.shape, -1).add_(shift[:, :, None])
    return hidden.relu_()


def _couple(
    block: BlockWeights, x: Tensor, hidden: Tensor, a: Tensor, total: Tensor, y: Tensor, workspace: Workspace
) -> None:
    """From x [C, M] and the hidden units, one block's y [C, M]; fills a [2 Cb, M] with (tanh(a_s), a_t)."""
    torch.addmm(block.out_bias, block.out_weight, hidden, beta=SUBNET_SCALE, alpha=SUBNET_SCALE, out=a)
    tanh, a_t = a[: block.active].tanh_(), a[block.active :]
    total.add_(torch.sum(tanh, dim=0, out=workspace.take("sum", len(total))), alpha=block.clamp)
    u = workspace.take("u", *x.shape)
    u[: block.passive].copy_(x[: block.passive])
    moved = u[block.passive :]
    torch.mul(tanh, block.clamp, out=moved).exp_().mul_(x[block.passive :]).add_(a_t)
    torch.addcmul(block.offset, u, block.scale, out=u)
    torch.index_select(u, 0, block.permutation, out=y)


def _add_block_gradients(
    block: BlockWeights,
    *,
    x: Tensor,
    y: Tensor,
    shift: Tensor,
    coefficients: Tensor,
    slope: Tensor,
    gradient: Tensor,
    into: Tensor,
    sums: _BlockGradients,
    at: tuple[Tensor, Tensor],
    workspace: Workspace,
) -> None:
    """From the gradient by y [C, M], which is overwritten, the gradient by x, `into`, and those by the parameters."""
    passive, active = block.passive, block.active
    back = block.inverse_permutation
    # y = permuted(scale u + offset): by the logarithm of the scale, the derivative is y - offset.
    by_offset = gradient.sum(dim=1)[back]
    by_scale = torch.mul(gradient, y, out=into).sum(dim=1)[back]
    sums.offset.add_(by_offset)
    sums.log_scale.add_(by_scale - by_offset * block.offset[:, 0])
    torch.index_select(gradient, 0, back, out=into)
    into *= block.scale
    by_x1, by_u2 = into[:passive], into[passive:]

    tanh = coefficients[:active]
    by_a = workspace.take("by_a", 2 * active, x.shape[1])
    torch.mul(by_u2, SUBNET_SCALE, out=by_a[active:])
    factor = torch.mul(tanh, block.clamp, out=workspace.take("factor", *tanh.shape)).exp_()
    by_u2 *= factor
    by_s = torch.mul(by_u2, x[passive:], out=factor).add_(slope)
    squares = torch.mul(tanh, tanh, out=tanh)
    torch.addcmul(by_s, by_s, squares, value=-1, out=by_a[:active])
    by_a[:active] *= SUBNET_SCALE * block.clamp

    hidden = _hidden(block, x, shift, workspace)
    sums.out_bias.add_(by_a.sum(dim=1))
    sums.out_weight.addmm_(by_a, hidden.T)
    by_hidden = torch.mm(block.out_weight.T, by_a, out=workspace.take("by_hidden", *hidden.shape))
    torch.ops.aten.threshold_backward.grad_input(by_hidden, hidden, 0, grad_input=by_hidden)
    sums.vector_weight.addmm_(by_hidden, x[:passive].T)
    by_x1.addmm_(block.vector_weight.T, by_hidden)
    by_shift = torch.sum(by_hidden.view(*shift.shape, -1), dim=2, out=shift)
    row, column = at
    sums.rows.index_add_(1, row, by_shift)
    sums.columns.index_add_(1, column, by_shift)


class _BlockGradients(NamedTuple):
    """Sums of gradients of one block; those by the code's share stand in for the code's weight and the hidden bias."""

    rows: Tensor
    columns: Tensor
    vector_weight: Tensor
    out_weight: Tensor
    out_bias: Tensor
    log_scale: Tensor
    offset: Tensor


class FlowGradients:
    """Sums of a flow's gradients over any number of chunks: one per thread, added up afterwards."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        (height, width), like = flow.grid, flow.mean
        self._shapes = [
            (
                (block.hidden, height),
                (block.hidden, width),
                block.vector_weight.shape,
                block.out_weight.shape,
                block.out_bias.shape,
                block.log_scale.shape,
                block.offset.shape,
            )
            for block in flow.blocks
        ]
        # One piece of memory: to clear and to add it up is one operation.
        lengths = [math.prod(shape) for shapes in self._shapes for shape in shapes]
        self._memory = like.new_zeros(1 + sum(lengths))
        self.log_scale_sum, *parts = self._memory.split([1, *lengths])
        """By the sum of all logarithms of scales."""
        iterator = iter(parts)
        self.blocks = [_BlockGradients(*(next(iterator).view(shape) for shape in shapes)) for shapes in self._shapes]

    def zero_(self) -> None:
        """Forget all sums."""
        self._memory.zero_()

    def add_(self, other: FlowGradients) -> None:
        """Add another thread's sums."""
        self._memory += other._memory

    @torch.no_grad()
    def store(self, index: int) -> None:
        """Write the sums of one block to its parameters' `grad`."""
        half = len(self.flow.column_code)
        block, sums = self.flow.blocks[index], self.blocks[index]
        for name in ("vector_weight", "out_weight", "out_bias", "offset"):
            _gradient(getattr(block, name)).copy_(getattr(sums, name))
        torch.add(sums.log_scale, self.log_scale_sum, out=_gradient(block.log_scale))
        torch.sum(sums.rows, dim=1, out=_gradient(block.hidden_bias))
        by_code = _gradient(block.code_weight)
        torch.mm(sums.columns, self.flow.column_code.T, out=by_code[:, :half])
        torch.mm(sums.rows, self.flow.row_code.T, out=by_code[:, half:])


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient, to be written to."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
