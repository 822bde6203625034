"""Copies among images: files that decode to the same pixels, whatever their names, formats and metadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.data.images import read_image
from detectors.data.samples import Sample, file_sha256
from detectors.errors import InputError

MAX_READERS = 4
"""Images that are decoded at a time; each is held in memory as a whole."""

PixelDigests = MutableMapping[str, str]
"""{sha256 of a file: `pixel_sha256` of its image}, the latter empty where the file cannot be decoded."""
MAX_NAMED = 3
"""Images that a line names; of the others it has the number."""
Progress = Callable[[int, int], None]
"""Called with how many images are done, and how many there are."""


def pixel_sha256(rgb: NDArray[np.uint8]) -> str:
    """sha256 (hex) over the shape and the values of an image [H, W, 3]."""
    digest = hashlib.sha256(f"{rgb.shape}".encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.hexdigest()


def content_groups(
    samples: Sequence[Sample], cache: PixelDigests | None = None, *, progress: Progress | None = None
) -> list[int]:
    """Number the contents of images: equal numbers are equal decoded RGB pixels.

    A synthetic defect does not count: a painted sample has the number of the image it is painted into. A file that
    cannot be decoded equals those with the same bytes; one that cannot even be read equals none.

    Args:
        cache: what is known of files already; what is found out is added.
        progress: called, while files are decoded, with the number done and their total.

    Returns:
        A number for each sample [N], from 0 in the order of first appearance.
    """
    contents = pixel_digests([sample.file for sample in samples], cache, progress=progress)
    numbers: dict[object, int] = {}
    groups = []
    for index, content in enumerate(contents):
        groups.append(numbers.setdefault(index if content is None else content, len(numbers)))
    return groups


def named(names: Sequence[str]) -> str:
    """The first `MAX_NAMED` names, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def pixel_digests(
    files: Iterable[Path], cache: PixelDigests | None = None, *, progress: Progress | None = None
) -> list[str | None]:
    """A digest of each file's pixels [N], as `content_groups` compares them; None where the file cannot be read."""
    files = list(files)
    known: PixelDigests = {} if cache is None else cache
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(_file_sha256, files))
        unknown = {sha: file for sha, file in zip(hashes, files, strict=True) if sha is not None and sha not in known}
        for done, (sha, content) in enumerate(zip(unknown, pool.map(_pixels_of, unknown.values()), strict=True), 1):
            known[sha] = content
            if progress is not None:
                progress(done, len(unknown))
    return [None if sha is None else known[sha] or f"file {sha}" for sha in hashes]


def _file_sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except InputError:
        return None


def _pixels_of(path: Path) -> str:
    try:
        return pixel_sha256(read_image(path))
    except InputError:  # whoever needs the image says what is wrong with it
        return ""
