"""Opening what is there already, for the commands that only read."""

from __future__ import annotations

from pathlib import Path

from detectors.errors import InputError
from detectors.head_files import look_in
from detectors.runtime.artifact import is_artifact
from studies.home import Home, sqlite_file
from studies.search import storage as studies_storage
from studies.search.patient_storage import PatientStorage
from studies.search.view import StudyView


def open_home() -> tuple[Home, PatientStorage]:
    """Home and storage. Raises `InputError` where no study was run here; nothing is created by looking."""
    home = Home.from_environment()
    look_in(home.heads)
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


REGISTERED = "models:/"


def registered(model: str) -> tuple[str, str]:
    """Name and alias, or version, of ``models:/NAME@alias`` or ``models:/NAME/3``. Raises `InputError` for anything else."""
    rest = model.removeprefix(REGISTERED)
    name, _, alias = rest.rpartition("@" if "@" in rest else "/")
    if not name or not alias:
        raise InputError(f"{model}: give models:/NAME@champion or models:/NAME/3")
    return name, alias


def detector_folder(model: str) -> Path:
    """Folder of a detector given as such, as a study, as ``STUDY/product``, or as ``models:/NAME@alias``.

    Raises:
        InputError: there is none.
    """
    look_in(Home.from_environment().heads)
    if model.startswith(REGISTERED):
        from studies.release.promotion import open_registry

        registry = open_registry(Home.from_environment())
        return registry.fetch(registry.version(*registered(model)))
    if is_artifact(Path(model)):
        return Path(model)
    if Path(model).is_dir():
        raise InputError(f"{model}: no detector in this folder (detector.json is missing)")
    study, _, product = model.partition("/")
    selected = open_view(study).selected()
    if selected is None or not selected.detectors:
        raise InputError(f"study {study!r} has no saved detector yet; run it to its end first")
    if product not in selected.detectors:
        known = ", ".join(f"{study}/{name}" if name else study for name in selected.detectors)
        raise InputError(f"{model!r} is no detector; there are: {known}")
    return selected.detectors[product]
