"""The network that CutPaste trains: a small one on a backbone's maps, or a whole network of timm on images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.backbones.pyramid import load_network, normalisation
from detectors.backbones.weights import BackboneSpec
from detectors.errors import InputError
from detectors.features import Features
from detectors.process_state import drawn_from

TAIL, RANDOM = "tail", "@random"
NETWORKS = ("tf_efficientnet_lite0", "resnet18", "resnet10t", "mobilenetv3_small_100")
"""Of timm, with pretrained weights; with `RANDOM` behind the name, without."""
TAIL_WIDTH = 32
"""Channels behind the first convolution of `Tail`; each block has twice as many as the one before."""
TAIL_STRIDE = 32
"""Of the last map of `Tail`, in pixels, as of most backbones."""
GROUP = 8
"""Channels of a group of group normalisation."""
DEVIATION_FLOOR = 1e-2
"""Smallest deviation that a channel is divided by, as a share of that of all channels."""


def new_network(name: str, channels: int, *, stride: int, generator: torch.Generator) -> Network:
    """A fresh network for C channels on the grid of a stride, in pixels; the generator's seed draws its weights.

    Args:
        name: `TAIL`, or a network of timm; with `RANDOM` behind its name where it does not start from pretrained weights.
    """
    with drawn_from(generator.initial_seed()):
        body = Tail(channels, stride) if name == TAIL else _timm_network(name.removesuffix(RANDOM), channels)
    return Network(body, channels, pretrained=name in NETWORKS)


class Network(nn.Module):
    """Standardisation by channel, then a convolutional body: [B, C, h, w] -> the last map [B, D, a, b]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, body: nn.Module, channels: int, *, pretrained: bool = False) -> None:
        """Args: `pretrained`: batch normalisation keeps its statistics."""
        super().__init__()
        self.body, self.pretrained = body.to(memory_format=torch.channels_last), pretrained
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        # Depthwise convolutions take half the time on a CPU with the channels last.
        standardised = ((values - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        last_map: Tensor = self.body(standardised)
        return last_map

    def train(self, mode: bool = True) -> Self:
        """Batch normalisation with pretrained statistics stays in eval mode."""
        super().train(mode)
        if self.pretrained:
            for part in self._batch_normalisations():
                part.eval()
        return self

    def start_from(self, name: str, *, weights_dir: Path | None) -> None:
        """Take a timm network's pretrained weights, and the mean and deviation of the images that these were trained on.

        Raises:
            InputError: they are not on this machine, or do not fit the input.
        """
        if self.mean.numel() != 3:
            raise InputError(
                f"cutpaste: network {name} starts from weights for images; give it `backbone: pixels` and one layer, "
                f"or take `network: {TAIL}`"
            )
        self.body.load_state_dict(load_network(name, weights_dir=weights_dir).state_dict())
        mean, deviation = normalisation(BackboneSpec.parse(name))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standardise_to(self, features: Features) -> None:
        """Take the mean and deviation of each channel of the normals."""
        mean, deviation = features.channel_scale(floor=DEVIATION_FLOOR)
        self.mean.copy_(mean[:, None, None])
        self.deviation.copy_(deviation[:, None, None])

    @property
    def mixes_images(self) -> bool:
        """Whether images of a batch depend on each other in training, by batch normalisation."""
        return not self.pretrained and any(self._batch_normalisations())

    def _batch_normalisations(self) -> Iterator[nn.Module]:
        return (part for part in self.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))


class Tail(nn.Sequential):
    """Residual blocks, each of which halves the grid, from the finest stride down to `TAIL_STRIDE`; at least one block."""

    def __init__(self, channels: int, stride: int) -> None:
        halvings = max(0, round(math.log2(TAIL_STRIDE / stride)))
        parts: list[nn.Module] = [*_convolution(channels, TAIL_WIDTH, 3), nn.ReLU()]
        for index in range(max(1, halvings)):
            width = TAIL_WIDTH << index
            parts.append(_Block(width, 2 * width, step=2 if halvings else 1))
        super().__init__(*parts)


class _Block(nn.Module):
    """relu(convolutions(x) + projection(x))"""

    def __init__(self, inputs: int, outputs: int, *, step: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(inputs, outputs, 3, step=step), nn.ReLU(), *_convolution(outputs, outputs, 3)
        )
        self.projection = nn.Sequential(*_convolution(inputs, outputs, 1, step=step))

    def forward(self, values: Tensor) -> Tensor:
        return functional.relu(self.convolutions(values) + self.projection(values))


def _convolution(inputs: int, outputs: int, width: int, *, step: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, width, stride=step, padding=width // 2, bias=False)
    return convolution, nn.GroupNorm(outputs // GROUP, outputs)


def _timm_network(name: str, channels: int) -> nn.Module:
    """A whole network up to its last map, with random weights."""
    import timm  # takes seconds; a small network does without

    model: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=0, global_pool="")
    return model
