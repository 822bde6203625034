"""``study predict``: score, verdict and heat map of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track

if TYPE_CHECKING:
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
        _predict_one(artifact, file, out / names[file])
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


def _predict_one(artifact: Artifact, file: Path, target: Path) -> dict[str, Any]:
    from detectors.data.images import read_image
    from detectors.pictures import save_png
    from detectors.verdicts import judge, picture_and_heat_map

    rgb = read_image(file)
    (verdict,) = judge(artifact, [rgb])
    save_png(picture_and_heat_map(artifact, rgb, verdict), target)
    return {
        "image": str(file),
        "score": verdict.score,
        "verdict": verdict.verdict,
        "normals below": None if verdict.normals_below is None else f"{verdict.normals_below:.0%}",
        "heat map": str(target),
    }
