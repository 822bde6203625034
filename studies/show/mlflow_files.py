"""Leaving files with studies in MLflow, for the commands whose work is done without it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from detectors.errors import InputError
from studies.home import sqlite_file
from studies.search.view import StudyView
from tracking.projection import Projection


def leave_in_mlflow(views: Sequence[StudyView], write: Callable[[Path], None], *, what: str) -> None:
    """Add the files that `write` puts into a folder to each study's run. A store that is away costs a warning, nothing else.

    Args:
        what: names the files in that warning.
    """
    home = views[0].home
    try:
        local = sqlite_file(home.tracking_uri)
        if local is not None and not local.is_file():
            raise InputError(f"there is no MLflow store at {local}")
        projection = Projection(home.tracking_uri, artifact_root=home.mlflow_artifacts, lock_folder=home.locks)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            for view in views:
                projection.add_files(experiment=view.header.experiment, uid=view.header.uid, folder=Path(folder))
    except (InputError, OSError) as error:
        typer.echo(f"warning: {what} was not left in MLflow: {' '.join(str(error).split())}", err=True)
