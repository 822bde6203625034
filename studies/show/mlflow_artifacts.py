"""Adding a command's files to the MLflow runs of studies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from detectors.errors import InputError
from studies.home import sqlite_file
from studies.search.view import StudyView
from tracking.projection import Projection


def log_artifacts(views: Sequence[StudyView], write: Callable[[Path], None], *, what: str) -> None:
    """Add files to the MLflow run of each study. If the store cannot be reached, print a warning and go on.

    Args:
        views: studies of one `Home`.
        write: writes the files into the folder that it receives.
        what: name of the files in the warning, as in "the report".
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
        typer.echo(f"warning: {what} was not stored in MLflow: {' '.join(str(error).split())}", err=True)
