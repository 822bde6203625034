"""Data sets by download or from a local archive: licence first, hash always, resumable, never half extracted.

Everything in the making lies beside the destination and is named after it and the archive's hash: ``<name>-<hash>.part``
(as far as the download came), ``.archive`` (whole and verified), ``.extracting`` (worthless after a crash) and
``.extracted`` (whole, on its way into the destination). Each step ends with a rename, so that a call after a crash goes
on where the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

import portalocker
import requests
import urllib3

from detectors.errors import InputError

RECEIPT = ".fetched.json"
"""File in the destination that says which archive it came from; it arrives last."""

Progress = Callable[[str, int, int], None]
"""Called with the step (``download``, ``verify``, ``extract``), bytes done and bytes in total (0 where unknown)."""

_CHUNK = 1 << 20
_WAY_OUT = "give another address, or get the archive by hand and give it with --archive FILE"
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
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Source:
    """A data set that can be fetched: where, what exactly, and on whose terms."""

    name: str
    title: str
    url: str | None
    """None where no dependable address is known: the archive has to be at hand."""
    sha256: str
    size_bytes: int
    """Size of the archive, approximately: for the question before the download."""
    extracted_bytes: int
    """Size of the files in it, approximately."""
    categories: tuple[str, ...]
    """Folders that make up the data set; an archive has to hold one of them at least."""
    licence: str
    licence_url: str
    licence_text: str
    """What the licence asks for, in short; the text at `licence_url` is the one that counts."""
    citation: str


@dataclass(frozen=True)
class Limits:
    """What a download and an archive may cost; beyond it they are refused."""

    download_bytes: int = 30 * 10**9
    members: int = 200_000
    extracted_bytes: int = 60 * 10**9
    ratio: float = 200.0
    """Extracted bytes per byte of the archive (an archive below 1 MiB counts as 1 MiB)."""
    name_bytes: int = 255
    """Length of one folder's or file's name."""
    path_bytes: int = 1024
    attempts: int = 4
    """Connections in a row that bring less than 1 MiB before the download is given up."""
    backoff_seconds: float = 1.0
    """Pause after the first failed connection; it doubles up to 30 s."""
    connect_seconds: float = 10.0
    read_seconds: float = 60.0


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="mvtec",
            title="MVTec AD",
            url=(
                "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
                "420938113-1629960298/mvtec_anomaly_detection.tar.xz"
            ),
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            size_bytes=5_264_982_680,
            extracted_bytes=5_300_000_000,
            categories=(
                "bottle",
                "cable",
                "capsule",
                "carpet",
                "grid",
                "hazelnut",
                "leather",
                "metal_nut",
                "pill",
                "screw",
                "tile",
                "toothbrush",
                "transistor",
                "wood",
                "zipper",
            ),
            licence="CC BY-NC-SA 4.0",
            licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
            licence_text=(
                "Not for commercial use. Name MVTec as the author, link the licence and say what you changed; "
                "share what you make from the images under the same licence only."
            ),
            citation=(
                "P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger: The MVTec Anomaly Detection Dataset: "
                "A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection. IJCV 129(4), 2021."
            ),
        ),
        Source(
            name="visa",
            title="VisA",
            url=None,
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            size_bytes=2_000_000_000,
            extracted_bytes=2_000_000_000,
            categories=(
                "candle",
                "capsules",
                "cashew",
                "chewinggum",
                "fryum",
                "macaroni1",
                "macaroni2",
                "pcb1",
                "pcb2",
                "pcb3",
                "pcb4",
                "pipe_fryum",
            ),
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            licence_text="Free for any use. Name the authors, link the licence and say what you changed.",
            citation=(
                "Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer: SPot-the-Difference Self-Supervised Pre-training "
                "for Anomaly Detection and Segmentation. ECCV 2022."
            ),
        ),
    )
}


def fetch(
    source: Source,
    destination: Path,
    *,
    archive: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    accept_licence: Callable[[Source], bool],
    progress: Progress | None = None,
    keep_archive: bool = False,
    limits: Limits | None = None,
) -> Path:
    """Bring the data set's folders into `destination` and return it; does nothing where they are already there.

    Args:
        archive: a local tar or zip to use in place of the download; it is left as it is.
        url, sha256: another address and hash than the source's. The hash is verified in every case.
        accept_licence: asked before anything is written.
        keep_archive: keep the downloaded archive beside the destination.

    Raises:
        InputError: licence not accepted, no address, host not reachable, wrong hash, no room on the disk, an unsafe or
            damaged archive, folders in the way, a destination that cannot be written.
    """
    limits = limits or Limits()
    expected = (sha256 or source.sha256).strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise InputError(f"sha256 {expected!r} is not 64 hexadecimal digits")
    if expected != source.sha256:
        source = replace(source, size_bytes=0, extracted_bytes=0)  # another archive: only its server knows its size
    # A link to another disk is followed: work beside it could not be renamed into place.
    target = destination.expanduser().resolve()
    job = _Job(
        source=source,
        url=url or source.url,
        sha256=expected,
        target=target,
        place=_Workplace.beside(target, expected),
        report=progress or (lambda step, done, total: None),
        limits=limits,
    )
    try:
        if _is_complete(job) and not job.place.leftovers():
            return destination
        if archive is None and job.url is None:
            raise InputError(
                f"{source.title}: no download address is known; get the archive by hand (sha256 {expected}) "
                "and give it with --archive FILE"
            )
        if archive is not None and not archive.is_file():
            raise InputError(f"{archive}: no such archive file")
        if not accept_licence(source):
            raise InputError(
                f"{source.title}: the licence {source.licence} was not accepted, so nothing was fetched; "
                f"read it at {source.licence_url}"
            )
        if target.exists() and not target.is_dir():
            raise InputError(f"{destination}: is a file; choose a folder for the data set")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(job.place.lock):
            _fetch(job, archive, keep_archive=keep_archive)
    except OSError as error:
        raise InputError(
            f"{error.filename or destination}: {error.strerror or error}; "
            "mend that or choose another folder (the same command goes on where this one stopped)"
        ) from None
    return destination


@dataclass(frozen=True)
class _Workplace:
    """Names of the files and folders in the making, all on the destination's own file system."""

    part: Path
    validator: Path
    archive: Path
    extracting: Path
    extracted: Path
    lock: Path

    @classmethod
    def beside(cls, target: Path, sha256: str) -> _Workplace:
        # A mount point (a container's volume) is another file system than its parent; a rename does not cross it.
        mounted = target.is_dir() and target.stat().st_dev != target.parent.stat().st_dev
        folder = target if mounted else target.parent
        stem = f"{target.name}-{sha256[:12]}"
        return cls(
            part=folder / f"{stem}.part",
            validator=folder / f"{stem}.part.json",
            archive=folder / f"{stem}.archive",
            extracting=folder / f".{stem}.extracting",
            extracted=folder / f".{stem}.extracted",
            lock=folder / f".{stem}.lock",
        )

    def leftovers(self) -> list[Path]:
        """What an interrupted call left that is not part of its result."""
        return [path for path in (self.part, self.validator, self.extracting, self.extracted) if path.exists()]


