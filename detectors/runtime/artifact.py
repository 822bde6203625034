"""A fitted detector on disk: ``detector.json`` + ``detector.safetensors``. Self-contained, no pickle, no network to load.

The folder holds the backbone's weights too, so that a detector scores the same images alike wherever it is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError
from torch import Tensor

from detectors.backbones.architecture import check_layers, stride_of
from detectors.backbones.pyramid import WeightsIdentity, empty_backbones, tensor_shapes
from detectors.backbones.weights import BackboneSpec
from detectors.base import Head, Prediction, with_prefix
from detectors.catalog import head_class
from detectors.committee import make_detector
from detectors.data.images import RESIZE_RULE, Size, resize_image
from detectors.data.samples import file_sha256
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.files import new_folder, write_json
from detectors.head_files import code_of, find_head
from detectors.runtime.description import (
    FORMAT,
    MAX_DESCRIPTION_BYTES,
    Code,
    Description,
    StoredTiles,
    Weights,
    first_fault,
    parse_description,
)
from detectors.runtime.plausibility import check_grid
from detectors.runtime.tensor_file import Shape, read_shapes, read_tensors, write_tensors
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from detectors.scoring.operating_point import Threshold

DESCRIPTION, TENSORS = "detector.json", "detector.safetensors"
BACKBONE_PREFIX, HEAD_PREFIX, EXTRA_PREFIX = "backbone.", "head.", "extra."


@dataclass(frozen=True)
class Artifact:
    """A detector with what is known about where it comes from."""

    detector: Detector
    normal_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Ascending image scores of held-out normals: where a new score stands among them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Study, trial, data digest, versions: JSON-able."""

    @property
    def threshold(self) -> Threshold | None:
        """The detector's."""
        return self.detector.threshold

    def resize(self, rgb: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] of any size -> uint8 [1, 3, h, w] as the detector wants it."""
        return resized(rgb, self.detector.image_size)

    def predict(self, images: Tensor) -> Prediction:
        """uint8 [B, 3, h, w] -> Prediction, computed on the detector's device."""
        return self.detector(images.to(self.detector.backbone.mean.device))


def resized(rgb: NDArray[np.uint8], image_size: Size) -> Tensor:
    """uint8 [H, W, 3] of any size -> uint8 [1, 3, h, w], by `RESIZE_RULE`."""
    small = np.require(resize_image(rgb, image_size), requirements="W")  # torch takes no other
    return torch.from_numpy(small).permute(2, 0, 1)[None].contiguous()


def describe(artifact: Artifact, *, tensors_sha256: str) -> Description:
    """All that is known of a detector but its tensors. Raises `InputError` for values that no reader would take."""
    detector = artifact.detector
    code = code_of(type(detector.head))
    try:
        return Description(
            format=FORMAT,
            detector=detector.head.name,
            settings=detector.head.settings,
            backbone=str(detector.backbone.spec),
            strides=list(detector.backbone.strides),
            weights=Weights(**detector.backbone.identity.to_json()),
            image_size=detector.image_size,
            resize_rule=RESIZE_RULE,
            smoothing_sigma=detector.smoothing_sigma,
            threshold=detector.threshold.to_json() if detector.threshold else None,
            normal_scores=[float(score) for score in np.sort(artifact.normal_scores)],
            provenance=dict(artifact.provenance),
            tensors_sha256=tensors_sha256,
            code=Code.model_validate(code.to_json()) if code else None,
            tiles=StoredTiles(side=tiles.side, overlap=tiles.overlap) if (tiles := detector.tiles) else None,
        )
    except ValidationError as error:
        raise InputError(f"detector {detector.head.name} cannot be stored: {first_fault(error)}") from error


def save_artifact(artifact: Artifact, folder: Path) -> Path:
    """Write a fitted detector; replaces a former one at the same place in one step.

    Raises:
        InputError: the folder cannot be written or holds other files than a detector's, or the disk is full.
    """
    detector = artifact.detector
    if folder.is_dir() and not is_artifact(folder) and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files, which a detector would replace; choose another folder")
    with new_folder(folder) as temporary:
        write_tensors(stored_tensors(detector), temporary / TENSORS)
        description = describe(artifact, tensors_sha256=file_sha256(temporary / TENSORS))
        write_json(temporary / DESCRIPTION, json.loads(description.to_json()))
        # safetensors keeps its file to its owner; whoever may read the one shall read the other.
        shutil.copymode(temporary / DESCRIPTION, temporary / TENSORS)
    return folder


def load_artifact(folder: Path, *, device: torch.device | str = "cpu") -> Artifact:
    """Read a detector back; its scores are those of the detector that was saved.

    Raises:
        InputError: no artifact there, a newer format, files that were changed or damaged, or a head whose code is not here: of a
            package that is not installed, or of a file that nobody named on this machine.
    """
    description = read_description(folder)
    shapes = read_shapes(folder / TENSORS, description.tensors_sha256)
    spec = BackboneSpec.parse(description.backbone)
    check_layers(description.backbone, description.strides)
    _check_backbone(shapes, tensor_shapes(spec, description.strides), folder)
    tensors = read_tensors(folder / TENSORS)
    try:
        backbone = empty_backbones(
            spec, description.strides, identity=WeightsIdentity(**description.weights.model_dump())
        )
    except ValueError as error:
        raise InputError(f"{folder}: the weights are not those of {description.backbone[:80]} ({error})") from error
    head = _make_head(description, folder)
    detector = make_detector(
        backbone,
        head,
        image_size=description.image_size,
        smoothing_sigma=description.smoothing_sigma,
        tiles=description.cut,
    )
    try:
        backbone.load_state_dict(with_prefix(tensors, BACKBONE_PREFIX))
        of_heads = _by_head(tensors)
        for place, twin in enumerate(detector.twins):
            twin.import_tensors(of_heads.get(head_prefix(place), {}))
        for member in detector.each:
            stride = stride_of(str(member.backbone.spec), description.strides[0])
            for twin in member.twins:
                check_grid(twin.grid, detector.input_size, stride)
        detector.import_extra(with_prefix(tensors, EXTRA_PREFIX))
        detector.finish_fit()
        # Parts that contradict each other show here, not at the first image that matters.
        detector.try_out()
    except (RuntimeError, LookupError, ValueError, ArithmeticError) as error:
        raise InputError(f"{folder}: tensors do not fit the description ({str(error).splitlines()[0]})") from error
    detector.threshold = Threshold.from_json(description.threshold) if description.threshold else None
    return Artifact(
        detector=detector.to(device),
        normal_scores=np.asarray(description.normal_scores),
        provenance=description.provenance,
    )


