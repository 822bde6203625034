"""A normalizing flow of affine coupling steps with convolutional subnets, for feature maps of any size.

Notation: B images, C channels, split into a passive part Ca and an active part Cb; h x w positions, P of them; N training images;
H hidden channels of a subnet.

A flow maps a feature map x [C, h, w] one to one onto z, which is standard normal; with J the Jacobian of that map,

    log p(x) = log N(z; 0, I) + log |det J|.

The steps are FrEIA `InvertibleModule`s in a `SequenceINN`. No parameter belongs to a position, so that h and w are free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from detectors.features import Features
from detectors.flows.constants import DEVIATION_FLOOR, LOG_2PI, SUBNET_SCALE


class ConvolutionalCoupling(InvertibleModule):
    """Affine coupling with soft clamp, an affine map of each channel, and a fixed permutation of channels.

    With (a_s, a_t) = 0.1 * subnet(x1) at every position and alpha the clamp,

        u = (x1, x2 * exp(alpha * tanh(a_s)) + a_t),    y = permuted(scale * u + offset),

    as in FrEIA's `AllInOneBlock`, whose permutation is a convolution with a dense matrix; here it is an index.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(
        self,
        dims_in: Sequence[tuple[int, ...]],
        dims_c: Sequence[tuple[int, ...]] = (),
        *,
        kernel: int,
        hidden_ratio: float,
        clamp: float,
        generator: torch.Generator,
    ) -> None:
        """Args: `dims_in` [(C, ...)]; `kernel` side of both convolutions, odd; `hidden_ratio` is H / Ca; `generator` draws
        all that is random."""
        super().__init__(dims_in, dims_c)
        channels = dims_in[0][0]
        self.active = channels // 2
        self.passive = channels - self.active
        self.clamp = clamp
        hidden = max(1, round(hidden_ratio * self.passive))
        self.subnet = nn.Sequential(
            _convolution(self.passive, hidden, kernel, generator),
            nn.ReLU(),
            _convolution(hidden, 2 * self.active, kernel, generator),
        )
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.offset = nn.Parameter(torch.zeros(channels))
        permutation = torch.randperm(channels, generator=generator)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())

    def forward(
        self, x_or_z: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], Tensor]:
        """([B, C, h, w],) -> ([B, C, h, w],), log-determinants [B], of the direction asked for; as FrEIA calls it."""
        (values,) = x_or_z
        if rev:
            positions = values.shape[2] * values.shape[3]
            scale, offset = torch.exp(self.log_scale)[:, None, None], self.offset[:, None, None]
            u1, u2 = ((values[:, self.inverse_permutation] - offset) / scale).split([self.passive, self.active], dim=1)
            s, a_t = self._coefficients(u1)
            x = torch.cat([u1, (u2 - a_t) * torch.exp(-s)], dim=1)
            return (x,), -s.sum(dim=(1, 2, 3)) - positions * self.log_scale.sum()
        y, logarithms = self.transformed(values)
        return (y,), logarithms.sum(dim=(1, 2))

    def transformed(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """y [B, C, h, w], and what each position adds to the log-determinant, [B, h, w]."""
        x1, x2 = values.split([self.passive, self.active], dim=1)
        s, a_t = self._coefficients(x1)
        u = torch.cat([x1, x2 * torch.exp(s) + a_t], dim=1)
        scaled = u * torch.exp(self.log_scale)[:, None, None] + self.offset[:, None, None]
        return scaled[:, self.permutation], s.sum(dim=1) + self.log_scale.sum()

    def output_dims(self, input_dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those of the input."""
        return input_dims

    def _coefficients(self, x1: Tensor) -> tuple[Tensor, Tensor]:
        """alpha * tanh(a_s) and a_t, each [B, Cb, h, w], from the passive part [B, Ca, h, w]."""
        a_s, a_t = (SUBNET_SCALE * self.subnet(x1)).split([self.active, self.active], dim=1)
        return self.clamp * torch.tanh(a_s), a_t


class ConvolutionalFlow(nn.Module):
    """A flow for the feature maps of one stride.

    Maps are normalised first, so that learning starts alike for every backbone: each channel by its `mean` and `deviation`, or
    each map by its own, as in LayerNorm. The likelihoods are those of the normalised maps.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        channels: int,
        *,
        kernels: Sequence[int],
        hidden_ratio: float,
        clamp: float,
        generator: torch.Generator,
        layer_norm: bool = False,
    ) -> None:
        """Args: `kernels` of the steps, first to last; `layer_norm`: normalise each map by itself.

        Raises:
            ValueError: fewer than two channels: a step needs a passive and an active one.
        """
        super().__init__()
        if channels < 2:
            raise ValueError(f"a flow needs at least 2 channels, not {channels}")
        self.channels, self.layer_norm = channels, layer_norm
        self.sequence = SequenceINN(channels, 1, 1)
        for kernel in kernels:
            self.sequence.append(
                ConvolutionalCoupling, kernel=kernel, hidden_ratio=hidden_ratio, clamp=clamp, generator=generator
            )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    @torch.no_grad()
    def standardise_to(self, features: Features) -> None:
        """Take the mean and deviation of each channel of one stride's features; with `layer_norm` they stay 0 and 1."""
        if self.layer_norm:
            return
        mean, deviation = features.channel_scale(floor=DEVIATION_FLOOR)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def normalised(self, values: Tensor) -> Tensor:
        """[B, C, h, w]."""
        if self.layer_norm:
            return functional.layer_norm(values, values.shape[1:])
        return (values - self.mean[:, None, None]) / self.deviation[:, None, None]

    def latent(self, values: Tensor) -> Tensor:
        """z of feature maps, both [B, C, h, w]."""
        z: Tensor = self.sequence(self.normalised(values), jac=False)[0]
        return z

    def surprise(self, values: Tensor, *, likelihood: bool) -> Tensor:
        """q of every position of feature maps [B, C, h, w], [B, h, w]: mean_c z_c^2 / 2.

        Args:
            likelihood: take the position's share of log |det J| / C from it, which leaves -log p / C but for a constant.
        """
        z, logarithms = self.normalised(values), []
        for block in self.sequence.module_list:
            z, block_logarithms = block.transformed(z)
            logarithms.append(block_logarithms)
        half = z.square().mean(dim=1) / 2
        return half - sum(logarithms[1:], logarithms[0]) / self.channels if likelihood else half

    def negative_log_likelihood(self, values: Tensor) -> Tensor:
        """-log p / (C h w) of feature maps [B, C, h, w], [B]; differentiable."""
        z, log_determinant = self.sequence(self.normalised(values))
        squares = z.square().sum(dim=(1, 2, 3))
        return (0.5 * squares - log_determinant) / z[0].numel() + 0.5 * LOG_2PI


def _convolution(inputs: int, outputs: int, kernel: int, generator: torch.Generator) -> nn.Conv2d:
    """That keeps the size of a map, drawn as `torch.nn.Conv2d` draws its own."""
    convolution = skip_init(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2)
    bound = 1 / math.sqrt(inputs * kernel**2)
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return convolution
