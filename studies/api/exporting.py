"""A detector as one file for ONNX Runtime or OpenVINO, compared with the one it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from detectors.data.images import read_image
from detectors.errors import InputError
from detectors.runtime.artifact import Artifact, is_artifact, load_artifact
from detectors.runtime.export import Comparison, Speed, check_target, export_detector, measure_speed, stand_ins
from detectors.runtime.latency import DeviceLock
from studies.api.detector import image_files
from studies.file import datasets
from studies.home import Home, home_at
from studies.release.locate import detector_folder, open_view
from studies.search.usable_words import provisional_remark

T = TypeVar("T")
IMAGES = 16
"""To compare on."""


@dataclass(frozen=True)
class Export:
    """An exported file, and how close it is to its detector."""

    file: Path
    """``.onnx``, or OpenVINO's folder."""
    format: Literal["onnx", "openvino"]
    source: str
    """Which images the two were compared on."""
    compared: Comparison
    speed: Speed

    @property
    def size_mb(self) -> float:
        """Size on disk, in MB (10^6 bytes)."""
        files = [self.file] if self.file.is_file() else list(self.file.iterdir())
        return sum(file.stat().st_size for file in files) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; differences without unit, times in milliseconds."""
        return {
            "file": str(self.file),
            "format": self.format,
            "size_mb": self.size_mb,
            "pictures": self.compared.images,  # scripts know it by this name
            "source": self.source,
            "score_difference": self.compared.score_difference,
            "map_difference": self.compared.map_difference,
            "relative_difference": self.compared.relative,
            "latency_ms_p50": {"torch": self.speed.torch_ms, self.format: self.speed.exported_ms},
            "threads": self.speed.threads,
        }


def export_model(
    model: str | Path,
    format: Literal["onnx", "openvino"],
    out: str | Path | None = None,
    *,
    images: str | Path | None = None,
    tolerance: float = 1e-3,
    force: bool = False,
    home: str | Path | None = None,
) -> Export:
    """Write a detector as one file, from uint8 RGB to score and map; it counts when it scores as the detector does.

    Args:
        model: a study, ``models:/NAME@alias``, or the folder of a saved detector.
        format: for ONNX Runtime or OpenVINO; ``pip install 'anomaly-studies[export]'`` brings both.
        out: the file, or OpenVINO's folder; default ``MODEL.onnx`` or ``MODEL-openvino`` in the working folder.
        images: an image or a folder to compare on; default some of the study's test images.
        tolerance: largest difference accepted, as a share of the largest score or map value.
        force: replace a former export at the same place.

    Raises:
        InputError: no such detector, a place that is taken, a library that is not installed, or a larger difference.

    >>> import studies
    >>> studies.export_model("nothing", "onnx")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    detectors.errors.InputError: no study 'nothing' was run here; ...
    """
    if format not in ("onnx", "openvino"):
        raise InputError(f"format {format!r}: give 'onnx' or 'openvino'")
    model, place = str(model), home_at(home)
    folder = detector_folder(model, place)
    name = folder.absolute().name if folder == Path(model) else model.replace("/", "-")
    target = Path(out or (f"{name}.onnx" if format == "onnx" else f"{name}-openvino"))
    check_target(target, format, force=force)
    artifact = load_artifact(folder)
    if remark := provisional_remark(artifact.provenance):
        raise InputError(f"{model}: only a detector of a refit is exported. It is {remark}")
    compared, source = _compared_images(model, images, artifact, place)
    comparison = export_detector(artifact, target, format, images=compared, tolerance=tolerance, force=force)
    lock = DeviceLock(place.locks, torch.device("cpu")).exclusive() if place.root.is_dir() else nullcontext()
    with lock:
        speed = measure_speed(artifact, target, compared[:1])
    return Export(target, format, source, comparison, speed)


def _compared_images(model: str, images: str | Path | None, artifact: Artifact, home: Home) -> tuple[Tensor, str]:
    """Up to `IMAGES` images as the detector wants them, uint8 [N, 3, h, w], and where they are from."""
    if images is not None:
        files = _spread(image_files([Path(images)]))
        return torch.cat([artifact.resize(read_image(file)) for file in files]), str(images)
    if not is_artifact(Path(model)):
        try:
            return _test_images(model, artifact, home), f"test of {model}"
        except InputError:  # moved since, or of another machine: the export is no worse for it
            pass
    return stand_ins(IMAGES, artifact.detector.image_size), "drawn; --images takes real ones"


def _test_images(model: str, artifact: Artifact, home: Home) -> Tensor:
    """Some of the study's test images. Raises `InputError` where they cannot be read."""
    study, _, product = model.partition("/")
    view = open_view(study, home)
    parts = datasets.load(view.config, view.home).parts
    test = next(part.splits.test for part in parts if product in ("", part.category))
    return replace(test, image_size=artifact.detector.image_size).images(_spread(range(len(test))))


def _spread(items: Sequence[T]) -> list[T]:
    """At most `IMAGES` of them, from all over."""
    count = min(IMAGES, len(items))
    return [items[index * len(items) // count] for index in range(count)]
