"""Finding and reading study files: those of the folder ``configs`` here, those that come with the package, or any path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectors.errors import InputError
from studies.file import yaml_file
from studies.file.config import StudyConfig, validate
from studies.file.messages import did_you_mean
from studies.file.overrides import override


def packaged_configs() -> Path:
    """Folder of the study files that come with the package: inside the wheel, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def config_names() -> list[str]:
    """Names of the studies that `find` knows: in ``./configs`` and in the package."""
    folders = [Path("configs"), packaged_configs()]
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def find(name: str) -> Path:
    """The study file of a name or path. Raises `InputError` that lists the names there are."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{path}: no such study file")
        return path
    for folder in (Path("configs"), packaged_configs()):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = config_names()
    raise InputError(
        f"no study {name!r}; {did_you_mean(name, known)}known: {', '.join(known) or 'none'} "
        "(or give a path to a .yaml file)"
    )


def load(name: str, settings: Sequence[str] = ()) -> StudyConfig:
    """Read and validate a study file by name or path.

    Args:
        settings: overrides ``KEY=VALUE``, as `override` takes them.

    Raises:
        InputError: no such file, or something in it is wrong; the message names file, key, value and what would be valid.
    """
    path = find(name)
    raw = yaml_file.read(path)
    if not isinstance(raw, dict):
        return validate(raw, source=str(path))
    return validate(override(raw, settings), source=f"{path} with --set" if settings else str(path))
