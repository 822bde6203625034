"""Who moved which model when: an append-only file whose lines hang together, outside MLflow's database.

Each line carries the SHA-256 of the line before it: one that is changed, lost or put in later shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.files import append_line, file_lock

Action = Literal["registered", "refused", "promoted", "rolled back"]


class AuditLine(BaseModel):
    """One thing that was done to a registered model."""

    model_config = ConfigDict(extra="forbid")

    id: str
    """Of the deed: written once, however often it is taken up again."""
    time: str
    """ISO 8601, UTC."""
    user: str
    host: str
    model: str
    action: Action
    version: str
    """Of the model, after it."""
    before: str | None
    """The champion before it."""
    details: dict[str, Any] = {}
    previous: str = ""
    """SHA-256 of the line before, as it stands in the file; empty in the first."""


@dataclass(frozen=True)
class Audit:
    """The file."""

    path: Path

    def append(self, line: AuditLine) -> None:
        """Add a line, on disk when this returns; nothing where its id is there already. Raises as `told_plainly` does."""
        with file_lock(self.path.with_suffix(".lock")):
            texts = self._texts()
            if any(found.id == line.id for found in _valid(texts)):
                return
            last = hashlib.sha256(texts[-1].encode()).hexdigest() if texts else ""
            append_line(self.path, json.dumps(line.model_copy(update={"previous": last}).model_dump(mode="json")))

    def lines(self, model: str | None = None) -> list[AuditLine]:
        """All lines, or those of one model, oldest first."""
        return [line for line in _valid(self._texts()) if model in (None, line.model)]

    def faults(self, known: Mapping[str, str]) -> list[str]:
        """What is wrong with the file, in words; empty where it is whole.

        Args:
            known: ids that MLflow has of the same deeds, each with what to call it.
        """
        texts, found = self._texts(), []
        before = ""
        for number, text in enumerate(texts, 1):
            try:
                line = AuditLine.model_validate_json(text)
            except ValidationError:
                found.append(f"line {number} is damaged")
            else:
                if line.previous != before:
                    found.append(f"line {number} does not follow the one before it: lines were changed or lost")
            before = hashlib.sha256(text.encode()).hexdigest()
        here = {line.id for line in _valid(texts)}
        found += [f"{what} is known to MLflow and missing here" for deed, what in known.items() if deed not in here]
        return found

    def _texts(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []


def _valid(texts: list[str]) -> Iterator[AuditLine]:
    for text in texts:
        try:
            yield AuditLine.model_validate_json(text)
        except ValidationError:
            continue
