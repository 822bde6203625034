"""How many lines the ledger of a study had, and their digest, as the Optuna storage keeps them beside the study.

A file whose last lines were taken out, or which was written anew as a whole, bears no trace of it; the count does. It follows the
file: a ledger that is longer than was counted was lengthened by a driver that was killed in between, or that runs just now. A
ledger that is shorter, or whose counted lines are others, is a fault, and the count is left as it is.

With a database for a team there is one ledger for each home that ran the study. A home is known by an id in a file of its own, so
that it may be moved, and its machine renamed.
"""

from __future__ import annotations

import uuid

import optuna
from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.files import write_text
from studies.home import Home, sqlite_file
from studies.worker.ledger import chain_faults, ledger_texts, text_digest

ATTRIBUTE = "ledger:"
"""Beginning of the names of the study's attributes that hold a count; the id of the home follows."""


class _Count(BaseModel):
    """Of one home's ledger of a study."""

    model_config = ConfigDict(extra="ignore")
    lines: int
    sha256: str
    """Of these lines."""


def count_ledger(study: optuna.Study, home: Home, uid: str) -> list[str]:
    """Bring the count of this home's ledger up to date, unless the ledger is at fault. Returns the faults, as `ledger_faults`.

    For whoever adds lines: the driver that holds the study's lease, and the gate. Two that count at the same time do no harm: the
    smaller count is caught up.
    """
    faults = ledger_faults(study, home, uid)
    if not faults:
        texts = ledger_texts(home.ledger(uid))
        count = _Count(lines=len(texts), sha256=text_digest(texts)).model_dump()
        key = f"{ATTRIBUTE}{_own_id(home) or _new_id(home)}"
        if study.user_attrs.get(key) != count:
            study.set_user_attr(key, count)
    return faults


def ledger_faults(study: optuna.Study, home: Home, uid: str) -> list[str]:
    """What is wrong with this home's ledger of a study, in words; empty if nothing is. Writes nothing."""
    path = home.ledger(uid)
    texts, counts = ledger_texts(path), _counts(study)
    own = counts.get(_own_id(home) or "")
    if own is not None:
        return [*_differences(own, texts, str(path)), *chain_faults(path)]
    faults = chain_faults(path)
    # A database of its own is no other home's: the id was lost.
    if counts and (database := sqlite_file(home.storage_url)) and database.is_relative_to(home.root):
        differences = [_differences(count, texts, str(path)) for count in counts.values()]
        return [*min(differences, key=len), *faults]
    return faults


def _differences(count: _Count, texts: list[bytes], place: str) -> list[str]:
    if len(texts) < count.lines:
        return [
            f"{count.lines} scorings of the test images were counted, and {place} holds {len(texts)}: lines were taken out; "
            "restore the file from a backup"
        ]
    if text_digest(texts[: count.lines]) != count.sha256:
        return [f"the lines of {place} are not those that were counted: it was rewritten; restore it from a backup"]
    return []


def _counts(study: optuna.Study) -> dict[str, _Count]:
    """By the homes' ids; a count that cannot be read is none that any ledger could meet."""
    found = {}
    for key, value in study.user_attrs.items():
        if key.startswith(ATTRIBUTE):
            try:
                found[key.removeprefix(ATTRIBUTE)] = _Count.model_validate(value)
            except ValidationError:
                found[key.removeprefix(ATTRIBUTE)] = _Count(lines=0, sha256="unreadable")
    return found


def _own_id(home: Home) -> str | None:
    return home.id_file.read_text(encoding="utf-8").strip() if home.id_file.is_file() else None


def _new_id(home: Home) -> str:
    own = uuid.uuid4().hex[:12]
    write_text(home.id_file, own + "\n")
    return own
