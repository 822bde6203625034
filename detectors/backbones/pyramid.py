"""Feature pyramids from timm, or of the images themselves, asked for by stride.

Notation: B images, C channels, H x W input pixels, h x w feature positions (h = H / stride).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

from detectors.backbones.bundled import BUNDLED
from detectors.backbones.weights import (
    PIXELS,
    BackboneSpec,
    WeightsSource,
    pretrained_cfg,
    read_weights,
    require_weights,
    tensors_sha256,
    weights_file,
    weights_tag,
)
from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.process_state import drawn_from
from detectors.working_memory import portion

# timm warns about the classifier's tensors, which a feature pyramid has no use for.
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)

EXTRACTION_BATCH = 4
"""Images per forward pass on a CPU: small batches stay in the cache and are fastest per image."""
GPU_EXTRACTION_BATCH = 32
"""Images per forward pass on a GPU, which small batches leave idle."""


DEPTH = 2 / 3
"""Share of a vision transformer's blocks that its features come through. Its last blocks serve the class token; FastFlow
(arXiv 2111.07677) takes the eighth of DeiT's twelve."""
ANY_SIZE = {"dynamic_img_size": True}
"""Makes timm's vision transformers resample their position embedding to the image in hand."""


@dataclass(frozen=True)
class WeightsIdentity:
    """Which weights a backbone carries; part of every feature key, trial record and artifact."""

    name: str
    tag: str
    """timm's weights tag, e.g. ``a1_in1k``, or ``random:<seed>``."""
    sha256: str
    """Of the weights file, or of the tensors where they are random."""
    origin: str

    def to_json(self) -> dict[str, str]:
        """Plain dictionary."""
        return asdict(self)

    @property
    def short(self) -> str:
        """Name, tag and the first 12 digits of the hash, for tables and keys."""
        return f"{self.name}.{self.tag}-{self.sha256[:12]}"


def extraction_batch(device: torch.device) -> int:
    """Images per forward pass on a device, fewer where memory ran out."""
    return portion(EXTRACTION_BATCH if device.type == "cpu" else GPU_EXTRACTION_BATCH)


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


