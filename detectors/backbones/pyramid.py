"""Feature pyramids from timm, or of the images themselves, asked for by stride, or by block of a vision transformer.

Notation: B images, C channels, H x W input pixels, h x w feature positions (h = H / stride). Where a stride is asked for, a
vision transformer's block may be named instead, counted from the end: -1 is the last (`detectors.backbones.architecture`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from detectors.backbones.architecture import (
    Blocks,
    ChannelsFirst,
    Pixels,
    architecture_of,
    channels_by_layer,
    check_layers,
)
from detectors.backbones.bundled import BUNDLED
from detectors.backbones.weights import (
    PIXELS,
    BackboneSpec,
    WeightsSource,
    digits,
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

EXTRACTION_BATCH = 4
"""Images per forward pass on a CPU: small batches stay in the cache and are fastest per image."""
GPU_EXTRACTION_BATCH = 32
"""Images per forward pass on a GPU, which small batches leave idle."""


@dataclass(frozen=True)
class WeightsIdentity:
    """Which weights a backbone carries; part of every feature key, trial record and artifact."""

    name: str
    tag: str
    """timm's weights tag, e.g. ``a1_in1k``, or ``random:<seed>``."""
    sha256: str
    """Of the weights file, or of the tensors where they are random; of several backbones each one's, with ``+`` between."""
    origin: str

    def to_json(self) -> dict[str, str]:
        """Plain dictionary."""
        return asdict(self)

    @property
    def short(self) -> str:
        """Name, tag and the first 12 digits of the hash, or of each one's of several, for tables and keys."""
        return f"{self.name}.{self.tag}-{digits(self.sha256)}"


def extraction_batch(device: torch.device) -> int:
    """Images per forward pass on a device, fewer where memory ran out."""
    return portion(EXTRACTION_BATCH if device.type == "cpu" else GPU_EXTRACTION_BATCH)


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
        channels = channels_by_layer(self.spec.name)
        for stride, values in zip(self.strides, maps, strict=True):
            # Read as channels, rows or columns would make features of no meaning.
            if values.ndim != 4 or values.shape[1] != channels[stride]:
                raise InputError(
                    f"backbone {self.spec} gives no maps of the form channels, height, width; choose another one"
                )
        return dict(zip(self.strides, maps, strict=True))


class Backbones(nn.Module):
    """Several backbones, with which one detector looks: see `detectors.committee`."""

    def __init__(self, members: Sequence[Backbone], *, spec: BackboneSpec, identity: WeightsIdentity) -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)
        self.spec, self.identity = spec, identity
        self.strides = members[0].strides

    @property
    def members(self) -> list[Backbone]:
        """In the order of the name."""
        return [member for member in self.networks if isinstance(member, Backbone)]

    @property
    def mean(self) -> Tensor:
        """Of the first one; where it lies, all lie."""
        return self.members[0].mean


AnyBackbone = Backbone | Backbones


def build_backbones(
    name: str, strides: Sequence[int], *, weights_dir: Path | None = None, allow_network: bool = False
) -> AnyBackbone:
    """A backbone, or several whose names have ``+`` between them, with their weights, on the CPU. Raises as `build_backbone`."""
    spec = BackboneSpec.parse(name)
    if not spec.members:
        return build_backbone(name, strides, weights_dir=weights_dir, allow_network=allow_network)
    check_layers(name, strides)
    members = [
        build_backbone(str(one), strides, weights_dir=weights_dir, allow_network=allow_network) for one in spec.members
    ]
    return Backbones(members, spec=spec, identity=_identity_of_several(name, [one.identity for one in members]))


def _identity_of_several(name: str, members: Sequence[WeightsIdentity]) -> WeightsIdentity:
    # Each one's own, so that a saved detector's features are stored as those of its backbones, and never mixed up.
    digest = "+".join(one.sha256 for one in members)
    origins = "+".join(dict.fromkeys(one.origin for one in members))
    return WeightsIdentity(name, "+".join(one.tag for one in members), digest, origins)


def build_backbone(
    name: str, strides: Sequence[int], *, weights_dir: Path | None = None, allow_network: bool = False
) -> Backbone:
    """Make a backbone with its weights, on the CPU.

    Args:
        name: of one backbone, as `BackboneSpec.parse` reads it.
        strides: ascending, each one that the backbone offers; or blocks, below 0.

    Raises:
        InputError: unknown name, layer not offered, weights not found or not fitting.
    """
    spec = BackboneSpec.parse(name)
    check_layers(name, strides)
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


def empty_backbones(spec: BackboneSpec, strides: Sequence[int], *, identity: WeightsIdentity) -> AnyBackbone:
    """As `empty_backbone`, of one or several. Raises `ValueError` where `identity` is not that of as many as `spec` names."""
    if not spec.members:
        return empty_backbone(spec, strides, identity=identity)
    parts = zip(spec.members, identity.tag.split("+"), identity.sha256.split("+"), strict=True)
    members = [
        empty_backbone(one, strides, identity=WeightsIdentity(one.name, tag, sha256, identity.origin))
        for one, tag, sha256 in parts
    ]
    return Backbones(members, spec=spec, identity=identity)


def tensor_shapes(spec: BackboneSpec, strides: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that `empty_backbones` has, by name; found without memory for them."""
    if spec.members:
        return {
            f"networks.{place}.{name}": shape
            for place, one in enumerate(spec.members)
            for name, shape in tensor_shapes(one, strides).items()
        }
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
    if spec.members:
        each = [
            weights_identity(str(one), weights_dir=weights_dir, allow_network=allow_network) for one in spec.members
        ]
        return _identity_of_several(name, each)
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
    architecture = architecture_of(spec.architecture)
    indices = [architecture.layers[stride][0] for stride in strides]
    if strides[0] < 0:
        return Blocks(_make(spec, state, num_classes=0, **architecture.options), indices)
    model = _make(spec, state, features_only=True, out_indices=indices, **architecture.options)
    return ChannelsFirst(model) if architecture.channels_last else _without_unused_stages(model)


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
