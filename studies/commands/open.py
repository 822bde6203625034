"""Opening what is there already, for the commands that only read."""

from __future__ import annotations

from optuna.storages import RDBStorage

from detectors.errors import InputError
from studies import storage as studies_storage
from studies.home import Home, sqlite_file
from studies.view import StudyView


def open_home() -> tuple[Home, RDBStorage]:
    """Home and storage. Raises `InputError` where no study was run here; nothing is created by looking."""
    home = Home.from_environment()
    path = sqlite_file(home.storage_url)
    if path is not None and not path.is_file():
        raise InputError(
            f"no studies in {home.root} yet; start one with `study run padim_screw --demo`, or set STUDY_HOME"
        )
    return home, studies_storage.open_storage(home)


def open_view(name: str) -> StudyView:
    """One study. Raises `InputError` where there is none of this name."""
    home, storage = open_home()
    study, header = studies_storage.load_study(storage, name)
    return StudyView(study, header, home)
