"""Reports: studies as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectors.files import write_text
from studies.report.page import render
from studies.search.view import StudyView
from studies.show.mlflow_artifacts import log_artifacts

LONGEST_NAME = 100
"""Letters of a file's name, which holds those of all studies."""


def write_report(views: Sequence[StudyView], path: str | Path | None = None, *, log: bool = False) -> Path:
    """Write one HTML file about studies; with several, a comparison comes first.

    Args:
        path: default ``reports/<names>.html`` in the home.
        log: leave it in MLflow too, with each study; a store that is away costs a warning on stderr.

    Returns:
        The file, absolute.

    Raises:
        InputError: the file cannot be written.
    """
    page = render(views)
    stem = "+".join(view.study.study_name for view in views)[:LONGEST_NAME]
    target = Path(path or views[0].home.reports / f"{stem}.html").absolute()
    write_text(target, page)
    if log:
        log_artifacts(views, lambda folder: write_text(folder / "report" / "report.html", page), what="the report")
    return target
