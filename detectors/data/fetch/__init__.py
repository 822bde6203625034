"""Data sets by download or from a local archive: licence first, hash always, resumable, never half extracted.

Everything in the making lies beside the destination and is named after it and the archive's hash: ``<name>-<hash>.part``
(as far as the download came), ``.archive`` (whole and verified), ``.extracting`` (worthless after a crash) and
``.extracted`` (whole, on its way into the destination). Each step ends with a rename, so that a call after a crash goes
on where the last one stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import portalocker

from detectors.data.fetch.archives import extract
from detectors.data.fetch.destination import RECEIPT, is_complete, publish, refuse_conflicts
from detectors.data.fetch.download import obtain, sha256_of
from detectors.data.fetch.files import remove_folder, require_room, size_of
from detectors.data.fetch.job import Job, Limits, Progress, Workplace
from detectors.data.fetch.sources import SOURCES, Source
from detectors.errors import InputError

__all__ = ["RECEIPT", "SOURCES", "Limits", "Progress", "Source", "fetch"]


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
    job = Job(
        source=source,
        url=url or source.url,
        sha256=expected,
        target=target,
        place=Workplace.beside(target, expected),
        report=progress or (lambda step, done, total: None),
        limits=limits,
    )
    try:
        if is_complete(job) and not job.place.leftovers():
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


def _fetch(job: Job, archive: Path | None, *, keep_archive: bool) -> None:
    place = job.place
    if not place.extracted.exists() and not is_complete(job):
        refuse_conflicts(job.target, list(job.source.categories))
        if archive is None:
            missing = 0 if place.archive.exists() else max(0, job.source.size_bytes - size_of(place.part))
            require_room(job.target, missing + job.source.extracted_bytes)
            archive = obtain(job)
        else:
            require_room(job.target, max(job.source.extracted_bytes, size_of(archive)))
            actual = sha256_of(archive, job.report)
            if actual != job.sha256:
                raise InputError(
                    f"{archive}: its sha256 is {actual}, not {job.sha256}; the file is damaged or another one"
                )
        extract(archive, job)
    # In this order: once the folders are extracted whole, a crash leaves nothing big behind for good.
    place.part.unlink(missing_ok=True)
    place.validator.unlink(missing_ok=True)
    remove_folder(place.extracting)
    if place.extracted.exists():
        if not keep_archive:
            place.archive.unlink(missing_ok=True)
        publish(place.extracted, job.target)


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
