"""What a study needs, looked at one by one.

The looks import what they look at themselves: where a library is missing or broken, its look says so and the others go on.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from detectors.errors import InputError
from studies.home import Home, sqlite_file
from tracking.addresses import without_password

Status = Literal["ok", "warn", "fail"]
PACKAGES = (
    "anomaly-studies", "torch", "torchvision", "timm", "optuna", "mlflow", "numpy", "scipy", "scikit-learn",
    "faiss-cpu", "FrEIA", "pytorch-lightning", "pillow", "safetensors", "sqlalchemy", "pydantic",
)  # fmt: skip
LOW_DISK_BYTES, LOW_MEMORY_BYTES = 5 * 10**9, 4 * 10**9
FULL_DISK_BYTES = 10**8
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p")
"""SQLite's locks do not hold on these."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    hint: str = ""
    """What to do about it; empty where all is well."""


def check_all(home: Home) -> list[Check]:
    """Every look's checks, in their order; nothing is raised."""
    return [check for name, look in CHECKS.items() for check in make_checks(name, look, home)]


def make_checks(name: str, look: Callable[[Home], Iterator[Check]], home: Home) -> list[Check]:
    """The checks of one look; whatever goes wrong in it is a finding, and the others are still made."""
    try:
        return list(look(home))
    except InputError as error:
        return [Check(name, "fail", str(error))]
    except Exception as error:
        text = " ".join(str(error).split())
        return [Check(name, "fail", f"{type(error).__name__}: {text}", f"reinstall what {name} needs, or report this")]


# --- the machine ------------------------------------------------------------------------------------------------------


def _python(home: Home) -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11)
    yield Check("Python", "fail" if old else "ok", found, "install Python 3.11 or newer" if old else "")


def _packages(home: Home) -> Iterator[Check]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    hint = f"pip install {' '.join(missing)}" if missing else ""
    yield Check("packages", "fail" if missing else "ok", ", ".join(found), hint)
    try:
        for name in ("torch", "torchvision", "timm"):
            importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        # A CPU-only torch beside another torchvision, or a library of the system that is missing.
        text = str(error).strip().splitlines()[0]
        yield Check("torch", "fail", text, "install torch and torchvision together, from the same index")


def _devices(home: Home) -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found = f"{torch.cuda.get_device_name(index)}, {_gb(free)} of {_gb(total)} free"
            yield Check(f"cuda:{index}", "ok", found)
    elif shutil.which("nvidia-smi"):
        yield Check(
            "device",
            "warn",
            f"cpu; there is an NVIDIA GPU, but torch {torch.__version__} cannot use it",
            "install a torch built for your driver's CUDA version",
        )
    else:
        yield Check("device", "ok", "cpu; no CUDA device")


def _cores(home: Home) -> Iterator[Check]:
    import psutil
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    omp = os.environ.get("OMP_NUM_THREADS")
    found = f"{os.cpu_count()} cores, {allowed} of them for this process; torch uses {threads} threads"
    found += f" (OMP_NUM_THREADS={omp})" if omp else ""
    many = threads > allowed
    hint = f"set OMP_NUM_THREADS={allowed}: more threads than cores slow each other down" if many else ""
    yield Check("cores", "warn" if many else "ok", found, hint)
    memory = psutil.virtual_memory()
    low = memory.available < LOW_MEMORY_BYTES
    hint = "close other programs, or take a smaller image size and one job" if low else ""
    yield Check("memory", "warn" if low else "ok", f"{_gb(memory.available)} of {_gb(memory.total)} free", hint)


def _wait_policy(home: Home) -> Iterator[Check]:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    passive = policy.upper() == "PASSIVE"
    hint = "" if passive else "unset OMP_WAIT_POLICY: threads that spin while they wait slow every other program down"
    yield Check("OMP_WAIT_POLICY", "ok" if passive else "warn", policy or "not set", hint)


# --- the stores -------------------------------------------------------------------------------------------------------


def _home(home: Home) -> Iterator[Check]:
    there = home.root
    while not there.exists() and there != there.parent:
        there = there.parent
    if there == home.root:
        home.prepare()
        found = str(home.root)
    elif not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Check("STUDY_HOME", "fail", f"{home.root}: cannot be made in {there}", "set STUDY_HOME to another folder")
        return
    else:
        found = f"{home.root}, will be made"
    yield Check("STUDY_HOME", "ok", found)
    free = shutil.disk_usage(there).free
    device, place, kind = _disk(there)
    found = f"{_gb(free)} free on {place}" + (f" ({device}, {kind})" if device else "")
    if free < LOW_DISK_BYTES:
        hint = "`study clean` shows what can go; or set STUDY_HOME to a larger disk"
        yield Check("disk", "fail" if free < FULL_DISK_BYTES else "warn", found, hint)
    elif kind.startswith(NETWORK_FILE_SYSTEMS):
        hint = "SQLite needs a local disk: move STUDY_HOME, or use a database server (STUDY_STORAGE)"
        yield Check("disk", "warn", found, hint)
    else:
        yield Check("disk", "ok", found)


def _disk(path: Path) -> tuple[str, str, str]:
    """Device, mount point and file system of the disk that a path lies on; device and file system empty where unknown."""
    import psutil

    real = path.resolve()
    mounted = {Path(part.mountpoint): part for part in psutil.disk_partitions(all=True)}
    for folder in (real, *real.parents):
        if (part := mounted.get(folder)) is not None:
            return part.device, part.mountpoint, part.fstype
    return "", str(real), ""


