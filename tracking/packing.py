"""The code that a detector's MLflow model brings along, so that it serves where neither this project nor a plug-in is installed.

Beside each package of code lies a small ``dist-info`` folder with its entry points: MLflow puts the code's folder on `sys.path`,
and Python finds the entry points there, as it does those of installed packages. A head from a file of its own travels as an
artifact, named by the sha256 of its text.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, packages_distributions, version
from pathlib import Path

import detectors
from detectors import catalog, head_texts
from detectors.entry_points import DISTRIBUTION, distribution_of, offered, only_one
from detectors.errors import InputError
from detectors.own_version import own_version
from detectors.runtime.artifact import read_description
from tracking.pyfunc import HEADS

GROUPS = (catalog.GROUP, "anomaly_studies.executors")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Cargo:
    """What a model is to hold beside its weights."""

    code_paths: Sequence[Path]
    """Folders and files for MLflow's ``code_paths``."""
    requirements: Sequence[str]
    """``name==version`` of what a plug-in declares to need, or a head's file imports; this project's own come on top."""
    heads: Path | None = None
    """Folder with the text of the head's file, where it came from one."""


def pack_code(detector: Path, folder: Path) -> Cargo:
    """Copy the code that a saved detector needs into a folder.

    Args:
        detector: folder of the saved detector.
        folder: existing and empty.

    Raises:
        InputError: the head is of a package that is not installed, of a file that nobody named here, or of one that imports what
            no package brings.
    """
    own = _copy(Path(detectors.__file__).parent, folder)
    points = [point for group in GROUPS for found in offered(group).values() for point in found[:1]]
    own_points = [point for point in points if distribution_of(point) == DISTRIBUTION]
    code_paths = [own, write_metadata(folder, DISTRIBUTION, own_version(), own_points)]
    description = read_description(detector)
    if (code := description.head_code) is not None:
        kept = head_texts.keep(code, folder / HEADS)
        return Cargo(code_paths, imported_requirements(kept.read_bytes(), code.file), kept.parent)
    if description.detector not in catalog.names():
        catalog.head_class(description.detector)  # raises the error that says what to do
    point = only_one(offered(catalog.GROUP)[description.detector], "detector")
    if point in own_points:
        return Cargo(code_paths, [])
    plug_in_paths, requirements = _pack_plug_in(point, folder)
    return Cargo([*code_paths, *plug_in_paths], requirements)


def imported_requirements(text: bytes, file: str) -> list[str]:
    """``name==version`` of the packages that a head's file imports, also within its functions.

    What is not installed is left out: the head was searched without it.

    Args:
        file: name of the file, for messages.

    Raises:
        InputError: it imports a module that no installed package brings, such as another file beside it.
    """
    known = packages_distributions()
    needed, strays = [], []
    for module in sorted(_imports(text) - {"detectors"} - sys.stdlib_module_names):
        owners = [owner for owner in known.get(module, ()) if _normalized(owner) != DISTRIBUTION]
        needed += owners
        if not owners and _is_there(module):
            strays.append(module)
    if strays:
        raise InputError(
            f"{file} imports {', '.join(strays)}, which no installed package brings, so that the model could not be served "
            "elsewhere; move that code into the file, or make a package of both (docs/adding-a-detector.md)"
        )
    return pinned(needed)


def _imports(text: bytes) -> set[str]:
    """Top-level names of the modules that a text imports."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # `__main__` and the like have no specification
        return False


def _pack_plug_in(point: EntryPoint, folder: Path) -> tuple[list[Path], list[str]]:
    """Code paths and pinned requirements of the package that offers a head."""
    distribution = point.dist
    top_levels = {point.module.partition(".")[0], *(_top_levels(distribution) if distribution else ())}
    paths = [path for name in sorted(top_levels) for path in _copy_module(name, folder)]
    name, release = (distribution.name, distribution.version) if distribution else (point.module, "0")
    metadata = write_metadata(folder, name, release, [point])
    return [*paths, metadata], pinned(distribution.requires or ()) if distribution else []


def _top_levels(distribution: Distribution) -> set[str]:
    """The packages and modules that a distribution brings; empty for an editable installation, which lists none."""
    files = [file for file in distribution.files or () if file.suffix == ".py" and ".." not in file.parts]
    return {file.parts[0].removesuffix(".py") for file in files} - {"tests", "test", "docs", "setup"}


def _copy_module(name: str, folder: Path) -> list[Path]:
    """Copies of a top-level package or module; of a namespace package all its parts in one folder.

    Raises:
        InputError: it is not there, or not a file on disk.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise InputError(f"the module {name} of a plug-in is not there; install the plug-in again")
    if spec.submodule_search_locations is not None:
        return list(dict.fromkeys(_copy(Path(place), folder) for place in spec.submodule_search_locations))
    if spec.origin is None or not Path(spec.origin).is_file():
        raise InputError(f"the module {name} of a plug-in is no file that could be packed into a model")
    return [_copy(Path(spec.origin), folder)]


def _copy(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if source.is_dir():
        return Path(shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True))
    return Path(shutil.copy(source, target))


def write_metadata(folder: Path, name: str, release: str, points: Iterable[EntryPoint]) -> Path:
    """A ``dist-info`` folder by which `importlib.metadata` finds these entry points."""
    stem = re.sub(r"[-_.]+", "_", name)
    target = folder / f"{stem}-{re.sub(r'[^A-Za-z0-9.+!]', '_', release)}.dist-info"
    target.mkdir()
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n", encoding="utf-8")
    groups: dict[str, list[str]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(f"{point.name} = {point.value}\n")
    text = "\n".join(f"[{group}]\n{''.join(lines)}" for group, lines in groups.items())
    (target / "entry_points.txt").write_text(text, encoding="utf-8")
    return target


def pinned(declared: Iterable[str]) -> list[str]:
    """``name==version`` of declared requirements at the versions that are here, each package once.

    A build's own mark (``+cpu``) is left out, for registries do not know it; so are extras, what is absent, and this project.
    """
    pins: dict[str, str] = {}
    for requirement in declared:
        specifier, _, marker = requirement.partition(";")
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", specifier.strip())
        if match is None or "extra" in marker or _normalized(match[0]) == DISTRIBUTION:
            continue
        try:
            pins.setdefault(_normalized(match[0]), f"{match[0]}=={version(match[0]).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return list(pins.values())


def _normalized(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
