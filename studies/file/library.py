"""Finding and reading study files: those of the folder ``configs`` here, those that come with the package, or any path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectors import catalog
from detectors.errors import InputError
from detectors.head_files import code_of, is_reference
from studies.file import yaml_file
from studies.file.config import StudyConfig, validate
from studies.file.general import study_of
from studies.file.messages import did_you_mean
from studies.file.overrides import Overrides, override

OTHERWISE = "or give a path to a .yaml file, or to a folder of images"


class UnknownStudyError(InputError):
    """No study file has this name."""


def packaged_configs() -> Path:
    """Folder of the study files that come with the package: inside the wheel, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def config_names() -> list[str]:
    """Names of the studies that `find` knows: in ``./configs`` and in the package."""
    folders = [Path("configs"), packaged_configs()]
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def is_path(name: str) -> bool:
    """Whether a study is given by the path of its file, and not by a name."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def find(name: str) -> Path:
    """The study file of a name or path.

    Raises:
        UnknownStudyError: there is no file of this name; the message lists the names there are.
        InputError: a path that leads to no file.
    """
    if is_path(name):
        path = Path(name)
        if not path.is_file():
            neither = "" if path.suffix in (".yaml", ".yml") else ", and no folder of images"
            raise InputError(f"{path}: no such study file{neither}")
        return path
    for folder in (Path("configs"), packaged_configs()):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = config_names()
    raise UnknownStudyError(
        f"no study {name!r}; {did_you_mean(name, known)}known: {', '.join(known) or 'none'} ({OTHERWISE})"
    )


def load(name: str, overrides: Overrides = ()) -> StudyConfig:
    """Read and validate a study file by name or path.

    Args:
        overrides: what is set for this run; see `Overrides`.

    Raises:
        InputError: no such file, or something in it is wrong; the message names file, key, value and what would be valid.
    """
    raw, source = read(name)
    if not isinstance(raw, dict):
        return validate(raw, source=source)
    # What the command line names is relative to where that was typed.
    raw = with_heads(override(raw, overrides), base=Path(), source=source)
    return validate(raw, source=f"{source} with --set" if overrides else source)


def read(name: str) -> tuple[Any, str]:
    """The plain form of a study, not validated yet, and where it comes from.

    Args:
        name: of a study, a path, ``FILE.py:CLASS``, or a detector that a package adds without a study file.

    Raises:
        InputError: no such file, no YAML, or a detector's file is not sound.
    """
    if is_reference(name):
        return with_heads(study_of(catalog.load_head_file(name)) | {"detector": name}, base=Path(), source=name), name
    try:
        path = find(name)
    except UnknownStudyError:
        if name not in catalog.names():
            raise
        return study_of(catalog.head_class(name)), name
    return with_heads(yaml_file.read(path), base=path.parent, source=str(path)), str(path)


def with_heads(raw: Any, *, base: Path, source: str) -> Any:
    """A study's plain form in which detectors given as ``FILE.py:CLASS`` go by their names.

    The files are run: whoever calls this has a study file that a person named. Which text each head came from is noted under
    ``heads``.

    Args:
        base: folder that relative paths start from.
        source: begins every message.

    Raises:
        InputError: a file is not there, or has no such head.
    """
    if not isinstance(raw, dict):
        return raw
    listed = raw.get("detector")
    records: dict[str, Any] = {}

    def name_of(detector: Any) -> Any:
        if not isinstance(detector, str) or not is_reference(detector):
            return detector
        try:
            head = catalog.load_head_file(detector, base=base)
        except InputError as error:
            raise InputError(str(error) if source == detector else f"{source}: detector: {error}") from error
        code = code_of(head)
        if code is not None:
            records[head.name] = code.to_json()
        return head.name

    named = [name_of(one) for one in listed] if isinstance(listed, list) else name_of(listed)
    if not records:
        return raw
    others = raw.get("heads", {})
    # What is no mapping is left for the validation, which says so.
    return raw | {"detector": named, "heads": {**others, **records} if isinstance(others, dict) else others}
