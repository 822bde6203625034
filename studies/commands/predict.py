"""``study predict``: score, verdict and heat map of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track

if TYPE_CHECKING:
    from detectors.verdicts import Model


def predict(
    model: Annotated[
        str, typer.Argument(help="A study, models:/NAME@alias, the folder of a saved detector, or an exported file.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option(help="Where heat maps go.")] = Path("predictions"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Score pictures with a study's selected detector; writes a heat map beside each."""
    from studies import tables

    files = picture_files(images)
    loaded = _load(model, device)
    console = tables.console(stderr=json_output)
    names = _output_names(files)
    rows = [
        _predict_one(loaded, file, out / names[file])
        for file in track(files, "scoring", console=console, transient=True, disable=not console.is_terminal)
    ]
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    console.print(tables.table(list(rows[0]), [list(row.values()) for row in rows]))
    threshold = loaded.threshold
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


def _load(model: str, device: str) -> Model:
    from detectors.artifact import is_artifact, load_artifact
    from detectors.errors import InputError
    from detectors.exported import is_exported, load_exported
    from studies.commands.open import detector_folder
    from studies.plan import choose_device

    path = Path(model)
    if not is_exported(path) or is_artifact(path):
        return load_artifact(detector_folder(model), device=choose_device(device))
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device}: an exported file runs on the CPU; leave the option out")
    return load_exported(path)


def picture_files(given: list[Path]) -> list[Path]:
    """Pictures, and those of folders, each once. Raises `InputError` where there are none."""
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


def _predict_one(model: Model, file: Path, target: Path) -> dict[str, Any]:
    from detectors.data.images import read_image
    from detectors.pictures import save_png
    from detectors.verdicts import judge, picture_and_heat_map

    rgb = read_image(file)
    (verdict,) = judge(model, [rgb])
    save_png(picture_and_heat_map(model, rgb, verdict), target)
    return {
        "image": str(file),
        "score": verdict.score,
        "verdict": verdict.verdict,
        "normals below": None if verdict.normals_below is None else f"{verdict.normals_below:.0%}",
        "heat map": str(target),
    }