def stored_tensors(detector: Detector) -> dict[str, Tensor]:
    """Everything an artifact stores of a detector, by name, on the CPU."""
    named = {f"{BACKBONE_PREFIX}{name}": value for name, value in detector.backbone.state_dict().items()}
    for place, head in enumerate(detector.twins):
        named |= {f"{head_prefix(place)}{name}": value for name, value in head.export_tensors().items()}
    named |= {f"{EXTRA_PREFIX}{name}": value for name, value in detector.extra_tensors().items()}
    return {name: value.detach().cpu().contiguous() for name, value in named.items()}


def _by_head(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{prefix of a head: {name: tensor}}, sorted out once however many heads there are."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, dot, rest = name.partition(".")
        found.setdefault(prefix + dot, {})[rest] = tensor
    return found


def head_prefix(place: int) -> str:
    """Of the names of a head's tensors; the heads of other tiles than the first are numbered."""
    return HEAD_PREFIX if place == 0 else f"{HEAD_PREFIX.removesuffix('.')}{place}."


def model_size_mb(detector: Detector) -> float:
    """Size of the artifact's tensors, in MB (10^6 bytes)."""
    tensors = [tensor for head in detector.twins for tensor in head.export_tensors().values()]
    parts = (*detector.backbone.state_dict().values(), *tensors)
    return sum(value.numel() * value.element_size() for value in parts) / 1e6


def is_artifact(folder: Path) -> bool:
    """Whether a folder looks like a saved detector."""
    return (folder / DESCRIPTION).is_file()


def _check_backbone(stored: Mapping[str, Shape], wanted: Mapping[str, Shape], folder: Path) -> None:
    """Raise `InputError` unless the stored shapes are those of the backbone, before any of its layers takes memory."""
    own = {
        name.removeprefix(BACKBONE_PREFIX): shape for name, shape in stored.items() if name.startswith(BACKBONE_PREFIX)
    }
    for name in sorted(own.keys() | wanted.keys()):
        if own.get(name) != wanted.get(name):
            raise InputError(
                f"{folder}: tensors do not fit the description (backbone tensor {name[:80]!r} is {own.get(name)}, not "
                f"{wanted.get(name)})"
            )


def _make_head(description: Description, folder: Path) -> Head:
    code = description.head_code
    try:
        head_type: Callable[..., Head] = find_head(code) if code else head_class(description.detector)
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION}: {error}") from error
    try:
        return head_type(**description.settings)
    except TypeError as error:
        raise InputError(f"{folder / DESCRIPTION}: settings of another detector or version ({error})") from error


def read_description(folder: Path) -> Description:
    """What a saved detector says of itself. Raises `InputError` where there is none, or it is damaged."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{folder}: no detector here ({DESCRIPTION} is missing)")
    if path.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise InputError(f"{path}: too large to be a detector's description")
    return parse_description(path.read_bytes(), place=path, kind=Description)


THRESHOLD_SET = "threshold_set"
"""Key of the provenance of a detector whose threshold was set after its fit."""


def _without_threshold(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a detector, without the warnings of its threshold and the figures that depend on it."""
    kept = {**provenance, THRESHOLD_SET: True}
    if isinstance(warnings := kept.get("warnings"), list):
        kept["warnings"] = [one for one in warnings if "threshold" not in str(one)]
    if isinstance(figures := kept.get("metrics"), Mapping):
        ends = (RECALL, FALSE_ALARMS, "miss_rate", "threshold")
        kept["metrics"] = {
            name: one for name, one in figures.items() if not name.removeprefix("test/").startswith(ends)
        }
    return kept


def with_threshold(folder: Path, threshold: Threshold, *, normal_scores: ArrayLike | None = None) -> None:
    """Give a saved detector another threshold: ``detector.json`` is replaced in one step, with a new digest.

    The tensors are neither read nor written. A description of format 1 becomes one of the present format.

    Args:
        threshold: the new one.
        normal_scores: of the normals that it was taken from, [n] in any order; what is there stays where they are left out.

    Raises:
        InputError: no detector there, its description was changed or is damaged, the threshold or the scores cannot be those of
            a detector, or the folder cannot be written.
    """
    path = folder / DESCRIPTION
    present = read_description(folder)
    changes: dict[str, Any] = {
        "threshold": threshold.to_json(),
        "provenance": _without_threshold(present.provenance),
    }
    if normal_scores is not None:
        changes["normal_scores"] = [float(score) for score in np.sort(np.asarray(normal_scores, dtype=np.float64))]
    try:
        text = present.model_copy(update=changes).to_json()
    except ValueError as error:
        raise InputError(f"{path}: threshold and normal scores must be finite numbers ({error})") from error
    # Read back as a reader would, so that nothing is written which none could load.
    parse_description(text, place=path, kind=Description)
    write_json(path, json.loads(text))
