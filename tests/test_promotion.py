"""``study promote``, ``rollback``, ``models`` and ``retrain`` as a person gives them, on a finished study."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from detectors.runtime.artifact import load_artifact
from studies.commands.promote import REFUSED
from tests.helpers.servers import free_port
from tests.helpers.shell import Shell, assert_told, make_shell, raw_study
from tests.helpers.widgets import draw_widget, write_widgets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_widgets(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(root: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A study of three trials; never changed."""
    shell = make_shell(tmp_path_factory.mktemp("finished") / "work", empty_stores)
    path = shell.write(raw_study(root, budget={"trials": 3}, gate={"floor": {"image_auroc": 0.3}}))
    ended = shell("run", path, "--offline", "--device", "cpu", "--inline")
    assert ended.code == 0, ended
    return shell


@pytest.fixture
def shell(finished: Shell, tmp_path: Path) -> Shell:
    """A copy of it. MLflow's addresses of files still lead to the original, which nothing changes."""
    folder = tmp_path / "work"
    shutil.copytree(finished.folder, folder)
    return make_shell(folder)


def versions(shell: Shell, model: str = "tiny") -> list[tuple[str, list[str]]]:
    told = json.loads(shell("models", model, "--json").out)
    return [(version["version"], version["aliases"]) for version in told[model]["versions"]]


def test_promote_twice_makes_one_version(shell: Shell) -> None:
    first = shell("promote", "tiny")
    assert first.code == 0, first
    assert "version 1 is the champion" in first.err + first.out
    again = shell("promote", "tiny")
    assert again.code == 0, again
    assert "version 1 is the champion already" in again.out
    assert versions(shell) == [("1", ["champion"])]
    told = json.loads(shell("models", "tiny", "--json").out)["tiny"]
    assert [(line["action"], line["version"]) for line in told["record"]] == [("registered", "1"), ("promoted", "1")]
    assert told["faults"] == []
    tags = told["versions"][0]["tags"]
    assert tags["gate.verdict"] == "passed"
    assert (shell.home / "gates" / "tiny").is_dir()
    table = shell("models", "tiny")
    assert table.code == 0
    assert "champion" in table.out


def test_another_trial_is_fitted_tested_and_promoted_and_rolled_back(shell: Shell) -> None:
    assert shell("promote", "tiny").code == 0
    shown = json.loads(shell("show", "tiny", "--json").out)
    other = next(trial["number"] for trial in shown["trials"] if not trial["selected"])
    lenient = ("--set", "x")  # settings belong to `run`: promote takes none
    assert shell("promote", "tiny", *lenient).code == 2
    before = len(shown["ledger"])
    ended = shell("promote", "tiny", "--trial", other)
    assert ended.code in (0, REFUSED), ended
    added = json.loads(shell("show", "tiny", "--json").out)["ledger"][before:]
    # The refit; then the gate scores the challenger, the champion, and the challenger as it was saved.
    wanted = [("selected", None), ("gate", "tiny/2"), ("gate", "tiny/1"), ("gate", "tiny/2")]
    assert [(line["purpose"], line["model"]) for line in added] == wanted
    if ended.code == 0:
        assert versions(shell) == [("2", ["champion"]), ("1", ["previous"])]
        back = shell("rollback", "tiny", "--reason", "for a test")
        assert back.code == 0, back
        assert versions(shell) == [("2", ["previous"]), ("1", ["champion"])]
        assert "for a test" in shell("models", "tiny").out
    else:
        assert versions(shell) == [("2", ["challenger"]), ("1", ["champion"])]


def test_the_gate_refuses_and_nothing_moves(shell: Shell) -> None:
    path = shell.folder / "tiny.yaml"
    path.write_text(path.read_text().replace("image_auroc: 0.3", "image_auroc: 1.0\n    pixel_aupro: 1.0"))
    # What is not part of a study's identity follows the file at the next run.
    assert shell("run", path, "--offline", "--device", "cpu", "--inline").code == 0
    ended = shell("promote", "tiny", "--json")
    assert ended.code == REFUSED, ended
    report = json.loads(ended.out)
    assert not report["promoted"]
    assert not report["gate"]["passed"]
    assert versions(shell) == [("1", ["challenger"])]
    told = json.loads(shell("models", "tiny", "--json").out)["tiny"]
    assert told["record"][-1]["action"] == "refused"
    assert told["versions"][0]["tags"]["gate.verdict"] == "refused"


