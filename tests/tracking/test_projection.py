"""The projection into a real MLflow store: complete, repeatable, and able to make everything again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from detectors.errors import InputError
from tracking import projection as projection_module
from tracking import store as store_module
from tracking.projection import LOG_TAIL_BYTES, Projection
from tracking.records import DatasetRecord, StudyRecord, TrialRecord

UID = "0123456789ab"


@pytest.fixture
def store(study_home: Path) -> str:
    return f"sqlite:///{study_home / 'mlflow.db'}"


@pytest.fixture
def study(tmp_path: Path) -> StudyRecord:
    summary = tmp_path / "summary"
    summary.mkdir()
    (summary / "trials.csv").write_text("number\n0\n")
    counts = {"good": 24}
    return StudyRecord(
        uid=UID,
        name="padim_screw",
        experiment="mvtec/screw",
        started_ms=1_700_000_000_000,
        note="**padim** on screw",
        params={"detector": "padim", "image_size": "64x64"},
        tags={"study.detector": "padim"},
        datasets=tuple(
            DatasetRecord("mvtec/screw", context, digest * 64, "/images/screw", counts)
            for context, digest in (("train", "a"), ("validation", "b"), ("test", "c"))
        ),
        artifacts=summary,
    )


@pytest.fixture
def trial(tmp_path: Path) -> TrialRecord:
    folder = tmp_path / "00003"
    (folder / "artifacts" / "heatmaps").mkdir(parents=True)
    (folder / "artifacts" / "metrics.json").write_text("{}")
    (folder / "artifacts" / "heatmaps" / "first.png").write_bytes(b"png")
    (folder / "log.txt").write_text("all went well\n")
    return TrialRecord(
        number=3,
        attempt=2,
        state="COMPLETE",
        run_name="padim_screw 003",
        started_ms=1_700_000_001_000,
        finished_ms=1_700_000_009_000,
        params={"backbone": "resnet18", "layers": "8+16", "regularization": "0.01"},
        metrics={"val/image_auroc": 0.91, "fps": 25.5},
        steps=((0, 0.5, 1_700_000_005_000), (1, 0.6, 1_700_000_006_000)),
        feasible=True,
        tags={"study.selected": "false", "trial.origin": "search", "device": "cpu"},
        artifacts={"": folder / "artifacts"},
        log=folder / "log.txt",
    )


def opened(store: str, study: StudyRecord) -> Projection:
    """A projection as a new process would open it."""
    projection = Projection(store, artifact_root=Path(store.removeprefix("sqlite:///")).parent / "artifacts")
    projection.open(study)
    return projection


def runs(store: str, view: int = ViewType.ALL) -> list[Run]:
    client = MlflowClient(tracking_uri=store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, run_view_type=view, max_results=1000))


def child_of(store: str, number: int = 3) -> Run:
    (child,) = [run for run in runs(store) if run.data.tags.get("trial.number") == str(number)]
    return child


def artifacts(store: str, run: Run, folder: str | None = None) -> set[str]:
    client = MlflowClient(tracking_uri=store)
    found: set[str] = set()
    for entry in client.list_artifacts(run.info.run_id, folder):
        found |= artifacts(store, run, entry.path) if entry.is_dir else {entry.path}
    return found


def dump(store: str) -> list[dict[str, Any]]:
    """All that a person sees of the runs, without what a new store may give another value."""
    client = MlflowClient(tracking_uri=store)
    found = runs(store)
    names = {run.info.run_id: run.info.run_name for run in found}
    dumped = []
    for run in found:
        tags = dict(run.data.tags)
        # Holds the parent's id.
        tags.pop("trial.synced", None)
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = names[tags["mlflow.parentRunId"]]
        history = {
            name: [
                (point.value, point.timestamp, point.step) for point in client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        dumped.append(
            {
                "name": run.info.run_name,
                "status": run.info.status,
                "times": (run.info.start_time, run.info.end_time),
                "stage": run.info.lifecycle_stage,
                "params": run.data.params,
                "tags": tags,
                "metrics": history,
                "datasets": sorted(
                    (entry.dataset.name, entry.dataset.digest, entry.dataset.profile, entry.tags[0].value)
                    for entry in run.inputs.dataset_inputs
                ),
                "artifacts": artifacts(store, run),
            }
        )
    return sorted(dumped, key=lambda run: str(run["name"]))


# What arrives


def test_every_field_of_a_trial_arrives(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    projection = opened(store, study)
    run_id = projection.write_trial(trial)
    child = child_of(store)
    assert child.info.run_id == run_id == projection.run_id(3)
    assert (child.info.run_name, child.info.status) == ("padim_screw 003", "FINISHED")
    assert (child.info.start_time, child.info.end_time) == (trial.started_ms, trial.finished_ms)
    assert child.data.params == trial.params
    assert child.data.metrics == {"val/image_auroc": 0.91, "fps": 25.5, "intermediate": 0.6}
    history = MlflowClient(tracking_uri=store).get_metric_history(run_id, "fps")
    assert [(point.value, point.timestamp, point.step) for point in history] == [(25.5, trial.finished_ms, 0)]
    tags = child.data.tags
    assert tags["mlflow.parentRunId"] == projection.parent_run_id
    assert (tags["study.uid"], tags["study.name"], tags["study.role"]) == (UID, "padim_screw", "trial")
    assert (tags["trial.key"], tags["trial.number"], tags["trial.attempt"]) == (f"{UID}/3", "3", "2")
    assert (tags["trial.state"], tags["trial.failure"], tags["trial.feasible"]) == ("COMPLETE", "", "true")
    assert (tags["study.selected"], tags["trial.origin"], tags["device"]) == ("false", "search", "cpu")
    assert tags["study.detector"] == "padim"
    assert {"mlflow.user", "mlflow.source.name", "host", "trial.synced"} <= set(tags)
    inputs = {entry.tags[0].value: entry.dataset for entry in child.inputs.dataset_inputs}
    assert {context: dataset.digest for context, dataset in inputs.items()} == {
        "train": "a" * 32,
        "validation": "b" * 32,
    }
    assert inputs["train"].name == "mvtec/screw"
    assert json.loads(inputs["train"].profile) == {"good": 24}
    assert artifacts(store, child) == {"metrics.json", "heatmaps/first.png"}


def test_every_field_of_a_study_arrives(store: str, study: StudyRecord) -> None:
    projection = opened(store, study)
    (parent,) = runs(store)
    assert parent.info.run_id == projection.parent_run_id
    assert (parent.info.run_name, parent.info.status) == ("padim_screw", "RUNNING")
    assert parent.info.start_time == study.started_ms
    assert parent.data.params == study.params
    assert parent.data.tags["mlflow.note.content"] == "**padim** on screw"
    assert (parent.data.tags["study.uid"], parent.data.tags["study.role"]) == (UID, "study")
    contexts = {entry.tags[0].value: entry.dataset.digest for entry in parent.inputs.dataset_inputs}
    assert contexts == {"train": "a" * 32, "validation": "b" * 32, "test": "c" * 32}
    assert artifacts(store, parent) == {"trials.csv"}
    experiment = MlflowClient(tracking_uri=store).get_experiment(parent.info.experiment_id)
    assert experiment.name == "mvtec/screw"


@pytest.mark.parametrize("state", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_of_a_study_arrives(store: str, study: StudyRecord, state: Any) -> None:
    projection = opened(store, study)
    projection.write_study(replace(study, state=state, note="over", finished_ms=1_700_000_100_000))
    (parent,) = runs(store)
    assert (parent.info.status, parent.info.end_time) == (state, 1_700_000_100_000)
    assert (parent.data.tags["study.state"], parent.data.tags["mlflow.note.content"]) == (state, "over")
    opened(store, study)
    assert runs(store)[0].info.status == "RUNNING"


@pytest.mark.parametrize(
    ("state", "failure", "status"),
    [
        ("RUNNING", "", "RUNNING"),
        ("COMPLETE", "", "FINISHED"),
        ("PRUNED", "", "KILLED"),
        ("FAIL", "crashed: worker ended by SIGKILL", "FAILED"),
        ("FAIL", "interrupted", "KILLED"),
    ],
)
def test_states(store: str, study: StudyRecord, trial: TrialRecord, state: Any, failure: str, status: str) -> None:
    opened(store, study).write_trial(replace(trial, state=state, failure=failure))
    child = child_of(store)
    assert child.info.status == status
    assert (child.data.tags["trial.state"], child.data.tags["trial.failure"]) == (state, failure)
    assert ("log_tail.txt" in artifacts(store, child)) == (state == "FAIL")


def test_a_running_trial_shows_its_settings_and_gets_its_figures_once(
    store: str, study: StudyRecord, trial: TrialRecord
) -> None:
    projection = opened(store, study)
    running = replace(trial, state="RUNNING", finished_ms=None, metrics={}, attempt=1, feasible=None)
    projection.write_trial(running)
    assert child_of(store).data.params == trial.params
    assert child_of(store).data.metrics == {}
    projection.write_trial(replace(running, attempt=2))
    projection.write_trial(trial)
    (child,) = [run for run in dump(store) if run["name"] == "padim_screw 003"]
    assert [len(points) for points in child["metrics"].values()] == [1, 1, 2]
    assert child["tags"]["trial.attempt"] == "2"
    assert child["status"] == "FINISHED"


def test_the_log_of_a_failure_is_cut_to_its_tail(
    store: str, study: StudyRecord, trial: TrialRecord, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"begin" + b"x" * LOG_TAIL_BYTES + b"\xff the end")
    opened(store, study).write_trial(replace(trial, state="FAIL", failure="exception: no", log=log))
    client = MlflowClient(tracking_uri=store)
    text = Path(client.download_artifacts(child_of(store).info.run_id, "log_tail.txt", str(tmp_path))).read_text()
    assert text.endswith("� the end")
    assert "begin" not in text


def test_a_failure_without_log_or_artifacts_arrives(
    store: str, study: StudyRecord, trial: TrialRecord, tmp_path: Path
) -> None:
    gone = replace(trial, state="FAIL", failure="crashed: x", metrics={}, steps=(), log=tmp_path / "no.txt")
    opened(store, study).write_trial(replace(gone, artifacts={"": tmp_path / "nothing"}))
    assert child_of(store).info.status == "FAILED"


def test_figures_on_test_bring_the_test_set_along(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    projection = opened(store, study)
    projection.write_trial(trial)
    projection.write_trial(replace(trial, metrics={**trial.metrics, "test/image_auroc": 0.8}))
    contexts = {entry.tags[0].value for entry in child_of(store).inputs.dataset_inputs}
    assert contexts == {"train", "validation", "test"}


def test_names_that_mlflow_does_not_take_are_changed(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    names = {"val/image_auroc/Kratzer (groß)": 0.5, "val/image_auroc/a+b": 0.6, "val/image_auroc/" + "x" * 255: 0.7}
    opened(store, study).write_trial(replace(trial, metrics=names, steps=()))
    stored = child_of(store).data.metrics
    assert stored == {
        "val/image_auroc/Kratzer _groß_": 0.5,
        "val/image_auroc/a_b": 0.6,
        ("val/image_auroc/" + "x" * 255)[:250]: 0.7,
    }


@pytest.mark.parametrize("category", ["my parts #2", "Schraube (groß)", "100%", "a&b"])
def test_any_folder_name_makes_an_experiment(store: str, study: StudyRecord, trial: TrialRecord, category: str) -> None:
    projection = opened(store, replace(study, experiment=f"folder/{category}"))
    projection.write_trial(trial)
    assert artifacts(store, child_of(store)) == {"metrics.json", "heatmaps/first.png"}
    folder = Path(store.removeprefix("sqlite:///")).parent / "artifacts" / "folder" / category
    assert len(list(folder.iterdir())) == 2


# What is written again


def test_repeated_writes_change_nothing(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    failed = replace(trial, number=4, run_name="padim_screw 004", state="FAIL", failure="exception: no", steps=())
    for _ in range(3):
        projection = opened(store, study)
        for _ in range(2):
            projection.write_trial(trial)
            projection.write_trial(failed)
        projection.write_study(replace(study, state="FINISHED", finished_ms=1_700_000_100_000))
    assert len(runs(store)) == 3
    for run in dump(store):
        assert all(len(points) == (2 if name == "intermediate" else 1) for name, points in run["metrics"].items())
        assert len(run["datasets"]) == {"padim_screw": 3, "padim_screw 003": 2, "padim_screw 004": 0}[run["name"]]


def test_a_trial_that_is_there_costs_no_write(
    store: str, study: StudyRecord, trial: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, study).write_trial(trial)
    projection = opened(store, study)
    for method in ("create_run", "log_batch", "log_artifacts", "set_terminated", "set_tag", "get_run"):
        monkeypatch.setattr(MlflowClient, method, _refuse)
    projection.write_trial(trial)
    with pytest.raises(AssertionError, match="written again"):
        projection.write_trial(replace(trial, tags={**trial.tags, "study.selected": "true"}))


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("written again")


@pytest.mark.parametrize("method", ["log_batch", "log_inputs", "log_artifacts", "set_terminated", "set_tag"])
def test_a_write_that_was_cut_short_is_completed(
    store: str, study: StudyRecord, trial: TrialRecord, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    opened(store, study).write_trial(replace(trial, number=4, run_name="padim_screw 004"))
    (whole,) = [run for run in dump(store) if run["name"] == "padim_screw 004"]
    projection = opened(store, study)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, _refuse)
        with pytest.raises(AssertionError):
            projection.write_trial(trial)
    opened(store, study).write_trial(trial)
    (mended,) = [run for run in dump(store) if run["name"] == "padim_screw 003"]
    assert len(runs(store)) == 3
    for part in ("status", "times", "params", "metrics", "datasets", "artifacts"):
        assert mended[part] == whole[part]


def test_a_parent_that_was_cut_short_is_completed(
    store: str, study: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", _refuse)
        with pytest.raises(AssertionError):
            opened(store, study)
    opened(store, study)
    (parent,) = runs(store)
    assert parent.data.params == study.params


def test_a_lost_store_is_made_again_as_it_was(
    store: str, study: StudyRecord, trial: TrialRecord, tmp_path: Path
) -> None:
    trials = [
        trial,
        replace(trial, number=4, run_name="padim_screw 004", state="FAIL", failure="exception: no", metrics={}),
        replace(trial, number=5, run_name="padim_screw 005", state="PRUNED", feasible=None),
        replace(trial, number=6, run_name="padim_screw 006", metrics={"test/image_auroc": 0.8}, feasible=False),
    ]
    finished = replace(study, state="FINISHED", finished_ms=1_700_000_100_000)

    def write() -> list[dict[str, Any]]:
        projection = opened(store, study)
        for record in trials:
            projection.write_trial(record)
        projection.write_study(finished)
        return dump(store)

    before = write()
    home = Path(store.removeprefix("sqlite:///")).parent
    (home / "mlflow.db").unlink()
    shutil.rmtree(home / "artifacts")
    # MLflow remembers the stores it has opened: another address of the same file is like another process.
    store = f"sqlite:///{home}/./mlflow.db"
    assert write() == before


# What people do in MLflow


def test_a_child_that_a_person_deleted_stays_deleted(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    client = MlflowClient(tracking_uri=store)
    projection = opened(store, study)
    client.delete_run(projection.write_trial(trial))
    selected = replace(trial, tags={**trial.tags, "study.selected": "true"})
    projection.write_trial(selected)  # the projection that made it
    opened(store, study).write_trial(selected)  # and a later one
    assert [run.data.tags["study.role"] for run in runs(store, ViewType.ACTIVE_ONLY)] == ["study"]
    assert child_of(store).data.tags["study.selected"] == "false"


def test_a_deleted_parent_is_restored(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    client = MlflowClient(tracking_uri=store)
    projection = opened(store, study)
    projection.write_trial(trial)
    parent = projection.parent_run_id
    client.delete_run(parent)
    projection.write_study(replace(study, state="FINISHED", finished_ms=1_700_000_100_000))
    assert client.get_run(parent).info.lifecycle_stage == "active"
    client.delete_run(parent)
    assert opened(store, study).parent_run_id == parent
    assert client.get_run(parent).info.lifecycle_stage == "active"
    assert len(runs(store)) == 2


def test_a_deleted_experiment_is_an_error_that_says_how_to_bring_it_back(store: str, study: StudyRecord) -> None:
    opened(store, study)
    (run,) = runs(store)
    MlflowClient(tracking_uri=store).delete_experiment(run.info.experiment_id)
    told = rf"'mvtec/screw' was deleted.*mlflow experiments restore --experiment-id {run.info.experiment_id}"
    with pytest.raises(InputError, match=told):
        opened(store, study)
    MlflowClient(tracking_uri=store).restore_experiment(run.info.experiment_id)
    assert opened(store, study).parent_run_id == run.info.run_id


def test_runs_of_people_and_of_other_studies_are_left_alone(store: str, study: StudyRecord, trial: TrialRecord) -> None:
    opened(store, study).write_trial(trial)
    other = opened(store, replace(study, uid="ba9876543210", name="patchcore_screw"))
    assert other.run_id(3) is None
    client = MlflowClient(tracking_uri=store)
    own = client.create_run(runs(store)[0].info.experiment_id, run_name="by hand")
    other.write_trial(replace(trial, run_name="patchcore_screw 003"))
    assert client.get_run(own.info.run_id).data.tags.get("study.uid") is None
    names = sorted(str(run.info.run_name) for run in runs(store))
    assert names == ["by hand", "padim_screw", "padim_screw 003", "patchcore_screw", "patchcore_screw 003"]


def test_two_studies_may_make_the_same_experiment_at_once(
    store: str, study: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MlflowClient.create_experiment

    def overtaken(self: MlflowClient, name: str, **options: Any) -> str:
        original(self, name, **options)
        return original(self, name, **options)

    monkeypatch.setattr(MlflowClient, "create_experiment", overtaken)
    opened(store, study)
    assert [run.info.run_name for run in runs(store)] == ["padim_screw"]


def test_more_runs_than_a_page_holds_are_found(
    store: str, study: StudyRecord, trial: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_module, "PAGE", 2)
    projection = opened(store, study)
    small = replace(trial, artifacts={}, steps=())
    ids = [projection.write_trial(replace(small, number=number)) for number in range(5)]
    again = opened(store, study)
    assert again.parent_run_id == projection.parent_run_id
    assert [again.run_id(number) for number in range(5)] == ids


# Stores that cannot be used


def test_a_server_that_does_not_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(store_module, "MlflowClient", _refuse)  # it would try again for minutes
    with pytest.raises(InputError, match=r"MLflow server .* cannot be reached .*MLFLOW_TRACKING_URI") as info:
        Projection(f"http://user:secret@127.0.0.1:{port}")
    assert "\n" not in str(info.value)
    assert "secret" not in str(info.value)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_broken_database_is_told_in_one_line(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mlflow\.db: .*database") as info:
        Projection(f"sqlite:///{path}")
    assert "\n" not in str(info.value)
    assert path.read_bytes() == content


def test_a_password_in_the_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MlflowClient", _refuse_as_mlflow_does)
    with pytest.raises(InputError, match=r"postgresql://study:\*\*\*@db/mlflow: "):
        Projection("postgresql://study:secret@db/mlflow")


def _refuse_as_mlflow_does(**options: Any) -> None:
    raise MlflowException("no such store")


def test_a_database_from_a_newer_mlflow_is_refused_and_not_changed(
    store: str, study: StudyRecord, tmp_path: Path
) -> None:
    path = tmp_path / "newer.db"
    shutil.copy(store.removeprefix("sqlite:///"), path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    with pytest.raises(InputError, match="out-of-date database schema"):
        Projection(f"sqlite:///{path}")


KILLED_WHILE_MIGRATING = """
import os, signal, sys
from alembic.operations import Operations
from tracking.projection import Projection

steps, invoke = 0, Operations.invoke

def die_in_the_middle(self, operation):
    global steps
    steps += 1
    if steps == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return invoke(self, operation)

Operations.invoke = die_in_the_middle
Projection(sys.argv[1])
"""


@pytest.fixture
def half_migrated(tmp_path: Path) -> Path:
    """The path of a store whose maker was killed in the middle of MLflow's first migration."""
    path = tmp_path / "new" / "mlflow.db"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_MIGRATING, f"sqlite:///{path}"], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    return path


def test_a_store_whose_first_migration_was_killed_is_made_anew(half_migrated: Path, study: StudyRecord) -> None:
    assert not half_migrated.exists()
    assert list(half_migrated.parent.iterdir())
    store = f"sqlite:///{half_migrated}"
    opened(store, study)
    assert [run.info.run_name for run in runs(store)] == ["padim_screw"]
    leftovers = {path.name for path in half_migrated.parent.iterdir()} - {"mlflow.db", "artifacts"}
    assert leftovers == set()
