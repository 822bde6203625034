"""Convolutional encoder and decoder for maps of any grid, as the reconstruction detectors share them.

Notation: B images, C channels, h x w positions; d dimensions of the code; a x b positions at the bottom of the encoder.

An encoder halves the grid by strided 4x4 convolutions until its shorter side is at most `BOTTOM`, doubling the channels up to
`WIDEST` times the first; the decoder mirrors it (DCGAN, arXiv 1511.06434, which the papers build upon). The code is one vector
for the whole image, by a convolution as large as the bottom, or one for each position of the bottom.

Nothing depends on the other images of a batch: groups of channels of one image are normalised in place of batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from detectors.data.images import Size

BOTTOM = 4
"""Positions of the bottom's shorter side: DCGAN goes down to 4 x 4, and never below."""
WIDEST = 8
"""Channels at the bottom at most, as a multiple of the first convolution's."""
GROUP = 8
"""Channels of a group of group normalisation; more than one, so that a single position has a variance."""
SLOPE = 0.2
"""Of the leaky ReLU below zero."""


@dataclass(frozen=True)
class Plan:
    """Sizes of an encoder and its decoder."""

    channels: int
    """C"""
    grid: Size
    """(h, w)"""
    width: int
    """Channels behind the first convolution, a multiple of `GROUP`."""
    depth: int
    """Halvings of the grid at most; fewer where the grid is small."""
    code: int
    """d"""
    whole: bool
    """One code for the whole image; otherwise one for each position of the bottom."""

    @property
    def halvings(self) -> int:
        """How often the grid is halved."""
        return min(self.depth, max(0, math.ceil(math.log2(min(self.grid) / BOTTOM))))

    @property
    def bottom(self) -> Size:
        """(a, b)"""
        height, width = (-(-side // 2**self.halvings) for side in self.grid)
        return height, width

    @property
    def padded(self) -> Size:
        """The grid, filled up to a multiple of what the halvings take."""
        height, width = (side << self.halvings for side in self.bottom)
        return height, width

    @property
    def widths(self) -> list[int]:
        """Channels behind each convolution of the encoder; at least one, which keeps the grid where nothing is halved."""
        return [self.width * min(1 << level, WIDEST) for level in range(max(1, self.halvings))]

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Shape of an image's code."""
        return (self.code, 1, 1) if self.whole else (self.code, *self.bottom)

    @property
    def code_weights(self) -> int:
        """Weights from the bottom to one code for the whole image; 0 where each position has its own."""
        return self.code * self.widths[-1] * math.prod(self.bottom) if self.whole else 0


class Encoder(nn.Module):
    """[B, C, h, w] -> code [B, outputs, 1, 1], or [B, outputs, a, b] where each position has its own."""

    def __init__(self, plan: Plan, *, generator: torch.Generator, outputs: int | None = None) -> None:
        """Args: `generator` draws the weights; `outputs` of the last convolution, d by default."""
        super().__init__()
        self.padding = [0, plan.padded[1] - plan.grid[1], 0, plan.padded[0] - plan.grid[0]]
        layers: list[nn.Module] = []
        previous = plan.channels
        for level, width in enumerate(plan.widths):
            layers.append(_convolution(previous, width, *_kernel(plan), generator=generator))
            if level:  # the first sees the image as it is
                layers.append(nn.GroupNorm(width // GROUP, width))
            layers.append(nn.LeakyReLU(SLOPE))
            previous = width
        self.body = nn.Sequential(*layers)
        kernel = plan.bottom if plan.whole else (1, 1)
        self.last = _convolution(previous, plan.code if outputs is None else outputs, kernel, 1, 0, generator=generator)

    def features(self, values: Tensor) -> Tensor:
        """What the last convolution sees, [B, channels, a, b]."""
        if any(self.padding):
            values = functional.pad(values, self.padding, mode="replicate")
        bottom: Tensor = self.body(values)
        return bottom

    def forward(self, values: Tensor) -> Tensor:
        code: Tensor = self.last(self.features(values))
        return code


class Decoder(nn.Module):
    """Code [B, d, 1, 1] or [B, d, a, b] -> [B, C, h, w], without an activation at the end."""

    def __init__(self, plan: Plan, *, generator: torch.Generator) -> None:
        """Args: `generator` draws the weights."""
        super().__init__()
        self.grid = plan.grid
        widths = plan.widths[::-1]
        kernel = plan.bottom if plan.whole else (1, 1)
        layers: list[nn.Module] = [_convolution(plan.code, widths[0], kernel, 1, 0, generator=generator, upwards=True)]
        for previous, width in zip(widths, [*widths[1:], plan.channels], strict=True):
            layers += [nn.GroupNorm(previous // GROUP, previous), nn.LeakyReLU(SLOPE)]
            layers.append(_convolution(previous, width, *_kernel(plan), generator=generator, upwards=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, code: Tensor) -> Tensor:
        height, width = self.grid
        padded: Tensor = self.layers(code)
        return padded[:, :, :height, :width]


def _kernel(plan: Plan) -> tuple[Size, int, int]:
    """Kernel, step and padding of all convolutions but the innermost."""
    return ((4, 4), 2, 1) if plan.halvings else ((3, 3), 1, 1)


def _convolution(
    inputs: int,
    outputs: int,
    kernel: Size,
    step: int,
    padding: int,
    *,
    generator: torch.Generator,
    upwards: bool = False,
) -> nn.Module:
    """A convolution, or the transposed one, drawn as He et al. do (arXiv 1502.01852)."""
    kind = nn.ConvTranspose2d if upwards else nn.Conv2d
    convolution = skip_init(kind, inputs, outputs, kernel, stride=step, padding=padding)
    # A step of a transposed convolution leaves out all but 1 / step^2 of its kernel at each output.
    if upwards and step == 1 and padding == 0:
        fan_in = float(inputs)
    else:
        fan_in = inputs * math.prod(kernel) / (step**2 if upwards else 1)
    with torch.no_grad():
        convolution.weight.normal_(0, math.sqrt(2 / ((1 + SLOPE**2) * fan_in)), generator=generator)
        convolution.bias.zero_()
    return convolution
