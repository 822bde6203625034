"""The ledger: a file with one line for each time that the test images of a study were scored.

Lines are only appended, and each holds the SHA-256 of what is before it, so that a line which is changed, inserted or taken out
is noticed. Lines at the end, or all of them, can be taken out of a file without a trace in it: therefore the Optuna storage keeps
a count beside the study (`studies.search.ledger_count`). Whoever may write to both can rewrite both.

Ledgers of version 0.1 and 0.2 have no such digests. The first line that is added to one holds the digest of all the text before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.files import append_line
from studies.home import Home


class LedgerLine(BaseModel):
    """One scoring of the test images. What a newer version adds to a line is passed over."""

    model_config = ConfigDict(extra="ignore")

    time: str
    """UTC, ISO 8601."""
    study_uid: str
    study: str
    trial: int
    purpose: str
    """``selected`` after a search; ``replicate`` with another seed; ``paper`` under protocol paper; ``gate`` where a promotion
    was judged, one line for each model that was scored; ``nested`` where a study that keeps no images for test was judged by a
    nested estimate: its trials score all labelled images, and each look at the estimate of their choice is a line."""
    protocol: str
    test_digest: str
    image_auroc: float | None
    host: str
    model: str | None = None
    """Of a gate's line: the registered model that was scored, with its version as ``NAME/VERSION``."""
    previous: str | None = None
    """SHA-256 of the line before as it is in the file, hex; in the first line with a digest, of all the text before; empty in the
    first line of a file, and None in lines of version 0.1 and 0.2."""


def append_to_ledger(home: Home, line: LedgerLine) -> None:
    """Add a line to the ledger of its study, on disk when this returns; several processes may do so at once.

    Args:
        line: its `previous` is filled in here.

    Raises:
        InputError: the file cannot be written.
    """

    def chained(before: bytes) -> str:
        texts = _texts(before)
        previous = _digest_before(texts, chained=_is_chained(texts))
        return line.model_copy(update={"previous": previous}).model_dump_json()

    append_line(home.ledger(line.study_uid), chained)


def append_from_elsewhere(home: Home, study_uid: str, texts: Sequence[str]) -> None:
    """Add the lines of a ledger that another machine kept of a job. One that cannot be read is added as it is, and is reported.

    Raises:
        InputError: the file cannot be written.
    """
    for text in texts:
        if (line := _parsed(text.encode())) is not None and line.study_uid == study_uid:
            append_to_ledger(home, line)
        else:
            append_line(home.ledger(study_uid), text)


def read_ledger(path: Path) -> list[LedgerLine]:
    """All lines, oldest first; a line that a crash cut short is skipped. Empty if there is no file."""
    return [line for text in ledger_texts(path) if (line := _parsed(text)) is not None]


def ledger_texts(path: Path) -> list[bytes]:
    """The lines as they are in the file, without their ends. Empty if there is no file."""
    return _texts(path.read_bytes()) if path.is_file() else []


def chain_faults(path: Path) -> list[str]:
    """What is wrong with the file as it stands, in words; empty if nothing is."""
    return list(_faults(ledger_texts(path)))


def text_digest(texts: Sequence[bytes]) -> str:
    """SHA-256 of whole lines, hex."""
    return hashlib.sha256(b"".join(text + b"\n" for text in texts)).hexdigest()


def _faults(texts: Sequence[bytes]) -> Iterator[str]:
    chained = False
    for number, text in enumerate(texts, 1):
        line = _parsed(text)
        if line is None:
            yield f"line {number} is damaged"
        elif line.previous is not None:
            if line.previous != _digest_before(texts[: number - 1], chained=chained):
                yield f"line {number} does not follow what is before it: lines were changed or taken out"
            chained = True
        elif chained:
            yield f"line {number} has no digest of the line before it: it was inserted, or written by version 0.2"


def _digest_before(texts: Sequence[bytes], *, chained: bool) -> str:
    """What the line behind these holds as `LedgerLine.previous`; `chained` where one of these holds a digest."""
    if not texts:
        return ""
    return hashlib.sha256(texts[-1]).hexdigest() if chained else text_digest(texts)


def _is_chained(texts: Sequence[bytes]) -> bool:
    lines = (_parsed(text) for text in reversed(texts))
    return any(line is not None and line.previous is not None for line in lines)


def _parsed(text: bytes) -> LedgerLine | None:
    """A line; None where it cannot be read."""
    try:
        return LedgerLine.model_validate_json(text)
    except ValidationError:
        return None


def _texts(content: bytes) -> list[bytes]:
    """Lines of a file's content, without their ends."""
    lines = content.split(b"\n")
    return lines if lines[-1] else lines[:-1]
