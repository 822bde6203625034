"""``study compare``: studies side by side, and what others published beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detectors.errors import InputError
from studies import api
from studies.show import tables

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
    wanted = _wanted(shape, json_output=json_output, out=out)
    compared = api.compare(*api.distinct_studies(names))
    if wanted == "table":
        console = tables.console()
        for part in compared.terminal_parts():
            console.print(part)
    elif out is not None:
        compared.save(out, wanted)
    elif wanted != "png":
        typer.echo(compared.to_text(wanted), nl=False)
    if wanted == "csv" or out is not None:
        for line in compared.remarks:
            typer.echo(f"warning: {line}", err=True)
    if log:
        compared.log()


def _wanted(shape: Shape | None, *, json_output: bool, out: Path | None) -> Shape | Literal["png"]:
    """What is to be written. Raises `InputError` where the options contradict each other."""
    if json_output:
        if shape not in (None, "json"):
            raise InputError(f"--json and --format {shape} contradict each other; give one of them")
        return "json"
    if out is None:
        return shape or "table"
    if shape == "table":
        raise InputError("a table is for the terminal; give --out with --format markdown, csv or json")
    return shape or api.format_of(out)
