"""Which pixels a file holds, kept between commands: an image is decoded once to be compared with the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL

from detectors.data.copies import PixelDigests
from detectors.errors import InputError
from detectors.files import file_lock, write_text
from studies.home import Home

PIXELS_FILE = "pixels.json"
"""Beside the notes on images that were checked."""
RULE = f"sha256 of 8-bit RGB, Pillow {PIL.__version__}"
"""How pixels were decoded; what another rule gave is not compared with."""
MAX_FILES = 50_000
"""Files that are remembered, 7 MB; of more, those that were added last."""


@contextmanager
def known_pixels(home: Home) -> Iterator[PixelDigests]:
    """The pixels of files that were decoded before; what the block adds is kept.

    Several processes may add at a time. Nothing depends on it but time: what is unreadable is made anew, and a home that
    cannot be written stays as it is.
    """
    path = home.root / "checked" / PIXELS_FILE
    known: PixelDigests = _read(path)
    before = set(known)
    yield known
    added = {file: pixels for file, pixels in known.items() if file not in before}
    if not added:
        return
    try:
        with file_lock(home.locks / "pixels.lock"):
            merged = list((_read(path) | added).items())[-MAX_FILES:]
            write_text(path, json.dumps({"rule": RULE, "pixels": dict(merged)}, separators=(",", ":")) + "\n")
    except (InputError, OSError):
        return


def _read(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["rule"] == RULE and all(isinstance(pixels, str) for pixels in stored["pixels"].values()):
            return dict(stored["pixels"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # none yet, or no longer readable
    return {}
