"""Judging files and leaving what comes of it in a folder: heat maps, sheets of them, a table for spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.errors import InputError, NumericalError
from detectors.files import new_file
from detectors.runtime.overlays import SHEET_COLUMNS, SHEET_ROWS, save_png, sheet
from studies.api.detector import Predictor

COLUMNS = ("image", "score", "verdict", "normals below", "threshold", "heat map", "error")


@dataclass(frozen=True)
class Predictions:
    """What came of several files."""

    rows: list[dict[str, Any]]
    """A row for each file with the keys `COLUMNS`; where a file has no score, ``error`` says why."""
    table: Path
    """``scores.csv``; written where at least one file has a score."""
    sheets: list[Path]
    """Pages of images beside their heat maps, the highest scores first."""

    @property
    def scored(self) -> list[dict[str, Any]]:
        """Rows with a score."""
        return [row for row in self.rows if row["error"] is None]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows without one."""
        return [row for row in self.rows if row["error"] is not None]


def write_predictions(
    predictor: Predictor,
    files: Sequence[Path],
    out: Path,
    *,
    track: Callable[[Sequence[Path]], Iterable[Path]] = lambda files: files,
) -> Predictions:
    """Judge files and write ``<image>.png`` (image beside heat map), ``sheets/`` and ``scores.csv``.

    A file that cannot be read keeps no other from its score. Where none has a score, nothing is written.

    Args:
        track: yields the files as they are, and may show how far it is.

    Raises:
        InputError: the folder cannot be written.
    """
    names = _output_names(files)
    rows = [_judge(predictor, file, out / names[file]) for file in track(files)]
    predictions = Predictions(rows, out / "scores.csv", sheets=[])
    if not predictions.scored:
        return predictions
    _write_table(rows, predictions.table)
    if len(predictions.scored) > 1:
        predictions.sheets.extend(_write_sheets(predictions.scored, out / "sheets"))
    return predictions


def _output_names(files: Sequence[Path]) -> dict[Path, str]:
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


def _judge(predictor: Predictor, file: Path, target: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["image"] = str(file)
    try:
        result = predictor.judge(file)
        drawn = result.image_and_overlay
    except InputError as error:
        return row | {"error": str(error)}
    except NumericalError as error:
        return row | {"error": f"{file}: {error}"}
    save_png(drawn, target)
    return row | {
        "score": result.score,
        "verdict": result.verdict,
        "normals below": None if result.normals_below is None else f"{result.normals_below:.0%}",
        "threshold": result.threshold,
        "heat map": str(target),
    }


def _write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _no_formula(value) for key, value in row.items()})


def _no_formula(value: Any) -> Any:
    """A spreadsheet runs text that starts like a formula; a path means the same with ``./`` before it."""
    return f"./{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_sheets(scored: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Pages of images beside their heat maps, the highest score first; from the files just written, page by page."""
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
