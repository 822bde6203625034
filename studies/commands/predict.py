"""``study predict``: score, verdict and heat map of images; sheets to look at, a CSV for spreadsheets."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from detectors.runtime.verdicts import Model

SHOWN = 20
"""Images in the table; of more, those with the highest scores."""
NAMED = 10
"""Images without a score that are named; the CSV names all."""
COLUMNS = ("image", "score", "verdict", "normals below", "threshold", "heat map", "error")


def predict(
    model: Annotated[
        str, typer.Argument(help="A study, models:/NAME@alias, the folder of a saved detector, or an exported file.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Where heat maps, sheets/ and scores.csv go.")] = Path("predictions"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Score images with a study's selected detector; writes heat maps, sheets of them, and scores.csv.

    An image that cannot be read keeps no other from its score: it is named at the end, and the exit code is 2.
    """
    from detectors.errors import InputError
    from studies.show import tables

    files = image_files(images)
    loaded = _load(model, device)
    console = tables.console(stderr=json_output)
    names = _output_names(files)
    rows = [
        _predict_one(loaded, file, out / names[file])
        for file in track(files, "scoring", console=console, transient=True, disable=not console.is_terminal)
    ]
    scored = [row for row in rows if row["error"] is None]
    failed = [row for row in rows if row["error"] is not None]
    if scored:
        _write_csv(rows, out / "scores.csv")
        sheets = _write_sheets(scored, out / "sheets") if len(scored) > 1 else []
        if json_output:
            typer.echo(json.dumps(rows, indent=1))
        else:
            for part in _told(scored, loaded, out, sheets):
                console.print(part)
    if len(failed) == 1:
        raise InputError(failed[0]["error"])
    if failed:
        _name(failed, tables.console(stderr=True))
        where = f"the others, and why these could not, are in {out / 'scores.csv'}" if scored else "nothing was written"
        raise InputError(f"{len(failed)} of {len(rows)} images could not be scored; {where}")


def _told(scored: list[dict[str, Any]], model: Model, out: Path, sheets: list[Path]) -> Iterator[RenderableType]:
    """What a person sees of the results."""
    from rich.text import Text

    from studies.show import tables

    columns = [column for column in COLUMNS if column not in ("threshold", "error")]
    by_score = sorted(scored, key=lambda row: -row["score"])
    shown = scored if len(scored) <= SHOWN else by_score[: SHOWN // 2]
    title = None if shown is scored else f"the {len(shown)} highest scores of {len(scored)} images"
    yield tables.table(columns, [[row[column] for column in columns] for row in shown], title=title)
    counts = Counter(row["verdict"] for row in scored)
    if len(scored) > 1 and model.threshold is not None:
        yield Text(f"{counts['defective']} defective, {counts['good']} good", style="bold")
    threshold = model.threshold
    if threshold is None:
        yield Text("no threshold: the detector's protocol holds out no normals, so there is no verdict", style="yellow")
    else:
        expected, largest = threshold.expected_rate, threshold.largest_rate
        new = (
            f"; on new ones expect {expected:.0%}, at most {largest:.0%} (95 % confidence)"
            if expected and largest
            else ""
        )
        rule = f"at most {threshold.rate:.1%} false alarms" if threshold.rate is not None else "the best F1"
        yield Text(
            f"threshold {threshold.value:.4g}: {rule} on {threshold.normals} good images of {threshold.source}{new}",
            style="dim",
        )
    yield Text(f"all scores: {out / 'scores.csv'}", style="dim")
    if sheets:
        more = f" to {sheets[-1].name}" if len(sheets) > 1 else ""
        yield Text(f"side by side, the highest scores first: {sheets[0]}{more}", style="dim")


def _name(failed: list[dict[str, Any]], console: Console) -> None:
    """A line for each image without a score, up to a limit."""
    for row in failed[:NAMED]:
        console.print(row["error"], style="red", markup=False, highlight=False, soft_wrap=True)
    if len(failed) > NAMED:
        console.print(f"... and {len(failed) - NAMED} more", style="red")


def _load(model: str, device: str) -> Model:
    from detectors.errors import InputError
    from detectors.runtime.artifact import is_artifact, load_artifact
    from detectors.runtime.devices import choose_device
    from detectors.runtime.exported import is_exported, load_exported
    from studies.release.locate import detector_folder

    path = Path(model)
    if not is_exported(path) or is_artifact(path):
        return load_artifact(detector_folder(model), device=choose_device(device))
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device}: an exported file runs on the CPU; leave the option out")
    return load_exported(path)


def image_files(given: list[Path]) -> list[Path]:
    """Images, and those of folders, each once. Raises `InputError` where there are none."""
    from detectors.data.images import is_image
    from detectors.errors import InputError

    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
            if not found:
                raise InputError(f"{path}: no images in this folder")
            files += found
        elif not path.exists():
            raise InputError(f"{path}: no such file")
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _output_names(files: list[Path]) -> dict[Path, str]:
    """An image's name; images of the same name in several folders get a number."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, count = f"{file.stem}.png", 1
        while name.casefold() in taken:
            count += 1
            name = f"{file.stem}-{count}.png"
        taken.add(name.casefold())
        names[file] = name
    return names


def _predict_one(model: Model, file: Path, target: Path) -> dict[str, Any]:
    """Of `COLUMNS`; an image that has no score has an error."""
    from detectors.data.images import read_image
    from detectors.errors import InputError, NumericalError
    from detectors.runtime.overlays import save_png
    from detectors.runtime.verdicts import image_and_heat_map, judge

    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["image"] = str(file)
    try:
        rgb = read_image(file)
        (verdict,) = judge(model, [rgb])
    except InputError as error:
        return row | {"error": str(error)}
    except NumericalError as error:
        return row | {"error": f"{file}: {error}"}
    save_png(image_and_heat_map(model, rgb, verdict), target)
    return row | {
        "score": verdict.score,
        "verdict": verdict.verdict,
        "normals below": None if verdict.normals_below is None else f"{verdict.normals_below:.0%}",
        "threshold": verdict.threshold,
        "heat map": str(target),
    }


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    from detectors.files import new_file

    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _no_formula(value) for key, value in row.items()})


def _no_formula(value: Any) -> Any:
    """A spreadsheet runs text that starts like a formula; a path means the same with ``./`` before it."""
    return f"./{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_sheets(scored: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Pages of images beside their heat maps, the highest score first; from the files just written, page by page."""
    from detectors.runtime.overlays import SHEET_COLUMNS, SHEET_ROWS, save_png, sheet

    ordered = sorted(scored, key=lambda row: -row["score"])
    size = SHEET_COLUMNS * SHEET_ROWS
    written = []
    for number, start in enumerate(range(0, len(ordered), size), 1):
        rows = ordered[start : start + size]
        captions = [(row["image"], " · ".join(filter(None, (f"{row['score']:.4g}", row["verdict"])))) for row in rows]
        page = sheet([Path(row["heat map"]) for row in rows], captions)
        written.append(save_png(page, folder / f"{number:03d}.png"))
    for old in folder.glob("[0-9][0-9][0-9].png"):
        if old not in written:  # of a longer list, scored earlier
            with suppress(OSError):
                old.unlink()
    return written
