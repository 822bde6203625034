"""Opening what is there already, for the commands that only read."""

from __future__ import annotations

from pathlib import Path

from detectors.errors import InputError
from detectors.head_texts import look_in
from detectors.runtime.artifact import is_artifact
from studies.file import own_images
from studies.home import Home, sqlite_file
from studies.search import storage as studies_storage
from studies.search.patient_storage import PatientStorage
from studies.search.view import StudyView, TrialView


def open_home(home: Home | None = None) -> tuple[Home, PatientStorage]:
    """Home and storage. Raises `InputError` where no study was run here; nothing is created by looking.

    Args:
        home: default the one that the environment names.
    """
    home = home or Home.from_environment()
    look_in(home.heads)
    path = sqlite_file(home.storage_url)
    if path is not None and not path.is_file():
        raise InputError(f"no studies in {home.root} yet; start one with `study run --demo`, or set STUDY_HOME")
    return home, studies_storage.open_storage(home)


def open_view(name: str, home: Home | None = None) -> StudyView:
    """One study. Raises `InputError` where there is none of this name."""
    home, storage = open_home(home)
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


def detector_folder(model: str, home: Home | None = None) -> Path:
    """Folder of a detector given as such, as a study, as ``STUDY/product``, or as ``models:/NAME@alias``.

    Raises:
        InputError: there is none.
    """
    look_in((home or Home.from_environment()).heads)
    if model.startswith(REGISTERED):
        # MLflow takes a second to import, and most detectors lie in a folder.
        from studies.release.promotion import open_registry

        registry = open_registry(home or Home.from_environment())
        return registry.fetch(registry.version(*registered(model)))
    if is_artifact(Path(model)):
        return Path(model)
    study, _, product = model.partition("/")
    if Path(model).is_dir():
        study, product = _study_of_folder(Path(model), home), ""
    return usable_detector(open_view(study, home), study, product)


def _study_of_folder(folder: Path, home: Home | None) -> str:
    """The study on the images of a folder, which bears the folder's name. Raises `InputError` where there is none."""
    known = studies_storage.stored_names(home or Home.from_environment())
    name = own_images.study_name(folder)
    if name not in known:
        raise InputError(
            f"{folder}: no detector in this folder (detector.json is missing), and no study of its images here"
        )
    return name


def usable_detector(view: StudyView, study: str, product: str) -> Path:
    """Folder of the detector of a study that there is to use now, provisional while the search goes on.

    Raises:
        InputError: there is none; the message names those there are.
    """
    return saved_detector(view.usable(), study, product)


def saved_detector(trial: TrialView | None, study: str, product: str) -> Path:
    """Folder of a trial's detector for a product. Raises `InputError` where there is none, naming those there are."""
    if trial is None or not trial.detectors:
        raise InputError(f"study {study!r} has no saved detector yet; run it to its end first: `study run {study}`")
    if product not in trial.detectors:
        known = ", ".join(f"{study}/{name}" if name else study for name in trial.detectors)
        model = f"{study}/{product}" if product else study
        raise InputError(f"{model!r} is no detector; there are: {known}")
    return trial.detectors[product]
