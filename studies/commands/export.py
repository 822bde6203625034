"""``study export``: a detector as one file for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from detectors.runtime.artifact import Artifact
    from detectors.runtime.export import Comparison, Speed

T = TypeVar("T")
IMAGES = 16
"""To compare on."""


def export(
    model: Annotated[str, typer.Argument(help="A study, models:/NAME@alias, or the folder of a saved detector.")],
    format: Annotated[Literal["onnx", "openvino"], typer.Option(help="For ONNX Runtime or OpenVINO.")],
    out: Annotated[
        Path | None, typer.Option(help="The file, or OpenVINO's folder; default MODEL.onnx or MODEL-openvino here.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Images to compare on; default some of the study's test images.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference accepted, as a share of the largest score or map value.", min=0)
    ] = 1e-3,
    force: Annotated[bool, typer.Option("--force", help="Replace a former export at the same place.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Write a detector as one file, from uint8 RGB to score and map; it counts when it scores as the detector does."""
    import torch

    from detectors.runtime.artifact import load_artifact
    from detectors.runtime.export import check_target, export_detector, measure_speed
    from detectors.runtime.latency import DeviceLock
    from studies.home import Home
    from studies.release.locate import detector_folder
    from studies.show import tables

    console = tables.console(stderr=json_output)
    folder = detector_folder(model)
    name = folder.absolute().name if folder == Path(model) else model.replace("/", "-")
    target = out or Path(f"{name}.onnx" if format == "onnx" else f"{name}-openvino")
    check_target(target, format, force=force)
    with console.status("writing and comparing") if console.is_terminal else nullcontext():
        artifact = load_artifact(folder)
        compared, source = _compared_images(model, images, artifact)
        found = export_detector(artifact, target, format, images=compared, tolerance=tolerance, force=force)
        home = Home.from_environment()
        lock = DeviceLock(home.locks, torch.device("cpu")).exclusive() if home.root.is_dir() else nullcontext()
        with lock:
            speed = measure_speed(artifact, target, compared[:1])
    told = _told(target, format, source, found, speed)
    if json_output:
        typer.echo(json.dumps(told, indent=1))
        return
    rows = [
        ("file", told["file"]),
        ("size", f"{told['size_mb']:.1f} MB"),
        ("compared on", f"{found.images} images ({source})"),
        ("largest difference", f"{found.relative:.1e} of the largest value; {tolerance:g} is accepted"),
        ("  of a score", f"{found.score_difference:.2e}"),
        ("  of the map", f"{found.map_difference:.2e}"),
        ("one image, this file", f"{speed.exported_ms:.1f} ms"),
        ("one image, torch", f"{speed.torch_ms:.1f} ms (both the median on {speed.threads} CPU threads)"),
    ]
    console.print(tables.table(("export", format), rows))
    console.print(f"try it: study predict {target} IMAGE...", style="cyan", markup=False)


def _told(target: Path, kind: str, source: str, found: Comparison, speed: Speed) -> dict[str, Any]:
    """For scripts."""
    files = [target] if target.is_file() else list(target.iterdir())
    return {
        "file": str(target),
        "format": kind,
        "size_mb": sum(file.stat().st_size for file in files) / 1e6,
        "images": found.images,
        "source": source,
        "score_difference": found.score_difference,
        "map_difference": found.map_difference,
        "relative_difference": found.relative,
        "latency_ms_p50": {"torch": speed.torch_ms, kind: speed.exported_ms},
        "threads": speed.threads,
    }


def _compared_images(model: str, images: Path | None, artifact: Artifact) -> tuple[Tensor, str]:
    """Up to `IMAGES` images as the detector wants them, uint8 [N, 3, h, w], and where they are from."""
    import torch

    from detectors.data.images import read_image
    from detectors.errors import InputError
    from detectors.runtime.artifact import is_artifact
    from detectors.runtime.export import stand_ins
    from studies.commands.predict import image_files

    if images is not None:
        files = _spread(image_files([images]))
        return torch.cat([artifact.resize(read_image(file)) for file in files]), str(images)
    if not is_artifact(Path(model)):
        try:
            return _test_images(model, artifact), f"test of {model}"
        except InputError:  # moved since, or of another machine: the export is no worse for it
            pass
    return stand_ins(IMAGES, artifact.detector.image_size), "drawn; --images takes real ones"


def _test_images(model: str, artifact: Artifact) -> Tensor:
    """Some of the study's test images. Raises `InputError` where they cannot be read."""
    from dataclasses import replace

    from studies.file import datasets
    from studies.release.locate import open_view

    study, _, product = model.partition("/")
    view = open_view(study)
    parts = datasets.load(view.config, view.home).parts
    test = next(part.splits.test for part in parts if product in ("", part.category))
    return replace(test, image_size=artifact.detector.image_size).images(_spread(range(len(test))))


def _spread(items: Sequence[T]) -> list[T]:
    """At most `IMAGES` of them, from all over."""
    count = min(IMAGES, len(items))
    return [items[index * len(items) // count] for index in range(count)]