def _optuna(home: Home) -> Iterator[Check]:
    from studies.search import storage as studies_storage

    url = home.storage_url
    shown = without_password(url)
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        yield Check("Optuna storage", "ok", f"{shown}, will be created")
    elif not _has_table(url, "version_info", "STUDY_STORAGE"):
        yield Check("Optuna storage", "ok", f"{shown}, empty; the first study makes its tables")
    else:
        names = studies_storage.study_names(studies_storage.open_storage(home))
        yield Check("Optuna storage", "ok", f"{shown}, {len(names)} {'study' if len(names) == 1 else 'studies'}")


def _mlflow(home: Home) -> Iterator[Check]:
    uri = home.tracking_uri
    shown = without_password(uri)
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        yield Check("MLflow store", "ok", f"{shown}, will be created")
        return
    if not uri.startswith(("http:", "https:")) and not _has_table(uri, "experiments", "MLFLOW_TRACKING_URI"):
        yield Check("MLflow store", "ok", f"{shown}, empty; the first study makes its tables")
        return
    from tracking.projection import Projection

    Projection(uri)
    yield Check("MLflow store", "ok", shown)


def _has_table(url: str, name: str, variable: str) -> bool:
    """Whether a database holds a table; makes nothing. Raises `InputError` where it cannot be reached or read."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(url)
        try:
            return inspect(engine).has_table(name)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{without_password(url)}: {first}; check {variable}") from None


def _ledgers(home: Home) -> Iterator[Check]:
    from studies.search import storage as studies_storage
    from studies.search.view import StudyView

    try:
        if not _is_made(home.storage_url, "studies", "STUDY_STORAGE"):
            return
        views = [StudyView(*pair, home) for pair in studies_storage.all_studies(studies_storage.open_storage(home))]
    except InputError:
        return  # the look at the storage tells why
    faults = [f"{view.study.study_name}: {fault}" for view in views for fault in view.ledger_faults()]
    for fault in faults:
        yield Check("ledger", "warn", fault, "figures on test may be the best of more scorings than are listed")
    if not faults:
        scorings = sum(len(view.ledger()) for view in views)
        yield Check("ledgers", "ok", f"{scorings} scorings of test images are on record, as counted")


def _record_of_models(home: Home) -> Iterator[Check]:
    from studies.release.promotion import open_registry

    try:
        if not (home.root / "registry.jsonl").is_file() and not _is_made(
            home.tracking_uri, "registered_models", "MLFLOW_TRACKING_URI"
        ):
            return
        registry = open_registry(home)
        models = {name: registry.faults(name) for name in registry.names()} | registry.faults_of_missing()
    except InputError:
        return  # the look at the store tells why
    faults = [f"{name}: {fault}" for name, found in models.items() for fault in found]
    for fault in faults:
        yield Check(
            "record of models", "warn", fault, "compare registry.jsonl with a backup; `study models` lists both"
        )
    if not faults:
        yield Check("record of models", "ok", f"{len(registry.audit.lines())} actions, as MLflow has them")


def _saved_detectors(home: Home) -> Iterator[Check]:
    from detectors.runtime.artifact import DESCRIPTION, read_description

    folders = sorted(path.parent for path in (home.root / "trials").glob(f"*/final/**/{DESCRIPTION}"))
    unsealed = 0
    for folder in folders:
        try:
            unsealed += not read_description(folder).is_sealed
        except InputError as error:
            yield Check("detector", "warn", str(error))
    found = f"{len(folders)} saved"
    if unsealed:
        found += f", {unsealed} of them by version 0.1 or 0.2, whose descriptions have no digest: an edit would not be noticed"
        hint = "`study threshold NAME`, or a refit, writes one"
        yield Check("detectors", "warn", found, hint)
    elif folders:
        yield Check("detectors", "ok", found)


def _is_made(url: str, table: str, variable: str) -> bool:
    """Whether a store has its tables; makes nothing."""
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        return False
    return url.startswith(("http:", "https:")) or _has_table(url, table, variable)


# --- weights, images, features --------------------------------------------------------------------------------------


def _weights(home: Home) -> Iterator[Check]:
    from detectors.backbones.weights import available_backbones

    here = available_backbones()
    if here:
        yield Check("weights", "ok", ", ".join(here))
    else:
        yield Check("weights", "warn", "none on this machine", "`study weights fetch resnet18`, or a --weights-dir")


def _mvtec(home: Home) -> Iterator[Check]:
    from detectors.data.mvtec import categories
    from studies.file.datasets import data_root
    from studies.file.sections import DataConfig

    root = data_root(DataConfig())
    known = categories(root) if root.is_dir() else []
    if known:
        yield Check("MVTec AD", "ok", f"{root}: {', '.join(known)}")
    else:
        hint = "`study data fetch mvtec`, MVTEC_AD_ROOT=<a copy you have>, or rendered images with --demo"
        yield Check("MVTec AD", "warn", f"not in {root}", hint)


def _features(home: Home) -> Iterator[Check]:
    from studies.file.sections import ExecutionConfig
    from studies.worker.feature_store import FeatureStore

    entries = FeatureStore(home.features).entries()
    limit = ExecutionConfig().feature_store_gb
    total = sum(entry.size_bytes for entry in entries)
    yield Check("stored features", "ok", f"{_gb(total)} in {len(entries)} entries; studies keep up to {limit:g} GB")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


CHECKS: dict[str, Callable[[Home], Iterator[Check]]] = {
    "Python": _python,
    "packages": _packages,
    "device": _devices,
    "cores": _cores,
    "OMP_WAIT_POLICY": _wait_policy,
    "STUDY_HOME": _home,
    "Optuna storage": _optuna,
    "MLflow store": _mlflow,
    "ledgers": _ledgers,
    "record of models": _record_of_models,
    "detectors": _saved_detectors,
    "weights": _weights,
    "MVTec AD": _mvtec,
    "stored features": _features,
}
"""Looks by name, in the order they are shown."""