def test_a_dry_run_changes_nothing(shell: Shell) -> None:
    ended = shell("promote", "tiny", "--dry-run")
    assert ended.code == 0, ended
    assert "nothing was changed" in ended.out
    assert json.loads(shell("models", "--json").out) == {}
    assert not (shell.home / "registry.jsonl").exists()
    assert not (shell.home / "gates").exists()


def test_a_copy_for_production_has_its_own_champion(shell: Shell) -> None:
    assert shell("promote", "tiny", "--to", "line 3").code == 0
    assert versions(shell, "line 3") == [("1", ["champion"])]
    assert versions(shell) == [("1", ["challenger"])]
    assert_told(shell("promote", "tiny", "--to", "../x"), "model name '../x'")


def test_each_product_of_a_study_has_a_model_of_its_own(shell: Shell, root: Path) -> None:
    for category in ("left", "right"):
        shutil.copytree(root / "widget", shell.folder / "images" / category)
    raw = raw_study(shell.folder / "images", name="two.parts", budget={"trials": 1}, gate={"floor": {}})
    raw["data"]["category"] = ["left", "right"]
    ended = shell("run", shell.write(raw), "--offline", "--device", "cpu", "--inline")
    assert ended.code == 0, ended
    refused = shell("promote", "two.parts")
    assert refused.code == 2
    assert "there are: two.parts/left, two.parts/right" in refused.err
    for category in ("left", "right"):
        promoted = shell("promote", f"two.parts/{category}")
        assert promoted.code == 0, promoted
        assert versions(shell, f"two-parts--{category}") == [("1", ["champion"])]
    image = next((root / "widget" / "test" / "good").glob("*.png"))
    assert shell("predict", "models:/two-parts--left@champion", image).code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("promote", "tinny"), ["no study 'tinny'", "did you mean tiny?"]),
        (("promote", "tiny/part"), ["'tiny/part' is no detector"]),
        (("promote", "tiny", "--trial", "99"), ["trial 99", "does not exist"]),
        (("promote", "tiny", "--version", "1"), ["no registered model 'tiny'", "`study promote` makes one"]),
        (("promote", "tiny", "--version", "1", "--trial", "1"), ["contradict each other"]),
        (("rollback", "tiny"), ["no registered model 'tiny'"]),
        (("models", "tiny"), ["no registered model 'tiny'"]),
        (("retrain", "tiny"), ["no registered model 'tiny'"]),
    ],
)
def test_mistakes_are_told_in_one_line(finished: Shell, words: tuple[str, ...], told: list[str]) -> None:
    ended = finished(*words)
    assert ended.code == 2, ended
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.err
    assert all(word in lines[0] for word in told)


def test_changed_test_images_are_refused(shell: Shell, tmp_path: Path) -> None:
    root = write_widgets(tmp_path / "images")
    raw = raw_study(root, name="other", budget={"trials": 1})
    assert shell("run", shell.write(raw), "--offline", "--device", "cpu", "--inline").code == 0
    victim = next((root / "widget" / "test" / "good").glob("*.png"))
    for path in sorted((root / "widget" / "test").rglob("*.png")):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    assert victim.is_file()
    ended = shell("promote", "other")
    assert ended.code == 2
    assert "not those that the study was run with" in ended.err


@pytest.mark.slow
def test_a_demonstration_stays_where_it_is(shell: Shell) -> None:
    """Rendered images: its own model may have a champion, production may not get it."""
    raw = raw_study(Path("x"), name="shown", budget={"trials": 1})
    raw["data"] = {"dataset": "rendered", "category": "screw", "image_size": 64}
    path = shell.write(raw)
    ended = shell("run", path, "--offline", "--device", "cpu", "--inline")
    assert ended.code == 0, ended
    refused = shell("promote", "shown", "--to", "line 3")
    assert refused.code == 2
    assert "ran on rendered images" in refused.err


# --- retrain


