"""What an architecture of timm offers: layers, their channels, and the sizes of images that it takes.

A layer is named by its stride, or, of a vision transformer, by its block counted from the end: -1 is the last one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.backbones.bundled import BUNDLED
from detectors.backbones.weights import PIXELS, BackboneSpec, pretrained_cfg
from detectors.data.images import Size
from detectors.errors import InputError

# timm warns about the classifier's tensors, which a feature pyramid has no use for.
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)

DEPTH = 2 / 3
"""Share of a vision transformer's blocks behind which the features of its stride come. Its last blocks serve the class token;
FastFlow (arXiv 2111.07677) takes the eighth of DeiT's twelve."""
ANY_SIZE = {"dynamic_img_size": True}
"""Makes timm's vision transformers resample their position embedding to the image in hand."""
ANY_WINDOWS = {"strict_img_size": False}
"""Makes timm's Swin transformers take images of other sizes than they were trained on."""


@dataclass(frozen=True)
class Architecture:
    """What an architecture offers."""

    layers: Mapping[int, tuple[int, int]]
    """{layer: (index among timm's features, channels)}"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """That the model is made with."""
    patch: int = 1
    """Sides of images have to be multiples of this."""
    channels_last: bool = False
    """Whether its maps are [B, h, w, C]."""
    attends: bool = False
    """Whether it has attention, or is no pyramid: such a network may be made for images of one size."""

    def stride(self, layer: int) -> int:
        """Pixels between the positions of a layer."""
        return layer if layer > 0 else self.patch


class Pixels(nn.Module):
    """The image itself, [B, 3, H, W], averaged over squares of stride x stride pixels. Values stay in their range."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As a feature pyramid of timm."""
        return [
            images if stride == 1 else functional.avg_pool2d(images, stride, ceil_mode=True) for stride in self.strides
        ]


class Blocks(nn.Module):
    """The patch tokens behind some blocks of a vision transformer, through its last normalisation, without class and register
    tokens: what DINOv2 (arXiv 2304.07193) and AnomalyDINO (arXiv 2405.14529) compare."""

    def __init__(self, model: Any, indices: Sequence[int]) -> None:
        """Args: `model` of timm, whose blocks behind the last of `indices` are dropped."""
        super().__init__()
        self.indices = model.prune_intermediate_layers(list(indices), prune_norm=False, prune_head=True)
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """As a feature pyramid of timm, [B, C, h, w] each."""
        tokens: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return tokens


