"""``study compare``: studies side by side, and what others published beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

Shape = Literal["table", "markdown", "csv", "json"]
"""How a comparison is written."""


def compare(
    names: Annotated[list[str], typer.Argument(help="Studies; one alone stands beside the published figures.")],
    shape: Annotated[
        Shape | None,
        typer.Option("--format", help="Default: table, or what the name of --out ends in (.md, .csv, .json, .png)."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Store the comparison in MLflow with each study.")] = True,
) -> None:
    """Accuracy, training time, speed and size of several studies, and the papers' figures, in one table."""
    from studies.release.locate import open_home
    from studies.search.storage import load_study
    from studies.search.view import StudyView
    from studies.show import comparison, comparison_files, tables
    from studies.show.mlflow_artifacts import log_artifacts

    wanted = _wanted(shape, json_output=json_output, out=out)
    home, storage = open_home()
    views = [StudyView(*load_study(storage, name), home) for name in dict.fromkeys(names)]
    # NAME and NAME#2 may be one study.
    views = list({view.header.uid: view for view in views}.values())
    compared = comparison.compare(views)
    if wanted == "table":
        console = tables.console()
        for part in comparison_files.terminal_parts(compared):
            console.print(part)
    else:
        if wanted == "png":
            comparison_files.save_plot(compared, Path(out or ""))
        else:
            _write(comparison_files.WRITERS[wanted](compared), out)
        if wanted in ("csv", "png") or out is not None:
            for line in compared.remarks:
                typer.echo(f"warning: {line}", err=True)
    if log:
        log_artifacts(views, partial(comparison_files.write_files, compared), what="the comparison")


def _wanted(shape: Shape | None, *, json_output: bool, out: Path | None) -> Shape | Literal["png"]:
    """What is to be written. Raises `InputError` where the options contradict each other."""
    from detectors.errors import InputError
    from studies.show.comparison_files import SUFFIXES

    if json_output:
        if shape not in (None, "json"):
            raise InputError(f"--json and --format {shape} contradict each other; give one of them")
        return "json"
    if out is None:
        return shape or "table"
    if shape == "table":
        raise InputError("a table is for the terminal; give --out with --format markdown, csv or json")
    if shape is not None:
        return shape
    suffix = out.suffix.lower()
    if suffix == ".png":
        return "png"
    if suffix not in SUFFIXES:
        raise InputError(f"{out}: its name says no format; end it in {', '.join(SUFFIXES)} or .png, or give --format")
    return SUFFIXES[suffix]


def _write(text: str, out: Path | None) -> None:
    from detectors.files import write_text

    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
