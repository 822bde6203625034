"""What is kept beside the figures: a detector's description, the ledger of scorings, the record of promotions. Whoever edits one
of them by hand is noticed wherever it is shown or used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from detectors.runtime.artifact import read_description
from studies.home import Home
from studies.release.locate import open_view
from studies.search.ledger_count import ATTRIBUTE
from studies.worker.ledger import LedgerLine, append_to_ledger, ledger_texts
from tests.helpers.shell import Shell, assert_told, make_shell, raw_study
from tests.helpers.widgets import write_widgets


@pytest.fixture(scope="module")
def finished(empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A study of two trials whose detector was promoted; never changed."""
    root = write_widgets(tmp_path_factory.mktemp("images"))
    shell = make_shell(tmp_path_factory.mktemp("finished") / "work", empty_stores)
    path = shell.write(raw_study(root, gate={"floor": {"image_auroc": 0.3}}))
    for words in (["run", path, "--offline", "--device", "cpu", "--inline"], ["promote", "tiny"]):
        ended = shell(*words)
        assert ended.code == 0, ended
    return shell


@pytest.fixture
def shell(finished: Shell, tmp_path: Path) -> Shell:
    """A copy of it."""
    folder = tmp_path / "work"
    shutil.copytree(finished.folder, folder)
    return make_shell(folder)


def ledger(shell: Shell) -> Path:
    (path,) = (shell.home / "ledgers").glob("*.jsonl")
    return path


def counted(shell: Shell) -> list[int]:
    with contextlib.chdir(shell.folder), mock.patch.dict(os.environ, shell.environment):
        attributes = open_view("tiny").study.user_attrs
    return [value["lines"] for name, value in attributes.items() if name.startswith(ATTRIBUTE)]


def doctor(shell: Shell, name: str) -> list[tuple[str, str]]:
    checks = json.loads(shell("doctor", "--json").out)["checks"]
    return [(check["status"], check["found"]) for check in checks if check["name"] == name]


def selected_detector(shell: Shell) -> Path:
    (path,) = shell.home.glob("trials/*/final/*/detector/detector.json")
    return path


# --- detector


def test_nothing_is_at_fault_where_nobody_edited_anything(shell: Shell) -> None:
    listed = json.loads(shell("show", "tiny", "--json").out)["ledger"]
    assert [line["purpose"] for line in listed] == ["selected", "gate", "gate"]  # reloaded, and as it was saved
    assert counted(shell) == [3]
    assert "at fault" not in shell("show", "tiny").out
    assert json.loads(shell("show", "tiny", "--json").out)["ledger_faults"] == []
    assert json.loads(shell("models", "--json").out)["tiny"]["faults"] == []
    assert [status for status, _ in doctor(shell, "ledgers") + doctor(shell, "record of models")] == ["ok", "ok"]
    assert doctor(shell, "detectors") == [("ok", "1 saved")]


def test_an_edited_threshold_is_neither_used_nor_promoted(shell: Shell) -> None:
    path = selected_detector(shell)
    data = json.loads(path.read_text())
    data["threshold"]["value"] = 999.0
    path.write_text(json.dumps(data))
    for words in (
        ["predict", "tiny", _images(shell)[0]],
        ["serve", "tiny", "--port", "0"],
        ["export", "tiny", "--format", "onnx"],
    ):
        assert_told(shell(*words), "detector.json", "changed since")
    again = shell("promote", "tiny", "--trial", str(data["provenance"]["trial"]))
    assert again.code == 2, again
    assert "changed since" in again.err
    assert doctor(shell, "detector")[0][0] == "warn"


def _images(shell: Shell) -> list[Path]:
    root = Path(json.loads(shell("show", "tiny", "--json").out)["config"]["data"]["root"])
    return sorted(root.rglob("*.png"))


def test_a_detector_without_digest_is_used_and_the_doctor_tells(shell: Shell) -> None:
    path = selected_detector(shell)
    data = json.loads(path.read_text())
    del data["sha256"]
    path.write_text(json.dumps(data | {"format": 1}))
    assert not read_description(path.parent).is_sealed
    assert shell("predict", "tiny", _images(shell)[0]).code == 0
    ((status, told),) = doctor(shell, "detectors")
    assert status == "warn"
    assert "1 of them by version 0.1 or 0.2" in told


# --- ledger


def emptied(path: Path) -> None:
    path.write_text("")


def removed(path: Path) -> None:
    path.unlink()


def rewritten(path: Path) -> None:
    """All lines anew, with digests that are right."""
    lines = [LedgerLine.model_validate_json(text) for text in ledger_texts(path)]
    path.unlink()
    for line in lines:
        append_to_ledger(Home(path.parents[1]), line.model_copy(update={"image_auroc": 0.999}))


def edited(path: Path) -> None:
    *before, last = path.read_text().splitlines()
    path.write_text("\n".join([*before, json.dumps(json.loads(last) | {"image_auroc": 0.999})]) + "\n")


@pytest.mark.parametrize("without_id", [False, True])
@pytest.mark.parametrize("change", [emptied, removed, rewritten, edited])
def test_a_ledger_that_was_changed_is_told_wherever_its_figures_are_shown(
    shell: Shell, change: Callable[[Path], None], without_id: bool
) -> None:
    path = ledger(shell)
    change(path)
    if without_id:
        (shell.home / "home.id").unlink()
    assert "is at fault" in shell("show", "tiny").out
    (fault,) = json.loads(shell("show", "tiny", "--json").out)["ledger_faults"]
    assert str(path) in fault
    assert doctor(shell, "ledger") == [("warn", f"tiny: {fault}")]
    page = shell.folder / "report.html"
    assert shell("report", "tiny", "--no-log", "--out", page).code == 0
    assert "The ledger of the test images is at fault" in page.read_text()
    # Running the study again neither stops at it nor makes it good.
    again = shell("run", "tiny.yaml", "--offline", "--device", "cpu", "--inline")
    assert again.code == 0, again
    assert "is at fault" in again.out + again.err
    assert json.loads(shell("show", "tiny", "--json").out)["ledger_faults"] == [fault]


# --- record of promotions


def mlflow_lost(shell: Shell, empty_stores: Path) -> None:
    for path in shell.home.glob("mlflow.db*"):
        path.unlink()
    shutil.copy(empty_stores / "mlflow.db", shell.home / "mlflow.db")


def test_an_empty_mlflow_beside_a_full_record_is_told(shell: Shell, empty_stores: Path) -> None:
    mlflow_lost(shell, empty_stores)
    told = json.loads(shell("models", "--json").out)
    assert told["tiny"]["versions"] == []
    faults = [fault.partition(" (")[0] for fault in told["tiny"]["faults"]]
    assert faults == ["registered version 1 of tiny", "promoted version 1 of tiny"]
    assert all(fault.endswith("is unknown to MLflow") for fault in told["tiny"]["faults"])
    assert "record of tiny" in shell("models", "tiny").out
    assert [status for status, _ in doctor(shell, "record of models")] == ["warn", "warn"]


def test_an_emptied_record_beside_a_full_mlflow_is_told(shell: Shell) -> None:
    (shell.home / "registry.jsonl").write_text("")
    faults = json.loads(shell("models", "--json").out)["tiny"]["faults"]
    assert [fault.endswith("known to MLflow and missing here") for fault in faults] == [True, True]
    assert [status for status, _ in doctor(shell, "record of models")] == ["warn", "warn"]