class ChannelsFirst(nn.Module):
    """A pyramid whose maps are [B, h, w, C], as others' are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """As a feature pyramid of timm, [B, C, h, w] each."""
        return [values.permute(0, 3, 1, 2).contiguous() for values in self.model(images)]


@lru_cache(maxsize=64)
def architecture_of(name: str) -> Architecture:
    """What an architecture offers, by its name without a weights tag.

    Where a stride occurs twice, the deepest layer counts, but for vision transformers: theirs is the block at `DEPTH`.

    Raises:
        InputError: it gives no maps of features.
    """
    if name == PIXELS:
        return Architecture({stride: (index, 3) for index, stride in enumerate((1, 2, 4))})
    if name in BUNDLED:
        return Architecture(BUNDLED[name].layers)
    try:
        model = _layers_alone(name)
    except (RuntimeError, AssertionError, AttributeError, TypeError, NotImplementedError, ValueError) as error:
        raise InputError(f"backbone {name!r} gives no feature pyramid; choose a convolutional one") from error
    info: Any = model.feature_info
    if len({layer["reduction"] for layer in info.info}) == 1:
        return _of_tokens(name, info.info)
    last = str(getattr(getattr(model, "output_fmt", ""), "value", "")) == "NHWC"
    options: dict[str, Any] = {}
    if last:
        with suppress(TypeError):  # those of another make
            _layers_alone(name, **ANY_WINDOWS)
            options = ANY_WINDOWS
    layers = zip(info.out_indices, info.reduction(), info.channels(), strict=True)
    offered = {int(stride): (index, int(channels)) for index, stride, channels in layers if stride >= 4}
    # Each stage halves the grid of patches, so that whole patches are needed at the deepest as well.
    patch = max(offered, default=1) if last else 1
    attends = any("attention" in type(module).__name__.lower() for module in model.modules())
    return Architecture(offered, options, patch, channels_last=last, attends=attends)


def _of_tokens(name: str, info: Sequence[Mapping[str, Any]]) -> Architecture:
    """Of a network all of whose blocks have one grid."""
    stride, count = int(info[0]["reduction"]), len(info)
    with suppress(TypeError):  # not all of them can do with images of any size
        _layers_alone(name, **ANY_SIZE)
        layer = info[max(1, round(DEPTH * count)) - 1]
        blocks = {index - count: (index, int(one["num_chs"])) for index, one in enumerate(info)}
        at_depth = (max(1, round(DEPTH * count)) - 1, int(layer["num_chs"]))
        return Architecture({**blocks, stride: at_depth}, ANY_SIZE, stride, attends=True)
    return Architecture({stride: (count - 1, int(info[-1]["num_chs"]))}, {}, stride, attends=True)


def _layers_alone(name: str, **options: Any) -> Any:
    """On the meta device, which builds the layers without memory or random numbers."""
    import timm  # takes seconds

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, features_only=True, **options)


def channels_by_layer(name: str) -> dict[int, int]:
    """Channels that a backbone offers at each stride of 4 and more, e.g. ``{4: 64, 8: 128, 16: 256, 32: 512}``.

    A vision transformer has the stride of its patches, and its blocks from the first (-12, say) to the last (-1); `pixels` offers
    the strides 1, 2 and 4.

    Raises:
        InputError: unknown backbone, or one that gives no maps of features.
    """
    spec = BackboneSpec.parse(name)
    if spec.members:
        # What all of several offer, and the fewest channels: a setting has to suit each.
        each = [channels_by_layer(str(one)) for one in spec.members]
        common = [layer for layer in each[0] if all(layer in one for one in each)]
        return {layer: min(one[layer] for one in each) for layer in common}
    layers = architecture_of(spec.architecture).layers
    return {layer: channels for layer, (_, channels) in layers.items()}


def offer(name: str) -> str:
    """The layers that a backbone offers, in words: ``[4, 8, 16, 32]``, or ``[14] and blocks -12 to -1``."""
    layers = channels_by_layer(name)
    strides, blocks = sorted(layer for layer in layers if layer > 0), [layer for layer in layers if layer < 0]
    return f"{strides}" + (f" and blocks {min(blocks)} to -1" if blocks else "")


def check_layers(name: str, layers: Sequence[int]) -> None:
    """Raise `InputError` unless the backbone offers every layer; they must ascend, be distinct and of one kind."""
    offered = channels_by_layer(name)
    if not layers or list(layers) != sorted(set(layers)):
        raise InputError(f"layers {list(layers)}: give distinct strides in ascending order, e.g. [8, 16]")
    if missing := [layer for layer in layers if layer not in offered]:
        what = f"layer of stride {missing[0]}" if missing[0] >= 0 else f"block {missing[0]}"
        raise InputError(f"backbone {name} has no {what}; it offers {offer(name)}")
    if layers[0] < 0 < layers[-1]:
        raise InputError(f"layers {list(layers)}: give strides or blocks, not both")


def patch_of(name: str) -> int:
    """What the sides of a backbone's images have to be multiples of, in pixels; of several, what suits them all."""
    spec = BackboneSpec.parse(name)
    return math.lcm(*(architecture_of(one.architecture).patch for one in spec.members or (spec,)))


def stride_of(name: str, layer: int) -> int:
    """Pixels between the positions of a backbone's layer, or of the first of several."""
    spec = BackboneSpec.parse(name)
    return architecture_of((spec.members or (spec,))[0].architecture).stride(layer)


def fitting_size(name: str, size: Size) -> Size:
    """The nearest size of images that a backbone takes: multiples of its patches, at least one each way.

    Raises:
        InputError: unknown backbone, or one that gives no maps of features.
    """
    patch = patch_of(name)
    height, width = (max(1, (2 * side + patch) // (2 * patch)) * patch for side in size)
    return height, width


def check_takes(name: str, size: Size) -> None:
    """Raise `InputError` where a backbone does not take images of a size, height and width in pixels.

    The network is gone through without weights or numbers, in a moment.
    """
    spec = BackboneSpec.parse(name)
    if spec.members:
        for one in spec.members:
            check_takes(str(one), size)
        return
    architecture = architecture_of(spec.architecture)
    if not architecture.attends:
        return
    try:
        model = _layers_alone(spec.architecture, **architecture.options)
        with torch.device("meta"), torch.no_grad():
            model(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = pretrained_cfg(spec).get("input_size", (3, *size))[1:]
        made_for = f"; it was made for {height} x {width}" if (height, width) != size else ""
        raise InputError(
            f"backbone {name} takes no images of {size[0]} x {size[1]} pixels{made_for}; choose another image size, or another "
            "backbone"
        ) from error
