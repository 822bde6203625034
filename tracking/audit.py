"""The audit file: who registered, promoted or refused which model when, outside MLflow's database.

Lines are only appended. Each line holds the SHA-256 of the line before it, so that a line that is changed, lost or inserted later
is detected.
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
    """One action on a registered model."""

    model_config = ConfigDict(extra="forbid")

    id: str
    """Id of the action, which is written once, however often it is resumed after a crash."""
    time: str
    """ISO 8601, UTC."""
    user: str
    host: str
    model: str
    action: Action
    version: str
    """The version that the action was about."""
    before: str | None
    """Version of the champion before the action; None if there was none."""
    details: dict[str, Any] = {}
    previous: str = ""
    """SHA-256 of the line before, as it is in the file; empty in the first line."""


@dataclass(frozen=True)
class Audit:
    """The audit file."""

    path: Path

    def append(self, line: AuditLine) -> None:
        """Append a line, unless a line with its id is there already. The line is on disk when this returns.

        Raises:
            InputError: the file cannot be written.
        """
        with file_lock(self.path.with_suffix(".lock")):
            texts = self._texts()
            if any(known.id == line.id for known in _valid(texts)):
                return
            last = hashlib.sha256(texts[-1].encode()).hexdigest() if texts else ""
            append_line(self.path, json.dumps(line.model_copy(update={"previous": last}).model_dump(mode="json")))

    def lines(self, model: str | None = None) -> list[AuditLine]:
        """All valid lines, or those of one model, oldest first."""
        return [line for line in _valid(self._texts()) if model in (None, line.model)]

    def faults(self, known: Mapping[str, str]) -> list[str]:
        """What is wrong with the file, in words; empty if nothing is.

        Args:
            known: {id of an action that MLflow knows of: its description}.
        """
        texts, faults = self._texts(), []
        before = ""
        for number, text in enumerate(texts, 1):
            try:
                line = AuditLine.model_validate_json(text)
            except ValidationError:
                faults.append(f"line {number} is damaged")
            else:
                if line.previous != before:
                    faults.append(f"line {number} does not follow the one before it: lines were changed or lost")
            before = hashlib.sha256(text.encode()).hexdigest()
        here = {line.id for line in _valid(texts)}
        faults += [f"{what} is known to MLflow and missing here" for id, what in known.items() if id not in here]
        return faults

    def _texts(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []


def _valid(texts: list[str]) -> Iterator[AuditLine]:
    """The lines that can be read."""
    for text in texts:
        try:
            yield AuditLine.model_validate_json(text)
        except ValidationError:
            continue
