"""A home that version 0.1 wrote goes on with this version: resumed, shown, reported, promoted, rolled back, served.

`tests/fixtures/make_home_0_1.py` says what the home holds. Every test unpacks it in a folder of its own, which is never where it
was made: that a home may be moved is tested along.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from mlflow import MlflowClient

from detectors.training import Checkpoint
from studies.home import Home
from studies.release.promotion import open_registry
from studies.search.lease import Lease
from studies.serving.models import Keeper, find_source
from studies.worker.scores import read_scores
from tests.helpers.command_line import Ended, set_home, study
from tracking.model import brings_code_of_this_version
from tracking.registry import CHAMPION, PREVIOUS

FIXTURES = Path(__file__).parent / "fixtures"
MADE_AT = "/tmp/anomaly-studies-0.1"
TEST_IMAGES = [f"images/widget/test/{name}.png" for name in ("dent/002", "dent/004", "dent/005", "dent/006")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the home, the images and the study files, as the present one."""
    place = tmp_path / "moved here"
    for part in ("home", "mlflow", "code"):
        with tarfile.open(FIXTURES / f"{part}_0_1.tar.xz") as tar:
            tar.extractall(place, filter="data")
    set_home(monkeypatch, place)
    # Its driver was killed on another machine; this one waits that long to be sure of it.
    monkeypatch.setitem(Lease.__init__.__kwdefaults__, "dead_seconds", 1.0)
    monkeypatch.setitem(Lease.__init__.__kwdefaults__, "renew_seconds", 0.25)
    return place


@pytest.fixture
def home(folder: Path) -> Home:
    return Home(folder / "home")


def good(*words: object) -> Ended:
    ended = study(*words)
    assert ended.code == 0, ended.err
    return ended


def shown(name: str) -> dict[str, Any]:
    return json.loads(good("show", name, "--json").out)


def shown_before(folder: Path, name: str) -> dict[str, Any]:
    """What ``study show --json`` printed in version 0.1, with the paths of now."""
    return json.loads((folder / "shown.json").read_text().replace(MADE_AT, str(folder)))[name]


