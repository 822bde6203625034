"""The files of a tar or zip: past a gate that refuses what is unsafe or too much, and all of them or none."""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from detectors.data.fetch.destination import RECEIPT
from detectors.data.fetch.files import CHUNK, remove_folder, size_of, write_json
from detectors.data.fetch.job import Job, Limits, Progress
from detectors.data.fetch.sources import Source
from detectors.errors import InputError

_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    ValueError,
)
"""What the standard library raises for damaged archives; decoders use OSError without a number and ValueError too."""


def extract(archive: Path, job: Job) -> None:
    """Leave the archive's folders and the receipt in `place.extracted`, or nothing at all."""
    place, source = job.place, job.source
    remove_folder(place.extracting)
    place.extracting.mkdir()
    try:
        gate = _Gate(archive, job.limits)
        with archive.open("rb") as file:
            is_zip = file.read(4) in {b"PK\x03\x04", b"PK\x05\x06"}
        try:
            (_extract_zip if is_zip else _extract_tar)(archive, place.extracting, gate, job.report)
        except _ARCHIVE_ERRORS as error:
            if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise InputError(f"{archive}: not a tar or zip archive, or damaged ({error})") from None
        content = _content(place.extracting, source)
        folders = sorted(entry.name for entry in content.iterdir() if entry.is_dir())
        if not set(folders) & set(source.categories):
            raise InputError(
                f"{archive}: holds none of {source.title}'s folders ({', '.join(source.categories[:3])}, ...); "
                "it is another archive"
            )
        write_json(content / RECEIPT, {"source": source.name, "sha256": job.sha256, "folders": folders})
        # The rename must not reach the disk before the files do.
        if hasattr(os, "sync"):
            os.sync()
        content.rename(place.extracted)
    finally:
        remove_folder(place.extracting)


def _content(folder: Path, source: Source) -> Path:
    """`folder`, or the single folder in it where that one holds the categories."""
    entries = list(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name not in source.categories:
        return entries[0] if any((entries[0] / name).is_dir() for name in source.categories) else folder
    return folder


class _Gate:
    """Lets through regular files and folders with plain relative names, up to the limits."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive, self.limits = archive, limits
        self.allowed = min(limits.extracted_bytes, int(limits.ratio * max(size_of(archive), CHUNK)))
        self.members = 0
        self.bytes = 0
        self.files: set[PurePosixPath] = set()

    def check(self, name: str, *, is_file: bool, is_folder: bool, size: int) -> PurePosixPath:
        """The member's path within the archive.

        Raises:
            InputError: a name that leaves the folder or is too long, a link or device, a name that comes twice, limits.
        """
        self.members += 1
        if self.members > self.limits.members:
            self._refuse(name, f"the archive has more than {self.limits.members} members")
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
            self._refuse(name, "an absolute or foreign path")
        if ".." in parts:
            self._refuse(name, "a path that leaves the folder")
        if not name.isprintable():
            self._refuse(name, "a name with control characters")
        longest = max(len(part.encode(errors="replace")) for part in parts)
        if longest > self.limits.name_bytes or len(name.encode(errors="replace")) > self.limits.path_bytes:
            self._refuse(name[:80] + "...", "a name that is too long")
        if not is_file and not is_folder:
            self._refuse(name, "a link or device")
        path = PurePosixPath(name)
        if is_file:
            if path in self.files:
                self._refuse(name, "a name that comes twice")
            self.files.add(path)
            self.count(name, size)
        return path

    def count(self, name: str, size: int) -> None:
        """Add a file's bytes. Raises `InputError` beyond the limits."""
        self.bytes += size
        if self.bytes > self.allowed:
            self._refuse(name, f"the archive holds more than {self.allowed / 1e6:.0f} MB")

    def _refuse(self, name: str, reason: str) -> None:
        raise InputError(f"{self.archive}: unsafe archive, {reason} (member {name!r}); nothing was extracted")


def _extract_tar(archive: Path, folder: Path, gate: _Gate, report: Progress) -> None:
    total = size_of(archive)
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
        for member in tar:
            gate.check(member.name, is_file=member.isreg(), is_folder=member.isdir(), size=member.size)
            try:
                tar.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise InputError(f"{archive}: unsafe archive ({error}); nothing was extracted") from None
            report("extract", raw.tell(), total)


def _extract_zip(archive: Path, folder: Path, gate: _Gate, report: Progress) -> None:
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        total, done = sum(member.compress_size for member in members), 0
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            is_folder = member.is_dir()
            is_file = not is_folder and kind in {0, stat.S_IFREG}
            # The declared size is only a claim: what comes out is counted below.
            path = gate.check(member.orig_filename, is_file=is_file, is_folder=is_folder, size=0)
            if member.flag_bits & 1:
                raise InputError(f"{archive}: {member.filename!r} is encrypted; nothing was extracted")
            place = folder / path
            if is_folder:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as packed, place.open("xb") as file:
                    _copy(packed, file, partial(gate.count, member.filename))
            done += member.compress_size
            report("extract", done, total)


def _copy(source: IO[bytes], target: IO[bytes], count: Callable[[int], None]) -> None:
    while chunk := source.read(CHUNK):
        count(len(chunk))
        target.write(chunk)
