"""A job's folder on its way from a node to the driver."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from detectors.errors import InputError
from detectors.files import os_errors_as_input_errors, write_bytes
from studies.worker.jobs import LOG_FILE, RESULT_FILE

MOST_BYTES = 2 * 2**30
"""Of a folder: it crosses the network in one piece, and both ends hold it in memory."""


def pack(folder: Path, *, without: Collection[str] = (), most_bytes: int = MOST_BYTES) -> dict[str, bytes]:
    """Contents of a folder's files by their path in it.

    Args:
        without: names within the folder that stay.

    Raises:
        InputError: they are more than `most_bytes`.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.relative_to(folder).parts[0] not in without
    ]
    size = sum(path.stat().st_size for path in files)
    if size > most_bytes:
        raise InputError(
            f"a job's files have {size / 1e9:.2g} GB, and at most {most_bytes / 1e9:.2g} GB come back from a node; "
            "put STUDY_HOME on a drive that all nodes share"
        )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what `pack` gave, the result last: a folder with a valid one is whole.

    Folders within the folder are replaced, its log grows by the new one. Raises `InputError` where the disk is full.
    """
    paths = {name: PurePosixPath(name) for name in files}
    for name, path in paths.items():
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} leads out of the folder")
    for top in {path.parts[0] for path in paths.values() if len(path.parts) > 1}:
        shutil.rmtree(folder / top, ignore_errors=True)
    for name in sorted(files, key=lambda name: name == RESULT_FILE):
        if name == LOG_FILE:
            with os_errors_as_input_errors(folder / name):
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("ab") as log:
                    log.write(files[name])
        else:
            write_bytes(folder / paths[name], files[name])
