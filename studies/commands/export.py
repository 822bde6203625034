"""``study export``: a detector as one file for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from studies import api
from studies.show import tables


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
    console = tables.console(stderr=json_output)
    with console.status("writing and comparing") if console.is_terminal else nullcontext():
        result = api.export_model(model, format, out, images=images, tolerance=tolerance, force=force)
    if json_output:
        typer.echo(json.dumps(result.to_dict(), indent=1))
        return
    rows = [
        ("file", str(result.file)),
        ("size", f"{result.size_mb:.1f} MB"),
        ("compared on", f"{result.compared.images} images ({result.source})"),
        ("largest difference", f"{result.compared.relative:.1e} of the largest value; {tolerance:g} is accepted"),
        ("  of a score", f"{result.compared.score_difference:.2e}"),
        ("  of the map", f"{result.compared.map_difference:.2e}"),
        ("one image, this file", f"{result.speed.exported_ms:.1f} ms"),
        ("one image, torch", f"{result.speed.torch_ms:.1f} ms (both the median on {result.speed.threads} CPU threads)"),
    ]
    console.print(tables.table(("export", format), rows))
    console.print(f"try it: study predict {result.file} IMAGE...", style="cyan", markup=False)
