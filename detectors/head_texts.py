"""The texts of files with heads: which of them persons named, and where they are kept. Imports no torch and runs none of them.

A text is known by its sha256. `detectors.head_files` makes heads of texts.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from detectors.errors import InputError
from detectors.files import write_bytes

VARIABLE = "STUDY_HEADS"
"""Environment variable: paths of files with heads, with the system's path separator between them. A file is run when a saved
detector or a study needs its text."""
SHA256 = re.compile(r"[0-9a-f]{64}")
ABSENT = "is not there"
SHORT = 12
"""Digits of a digest in messages."""


@dataclass(frozen=True)
class HeadCode:
    """Which class of which text a head is."""

    file: str
    """Name of the file, for messages."""
    class_name: str
    sha256: str
    """Of the file's text, hex."""

    def to_json(self) -> dict[str, str]:
        """For a study's configuration and a saved detector."""
        return {"file": self.file, "class_name": self.class_name, "sha256": self.sha256}

    @classmethod
    def from_json(cls, raw: Mapping[str, str]) -> HeadCode:
        """What `to_json` gave. Raises `InputError` for anything else."""
        try:
            code = cls(str(raw["file"]), str(raw["class_name"]), str(raw["sha256"]))
        except (KeyError, TypeError) as error:
            raise InputError("the record of a head's file needs file, class_name and sha256") from error
        if not SHA256.fullmatch(code.sha256):
            raise InputError(f"{code.sha256!r} is no sha256 of a head's file")
        return code


class _Texts:
    """The texts that persons named in this process. Entries are added, never changed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.by_sha256: dict[str, bytes] = {}
        self.folders: list[Path] = []
        """Where `keep` wrote texts that persons named in earlier processes."""


_texts = _Texts()


def remember(code: HeadCode, text: bytes) -> None:
    """From now on `text_of` has the text of a file that a person named."""
    with _texts.lock:
        _texts.by_sha256[code.sha256] = text


def text_of(code: HeadCode) -> bytes:
    """The file's text. Raises `InputError` where nobody named it here; the message says where it was looked for."""
    with _texts.lock:
        if code.sha256 in _texts.by_sha256:
            return _texts.by_sha256[code.sha256]
        kept = [_kept(folder, code.sha256) for folder in _texts.folders]
        listed = [Path(name).expanduser() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
        problems = []
        for path in [*kept, *listed]:
            text = _read(path, code)
            if isinstance(text, bytes):
                _texts.by_sha256[code.sha256] = text
                return text
            if path in listed or text != ABSENT:
                problems.append(f"{path} {text}")
    looked = f" ({'; '.join(problems)})" if problems else ""
    if listed:
        raise InputError(
            f"the head {code.class_name} comes from a file {code.file} with sha256 {code.sha256[:SHORT]}, and no file of "
            f"{VARIABLE} is that one{looked}; name the very file that it was made from"
        )
    raise InputError(
        f"the head {code.class_name} comes from a file {code.file} that nobody named here (sha256 {code.sha256[:SHORT]})"
        f"{looked}; set {VARIABLE}=PATH/{code.file} if you have that file and trust it"
    )


def look_in(folder: Path) -> None:
    """Look for texts in a folder that `keep` writes to, from now on in this process."""
    with _texts.lock:
        if folder not in _texts.folders:
            _texts.folders.append(folder)


def keep(code: HeadCode, folder: Path) -> Path:
    """Keep a text for other processes and later days: it stays what it is while its file is edited.

    Raises:
        InputError: the folder cannot be written, or the text is not known.
    """
    return keep_text(code.sha256, text_of(code), folder)


def keep_text(digest: str, text: bytes, folder: Path) -> Path:
    """Write a text where `look_in` finds it by its sha256, unless it is there; a damaged one is replaced.

    Raises:
        InputError: the folder cannot be written.
    """
    path = _kept(folder, digest)
    try:
        if path.read_bytes() == text:
            return path
    except OSError:  # not there, or not to be read: writing it says what is wrong
        pass
    write_bytes(path, text)
    return path


def _kept(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.py"


def _read(path: Path, code: HeadCode) -> bytes | str:
    """The text of a file, or what keeps it from being the one that is looked for."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return ABSENT
    except IsADirectoryError:
        return "is a folder"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    # Digested again, for others may write there.
    found = sha256(text).hexdigest()
    return text if found == code.sha256 else f"has another text, sha256 {found[:SHORT]}"
