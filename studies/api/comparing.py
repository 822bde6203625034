"""Studies side by side, and what others published beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import RenderableType

from detectors.errors import InputError
from detectors.files import write_text
from studies.api import html
from studies.api.study import Study, open_study
from studies.show import comparison, comparison_files, comparison_table
from studies.show.mlflow_artifacts import log_artifacts

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["markdown", "csv", "json"]


class StudyComparison:
    """Studies side by side. Made by `compare`."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self._views = [study.view for study in studies]
        self._compared = comparison.compare(self._views)

    @property
    def data(self) -> comparison.Comparison:
        """All of it, with fields for everything."""
        return self._compared

    @property
    def table(self) -> pd.DataFrame:
        """A row for each study: ``image_auroc`` on test (0 to 1) with its interval, ``fps``, ``model_size_mb``, ``params`` ..."""
        # Only a notebook asks for it, and no command waits for it.
        import pandas as pd

        return pd.DataFrame([row.model_dump() for row in self._compared.rows]).set_index("study")

    @property
    def published(self) -> pd.DataFrame:
        """A row for each figure that others published on the same data, whether or not it is comparable."""
        # As above.
        import pandas as pd

        return pd.DataFrame([row.model_dump() for row in self._compared.published])

    @property
    def remarks(self) -> list[str]:
        """What stands between these figures and a fair comparison."""
        return list(self._compared.remarks)

    def terminal_parts(self) -> Iterator[RenderableType]:
        """What ``study compare`` prints."""
        return comparison_files.terminal_parts(self._compared)

    def to_text(self, format: Format) -> str:
        """The comparison as Markdown, CSV or JSON."""
        return comparison_files.WRITERS[format](self._compared)

    def save(self, path: str | Path, format: Format | Literal["png"] | None = None) -> Path:
        """Write a file.

        Args:
            format: default what the name ends in: ``.md``, ``.csv``, ``.json`` or ``.png``.

        Raises:
            InputError: the name says no format, nothing can be drawn yet, or the file cannot be written.
        """
        target = Path(path)
        format = format or format_of(target)
        if format == "png":
            comparison_files.save_plot(self._compared, target)
        else:
            write_text(target, self.to_text(format))
        return target

    def log(self) -> None:
        """Leave it in MLflow, with each of the studies; a store that is away costs a warning on stderr."""
        log_artifacts(self._views, partial(comparison_files.write_files, self._compared), what="the comparison")

    def __repr__(self) -> str:
        return f"<StudyComparison of {', '.join(dict.fromkeys(row.study for row in self._compared.rows))}>"

    def _repr_html_(self) -> str:
        columns = comparison_table.row_columns(self._compared)
        rows: list[list[Any]] = [[value(row) for _, value in columns] for row in self._compared.rows]
        remarks = "".join(f"<p>{html.text(line)}</p>" for line in self._compared.remarks)
        return html.table([name for name, _ in columns], rows) + remarks


def compare(*studies: Study | str, home: str | Path | None = None) -> StudyComparison:
    """Put studies side by side.

    Args:
        studies: names or studies; one alone stands beside the published figures.
        home: where those given by name are kept; default ``STUDY_HOME`` or ``./outputs``.

    Raises:
        InputError: one of them is not there, or has no finished trial that meets its constraints.

    >>> import studies
    >>> compared = studies.compare("tiny")
    >>> list(compared.table.index)
    ['tiny']
    >>> compared.to_text("markdown").splitlines()[0]
    '# Comparison on tiny/widget'
    """
    if not studies:
        raise InputError("give at least one study to compare")
    for study in studies:
        if not isinstance(study, Study | str):
            raise InputError(f"{study!r} is neither a study nor the name of one; give each as an argument of its own")
    opened = [study if isinstance(study, Study) else open_study(study, home=home) for study in studies]
    # NAME and NAME#2 may be one study.
    return StudyComparison(list({study.view.header.uid: study for study in opened}.values()))


def format_of(path: Path) -> Format | Literal["png"]:
    """What a file's name ends in. Raises `InputError` where that says no format."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        return "png"
    if suffix not in comparison_files.SUFFIXES:
        known = ", ".join(comparison_files.SUFFIXES)
        raise InputError(f"{path}: its name says no format; end it in {known} or .png, or give --format")
    return comparison_files.SUFFIXES[suffix]
