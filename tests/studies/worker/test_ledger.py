"""The ledger of scorings on test: a chain of lines that several processes lengthen, and in which changes show."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from studies.home import Home
from studies.worker.ledger import LedgerLine, append_from_elsewhere, append_to_ledger, chain_faults, read_ledger

UID = "0123456789abcdef"


def line(trial: int, **changes: object) -> LedgerLine:
    fields: dict[str, object] = {
        "time": "2026-01-01T00:00:00+00:00",
        "study_uid": UID,
        "study": "padim_screw",
        "trial": trial,
        "purpose": "selected",
        "protocol": "holdout",
        "test_digest": "0" * 64,
        "image_auroc": 0.5 + trial / 1000,
        "host": "line-3",
    }
    return LedgerLine.model_validate(fields | changes)


def as_version_0_2_wrote_it(trial: int) -> str:
    return line(trial).model_dump_json(exclude={"previous", "model"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def path(home: Home) -> Path:
    return home.ledger(UID)


def test_each_line_holds_the_digest_of_the_one_before(home: Home, path: Path) -> None:
    assert read_ledger(path) == []
    assert chain_faults(path) == []
    for trial in range(3):
        append_to_ledger(home, line(trial))
    texts = path.read_bytes().splitlines()
    assert [found.trial for found in read_ledger(path)] == [0, 1, 2]
    assert [json.loads(text)["previous"] for text in texts] == ["", *(sha256(text).hexdigest() for text in texts[:2])]
    assert chain_faults(path) == []


@pytest.mark.parametrize("change", ["figure", "taken out", "first taken out", "swapped", "twice", "without digest"])
def test_what_was_changed_later_shows(home: Home, path: Path, change: str) -> None:
    for trial in range(4):
        append_to_ledger(home, line(trial))
    texts = path.read_text().splitlines()
    if change == "figure":
        texts[1] = texts[1].replace("0.501", "0.999")
    elif change == "taken out":
        del texts[1]
    elif change == "first taken out":
        del texts[0]
    elif change == "swapped":
        texts[1], texts[2] = texts[2], texts[1]
    elif change == "twice":
        texts.insert(1, texts[1])
    else:
        texts[2] = as_version_0_2_wrote_it(2)
    path.write_text("\n".join(texts) + "\n")
    assert chain_faults(path)


def test_a_ledger_of_version_0_2_is_read_and_covered_by_the_first_new_line(home: Home, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(as_version_0_2_wrote_it(trial) + "\n" for trial in range(2)))
    assert [found.trial for found in read_ledger(path)] == [0, 1]
    assert chain_faults(path) == []
    before = path.read_bytes()
    append_to_ledger(home, line(2))
    append_to_ledger(home, line(3))
    assert read_ledger(path)[2].previous == sha256(before).hexdigest()
    assert [found.trial for found in read_ledger(path)] == [0, 1, 2, 3]
    assert chain_faults(path) == []
    path.write_bytes(path.read_bytes().replace(b"0.501", b"0.999"))
    assert chain_faults(path) == ["line 3 does not follow what is before it: lines were changed or taken out"]


def test_a_line_cut_by_a_crash_is_told_and_does_not_hinder_the_next(home: Home, path: Path) -> None:
    append_to_ledger(home, line(0))
    with path.open("a") as file:
        file.write('{"time": "2026')
    append_to_ledger(home, line(1))
    append_to_ledger(home, line(2))
    assert [found.trial for found in read_ledger(path)] == [0, 1, 2]
    assert chain_faults(path) == ["line 2 is damaged"]


def test_what_a_newer_version_adds_to_a_line_is_passed_over(home: Home, path: Path) -> None:
    append_to_ledger(home, line(0))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"invented": 1}) + "\n")
    assert [found.trial for found in read_ledger(path)] == [0]


def test_a_name_with_a_line_separator_is_one_line(home: Home, path: Path) -> None:
    for trial in range(3):
        append_to_ledger(home, line(trial, host="line\u2028three\x85"))
    assert [found.host for found in read_ledger(path)] == ["line\u2028three\x85"] * 3
    assert chain_faults(path) == []


def test_a_gate_s_line_says_which_model_was_scored(home: Home, path: Path) -> None:
    append_to_ledger(home, line(0, purpose="gate", model="padim_screw/3"))
    assert [(found.purpose, found.model) for found in read_ledger(path)] == [("gate", "padim_screw/3")]


def test_lines_of_another_machine_are_chained_here(home: Home, path: Path, tmp_path: Path) -> None:
    there = Home(tmp_path / "node")
    for trial in (7, 8):
        append_to_ledger(there, line(trial))
    append_to_ledger(home, line(0))
    texts = there.ledger(UID).read_text().splitlines()
    append_from_elsewhere(home, UID, [*texts, "half a li"])
    assert [found.trial for found in read_ledger(path)] == [0, 7, 8]
    assert chain_faults(path) == ["line 4 is damaged"]


def write_lines(write: Callable[[Home, LedgerLine], None], root: Path, first: int) -> None:
    for trial in range(first, first + 25):
        write(Home(root), line(trial))


def test_processes_at_the_same_time_leave_a_whole_chain(home: Home, path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=write_lines, args=(append_to_ledger, home.root, first)) for first in range(0, 100, 25)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert sorted(found.trial for found in read_ledger(path)) == list(range(100))
    assert chain_faults(path) == []
