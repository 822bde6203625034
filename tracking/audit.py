"""The audit file: who registered, promoted or refused which model when, outside MLflow's database.

Lines are only appended. Each line holds the SHA-256 of the line before it, so that a line that is changed, lost or inserted later
is detected. Lines at the end, or all of them, can be cut off or written anew without a trace in the file; therefore MLflow keeps
a tag for each line, and both are compared. Whoever may write to both can rewrite both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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


class Entry(NamedTuple):
    """A line as it is in the file."""

    line: AuditLine
    sha256: str
    """Of its text."""


class Tag(BaseModel):
    """What MLflow keeps of a line, as a tag of the registered model."""

    model_config = ConfigDict(extra="ignore")

    id: str
    time: str
    user: str
    host: str
    model: str
    action: str
    version: str
    before: str | None
    sha256: str | None = None
    """Of the line's text; None in tags of version 0.1 and 0.2."""

    @classmethod
    def of(cls, entry: Entry) -> Tag:
        """The tag that belongs to a line."""
        return cls(**entry.line.model_dump(exclude={"previous", "details"}), sha256=entry.sha256)

    def is_of(self, entry: Entry) -> bool:
        """Whether this tag was made of a line.

        Version 0.2 wrote the tag of a registration that it took up after a crash with the time, user and champion of then.
        """
        if self.sha256 is not None:
            return self == Tag.of(entry)
        taken_up = {"time", "user", "host", "before"} if self.action == "registered" else set()
        left_out = {"sha256", *taken_up}
        return self.model_dump(exclude=left_out) == Tag.of(entry).model_dump(exclude=left_out)


@dataclass(frozen=True)
class Audit:
    """The audit file."""

    path: Path

    def append(self, line: AuditLine) -> Entry:
        """Append a line, unless a line with its id is there already. Returns what is in the file, on disk, with this id.

        Raises:
            InputError: the file cannot be written.
        """
        with file_lock(self.path.with_suffix(".lock")):
            texts = self._texts()
            for entry in _valid(texts):
                if entry.line.id == line.id:
                    return entry
            written = line.model_copy(update={"previous": _digest(texts[-1]) if texts else ""})
            text = json.dumps(written.model_dump(mode="json"))
            append_line(self.path, text)
            return Entry(written, _digest(text))

    def lines(self, model: str | None = None) -> list[AuditLine]:
        """All valid lines, or those of one model, oldest first."""
        return [entry.line for entry in self.entries(model)]

    def entries(self, model: str | None = None) -> list[Entry]:
        """The same with their digests."""
        return [entry for entry in _valid(self._texts()) if model in (None, entry.line.model)]

    def faults(self, model: str, tags: Sequence[Tag]) -> list[str]:
        """What is wrong with the file, and where it and MLflow differ about a model, in words; empty if nothing is.

        Args:
            tags: what MLflow has of the model.
        """
        return [*self.chain_faults(), *self._differences(model, tags)]

    def chain_faults(self) -> list[str]:
        """What is wrong with the file by itself, in words."""
        faults, before = [], ""
        for number, text in enumerate(self._texts(), 1):
            try:
                line = AuditLine.model_validate_json(text)
            except ValidationError:
                faults.append(f"line {number} is damaged")
            else:
                if line.previous != before:
                    faults.append(f"line {number} does not follow the one before it: lines were changed or lost")
            before = _digest(text)
        return faults

    def _differences(self, model: str, tags: Sequence[Tag]) -> list[str]:
        entries = {entry.line.id: entry for entry in self.entries(model)}
        known: dict[str, list[Tag]] = {}
        for tag in tags:
            known.setdefault(tag.id, []).append(tag)
        faults = []
        for id, of_one in known.items():
            what = f"{of_one[0].action} version {of_one[0].version} of {model} ({of_one[0].time})"
            if id not in entries:
                faults.append(f"{what} is known to MLflow and missing here")
            # A registration that was taken up after a crash may have left a tag more.
            elif not any(tag.is_of(entries[id]) for tag in of_one):
                faults.append(f"{what} is another in MLflow than here")
        for id, entry in entries.items():
            if id not in known:
                line = entry.line
                faults.append(f"{line.action} version {line.version} of {model} ({line.time}) is unknown to MLflow")
        return faults

    def _texts(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []


def _valid(texts: list[str]) -> Iterator[Entry]:
    """The lines that can be read."""
    for text in texts:
        try:
            yield Entry(AuditLine.model_validate_json(text), _digest(text))
        except ValidationError:
            continue


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
