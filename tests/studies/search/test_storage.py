"""Creating, resuming and starting studies anew; what identifies one; plan, home and storage told plainly."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from detectors.backbones.bundled import SMALLEST
from detectors.backbones.pyramid import weights_identity
from detectors.errors import InputError
from studies.home import Home, prepare_sqlite, sqlite_file
from studies.search.plan import Plan
from studies.search.storage import (
    HEADER,
    all_studies,
    create_or_resume,
    latest,
    load_study,
    open_storage,
    read_header,
    study_names,
)
from tests.helpers.builders import BACKBONE, build_plan, make_config


@pytest.fixture(scope="module")
def plan(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan that no test writes into."""
    return build_plan(make_config(tiny_mvtec), tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A fresh Optuna database: making one takes a second, copying it nothing."""
    home = Home(tmp_path_factory.mktemp("database"))
    open_storage(home)
    with sqlite3.connect(home.root / "studies.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return (home.root / "studies.db").read_bytes()


@pytest.fixture
def home(tmp_path: Path, empty_database: bytes, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("STUDY_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "studies.db").write_bytes(empty_database)
    return Home(tmp_path)


@pytest.fixture
def storage(home: Home) -> RDBStorage:
    return open_storage(home)


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusal(storage: RDBStorage, plan: Plan) -> str:
    with pytest.raises(InputError) as caught:
        create_or_resume(storage, plan, fresh=False)
    return one_line(caught)


# --- create, resume, fresh


def test_tables_of_another_optuna_are_refused_also_where_others_were_opened_before(home, storage):
    assert study_names(storage) == []
    with sqlite3.connect(home.root / "studies.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    connection.close()
    for _ in range(2):
        with pytest.raises(InputError, match=r"no longer compatible .*check STUDY_STORAGE"):
            open_storage(home)


def test_create_then_resume(storage, plan):
    study, header, new = create_or_resume(storage, plan, fresh=False)
    assert new
    assert study.study_name == header.name == "tiny"
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]
    again, header_again, new_again = create_or_resume(storage, plan, fresh=False)
    assert not new_again
    assert again.study_name == "tiny"
    assert header_again == header


def test_the_header_says_what_the_study_was_created_with(storage, plan, tiny_mvtec):
    _, header, _ = create_or_resume(storage, plan, fresh=False)
    assert header.experiment == "tiny/widget"
    assert header.dataset == str(tiny_mvtec / "widget")
    assert header.counts["train"] == {"good": 24}
    assert header.splits_digest == plan.splits.digest
    assert header.identity == plan.identity
    assert header.backbones == {BACKBONE: weights_identity(BACKBONE).to_json()}
    assert header.dropped == []


def test_another_process_finds_the_study(home, storage, plan):
    _, header, _ = create_or_resume(storage, plan, fresh=False)
    _, found = load_study(open_storage(home), "tiny")
    assert found == header


def test_fresh_starts_generations_side_by_side(storage, plan):
    names = []
    for _ in range(11):
        study, header, new = create_or_resume(storage, plan, fresh=True)
        assert new
        assert header.name == "tiny"
        names.append(study.study_name)
    assert names == ["tiny", *(f"tiny#{number}" for number in range(2, 12))]
    assert latest(storage, "tiny") == "tiny#11"  # by number, not by letters
    assert create_or_resume(storage, plan, fresh=False)[0].study_name == "tiny#11"
    assert load_study(storage, "tiny#3")[0].study_name == "tiny#3"
    assert load_study(storage, "tiny#1")[0].study_name == "tiny"
    uids = {load_study(storage, f"tiny#{number}")[1].uid for number in range(1, 12)}
    assert len(uids) == 11


def test_fresh_accepts_another_identity(storage, plan, tiny_mvtec):
    create_or_resume(storage, plan, fresh=False)
    other = replace(plan, config=make_config(tiny_mvtec, sampler={"seed": 1}))
    assert create_or_resume(storage, other, fresh=True)[0].study_name == "tiny#2"
    assert create_or_resume(storage, other, fresh=False)[0].study_name == "tiny#2"
    assert "sampler" not in refusal(storage, plan)
    assert "'tiny#2' was created differently: seed (was 1, now 0)" in refusal(storage, plan)


def test_a_name_that_begins_like_another_is_another_study(storage, plan, tiny_mvtec):
    create_or_resume(storage, plan, fresh=False)
    longer = replace(plan, config=make_config(tiny_mvtec, name="tiny-2", sampler={"seed": 5}))
    assert create_or_resume(storage, longer, fresh=False)[2]
    assert study_names(storage) == ["tiny", "tiny-2"]
    assert latest(storage, "tiny") == "tiny"
    assert latest(storage, "tin") is None


def test_a_header_that_a_crash_kept_from_being_written_is_written(storage, plan):
    optuna.create_study(study_name="tiny", storage=storage, direction="maximize")
    with pytest.raises(InputError, match="study 'tiny' was stopped while it was created; run it again"):
        load_study(storage, "tiny")
    study, header, new = create_or_resume(storage, plan, fresh=False)
    assert new
    assert read_header(study) == header
    assert load_study(storage, "tiny")[1] == header


def test_fresh_takes_the_study_that_was_stopped_while_it_was_created(storage, plan):
    optuna.create_study(study_name="tiny", storage=storage, direction="maximize")
    study, _, new = create_or_resume(storage, plan, fresh=True)
    assert (study.study_name, new) == ("tiny", True)
    assert study_names(storage) == ["tiny"]


def test_other_objectives_after_a_stop_while_it_was_created(storage, plan, tiny_mvtec):
    optuna.create_study(study_name="tiny", storage=storage, directions=["minimize", "maximize"])
    study, _, new = create_or_resume(storage, plan, fresh=False)
    assert new
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]


def test_all_studies_passes_over_what_has_no_header(storage, plan):
    optuna.create_study(study_name="begun", storage=storage, direction="maximize")
    _, header, _ = create_or_resume(storage, plan, fresh=False)
    assert [(study.study_name, found) for study, found in all_studies(storage)] == [("tiny", header)]


def test_no_such_study(storage, plan):
    with pytest.raises(InputError, match=r"no study 'tiny' was run here; there are: none yet"):
        load_study(storage, "tiny")
    create_or_resume(storage, plan, fresh=False)
    with pytest.raises(InputError, match=r"no study 'tinny' was run here; did you mean tiny\? there are: tiny"):
        load_study(storage, "tinny")
    with pytest.raises(InputError, match="no study 'tiny#7' was run here"):
        load_study(storage, "tiny#7")


# --- identity


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": {"seed": 7}}, "seed (was 0, now 7)"),
        (
            {"objectives": {"image_ap": "maximize"}},
            'objectives (was [["image_auroc", "maximize"]], now [["image_ap", "maximize"]])',
        ),
        (
            {"search": {"n_features": {"int": [4, 30]}, "shrinkage": {"float": [0.0, 0.5]}}},
            'search.n_features (was {"int": [4, 40], "log": false}, now {"int": [4, 30], "log": false})',
        ),
        ({"search": {"n_features": {"int": [4, 40]}}}, "search.shrinkage (was {"),
        (
            {"fixed": {"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 3.0}},
            "fixed.smoothing_sigma (was 2.0, now 3.0)",
        ),
        (
            {"fixed": {"backbone": BACKBONE, "layers": [8], "smoothing_sigma": 2.0}},
            "fixed.layers (was [8, 16], now [8])",
        ),
    ],
)
def test_a_change_of_the_file_is_named(storage, plan, tiny_mvtec, changes, words):
    create_or_resume(storage, plan, fresh=False)
    message = refusal(storage, replace(plan, config=make_config(tiny_mvtec, **changes)))
    assert "study 'tiny' was created differently: " in message
    assert words in message
    assert "--fresh" in message


def test_the_order_of_objectives_is_part_of_the_identity(storage, plan, tiny_mvtec):
    first, second = ("image_auroc", "maximize"), ("fps", "maximize")
    create_or_resume(
        storage, replace(plan, config=make_config(tiny_mvtec, objectives=dict([first, second]))), fresh=False
    )
    message = refusal(storage, replace(plan, config=make_config(tiny_mvtec, objectives=dict([second, first]))))
    assert "objectives (was " in message


def test_a_change_of_size_protocol_and_images_is_named(storage, plan, tiny_mvtec, own_widgets, tmp_path):
    create_or_resume(storage, plan, fresh=False)
    size = make_config(
        tiny_mvtec, data={"dataset": "tiny", "category": "widget", "root": str(tiny_mvtec), "image_size": 96}
    )
    assert "image_size (was [64, 64], now [96, 96])" in refusal(storage, build_plan(size, tmp_path))
    synthetic = refusal(storage, build_plan(make_config(tiny_mvtec, protocol="synthetic"), tmp_path))
    assert 'protocol (was "holdout", now "synthetic")' in synthetic
    assert "the images of test, train, validation" in synthetic
    # The same images at another place are the same study.
    assert not create_or_resume(storage, build_plan(make_config(own_widgets), tmp_path), fresh=False)[2]
    (own_widgets / "widget" / "train" / "good" / "003.png").unlink()
    message = refusal(storage, build_plan(make_config(own_widgets), tmp_path))
    assert "created differently: the images of train." in message


def test_a_study_whose_copies_were_divided_is_refused_with_the_reason(storage, own_widgets, tmp_path):
    good = own_widgets / "widget" / "train" / "good"
    (good / "copy.png").write_bytes((good / "003.png").read_bytes())
    plan = build_plan(make_config(own_widgets, protocol="synthetic"), tmp_path)
    study, header, _ = create_or_resume(storage, plan, fresh=False)
    before = header.identity["data"] | {"train": "0" * 64, "test": "1" * 64}  # as they were divided then
    study.set_user_attr(HEADER, asdict(replace(header, identity=header.identity | {"data": before})))
    message = refusal(storage, plan)
    assert "the images of test, train (1 of them is a copy of another: copies now stay in one set" in message
    assert "--fresh" in message


def test_what_is_no_part_of_the_identity_may_change(storage, plan, tiny_mvtec):
    create_or_resume(storage, plan, fresh=False)
    changed = make_config(
        tiny_mvtec,
        budget={"trials": 300, "timeout": "9h"},
        constraints={"fps": ">= 1"},
        execution={"attempts": 5},
        threshold={"rate": 0.2},
        baselines=[{"n_features": 9}],
    )
    _, header, new = create_or_resume(storage, replace(plan, config=changed), fresh=False)
    assert not new
    assert header.config == changed.to_json()
    assert load_study(storage, "tiny")[1] == header


def test_protocol_auto_is_the_protocol_it_came_to(storage, plan, tiny_mvtec, tmp_path):
    create_or_resume(storage, plan, fresh=False)
    auto = build_plan(make_config(tiny_mvtec, protocol="auto"), tmp_path)
    _, header, new = create_or_resume(storage, auto, fresh=False)
    assert not new
    assert header.config["protocol"] == "holdout"


# --- weights


def test_other_weights_under_the_same_name_are_refused(storage, plan):
    create_or_resume(storage, plan, fresh=False)
    other = weights_identity(f"{BACKBONE}:1")
    message = refusal(storage, replace(plan, backbones={BACKBONE: other}))
    assert f"study 'tiny' was created with other weights of {BACKBONE}" in message
    assert other.sha256[:12] in message
    assert plan.backbones[BACKBONE].sha256[:12] in message


def test_a_backbone_that_is_not_here_any_more(storage, tiny_mvtec, tmp_path):
    config = make_config(tiny_mvtec, search={"backbone": {"choices": [BACKBONE, SMALLEST]}}, fixed={"layers": [8, 16]})
    both = build_plan(config, tmp_path)
    create_or_resume(storage, both, fresh=False)
    fewer = replace(both, backbones={SMALLEST: both.backbones[SMALLEST]}, dropped=(BACKBONE,))
    message = refusal(storage, fewer)
    assert f"study 'tiny' uses backbone {BACKBONE}, whose weights are not on this machine any more" in message


def test_a_backbone_that_the_file_names_no_more(storage, tiny_mvtec, tmp_path):
    baselines = [{"backbone": BACKBONE}, {"backbone": SMALLEST}]
    fixed = {"layers": [8, 16]}
    both = make_config(tiny_mvtec, protocol="paper", search={}, fixed=fixed, baselines=baselines)
    one = make_config(tiny_mvtec, protocol="paper", search={}, fixed=fixed, baselines=baselines[:1])
    create_or_resume(storage, build_plan(both, tmp_path), fresh=False)
    message = refusal(storage, build_plan(one, tmp_path))
    assert f"created with backbone {SMALLEST}, which the study file names no more" in message
    assert "--fresh" in message


def test_backbones_are_fixed_when_the_study_is_created(storage, tiny_mvtec, tmp_path):
    config = make_config(tiny_mvtec, search={"backbone": {"choices": [BACKBONE, SMALLEST]}}, fixed={"layers": [8, 16]})
    both = build_plan(config, tmp_path)
    fewer = replace(both, backbones={SMALLEST: both.backbones[SMALLEST]}, dropped=(BACKBONE,))
    _, header, _ = create_or_resume(storage, fewer, fresh=False)
    assert header.dropped == [BACKBONE]
    _, resumed, new = create_or_resume(storage, both, fresh=False)
    assert not new
    assert list(resumed.backbones) == [SMALLEST]


# --- home


def test_home_of_the_environment(tmp_path, monkeypatch):
    for name in ("STUDY_HOME", "STUDY_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    home = Home.from_environment()
    assert home.root == tmp_path / "outputs"
    assert home.storage_url == f"sqlite:///{tmp_path}/outputs/studies.db"
    assert home.tracking_uri == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert home.mlflow_artifacts == tmp_path / "outputs" / "artifacts"
    monkeypatch.setenv("STUDY_HOME", "elsewhere")
    assert Home.from_environment().root == tmp_path / "elsewhere"
    monkeypatch.setenv("STUDY_STORAGE", "postgresql://host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert home.storage_url == "postgresql://host/db"
    assert (home.tracking_uri, home.mlflow_artifacts) == ("http://host:5000", None)


def test_home_is_made_and_left_clean(tmp_path):
    home = Home(tmp_path / "a" / "b").prepare()
    assert list(home.root.iterdir()) == []
    assert home.prepare() == home


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_home_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError) as caught:
        Home(tmp_path / place).prepare()
    message = one_line(caught)
    assert str(tmp_path / place) in message
    assert "STUDY_HOME" in message


def test_a_ledger_lies_outside_the_folders_of_trials(tmp_path):
    home = Home(tmp_path)
    assert not home.ledger("uid").is_relative_to(home.study_folder("uid"))


# --- storage


def test_the_storage_is_made_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("STUDY_STORAGE", raising=False)
    assert study_names(open_storage(Home(tmp_path / "new"))) == []
    with sqlite3.connect(tmp_path / "new" / "studies.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_database(home):
    (home.root / "studies.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(
        InputError, match=r"studies\.db: not a usable SQLite database \(file is not a database\)"
    ) as caught:
        open_storage(home)
    assert "STUDY_HOME" in one_line(caught)
    assert (home.root / "studies.db").read_bytes() == b"no database at all" * 100


def test_a_folder_in_place_of_the_database(home):
    (home.root / "studies.db").unlink()
    (home.root / "studies.db").mkdir()
    with pytest.raises(InputError, match=r"studies\.db: not a usable SQLite database"):
        open_storage(home)


@pytest.mark.parametrize("url", ["nonsense", "nosuchdialect://host/db", "postgresql+nosuchdriver://ann:secret@host/db"])
def test_a_storage_address_that_leads_nowhere(home, monkeypatch, url):
    monkeypatch.setenv("STUDY_STORAGE", url)
    with pytest.raises(InputError) as caught:
        open_storage(home)
    message = one_line(caught)
    assert "STUDY_STORAGE" in message
    assert "secret" not in message


def test_the_file_of_an_address():
    assert sqlite_file("sqlite:////tmp/a.db") == Path("/tmp/a.db")
    assert sqlite_file("postgresql://host/db") is None
    prepare_sqlite("postgresql://host/db")  # nothing to prepare


def test_a_header_is_stored_as_plain_json(storage, plan):
    study, header, _ = create_or_resume(storage, plan, fresh=False)
    stored = study.user_attrs[HEADER]
    assert stored["uid"] == header.uid
    assert stored["config"]["protocol"] == "holdout"