@dataclass(frozen=True)
class _Job:
    """One call of `fetch`, its defaults filled in."""

    source: Source
    url: str | None
    sha256: str
    target: Path
    place: _Workplace
    report: Progress
    limits: Limits


def _fetch(job: _Job, archive: Path | None, *, keep_archive: bool) -> None:
    place = job.place
    if not place.extracted.exists() and not _is_complete(job):
        _refuse_conflicts(job.target, list(job.source.categories))
        if archive is None:
            missing = 0 if place.archive.exists() else max(0, job.source.size_bytes - _size(place.part))
            _require_room(job.target, missing + job.source.extracted_bytes)
            archive = _obtain(job)
        else:
            _require_room(job.target, max(job.source.extracted_bytes, _size(archive)))
            actual = _sha256(archive, job.report)
            if actual != job.sha256:
                raise InputError(
                    f"{archive}: its sha256 is {actual}, not {job.sha256}; the file is damaged or another one"
                )
        _extract(archive, job)
    # In this order: once the folders are extracted whole, a crash leaves nothing big behind for good.
    place.part.unlink(missing_ok=True)
    place.validator.unlink(missing_ok=True)
    _remove(place.extracting)
    if place.extracted.exists():
        if not keep_archive:
            place.archive.unlink(missing_ok=True)
        _publish(place.extracted, job.target)


