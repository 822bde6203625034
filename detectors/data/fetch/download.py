"""The archive over HTTP: resumed where a connection broke, its hash verified."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from detectors.data.fetch.files import CHUNK, read_json, require_room, size_of, write_json
from detectors.data.fetch.job import Job, Progress
from detectors.errors import InputError

_WAY_OUT = "give another address, or get the archive by hand and give it with --archive FILE"
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _ConnectionLostError(Exception):
    """A transfer ended early and may be taken up again."""


def obtain(job: Job) -> Path:
    """The verified archive: kept from an earlier call, or downloaded."""
    place = job.place
    if place.archive.exists():
        if sha256_of(place.archive, job.report) == job.sha256:
            return place.archive
        place.archive.unlink()
    resumed = _download(job)
    actual = sha256_of(place.part, job.report)
    if actual != job.sha256 and resumed:
        # The first bytes may be those of another file; one download in one piece tells.
        place.part.unlink()
        _download(job)
        actual = sha256_of(place.part, job.report)
    if actual != job.sha256:
        size = size_of(place.part)
        place.part.unlink()
        place.validator.unlink(missing_ok=True)
        raise InputError(
            f"{job.source.title}: what {_host(job)} sent ({size} bytes) has sha256 {actual}, not {job.sha256}; "
            f"it was deleted. The address may have moved: {_WAY_OUT}"
        )
    place.part.replace(place.archive)
    place.validator.unlink(missing_ok=True)
    return place.archive


def _download(job: Job) -> bool:
    """Fill `place.part`; whether it was put together from more than one connection."""
    part, limits = job.place.part, job.limits
    if urlsplit(job.url or "").scheme not in {"http", "https"} or not _host(job):
        raise InputError(f"{job.url!r} is not an http(s) address; a file on this machine is given with --archive FILE")
    resumed, failures = False, 0
    while True:
        before = size_of(part)
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
        failures = 1 if size_of(part) - before >= CHUNK else failures + 1
        if failures >= limits.attempts:
            kept = f"; the first {size_of(part) / 1e6:.1f} MB are kept" if size_of(part) else ""
            raise InputError(f"{_host(job)}: cannot be reached or breaks off ({reason}){kept}. Try later, {_WAY_OUT}")
        time.sleep(min(30.0, limits.backoff_seconds * 2 ** (failures - 1)))


def _transfer(job: Job) -> None:
    """One connection: appends to `place.part` until the server's total is there.

    Raises `_ConnectionLostError` or an error of requests or urllib3 where the transfer may be taken up again.
    """
    place, limits = job.place, job.limits
    offset = size_of(place.part)
    # The archive's own bytes are hashed and counted: no transport compression.
    headers = {"Accept-Encoding": "identity", "User-Agent": "anomaly-studies"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        known = read_json(place.validator) or {}
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
        require_room(place.part.parent, max(0, total - start) + max(job.source.extracted_bytes, total))
        done = start
        with place.part.open("ab" if start else "wb") as file:
            write_json(place.validator, {"url": job.url, "validator": _validator(response)})
            for chunk in response.raw.stream(CHUNK, decode_content=False):
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


def _host(job: Job) -> str:
    """The host alone: an address may carry a password or a token."""
    return urlsplit(job.url or "").hostname or ""


def sha256_of(path: Path, report: Progress) -> str:
    """The file's hash in hexadecimal digits, in step ``verify``."""
    digest, done, total = hashlib.sha256(), 0, size_of(path)
    with path.open("rb") as file:
        while chunk := file.read(4 * CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report("verify", done, total)
    return digest.hexdigest()
