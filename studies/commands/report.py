"""``study report``: a study, or several, as one HTML file."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from studies import api


def report(
    names: Annotated[list[str], typer.Argument(help="Studies; with several, a comparison comes first.")],
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the web browser.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file; default STUDY_HOME/reports/NAME.html.")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Store the report in MLflow with each study.")] = True,
) -> None:
    """What was found, how sure it is, where it fails and what it costs: one HTML file that needs no network."""
    path = api.write_report([study.view for study in api.distinct_studies(names)], out, log=log)
    typer.echo(str(path))
    if open_it and not webbrowser.open(path.as_uri()):
        typer.echo("warning: no web browser could be started here; open the file yourself", err=True)