# --- state of the destination -----------------------------------------------------------------------------------------


def _is_complete(job: _Job) -> bool:
    """Whether the destination holds this archive's folders or, put there by hand, every category."""
    receipt = _read_json(job.target / RECEIPT)
    if receipt is None:
        return _all_filled(job.target, list(job.source.categories))
    folders = receipt.get("folders")
    return receipt.get("sha256") == job.sha256 and isinstance(folders, list) and _all_filled(job.target, folders)


def _all_filled(target: Path, folders: list[str]) -> bool:
    return bool(folders) and all((target / name).is_dir() and any((target / name).iterdir()) for name in folders)


def _refuse_conflicts(target: Path, names: list[str]) -> None:
    present = [name for name in names if (target / name).exists()]
    if present:
        shown = ", ".join(present[:4]) + (", ..." if len(present) > 4 else "")
        raise InputError(
            f"{target}: already holds {shown}, which would be overwritten; move it away or choose another folder"
        )


def _publish(extracted: Path, target: Path) -> None:
    """Move the extracted folders into the destination, the receipt last; files that are there already stay."""
    if not target.exists():
        extracted.rename(target)
        return
    entries = sorted(extracted.iterdir(), key=lambda entry: (entry.name == RECEIPT, entry.name))
    _refuse_conflicts(target, [entry.name for entry in entries if entry.is_dir()])
    for entry in entries:
        if entry.name == RECEIPT:
            entry.replace(target / entry.name)
        elif not (target / entry.name).exists():
            entry.rename(target / entry.name)
    _remove(extracted)