def as_before(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials without what version 0.1 did not say of them."""
    assert all((trial["warm_from"], trial["origin"]) in ((None, "baseline"), (None, "search")) for trial in trials)
    return [{key: value for key, value in trial.items() if key not in ("warm_from", "origin")} for trial in trials]


def run(file: str, *words: object) -> dict[str, Any]:
    return json.loads(good("run", file, "--offline", "--inline", "--device", "cpu", "--json", *words).out)


def runs_in_mlflow(home: Home) -> set[str]:
    client = MlflowClient(tracking_uri=home.tracking_uri)
    experiment = client.get_experiment_by_name("widgets/widget")
    return {each.info.run_id for each in client.search_runs([experiment.experiment_id])}


def stored_scores(folder: Path, name: str) -> dict[str, float]:
    """{test image: its score} as version 0.1 stored them for the selected trial of a study."""
    before = shown_before(folder, name)
    number = next(trial["number"] for trial in before["trials"] if trial["selected"])
    file = folder / "home" / "trials" / before["uid"] / "final" / f"{number:05d}" / "artifacts" / "scores.json"
    return {image["name"]: image["score"] for image in json.loads(file.read_text())["pictures"]}


def predicted(model: str, images: Sequence[str]) -> dict[str, float]:
    rows = json.loads(good("predict", model, *images, "--json").out)
    return {row["image"].removeprefix("images/widget/"): row["score"] for row in rows}


@pytest.fixture(params=["shades", "duel", "cut_off"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_study_is_shown_as_before(folder: Path, name: str) -> None:
    before, now = shown_before(folder, name), shown(name)
    assert [key for key in now if key in before] == list(before)
    assert now["ledger_faults"] == []
    assert as_before(now["trials"]) == before["trials"]
    assert {key: now[key] for key in ("identity", "counts", "savings")} == {
        key: before[key] for key in ("identity", "counts", "savings")
    }
    # What a study file could not say then has its default.
    gate = {"ceiling": {}, "recall_drop": 0.05, "false_alarm_rise": 0.05}
    since = {"gate": before["config"]["gate"] | gate, "advice": True, "rerank": 5}
    assert now["config"] == before["config"] | since
    assert [{"previous": None, "model": None} | line for line in before["ledger"]] == now["ledger"]
    states = [trial["state"] for trial in now["trials"]]
    assert {"duel": "PRUNED", "cut_off": "RUNNING", "shades": "COMPLETE"}[name] in states
    assert good("show", name).out


def test_reports_and_comparisons_are_made_and_find_the_images(folder: Path) -> None:
    good("report", "shades", "duel", "cut_off", "--out", "report.html")
    page = (folder / "report.html").read_text()
    assert "test/dent/" in page
    assert "data:image/jpeg" in page
    compared = good("compare", "shades", "duel").out
    assert "shades" in compared
    assert "duel" in compared


def test_scores_and_gallery_are_read_as_they_were(folder: Path) -> None:
    before = shown_before(folder, "shades")
    scores = read_scores(folder / "home" / "trials" / before["uid"] / "final" / "00000" / "artifacts")
    assert scores is not None
    assert {image.name: image.score for image in scores.images} == stored_scores(folder, "shades")
    assert scores.gallery
    assert all(part.panels[0] == "image" for part in scores.gallery)


def test_a_finished_study_is_not_run_again(folder: Path, home: Home) -> None:
    runs, ledger = runs_in_mlflow(home), shown("shades")["ledger"]
    run("shades.yaml")
    now = shown("shades")
    assert as_before(now["trials"]) == shown_before(folder, "shades")["trials"]
    assert now["ledger"] == ledger
    assert runs_in_mlflow(home) == runs


def test_a_study_over_two_detectors_goes_on(folder: Path, home: Home) -> None:
    runs = runs_in_mlflow(home)
    run(
        "duel.yaml",
        "--trials",
        9,
        "--set",
        "sampler.name=tpe",
        "--enqueue",
        "detector=padim,n_features=3,smoothing_sigma=0.6",
    )
    before, now = shown_before(folder, "duel")["trials"], shown("duel")["trials"]
    assert [trial["params"] for trial in now[: len(before)]] == [trial["params"] for trial in before]
    first, second = now[len(before) :]
    assert first["params"]["detector"] == "padim"
    assert first["params"]["n_features"] == 3
    assert second["state"] in ("COMPLETE", "PRUNED")
    assert len(runs_in_mlflow(home) - runs) == 2


@pytest.mark.slow
def test_a_trial_that_was_cut_off_goes_on_from_its_checkpoint(
    folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints: list[Any] = []
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self: checkpoints.append(load(self)) or checkpoints[-1])
    run("cut_off.yaml", "--trials", 2, "--set", "execution.trial_timeout=300")
    assert checkpoints[0] is not None
    before = shown_before(folder, "cut_off")["trials"]
    done, failed, resumed = as_before(shown("cut_off")["trials"])
    assert [done["metrics"], done["params"]] == [before[0]["metrics"], before[0]["params"]]
    assert failed == before[1]
    assert resumed["number"] == 2
    assert resumed["state"] == "COMPLETE"
    assert resumed["params"]["bottleneck"] == "picture"


@pytest.mark.slow
def test_the_champion_is_replaced_and_comes_back(folder: Path, home: Home) -> None:
    registry = open_registry(home)
    old = registry.version("shades", "1")
    assert not brings_code_of_this_version(registry.fetch_model(old))
    # Version 1, with the code of before, answers through MLflow: the gate asks it.
    judged = json.loads(good("promote", "shades", "--version", 1, "--json").out)
    rules = {rule["name"]: rule for rule in judged["gate"]["rules"]} if "gate" in judged else {}
    assert rules["serving"]["verdict"] == "passed"
    assert rules["reload equality"]["verdict"] == "passed"
    assert registry.version("shades", CHAMPION).version == "1"
    assert registry.version("shades", PREVIOUS).version == "2"
    good("rollback", "shades")
    assert registry.version("shades", CHAMPION).version == "2"
    assert registry.faults("shades") == []
    actions = [line.action for line in registry.audit.lines("shades")]
    assert actions == ["registered", "promoted"] * 2 + ["promoted", "rolled back"]


@pytest.mark.slow
def test_a_trial_of_before_becomes_a_version_with_the_present_code(folder: Path, home: Home) -> None:
    good("promote", "shades", "--trial", 3, "--device", "cpu")
    registry = open_registry(home)
    version = registry.version("shades", CHAMPION)
    assert version.version == "3"
    assert brings_code_of_this_version(registry.fetch_model(version))
    assert registry.version("shades", PREVIOUS).version == "2"


def test_a_worse_trial_is_refused_with_a_reason(folder: Path, home: Home) -> None:
    refused = study("promote", "duel", "--trial", 1, "--device", "cpu")
    assert refused.code == 3
    assert "is below 0.7" in refused.out


@pytest.mark.parametrize("model", ["shades", "models:/shades@champion"])
def test_predictions_are_those_of_before(folder: Path, model: str) -> None:
    stored = stored_scores(folder, "shades")
    scores = predicted(model, TEST_IMAGES)
    assert scores == pytest.approx({image: stored[image] for image in scores}, rel=1e-5)


def test_the_champion_is_served(folder: Path, home: Home) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from tests.helpers.in_process import running

    keeper = Keeper(
        find_source("models:/shades@champion", home, open_registry=open_registry), device=torch.device("cpu")
    )
    keeper.start()
    stored = stored_scores(folder, "shades")
    with running(keeper) as address:
        for image in TEST_IMAGES:
            answer = requests.post(f"{address}/predict", files={"file": Path(image).read_bytes()}, timeout=60)
            assert answer.json()["predictions"][0]["score"] == pytest.approx(
                stored[image.removeprefix("images/widget/")], rel=1e-5
            )


def test_files_of_runs_are_found_where_the_home_is_now(folder: Path, home: Home) -> None:
    open_registry(home)
    client = MlflowClient(tracking_uri=home.tracking_uri)
    runs = runs_in_mlflow(home)
    artifacts = [artifact.path for run_id in runs for artifact in client.list_artifacts(run_id)]
    assert "metrics.json" in artifacts
    assert client.get_model_version_download_uri("shades", "2").startswith((home.root / "artifacts").as_uri())
    with closing(sqlite3.connect(home.root / "mlflow.db")) as connection:
        addresses = [row[0] for row in connection.execute("SELECT artifact_uri FROM runs")]
    assert [address for address in addresses if MADE_AT in address] == []
