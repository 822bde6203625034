"""Where a person's studies live: databases, features, trials, artifacts, locks."""

from __future__ import annotations

import os
import sqlite3
import uuid
from dataclasses import dataclass
from pathlib import Path

from detectors.errors import InputError
from detectors.files import os_errors_as_input_errors

MVTEC_ROOT = Path("datasets") / "MVTecAD"
"""Where the images of MVTec AD lie if neither the study file nor ``MVTEC_AD_ROOT`` says."""


def mvtec_folder() -> Path:
    """Folder of MVTec AD for studies that name none, absolute."""
    return Path(os.environ.get("MVTEC_AD_ROOT") or MVTEC_ROOT).expanduser().absolute()


@dataclass(frozen=True)
class Home:
    """``STUDY_HOME``, default ``./outputs``; ``STUDY_STORAGE`` and ``MLFLOW_TRACKING_URI`` win over the databases in it."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """The home that the environment names, absolute."""
        return cls(Path(os.environ.get("STUDY_HOME") or "outputs").absolute())

    def prepare(self) -> Home:
        """Make the folder. Raises `InputError` where it cannot be written."""
        with os_errors_as_input_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-test-{uuid.uuid4().hex[:8]}"
            probe.write_bytes(b"x")
            probe.unlink()
        return self

    @property
    def storage_url(self) -> str:
        """Optuna storage."""
        return os.environ.get("STUDY_STORAGE") or f"sqlite:///{self.root / 'studies.db'}"

    @property
    def tracking_uri(self) -> str:
        """MLflow store."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path | None:
        """Where MLflow's artifacts go; None where a server decides."""
        return self.root / "artifacts" if self.tracking_uri.startswith("sqlite:") else None

    @property
    def features(self) -> Path:
        """Feature store."""
        return self.root / "features"

    @property
    def memos(self) -> Path:
        """What trials with the same features share, such as coreset orders."""
        return self.root / "memos"

    @property
    def locks(self) -> Path:
        """Lock files: one per device and study."""
        return self.root / "locks"

    @property
    def heads(self) -> Path:
        """Texts of the files that studies took their detectors from, by sha256; see `detectors.head_files`."""
        return self.root / "heads"

    @property
    def rendered(self) -> Path:
        """Rendered data sets."""
        return self.root / "rendered"

    @property
    def reports(self) -> Path:
        """Reports, one HTML file each."""
        return self.root / "reports"

    @property
    def id_file(self) -> Path:
        """Name of this home in counts of its ledgers, which it keeps where it is moved to; see `studies.search.ledger_count`."""
        return self.root / "home.id"

    def study_folder(self, uid: str) -> Path:
        """Trials and final detectors of one study."""
        return self.root / "trials" / uid

    def ledger(self, uid: str) -> Path:
        """Append-only record of every scoring on `test`; outside the folders that ``study clean`` empties."""
        return self.root / "ledgers" / f"{uid}.jsonl"


def home_at(folder: str | Path | Home | None) -> Home:
    """The home in a folder, absolute; for None the one that the environment names."""
    if isinstance(folder, Home):
        return folder
    return Home.from_environment() if folder is None else Home(Path(folder).expanduser().absolute())


def sqlite_file(url: str) -> Path | None:
    """The file of a ``sqlite:///`` address, None for another database."""
    prefix = "sqlite:///"
    return Path(url.removeprefix(prefix)) if url.startswith(prefix) else None


def prepare_sqlite(url: str) -> None:
    """Put a SQLite database into write-ahead mode: readers do not wait for the writer, and a commit costs one write.

    Raises:
        InputError: the file is not a SQLite database, or cannot be written.
    """
    path = sqlite_file(url)
    if path is None:
        return
    try:
        with os_errors_as_input_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=30)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()
    except sqlite3.Error as error:
        raise InputError(f"{path}: not a usable SQLite database ({error}); move it away or set STUDY_HOME") from error