class Backbone(nn.Module):
    """A timm model cut to the strides asked for, with its own input normalisation.

    ``forward`` takes uint8 [B, 3, H, W] (RGB, 0-255) and returns ``{stride: float32 [B, C, h, w]}``.
    Always in eval mode: batch statistics would make an image's features depend on its batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, *, spec: BackboneSpec, strides: Sequence[int], identity: WeightsIdentity
    ) -> None:
        super().__init__()
        self.spec = spec
        self.identity = identity
        self.strides = tuple(strides)
        # channels_last halves the time of depthwise convolutions on a CPU and costs nothing elsewhere.
        self.model = model.to(memory_format=torch.channels_last)
        mean, std = normalisation(spec)
        self.register_buffer("mean", 255 * mean[None])
        self.register_buffer("std", 255 * std[None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode whatever `mode` says."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """uint8 [B, 3, H, W] -> {stride: float32 [B, C, h, w]}, strides ascending.

        Raises:
            InputError: the model does not take images of this size; a vision transformer wants multiples of its stride.
        """
        if not len(images):  # vision transformers cannot reshape nothing
            return {stride: maps[:0] for stride, maps in self(images.new_zeros(1, *images.shape[1:])).items()}
        normalised = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        try:
            maps = self.model(normalised)
        except AssertionError as error:
            height, width = images.shape[2:]
            raise InputError(
                f"backbone {self.spec} takes no images of {height} x {width} pixels: {str(error).rstrip('.')}; "
                "choose another image size"
            ) from error
        channels = channels_by_stride(self.spec.name)
        for stride, values in zip(self.strides, maps, strict=True):
            # Swin and its like put the channels last; read as channels, rows would make features of no meaning.
            if values.ndim != 4 or values.shape[1] != channels[stride]:
                raise InputError(
                    f"backbone {self.spec} gives no maps of the form channels, height, width; choose another one"
                )
        return dict(zip(self.strides, maps, strict=True))


def channels_by_stride(name: str) -> dict[int, int]:
    """Channels that a backbone offers at each stride of 4 and more, e.g. ``{4: 64, 8: 128, 16: 256, 32: 512}``.

    A vision transformer has the stride of its patches only; `pixels` offers the strides 1, 2 and 4.

    Raises:
        InputError: unknown backbone, or one that gives no feature pyramid.
    """
    return {
        stride: channels for stride, (_, channels) in _pyramid(BackboneSpec.parse(name).architecture).layers.items()
    }


class _Pyramid(NamedTuple):
    """What an architecture offers."""

    layers: dict[int, tuple[int, int]]
    """{stride: (index among timm's features, channels)}"""
    options: dict[str, Any]
    """That the model is made with."""


@lru_cache(maxsize=64)
def _pyramid(architecture: str) -> _Pyramid:
    """Where a stride occurs twice, the deepest counts, but for vision transformers: theirs is the block at `DEPTH`."""
    if architecture == PIXELS:
        return _Pyramid({stride: (index, 3) for index, stride in enumerate((1, 2, 4))}, {})
    if architecture in BUNDLED:
        return _Pyramid(dict(BUNDLED[architecture].layers), {})
    try:
        model = _layers_alone(architecture)
    except (RuntimeError, AssertionError, AttributeError, TypeError, NotImplementedError, ValueError) as error:
        raise InputError(f"backbone {architecture!r} gives no feature pyramid; choose a convolutional one") from error
    info: Any = model.feature_info
    if len({layer["reduction"] for layer in info.info}) == 1:
        with suppress(TypeError):  # not all of them can do with images of any size
            _layers_alone(architecture, **ANY_SIZE)
            index = max(1, round(DEPTH * len(info.info))) - 1
            layer = info.info[index]
            return _Pyramid({int(layer["reduction"]): (index, int(layer["num_chs"]))}, ANY_SIZE)
    layers = zip(info.out_indices, info.reduction(), info.channels(), strict=True)
    return _Pyramid({int(stride): (index, int(channels)) for index, stride, channels in layers if stride >= 4}, {})


def _layers_alone(architecture: str, **options: Any) -> Any:
    """On the meta device, which builds the layers without memory or random numbers."""
    import timm  # takes seconds

    with torch.device("meta"):
        return timm.create_model(architecture, pretrained=False, features_only=True, **options)


def check_strides(name: str, strides: Sequence[int]) -> None:
    """Raise `InputError` unless the backbone offers every stride; they must ascend and be distinct."""
    offered = channels_by_stride(name)
    if not strides or list(strides) != sorted(set(strides)):
        raise InputError(f"layers {list(strides)}: give distinct strides in ascending order, e.g. [8, 16]")
    if missing := [stride for stride in strides if stride not in offered]:
        raise InputError(f"backbone {name} has no layer of stride {missing[0]}; it offers {sorted(offered)}")


def build_backbone(
    name: str, strides: Sequence[int], *, weights_dir: Path | None = None, allow_network: bool = False
) -> Backbone:
    """Make a backbone with its weights, on the CPU.

    Args:
        name: as `BackboneSpec.parse` reads it.
        strides: ascending, each one that the backbone offers.

    Raises:
        InputError: unknown name, stride not offered, weights not found or not fitting.
    """
    spec = BackboneSpec.parse(name)
    check_strides(name, strides)
    source = require_weights(spec, weights_dir=weights_dir, allow_network=allow_network)
    if spec.name == PIXELS:
        return empty_backbone(spec, strides, identity=_pixels_identity())
    if spec.random_seed is not None:
        state, identity = _random_weights(spec)
    else:
        read, sha256 = read_weights(source)
        state, identity = _fitting(read, source), _file_identity(source, sha256)
    return Backbone(_create(spec, strides, state=state), spec=spec, strides=strides, identity=identity)


def empty_backbone(spec: BackboneSpec, strides: Sequence[int], *, identity: WeightsIdentity) -> Backbone:
    """The layers alone, for a saved detector whose artifact brings the tensors."""
    return Backbone(_create(spec, strides), spec=spec, strides=strides, identity=identity)


def tensor_shapes(spec: BackboneSpec, strides: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that `empty_backbone` has, by name; found without memory for them."""
    with torch.device("meta"):
        shapes = {f"model.{name}": tuple(value.shape) for name, value in _create(spec, strides).state_dict().items()}
    return shapes | {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}


def load_network(name: str, *, weights_dir: Path | None = None) -> nn.Module:
    """A whole timm network with its pretrained weights, for a head that trains it further; on the CPU.

    It maps images [B, 3, H, W], normalised by `normalisation`, onto its last map [B, D, a, b]; pooling and classifier are left
    out.

    Raises:
        InputError: unknown name, weights not found on this machine or not fitting.
    """
    spec = BackboneSpec.parse(name)
    source = require_weights(spec, weights_dir=weights_dir)
    state = _fitting(read_weights(source)[0], source)
    return _make(spec, state, num_classes=0, global_pool="")


def normalisation(spec: BackboneSpec) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the images that a model was trained on, [3, 1, 1] each, for values from 0 to 1."""
    cfg = pretrained_cfg(spec)
    mean, std = cfg.get("mean", (0.485, 0.456, 0.406)), cfg.get("std", (0.229, 0.224, 0.225))
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)


def weights_identity(name: str, *, weights_dir: Path | None = None, allow_network: bool = False) -> WeightsIdentity:
    """Identity of the weights that `build_backbone` would load. Raises `InputError` as it does."""
    spec = BackboneSpec.parse(name)
    source = require_weights(spec, weights_dir=weights_dir, allow_network=allow_network)
    if spec.name == PIXELS:
        return _pixels_identity()
    if spec.random_seed is not None:
        return _random_weights(spec)[1]
    return _file_identity(source, file_sha256(weights_file(source)))


def _file_identity(source: WeightsSource, sha256: str) -> WeightsIdentity:
    return WeightsIdentity(source.spec.name, weights_tag(source.spec) or "unknown", sha256, source.origin)


def _pixels_identity() -> WeightsIdentity:
    return WeightsIdentity(PIXELS, "none", tensors_sha256({}), "none")


def _create(spec: BackboneSpec, strides: Sequence[int], *, state: dict[str, Tensor] | None = None) -> nn.Module:
    if spec.name == PIXELS:
        return Pixels(strides)
    pyramid = _pyramid(spec.architecture)
    indices = [pyramid.layers[stride][0] for stride in strides]
    return _without_unused_stages(_make(spec, state, features_only=True, out_indices=indices, **pyramid.options))


def _make(spec: BackboneSpec, state: dict[str, Tensor] | None, **options: Any) -> nn.Module:
    """The model with these weights, or drawn ones. Raises `InputError` where they do not fit, or fill it in part only."""
    import timm  # takes seconds

    if state is not None:
        options["pretrained_cfg_overlay"] = {"state_dict": state}
    try:
        model: nn.Module = timm.create_model(spec.architecture, pretrained=state is not None, **options)
    except RuntimeError as error:
        raise InputError(f"weights do not fit backbone {spec}: {str(error).splitlines()[-1].strip()}") from error
    if state is not None:
        _check_all_loaded(model, state, spec)
    return model


def _check_all_loaded(model: nn.Module, state: Mapping[str, Tensor], spec: BackboneSpec) -> None:
    """Raise `InputError` where the file lacks a tensor: timm loads leniently and would leave it as it was drawn.

    Compared by content, since timm renames the tensors of some checkpoints on the way.
    """
    known = {_fingerprint(tensor) for tensor in state.values()}
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    wanted |= {name: value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    if missing := [name for name, tensor in wanted.items() if _fingerprint(tensor) not in known]:
        raise InputError(
            f"weights do not fit backbone {spec}: they lack {missing[0]}"
            + (f" and {len(missing) - 1} more of {len(wanted)} tensors" if missing[1:] else "")
        )


def _fingerprint(tensor: Tensor) -> bytes:
    """Digest of a tensor's numbers in float32, whatever its shape."""
    return xxhash.xxh3_128_digest(tensor.detach().float().contiguous().numpy().data)


def _without_unused_stages(model: nn.Module) -> nn.Module:
    """Drop the stages behind the last one asked for, which EfficientNet and MobileNetV3 would compute and throw away."""
    stages = getattr(model, "_stage_out_idx", None)
    blocks = getattr(model, "blocks", None)
    if stages and isinstance(blocks, nn.Sequential) and getattr(model, "feature_hooks", 0) is None:
        model.blocks = blocks[: max(stages)]
    return model


def _random_weights(spec: BackboneSpec) -> tuple[dict[str, Tensor], WeightsIdentity]:
    """All stages are drawn, whatever strides are asked for, so that the weights do not depend on these."""
    import timm  # takes seconds

    with drawn_from(spec.random_seed or 0):
        state = timm.create_model(spec.architecture, pretrained=False).state_dict()
    return state, WeightsIdentity(spec.name, f"random:{spec.random_seed}", tensors_sha256(state), "random")


def _fitting(state: dict[str, Tensor], source: WeightsSource) -> dict[str, Tensor]:
    """Rename a bundled checkpoint's tensors, which match timm's one to one in order; others pass unchanged."""
    if source.origin != "bundled":
        return state
    import timm  # takes seconds

    with torch.device("meta"):
        wanted = timm.create_model(source.spec.name, pretrained=False).state_dict()
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in wanted.values()]:
        raise InputError(
            f"{source.path}: not the checkpoint of {source.spec} that this version knows; reinstall the package "
            f"{BUNDLED[source.spec.name].package}"
        )
    return dict(zip(wanted, state.values(), strict=True))
