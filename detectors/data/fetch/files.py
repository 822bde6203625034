"""Small steps with files and folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from detectors.errors import InputError

CHUNK = 1 << 20
"""Bytes that are read and written at a time."""


def size_of(path: Path) -> int:
    """Bytes in the file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def remove_folder(folder: Path) -> None:
    """Remove the folder and all in it, where it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def read_json(path: Path) -> dict[str, object] | None:
    """The object in the file; None where it cannot be read or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, value: dict[str, object]) -> None:
    """Write the object whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def require_room(folder: Path, needed: int) -> None:
    """Raise `InputError` unless as many bytes are free where the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make room or choose another disk"
        )