@pytest.fixture
def new_images(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(draw_widget(900 + number)[0]).save(folder / f"{number:03d}.png")
    return folder


def test_a_champion_is_fitted_on_newer_images_and_goes_through_the_gate(shell: Shell, new_images: Path) -> None:
    assert shell("promote", "tiny").code == 0
    for _ in range(2):  # the same images make the same version
        ended = shell("retrain", "tiny", "--images", new_images, "--json")
        assert ended.code == 0, ended
        outcome = json.loads(ended.out)
        assert outcome | {"warnings": []} == {
            "model": "tiny", "version": "2", "from": "1", "new_pictures": 20, "held_out": 20, "warnings": [],
        }  # fmt: skip
        assert any("threshold.rate" in warning for warning in outcome["warnings"])
    assert versions(shell) == [("2", ["challenger"]), ("1", ["champion"])]
    (folder,) = (shell.home / "retrained").glob("tiny/*/detector")
    artifact = load_artifact(folder)
    assert artifact.provenance["new_pictures"] == 20
    assert artifact.detector.threshold is not None
    assert len(artifact.normal_scores) == 20
    gate = shell("promote", "tiny", "--version", "2")
    assert gate.code in (0, REFUSED), gate
    assert "warning" in gate.out
    assert "rests on 20 new images" in " ".join(gate.out.split())
    assert ("2", ["champion"]) in versions(shell) if gate.code == 0 else ("1", ["champion"]) in versions(shell)


def test_retrain_refuses_what_it_would_be_tested_on(shell: Shell, root: Path, new_images: Path) -> None:
    assert shell("promote", "tiny").code == 0
    goods = sorted((root / "widget" / "test" / "good").glob("*.png"))
    for path in goods:
        shutil.copy(path, new_images / f"copy-{path.name}")
    ended = shell("retrain", "tiny", "--images", new_images)
    assert ended.code == 2
    assert f"copy-{goods[0].name}: is the same image as {goods[0]}" in ended.err
    ended = shell("retrain", "tiny", "--only-new")
    assert ended.code == 2
    assert "--only-new needs --images" in ended.err


# --- MLflow's own server


@pytest.mark.slow
def test_mlflow_serves_the_champion(shell: Shell, root: Path) -> None:
    """`mlflow models serve -m models:/tiny@champion --env-manager local`, asked over HTTP."""
    assert shell("promote", "tiny").code == 0
    image = next((root / "widget" / "test" / "good").glob("*.png"))
    body = {"inputs": [{"image": base64.b64encode(image.read_bytes()).decode(), "return_heatmap": True}]}
    port = free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by name
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{shell.home / 'mlflow.db'}", "PATH": path}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    log = (shell.folder / "serve.log").open("wb")
    process = subprocess.Popen(
        command, cwd=shell.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        answer = _ask(f"http://127.0.0.1:{port}/invocations", body)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (prediction,) = answer["predictions"]
    shown = json.loads(shell("predict", "tiny", image, "--json").out)
    assert prediction["score"] == pytest.approx(shown[0]["score"], rel=1e-5)
    assert prediction["verdict"] == shown[0]["verdict"]
    assert prediction["model_version"] == "tiny/1"
    assert base64.b64decode(prediction["heatmap"]).startswith(b"\x89PNG")


def _ask(address: str, body: Any) -> Any:
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = requests.post(address, json=body, timeout=60)
        except requests.ConnectionError:
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.5)
            continue
        assert answer.status_code == 200, answer.text
        return answer.json()


# --- two at once


@pytest.mark.slow
def test_two_promotions_at_once_leave_one_version(shell: Shell) -> None:
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        codes = pool.starmap(_promote, [(shell.folder, shell.environment)] * 2)
    assert sorted(codes) in ([0, 0], [0, 2])
    assert versions(shell) == [("1", ["champion"])]


def _promote(folder: Path, environment: dict[str, str]) -> int:
    clean: dict[str, Any] = {
        key: value for key, value in os.environ.items() if not key.startswith(("STUDY_", "MLFLOW_"))
    }
    command = [sys.executable, "-m", "studies.cli", "promote", "tiny"]
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, check=False).returncode
