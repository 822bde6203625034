"""Writing files so that a crash leaves the old state or the new one, never half of either."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import portalocker

from detectors.errors import InputError

LONGEST_BEGIN = 200
"""Bytes of a file's name that its temporary sibling's begins with."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step, on disk when this returns. Raises as `os_errors_as_input_errors` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content in one step, on disk when this returns. Raises as `os_errors_as_input_errors` does."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one step; NaN and infinity are refused with `ValueError`."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def append_line(path: Path, line: str | Callable[[bytes], str]) -> None:
    """Add one line to an append-only file, on disk when this returns.

    Lines of several processes do not mix. A line cut by a crash is closed first.

    Args:
        line: or what makes it of the file's content before it, while nobody else adds one.
    """
    with os_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            # Without the lock, another process's line on its way to the file looks like one cut by a crash.
            portalocker.lock(file, portalocker.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            broken = end > 0 and (file.seek(end - 1), file.read(1))[1] != b"\n"
            close = b"\n" if broken else b""
            if callable(line):
                file.seek(0)
                line = line(file.read() + close)
            file.write(close + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Fill a temporary sibling file; at the end of the block it becomes `target`, replacing what was there.

    An exception leaves `target` as it was. Raises as `os_errors_as_input_errors` does.
    """
    with os_errors_as_input_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name may have 255 bytes, and that of the target may have them already.
        begin = target.name.encode()[:LONGEST_BEGIN].decode(errors="ignore")
        temporary = target.with_name(f".{begin}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            yield temporary
            _sync_file(temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary sibling folder; at the end of the block it becomes `target`, replacing what was there.

    An exception leaves `target` as it was. Raises as `os_errors_as_input_errors` does.
    """
    with os_errors_as_input_errors(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        token = uuid.uuid4().hex[:8]
        temporary = target.with_name(f".{target.name}.{token}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _sync_file(path)
            if target.exists():
                old = target.with_name(f".{target.name}.{token}.old")
                target.rename(old)
                try:
                    temporary.rename(target)
                except BaseException:
                    old.rename(target)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.rename(target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes; the operating system frees it when its holder dies.

    Raises:
        BlockingIOError: somebody else holds it and `wait` is False.
        InputError: the lock file cannot be made.
    """
    flags = portalocker.LOCK_SH if shared else portalocker.LOCK_EX
    with os_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            portalocker.lock(file, flags if wait else flags | portalocker.LOCK_NB)
        except portalocker.LockException as error:
            raise BlockingIOError(f"{path} is held by another process") from error
        try:
            yield
        finally:
            portalocker.unlock(file)


@contextmanager
def os_errors_as_input_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, no permission, no folder) into one `InputError` line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{path}: the disk is full; free some space (`study clean` shows what can go) and run the same command again"
            ) from error
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
            errno.ENOENT,
        ):
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose another place, e.g. with STUDY_HOME"
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to disk, where the platform lets a folder be opened."""
    if os.name == "posix":
        _sync_file(folder)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
