"""The model registry: no source is registered twice, no alias points to nothing, and every action is on record.

A registered model has the aliases ``challenger`` (the newest candidate), ``champion`` (in production) and ``previous`` (the
champion before). MLflow moves one alias at a time and has no transactions. Therefore the aliases that are to be reached are
written first, as the tag `PENDING` of the registered model. If the process dies, the next one that works on the model moves the
aliases there. A promotion is decided once this tag is written, not earlier.
"""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from detectors.errors import InputError
from tracking.audit import Action, Audit, AuditLine, Entry, Tag
from tracking.patience import Patience
from tracking.registered_models import SOURCE, RegisteredModels, Source, Version
from tracking.store import origin_tags

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
PENDING = "promotion.pending"
AUDIT_TAG = "audit."
"""Beginning of the names of the registered model's tags that repeat the lines of the audit file."""


class Registry(RegisteredModels):
    """The registered models of one MLflow store, with aliases that move together and a record of every action.

    Whoever calls a method that writes must hold the lock for the model, see `studies.release.promotion.Promoter.held`.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        audit: Path,
        cache: Path,
        lock_folder: Path | None = None,
        patience: Patience | None = None,
        artifacts: Path | None = None,
    ) -> None:
        """Args:
            audit: the file that keeps the record; see `tracking.audit`.
            cache: folder for detectors that are fetched from the store.
            lock_folder: folder of a lock that keeps processes from creating a local store at the same time.
            patience: how long to wait for the store, and how to report it; default as `Patience()`.
            artifacts: where the artifacts of a local store are now; see `tracking.moved`.

        Raises:
            InputError: the store cannot be reached or opened.
        """
        super().__init__(tracking_uri, cache=cache, lock_folder=lock_folder, patience=patience, artifacts=artifacts)
        self.audit = Audit(audit)

    def register(self, name: str, source: Source) -> Version:
        """The version of a source, which is made if there is none, with the alias ``challenger`` unless it is champion."""
        self.settle(name)
        version = self.version(name, self._patiently(lambda: self._add_version(name, source)))
        self._record(version, "registered", key=_registration_id(version), details={SOURCE: source.key})
        return self._challenge(version)

    def copy(self, version: Version, name: str) -> Version:
        """The same model as a version of another registered model, with the alias ``challenger`` there."""
        self.settle(name)
        copy = self.version(name, self._patiently(lambda: self._copy_version(version, name)))
        details = {"copied from": f"{version.name}/{version.version}", SOURCE: version.tags[SOURCE]}
        self._record(copy, "registered", key=_registration_id(copy), details=details)
        return self._challenge(copy)

    def promote(self, version: Version, *, details: Mapping[str, Any]) -> Version:
        """Make a version the champion and the present champion ``previous``; no change if it is champion already.

        Args:
            details: what the record keeps about the promotion, JSON-able.
        """
        self.settle(version.name)
        champion = self.find(version.name, CHAMPION)
        if champion is not None and champion.version == version.version:
            return champion
        goal = {CHAMPION: version.version, PREVIOUS: champion.version if champion else None}
        self._move(version, "promoted", goal, before=champion, details=details)
        return self.version(version.name, version.version)

    def roll_back(self, name: str, *, reason: str = "") -> tuple[Version, Version]:
        """Swap champion and previous.

        Returns:
            The new champion, and the one before.

        Raises:
            InputError: there is no champion, or none before it.
        """
        self.settle(name)
        champion, previous = self.version(name, CHAMPION), self.find(name, PREVIOUS)
        if previous is None:
            raise InputError(f"model {name!r}: version {champion.version} has no champion before it to go back to")
        goal = {CHAMPION: previous.version, PREVIOUS: champion.version}
        self._move(previous, "rolled back", goal, before=champion, details={"reason": reason} if reason else {})
        return self.version(name, CHAMPION), self.version(name, PREVIOUS)

    def refuse(self, version: Version, *, details: Mapping[str, Any]) -> None:
        """Record that the gate refused a version."""
        self._record(version, "refused", key=uuid.uuid4().hex, details=details)

    def settle(self, name: str) -> bool:
        """Finish the promotion that a process which died had decided. Returns whether there was one."""
        tags = self._patiently(lambda: self._tags(name))
        self._write_last_tag(name, tags)
        if PENDING not in tags:
            return False
        self._reach(name, json.loads(tags[PENDING]))
        return True

    def faults(self, name: str) -> list[str]:
        """What is wrong with the record of a model, in words; empty if nothing is."""
        tags, damaged = _audit_tags(self._patiently(lambda: self._tags(name)))
        return [*self.audit.faults(name, tags), *(f"MLflow's tag {key} of {name} is damaged" for key in damaged)]

    def faults_of_missing(self) -> dict[str, list[str]]:
        """{model: what is wrong} for models that are on record and that MLflow does not have, as after its database was lost."""
        there, faults = set(self.names()), dict[str, list[str]]()
        for line in self.audit.lines():
            if line.model not in there:
                faults[line.model] = self.audit.faults(line.model, [])
        return faults

    def _write_last_tag(self, name: str, tags: Mapping[str, str]) -> None:
        """Write the tag of a model's last line where it alone is missing, as a process leaves it that dies after the line."""
        entries = self.audit.entries(name)
        known = {tag.id for tag in _audit_tags(tags)[0]}
        if entries and [entry for entry in entries if entry.line.id not in known] == entries[-1:] and len(entries) > 1:
            self._write_tag(entries[-1])

    def _challenge(self, version: Version) -> Version:
        """Give a version the alias ``challenger``, unless it is the champion."""
        if CHAMPION not in version.aliases:
            self._set_alias(version.name, CHALLENGER, version.version)
        return self.version(version.name, version.version)

    def _move(
        self,
        version: Version,
        action: Action,
        goal: Mapping[str, str | None],
        *,
        before: Version | None,
        details: Mapping[str, Any],
    ) -> None:
        """Write down where the aliases are to point, then move them.

        Args:
            goal: {alias: number of the version, or None to leave the alias as it is}.
            before: the champion before.
        """
        line = self._line(version, action, key=uuid.uuid4().hex, before=before, details=details)
        plan = {"aliases": dict(goal), "line": line.model_dump(mode="json")}
        self._patiently(lambda: self._client.set_registered_model_tag(version.name, PENDING, json.dumps(plan)))
        self._reach(version.name, plan)

    def _reach(self, name: str, plan: Mapping[str, Any]) -> None:
        """Move the aliases as a plan says, in an order in which there is a champion at any time."""
        aliases, line = plan["aliases"], AuditLine.model_validate(plan["line"])
        for alias in (CHAMPION, PREVIOUS):
            if aliases[alias] is not None:
                self._set_alias(name, alias, aliases[alias])
        challenger = self.find(name, CHALLENGER)
        if challenger is not None and challenger.version == aliases[CHAMPION]:
            self._patiently(lambda: self._client.delete_registered_model_alias(name, CHALLENGER))
        self._write(line)
        self._patiently(lambda: self._delete_plan(name))

    def _delete_plan(self, name: str) -> None:
        if PENDING in self._tags(name):
            self._client.delete_registered_model_tag(name, PENDING)

    def _set_alias(self, name: str, alias: str, number: str) -> None:
        self._patiently(lambda: self._client.set_registered_model_alias(name, alias, number))

    def _record(self, version: Version, action: Action, *, key: str, details: Mapping[str, Any]) -> None:
        """Record an action that moves no champion."""
        champion = self.find(version.name, CHAMPION)
        self._write(self._line(version, action, key=key, before=champion, details=details))

    def _write(self, line: AuditLine) -> None:
        """Write a line to the audit file, then to MLflow. `faults` reports a line that MLflow has and the file does not."""
        self._write_tag(self.audit.append(line))

    def _write_tag(self, entry: Entry) -> None:
        line, text = entry.line, Tag.of(entry).model_dump_json()
        moment = re.sub(r"\D", "", line.time)[:14]
        key = f"{AUDIT_TAG}{moment}.{sha256(line.id.encode()).hexdigest()[:8]}"
        self._patiently(lambda: self._client.set_registered_model_tag(line.model, key, text))

    def _line(
        self, version: Version, action: Action, *, key: str, before: Version | None, details: Mapping[str, Any]
    ) -> AuditLine:
        return AuditLine(
            id=key,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            user=origin_tags()["mlflow.user"],
            host=platform.node(),
            model=version.name,
            action=action,
            version=version.version,
            before=before.version if before else None,
            details=dict(details),
        )


def _audit_tags(tags: Mapping[str, str]) -> tuple[list[Tag], list[str]]:
    """The tags that repeat lines of the audit file, and the names of those that cannot be read."""
    found, damaged = [], []
    for key, value in tags.items():
        if key.startswith(AUDIT_TAG):
            try:
                found.append(Tag.model_validate_json(value))
            except ValidationError:
                damaged.append(key)
    return found, damaged


def _registration_id(version: Version) -> str:
    """Id of the action that made a version; the time makes it differ from a version of the same number in another database."""
    return f"registered {version.name}/{version.version}@{version.created_ms}"
