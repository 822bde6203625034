"""The record of what was done to models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tracking.audit import Audit, AuditLine


def line(number: int, **changes: object) -> AuditLine:
    fields: dict[str, object] = {
        "id": f"deed {number}",
        "time": "2026-01-01T00:00:00+00:00",
        "user": "ann",
        "host": "line-3",
        "model": "screw",
        "action": "promoted",
        "version": str(number),
        "before": None,
    }
    return AuditLine.model_validate(fields | changes)


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return Audit(tmp_path / "home" / "registry.jsonl")


def test_lines_come_back_in_their_order_and_by_model(audit: Audit) -> None:
    assert audit.lines() == []
    for number in range(3):
        audit.append(line(number, model="carpet" if number == 1 else "screw"))
    assert [found.version for found in audit.lines()] == ["0", "1", "2"]
    assert [found.version for found in audit.lines("screw")] == ["0", "2"]
    assert audit.faults({}) == []


def test_a_deed_is_written_once(audit: Audit) -> None:
    audit.append(line(1))
    audit.append(line(1))
    assert len(audit.lines()) == 1


def test_writers_at_the_same_time_leave_a_whole_chain(audit: Audit) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: audit.append(line(number)), range(40)))
    assert {found.version for found in audit.lines()} == {str(number) for number in range(40)}
    assert audit.faults({}) == []


@pytest.mark.parametrize("damage", ["changed", "lost", "swapped"])
def test_what_was_changed_later_shows(audit: Audit, damage: str) -> None:
    for number in range(4):
        audit.append(line(number))
    texts = audit.path.read_text().splitlines()
    if damage == "changed":
        texts[1] = texts[1].replace('"ann"', '"bob"')
    elif damage == "lost":
        del texts[1]
    else:
        texts[1], texts[2] = texts[2], texts[1]
    audit.path.write_text("\n".join(texts) + "\n")
    assert any("does not follow the one before it" in fault for fault in audit.faults({}))


def test_a_line_cut_by_a_crash_is_told_and_does_not_hinder_the_next(audit: Audit) -> None:
    audit.append(line(1))
    with audit.path.open("a") as file:
        file.write('{"id": "half')
    audit.append(line(2))
    assert [found.version for found in audit.lines()] == ["1", "2"]
    assert audit.faults({}) == ["line 2 is damaged"]


def test_what_mlflow_knows_and_the_file_does_not_is_a_fault(audit: Audit) -> None:
    audit.append(line(1))
    faults = audit.faults({"deed 1": "one", "deed 2": "promoted version 2 of screw"})
    assert faults == ["promoted version 2 of screw is known to MLflow and missing here"]
