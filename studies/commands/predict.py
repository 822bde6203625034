"""``study predict``: score, verdict and heat map of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track

if TYPE_CHECKING:
    import torch

    from detectors.artifact import Artifact


def predict(
    model: Annotated[str, typer.Argument(help="A study, or the folder of a saved detector.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option(help="Where heat maps go.")] = Path("predictions"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Score pictures with a study's selected detector; writes a heat map beside each."""
    from detectors.artifact import load_artifact
    from studies import tables
    from studies.plan import choose_device

    files = _files(images)
    chosen = choose_device(device)
    artifact = load_artifact(_folder(model), device=chosen)
    console = tables.console(stderr=json_output)
    names = _output_names(files)
    rows = [
        _predict_one(artifact, file, out / names[file], chosen)
        for file in track(files, "scoring", console=console, transient=True, disable=not console.is_terminal)
    ]
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    console.print(tables.table(list(rows[0]), [list(row.values()) for row in rows]))
    threshold = artifact.detector.threshold
    if threshold is None:
        console.print(
            "no threshold: the detector's protocol holds out no normals, so there is no verdict", style="yellow"
        )
    else:
        expected = f", about {threshold.expected_rate:.1%} to expect on new ones" if threshold.expected_rate else ""
        rule = f"at most {threshold.rate:.1%} false alarms" if threshold.rate is not None else "the best F1"
        console.print(
            f"threshold {threshold.value:.4g}: {rule} on {threshold.normals} good pictures of {threshold.source}{expected}",
            style="dim",
        )


def _folder(model: str) -> Path:
    from detectors.artifact import is_artifact
    from detectors.errors import InputError
    from studies.commands.open import open_view

    if is_artifact(Path(model)):
        return Path(model)
    if Path(model).is_dir():
        raise InputError(f"{model}: no detector in this folder (detector.json is missing)")
    study, _, product = model.partition("/")
    selected = open_view(study).selected()
    if selected is None or not selected.detectors:
        raise InputError(f"study {study!r} has no saved detector yet; run it to its end first")
    if product not in selected.detectors:
        known = ", ".join(f"{study}/{name}" if name else study for name in selected.detectors)
        raise InputError(f"{model!r} is no detector; there are: {known}")
    return selected.detectors[product]


def _files(given: list[Path]) -> list[Path]:
    from detectors.data.images import is_image
    from detectors.errors import InputError

    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
            if not found:
                raise InputError(f"{path}: no pictures in this folder")
            files += found
        elif not path.exists():
            raise InputError(f"{path}: no such file")
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _output_names(files: list[Path]) -> dict[Path, str]:
    """A picture's name; pictures of the same name in several folders get a number."""
    taken: dict[str, int] = {}
    names = {}
    for file in files:
        count = taken[file.stem] = taken.get(file.stem, 0) + 1
        names[file] = f"{file.stem}.png" if count == 1 else f"{file.stem}-{count}.png"
    return names


def _predict_one(artifact: Artifact, file: Path, target: Path, device: torch.device) -> dict[str, Any]:
    import numpy as np

    from detectors.data.images import read_image
    from detectors.pictures import overlay, save_png, side_by_side

    rgb = read_image(file)
    prediction = artifact.detector(artifact.resize(rgb).to(device))
    score = float(prediction.scores[0])
    anomaly_map = prediction.maps[0].cpu().numpy()
    threshold = artifact.detector.threshold
    normals = artifact.normal_scores
    # Colours start where normals end, so that a good part looks like its photograph.
    high = float(threshold.value) if threshold else float(anomaly_map.max())
    low = float(np.median(normals)) * 0.5 if len(normals) else 0.0
    save_png(side_by_side(rgb, overlay(rgb, anomaly_map, low=low, high=1.5 * high - 0.5 * low)), target)
    return {
        "image": str(file),
        "score": score,
        "verdict": None if threshold is None else ("defective" if score >= threshold.value else "good"),
        "normals below": f"{np.searchsorted(normals, score) / len(normals):.0%}" if len(normals) else None,
        "heat map": str(target),
    }
