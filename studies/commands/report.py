"""``study report``: a study, or several, as one HTML file."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

LONGEST_NAME = 100
"""Letters of a file's name, which holds those of all studies."""


def report(
    names: Annotated[list[str], typer.Argument(help="Studies; with several, a comparison comes first.")],
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the web browser.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file; default STUDY_HOME/reports/NAME.html.")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Store the report in MLflow with each study.")] = True,
) -> None:
    """What was found, how sure it is, where it fails and what it costs: one HTML file that needs no network."""
    from detectors.files import write_text
    from studies.release.locate import open_home
    from studies.report.page import render
    from studies.search.storage import load_study
    from studies.search.view import StudyView
    from studies.show.mlflow_artifacts import log_artifacts

    home, storage = open_home()
    views = [StudyView(*load_study(storage, name), home) for name in dict.fromkeys(names)]
    # NAME and NAME#2 may be one study.
    views = list({view.header.uid: view for view in views}.values())
    page = render(views)
    stem = "+".join(view.study.study_name for view in views)[:LONGEST_NAME]
    path = (out or home.reports / f"{stem}.html").absolute()
    write_text(path, page)
    typer.echo(str(path))
    if log:
        log_artifacts(views, lambda folder: write_text(folder / "report" / "report.html", page), what="the report")
    if open_it and not webbrowser.open(path.as_uri()):
        typer.echo("warning: no web browser could be started here; open the file yourself", err=True)
