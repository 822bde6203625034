"""The ledger: a file with one line for each time that the test images of a study were scored."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class LedgerLine(BaseModel):
    """One scoring of the test images."""

    model_config = ConfigDict(extra="forbid")

    time: str
    """UTC, ISO 8601."""
    study_uid: str
    study: str
    trial: int
    purpose: str
    """``selected`` after a search, ``replicate`` with another seed, ``paper`` under protocol paper."""
    protocol: str
    test_digest: str
    image_auroc: float | None
    host: str


def read_ledger(path: Path) -> list[LedgerLine]:
    """All lines, oldest first; a line that a crash cut short is skipped. Empty if there is no file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(LedgerLine.model_validate_json(text))
        except ValidationError:
            continue
    return lines