def _require_room(folder: Path, needed: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make room or choose another disk"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` as a lock that dies with this process; a second fetch is refused, not queued."""
    try:
        lock = portalocker.Lock(path, timeout=0)
        lock.acquire()
    except portalocker.LockException:
        raise InputError(f"{path.parent}: another fetch of this data set is at work; wait for it") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


# --- download ---------------------------------------------------------------------------------------------------------


class _ConnectionLostError(Exception):
    """A transfer ended early and may be taken up again."""


def _obtain(job: _Job) -> Path:
    """The verified archive: kept from an earlier call, or downloaded."""
    place = job.place
    if place.archive.exists():
        if _sha256(place.archive, job.report) == job.sha256:
            return place.archive
        place.archive.unlink()
    resumed = _download(job)
    actual = _sha256(place.part, job.report)
    if actual != job.sha256 and resumed:
        # The first bytes may be those of another file; one download in one piece tells.
        place.part.unlink()
        _download(job)
        actual = _sha256(place.part, job.report)
    if actual != job.sha256:
        size = _size(place.part)
        place.part.unlink()
        place.validator.unlink(missing_ok=True)
        raise InputError(
            f"{job.source.title}: what {_host(job)} sent ({size} bytes) has sha256 {actual}, not {job.sha256}; "
            f"it was deleted. The address may have moved: {_WAY_OUT}"
        )
    place.part.replace(place.archive)
    place.validator.unlink(missing_ok=True)
    return place.archive


def _download(job: _Job) -> bool:
    """Fill `place.part`; whether it was put together from more than one connection."""
    part, limits = job.place.part, job.limits
    if urlsplit(job.url or "").scheme not in {"http", "https"} or not _host(job):
        raise InputError(f"{job.url!r} is not an http(s) address; a file on this machine is given with --archive FILE")
    resumed, failures = False, 0
    while True:
        before = _size(part)
        resumed = resumed or before > 0
        try:
            _transfer(job)
            return resumed
        except (
            _ConnectionLostError,
            requests.ConnectionError,
            requests.Timeout,
            urllib3.exceptions.HTTPError,
        ) as error:
            reason = str(error) if isinstance(error, _ConnectionLostError) else type(error).__name__
        except requests.RequestException as error:
            raise InputError(f"{_host(job)}: unusable address ({type(error).__name__}): {_WAY_OUT}") from None
        failures = 1 if _size(part) - before >= _CHUNK else failures + 1
        if failures >= limits.attempts:
            kept = f"; the first {_size(part) / 1e6:.1f} MB are kept" if _size(part) else ""
            raise InputError(f"{_host(job)}: cannot be reached or breaks off ({reason}){kept}. Try later, {_WAY_OUT}")
        time.sleep(min(30.0, limits.backoff_seconds * 2 ** (failures - 1)))


def _transfer(job: _Job) -> None:
    """One connection: appends to `place.part` until the server's total is there.

    Raises `_ConnectionLostError` or an error of requests or urllib3 where the transfer may be taken up again.
    """
    place, limits = job.place, job.limits
    offset = _size(place.part)
    # The archive's own bytes are hashed and counted: no transport compression.
    headers = {"Accept-Encoding": "identity", "User-Agent": "anomaly-studies"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        known = _read_json(place.validator) or {}
        if known.get("url") == job.url and known.get("validator"):
            headers["If-Range"] = str(known["validator"])
    timeout = (limits.connect_seconds, limits.read_seconds)
    with requests.get(job.url or "", headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code == 416 and offset:
            if response.headers.get("Content-Range", f"bytes */{offset}") == f"bytes */{offset}":
                return
            place.part.unlink()
            raise _ConnectionLostError("the partial file does not fit the server's")
        if response.status_code in _RETRIED_STATUS:
            raise _ConnectionLostError(f"HTTP {response.status_code}")
        if response.status_code not in {200, 206}:
            raise InputError(
                f"{_host(job)}: answers HTTP {response.status_code} for {job.source.title}; "
                f"the address may have moved: {_WAY_OUT}"
            )
        start, total = _extent(response)
        if start not in {0, offset}:
            place.part.unlink(missing_ok=True)
            raise _ConnectionLostError("the server sent another range than the one asked for")
        if total > limits.download_bytes:
            raise InputError(
                f"{_host(job)}: offers {total / 1e9:.1f} GB, more than the limit of {limits.download_bytes / 1e9:.1f} GB"
            )
        _require_room(place.part.parent, max(0, total - start) + max(job.source.extracted_bytes, total))
        done = start
        with place.part.open("ab" if start else "wb") as file:
            _write_json(place.validator, {"url": job.url, "validator": _validator(response)})
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                done += len(chunk)
                if done > limits.download_bytes:
                    raise InputError(f"{_host(job)}: sends more than the limit of {limits.download_bytes / 1e9:.1f} GB")
                file.write(chunk)
                job.report("download", done, total)
            file.flush()
            os.fsync(file.fileno())
    if total and done != total:
        raise _ConnectionLostError(f"{done} of {total} bytes came")


def _extent(response: requests.Response) -> tuple[int, int]:
    """First byte sent and size of the whole file (0 where the server does not say)."""
    length = response.headers.get("Content-Length", "")
    rest = int(length) if length.isdecimal() else 0
    if response.status_code == 200:
        return 0, rest
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return -1, 0
    start = int(match[1])
    return start, int(match[2]) if match[2] != "*" else (rest and start + rest)


def _validator(response: requests.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the date of the last change (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _host(job: _Job) -> str:
    """The host alone: an address may carry a password or a token."""
    return urlsplit(job.url or "").hostname or ""


def _sha256(path: Path, report: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, _size(path)
    with path.open("rb") as file:
        while chunk := file.read(4 * _CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report("verify", done, total)
    return digest.hexdigest()


# --- extraction -------------------------------------------------------------------------------------------------------


def _extract(archive: Path, job: _Job) -> None:
    """Leave the archive's folders and the receipt in `place.extracted`, or nothing at all."""
    place, source = job.place, job.source
    _remove(place.extracting)
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
        _write_json(content / RECEIPT, {"source": source.name, "sha256": job.sha256, "folders": folders})
        # The rename must not reach the disk before the files do.
        if hasattr(os, "sync"):
            os.sync()
        content.rename(place.extracted)
    finally:
        _remove(place.extracting)


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
        self.allowed = min(limits.extracted_bytes, int(limits.ratio * max(_size(archive), _CHUNK)))
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
    total = _size(archive)
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
    while chunk := source.read(_CHUNK):
        count(len(chunk))
        target.write(chunk)


# --- small files ------------------------------------------------------------------------------------------------------


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_json(path: Path, value: dict[str, object]) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
