"""The record of what was done to models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tracking.audit import Audit, AuditLine, Tag


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
    assert audit.chain_faults() == []


def test_a_deed_is_written_once(audit: Audit) -> None:
    audit.append(line(1))
    audit.append(line(1))
    assert len(audit.lines()) == 1


def test_writers_at_the_same_time_leave_a_whole_chain(audit: Audit) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: audit.append(line(number)), range(40)))
    assert {found.version for found in audit.lines()} == {str(number) for number in range(40)}
    assert audit.chain_faults() == []


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
    assert any("does not follow the one before it" in fault for fault in audit.chain_faults())


def test_a_line_cut_by_a_crash_is_told_and_does_not_hinder_the_next(audit: Audit) -> None:
    audit.append(line(1))
    with audit.path.open("a") as file:
        file.write('{"id": "half')
    audit.append(line(2))
    assert [found.version for found in audit.lines()] == ["1", "2"]
    assert audit.chain_faults() == ["line 2 is damaged"]


def test_both_agree_where_each_line_has_its_tag(audit: Audit) -> None:
    tags = [Tag.of(audit.append(line(number))) for number in range(3)]
    audit.append(line(9, model="carpet"))
    assert audit.faults("screw", tags) == []


def test_what_mlflow_knows_and_the_file_does_not_is_a_fault(audit: Audit) -> None:
    tags = [Tag.of(audit.append(line(number))) for number in range(3)]
    audit.path.write_text("".join(text + "\n" for text in audit.path.read_text().splitlines()[:2]))
    told = "promoted version 2 of screw (2026-01-01T00:00:00+00:00) is known to MLflow and missing here"
    assert audit.faults("screw", tags) == [told]
    audit.path.write_text("")
    assert len(audit.faults("screw", tags)) == 3


def test_what_the_file_knows_and_mlflow_does_not_is_a_fault(audit: Audit) -> None:
    tags = [Tag.of(audit.append(line(number))) for number in range(3)]
    told = "promoted version 2 of screw (2026-01-01T00:00:00+00:00) is unknown to MLflow"
    assert audit.faults("screw", tags[:2]) == [told]
    assert len(audit.faults("screw", [])) == 3


@pytest.mark.parametrize("of_version_0_2", [True, False])
@pytest.mark.parametrize("field", ["user", "version", "time", "before", "details"])
def test_a_chain_that_was_written_anew_as_a_whole_shows(audit: Audit, field: str, of_version_0_2: bool) -> None:
    tags = [Tag.of(audit.append(line(number))) for number in range(3)]
    if of_version_0_2:
        tags = [tag.model_copy(update={"sha256": None}) for tag in tags]
    lines = audit.lines()
    audit.path.unlink()
    for number, found in enumerate(lines):
        change = {field: {"reason": "none"} if field == "details" else "other"} if number == 1 else {}
        audit.append(found.model_copy(update=change))
    assert audit.chain_faults() == []
    # The tags of version 0.2 do not cover the details.
    noticed = field != "details" or not of_version_0_2
    assert bool(audit.faults("screw", tags)) == noticed


def test_a_registration_that_version_0_2_took_up_after_a_crash_is_none(audit: Audit) -> None:
    kept = audit.append(line(1, action="registered"))
    later = Tag.of(kept).model_copy(update={"time": "2026-01-02T00:00:00+00:00", "before": "1", "sha256": None})
    assert audit.faults("screw", [later]) == []
    assert audit.faults("screw", [later.model_copy(update={"version": "2"})]) != []
