"""Saved views of MLflow's table of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.projection import Projection
from tracking.records import StudyRecord
from tracking.views import ALL, KIND, NOTE, PREFIX, TAG_LENGTH, address_of, experiment_pages, saved_view, study_pages

STUDY = StudyRecord(
    uid="0123456789ab",
    name="padim_screw",
    experiment="mvtec/screw",
    started_ms=1_700_000_000_000,
    columns=("metrics.val/image_auroc", "params.backbone", "tags.trial.state"),
    order_by="metrics.val/image_auroc",
)


@pytest.fixture
def store(study_home: Path) -> str:
    return f"sqlite:///{study_home / 'mlflow.db'}"


def tags(store: str) -> dict[str, str]:
    return dict(MlflowClient(tracking_uri=store).get_experiment_by_name("mvtec/screw").tags)


def test_a_view_shows_the_trials_the_best_first() -> None:
    name, text = saved_view(STUDY, "cafe")
    assert name == f"{PREFIX}0123456789ab"
    view = json.loads(text)
    assert view["name"] == "padim_screw"
    state = json.loads(view["state"])
    assert state["selectedColumns"] == ["metrics.`val/image_auroc`", "params.`backbone`", "tags.`trial.state`"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/image_auroc`", False)
    assert state["searchFilter"] == "tags.`study.uid` = '0123456789ab'"
    assert state["runsExpanded"] == {"cafe": True}
    assert {key: view[key] for key in state} == state


def test_more_columns_than_a_tag_holds_are_cut_from_the_end() -> None:
    columns = tuple(f"params.a_rather_long_name_{number}" for number in range(200))
    _, text = saved_view(replace(STUDY, columns=columns), "cafe")
    assert 0.9 * TAG_LENGTH < len(text) <= TAG_LENGTH
    kept = json.loads(text)["selectedColumns"]
    assert kept == [f"params.`{column.removeprefix('params.')}`" for column in columns[: len(kept)]]


def test_studies_have_pages_the_newest_first(store: str) -> None:
    later = replace(STUDY, uid="fedcba987654", name="later", started_ms=STUDY.started_ms + 1)
    for study in (STUDY, later, STUDY):
        Projection(store).open(study)
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("mvtec/screw").experiment_id
    client.set_experiment_tag(experiment, f"{PREFIX}mine", "deflate;no JSON")
    pages = study_pages(store)
    assert [page.study for page in pages] == ["later", "padim_screw"]
    query = "workflowType=machine_learning&viewStateShareKey=0123456789ab"
    address = address_of(pages[1], "http://me:secret@host:5000/")
    assert address.endswith(f"host:5000/#/experiments/{experiment}/runs?{query}")
    assert "secret" not in address


def test_an_experiment_is_described_once(store: str) -> None:
    Projection(store).open(STUDY)
    assert tags(store)[KIND] == "custom_model_development"
    assert tags(store)[NOTE].startswith("Studies of mvtec/screw. ")
    client = MlflowClient(tracking_uri=store)
    client.set_experiment_tag(client.get_experiment_by_name("mvtec/screw").experiment_id, NOTE, "ours")
    Projection(store).open(STUDY)
    assert tags(store)[NOTE] == "ours"


def test_an_experiment_of_several_studies_has_a_page_with_a_row_for_each(store: str) -> None:
    Projection(store).open(STUDY)
    view = json.loads(tags(store)[f"{PREFIX}{ALL}"])
    assert view["name"] == "all studies"
    assert view["searchFilter"] == "tags.`study.role` = 'study'"
    assert view["selectedColumns"][:3] == [
        "metrics.`test/image_recall`",
        "metrics.`test/false_alarm_rate`",
        "metrics.`test/image_auroc`",
    ]
    assert len(tags(store)[f"{PREFIX}{ALL}"]) < TAG_LENGTH
    # A single study's own page shows its row, too.
    assert experiment_pages(store) == []
    Projection(store).open(replace(STUDY, uid="fedcba987654", name="later"))
    (page,) = experiment_pages(store)
    assert page.study == "all studies of mvtec/screw"
    assert page.path.endswith("viewStateShareKey=studies")
    assert [each.study for each in study_pages(store)] == ["padim_screw", "later"]
