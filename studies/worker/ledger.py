"""The ledger: one line for every time a study's test set was scored."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class LedgerLine(BaseModel):
    """One scoring on test."""

    model_config = ConfigDict(extra="forbid")

    time: str
    study_uid: str
    study: str
    trial: int
    purpose: str
    """``selected`` after a search, ``replicate`` for the same with another seed, ``paper`` for protocol paper."""
    protocol: str
    test_digest: str
    image_auroc: float | None
    host: str


def read_ledger(path: Path) -> list[LedgerLine]:
    """All lines, oldest first; a line that a crash cut short is passed over."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(LedgerLine.model_validate_json(text))
        except ValidationError:
            continue
    return lines
