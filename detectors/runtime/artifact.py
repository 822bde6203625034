"""A fitted detector on disk: ``detector.json`` + ``detector.safetensors``. Self-contained, no pickle, no network to load.

The folder holds the backbone's weights too, so that a detector scores the same images alike wherever it is loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detectors.backbones.pyramid import WeightsIdentity, check_strides, empty_backbone
from detectors.backbones.weights import BackboneSpec
from detectors.base import SMOOTHING_SIGMA, Detector, Head, Prediction, with_prefix
from detectors.catalog import head_class
from detectors.data.images import RESIZE_RULE, Size, resize_image
from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.files import new_folder, write_json
from detectors.head_files import code_of, find_head
from detectors.head_texts import SHA256, HeadCode
from detectors.scoring.evaluation import Threshold

FORMAT = 1
DESCRIPTION, TENSORS = "detector.json", "detector.safetensors"
MAX_DESCRIPTION_BYTES = 16 * 2**20
Side = Annotated[int, Field(ge=1, le=8192)]
BACKBONE_PREFIX, HEAD_PREFIX = "backbone.", "head."


class _Weights(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    tag: str
    sha256: str
    origin: str


class _Code(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    file: str
    class_name: str
    sha256: str = Field(pattern=SHA256.pattern)


class Description(BaseModel):
    """What a file says of the detector in it; ``detector.json`` holds this alone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    detector: str
    settings: dict[str, bool | int | float | str]
    backbone: str
    strides: list[int] = Field(min_length=1)
    weights: _Weights
    image_size: tuple[Side, Side] = Field(strict=False)
    resize_rule: str
    smoothing_sigma: float = Field(ge=0, le=SMOOTHING_SIGMA.high)
    threshold: dict[str, Any] | None
    normal_scores: list[float]
    provenance: dict[str, Any]
    tensors_sha256: str
    code: _Code | None = None
    """The file that the head came from, where that is no package's; left out of the JSON otherwise."""

    @property
    def head_code(self) -> HeadCode | None:
        """`code` as a plain record."""
        return HeadCode(self.code.file, self.code.class_name, self.code.sha256) if self.code else None

    def to_json(self) -> str:
        """What `parse_description` reads back."""
        return self.model_dump_json(exclude=None if self.code else {"code"})


AnyDescription = TypeVar("AnyDescription", bound=Description)


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
    """All that is known of a detector but its tensors."""
    detector = artifact.detector
    return Description(
        format=FORMAT,
        detector=detector.head.name,
        settings=detector.head.settings,
        backbone=str(detector.backbone.spec),
        strides=list(detector.backbone.strides),
        weights=_Weights(**detector.backbone.identity.to_json()),
        image_size=detector.image_size,
        resize_rule=RESIZE_RULE,
        smoothing_sigma=detector.smoothing_sigma,
        threshold=detector.threshold.to_json() if detector.threshold else None,
        normal_scores=[float(score) for score in np.sort(artifact.normal_scores)],
        provenance=dict(artifact.provenance),
        tensors_sha256=tensors_sha256,
        code=_Code.model_validate(code.to_json()) if (code := code_of(type(detector.head))) else None,
    )


def parse_description(text: str | bytes, *, place: Path, kind: type[AnyDescription]) -> AnyDescription:
    """Read a description. Raises `InputError` that names the place where it is damaged or of a newer version."""
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise InputError(f"{place}: too large to be a detector's description")
    try:
        raw = json.loads(text)
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise InputError(f"{place}: written by a newer version (format {raw['format']}); update anomaly-studies")
        description = kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{place}: damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    if description.resize_rule != RESIZE_RULE:
        raise InputError(
            f"{place}: unknown resize rule {description.resize_rule!r}; this version knows {RESIZE_RULE!r}"
        )
    return description


def save_artifact(artifact: Artifact, folder: Path) -> Path:
    """Write a fitted detector; replaces a former one at the same place in one step.

    Raises:
        InputError: the folder cannot be written or holds other files than a detector's, or the disk is full.
    """
    detector = artifact.detector
    if folder.is_dir() and not is_artifact(folder) and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files, which a detector would replace; choose another folder")
    with new_folder(folder) as temporary:
        _write_tensors(stored_tensors(detector), temporary / TENSORS)
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
    tensors = _read_tensors(folder / TENSORS, description.tensors_sha256)
    spec = BackboneSpec.parse(description.backbone)
    check_strides(description.backbone, description.strides)
    backbone = empty_backbone(spec, description.strides, identity=WeightsIdentity(**description.weights.model_dump()))
    head = _make_head(description, folder)
    detector = Detector(backbone, head, image_size=description.image_size, smoothing_sigma=description.smoothing_sigma)
    try:
        backbone.load_state_dict(with_prefix(tensors, BACKBONE_PREFIX))
        head.import_tensors(with_prefix(tensors, HEAD_PREFIX))
        detector.finish_fit()
        # One black image: parts that contradict each other show here, not at the first image that matters.
        detector(torch.zeros(1, 3, *description.image_size, dtype=torch.uint8))
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
    named |= {f"{HEAD_PREFIX}{name}": value for name, value in detector.head.export_tensors().items()}
    return {name: value.detach().cpu().contiguous() for name, value in named.items()}


def model_size_mb(detector: Detector) -> float:
    """Size of the artifact's tensors, in MB (10^6 bytes)."""
    parts = (*detector.backbone.state_dict().values(), *detector.head.export_tensors().values())
    return sum(value.numel() * value.element_size() for value in parts) / 1e6


def is_artifact(folder: Path) -> bool:
    """Whether a folder looks like a saved detector."""
    return (folder / DESCRIPTION).is_file()


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


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # safetensors reports the operating system's error number in words only.
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


def read_description(folder: Path) -> Description:
    """What a saved detector says of itself. Raises `InputError` where there is none, or it is damaged."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{folder}: no detector here ({DESCRIPTION} is missing)")
    if path.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise InputError(f"{path}: too large to be a detector's description")
    return parse_description(path.read_bytes(), place=path, kind=Description)


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        if file_sha256(path) != sha256:
            raise InputError(f"{path}: changed since the detector was saved (sha256 differs); restore or refit it")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable ({error})") from error
