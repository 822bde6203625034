"""A home that was moved: the addresses in MLflow's database follow it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.widgets import copy_stores
from tracking.moved import follow_home
from tracking.store import open_client
from tracking.views import study_pages


@pytest.fixture
def made(tmp_path: Path, empty_stores: Path) -> Path:
    """A home with a run and its file, in a folder whose name needs quoting."""
    home = copy_stores(empty_stores, tmp_path / "before it moved")
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    for name, place in (("widgets/round ones", home / "artifacts"), ("elsewhere", tmp_path / "disk")):
        experiment = client.create_experiment(name, artifact_location=(place / name).as_uri())
        client.log_text(client.create_run(experiment).info.run_id, "hello", "note.txt")
    return home


def addresses(database: Path) -> dict[str, str]:
    """{experiment: where the file of its run lies}."""
    with closing(sqlite3.connect(database)) as connection:
        return dict(
            connection.execute("SELECT experiments.name, artifact_uri FROM runs JOIN experiments USING (experiment_id)")
        )


def test_files_are_found_where_the_home_is_now(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = addresses(made / "mlflow.db")
    home = made.rename(tmp_path / "now")
    client = open_client(f"sqlite:///{home / 'mlflow.db'}", artifacts=home / "artifacts")
    experiment = client.get_experiment_by_name("widgets/round ones")
    assert experiment.artifact_location == (home / "artifacts" / "widgets/round ones").as_uri()
    (run,) = client.search_runs([experiment.experiment_id])
    assert Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "hello"
    assert addresses(home / "mlflow.db")["elsewhere"] == before["elsewhere"]
    assert f"STUDY_HOME was moved from {made}" in caplog.text


def test_nothing_happens_where_nothing_moved(made: Path, tmp_path: Path) -> None:
    before = addresses(made / "mlflow.db")
    assert follow_home(made / "mlflow.db", made / "artifacts") == []
    assert addresses(made / "mlflow.db") == before
    assert follow_home(tmp_path / "no.db", made / "artifacts") == []
    assert not (tmp_path / "no.db").exists()


def test_a_copy_leaves_the_original_alone_and_goes_its_own_way(made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    before = addresses(made / "mlflow.db")
    assert follow_home(copy / "mlflow.db", copy / "artifacts") == [made / "artifacts"]
    assert follow_home(copy / "mlflow.db", copy / "artifacts") == []
    assert addresses(made / "mlflow.db") == before
    after = addresses(copy / "mlflow.db")
    assert after["widgets/round ones"].startswith((copy / "artifacts" / "widgets/round ones").as_uri() + "/")
    assert after["elsewhere"] == before["elsewhere"]


def test_two_homes_on_one_database_keep_their_addresses(made: Path, tmp_path: Path) -> None:
    uri, other = f"sqlite:///{made / 'mlflow.db'}", tmp_path / "other"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("gears", artifact_location=(other / "artifacts" / "gears").as_uri())
    client.log_text(client.create_run(experiment).info.run_id, "hello", "note.txt")
    client.create_run(client.create_experiment("nuts", artifact_location=(other / "artifacts" / "nuts").as_uri()))
    before = addresses(made / "mlflow.db")
    for home in (made, other, made):
        open_client(uri, artifacts=home / "artifacts")
        assert addresses(made / "mlflow.db") == before


def test_an_experiment_without_files_follows_a_home_that_was_moved(made: Path, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{made / 'mlflow.db'}")
    client.create_run(client.create_experiment("nuts", artifact_location=(made / "artifacts" / "nuts").as_uri()))
    home = made.rename(tmp_path / "now")
    assert follow_home(home / "mlflow.db", home / "artifacts") == [made / "artifacts"]
    assert addresses(home / "mlflow.db")["nuts"].startswith((home / "artifacts" / "nuts").as_uri() + "/")


def test_the_list_of_pages_follows_too(made: Path, tmp_path: Path) -> None:
    home = made.rename(tmp_path / "now")
    study_pages(f"sqlite:///{home / 'mlflow.db'}", artifacts=home / "artifacts")
    assert addresses(home / "mlflow.db")["widgets/round ones"].startswith((home / "artifacts").as_uri())
