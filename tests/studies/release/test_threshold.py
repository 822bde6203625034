"""``study threshold``: looking at what thresholds would do, and setting one, without a search or a look at test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detectors.runtime.artifact import load_artifact
from detectors.scoring.operating_point import RATES, Threshold
from studies.commands.promote import REFUSED
from studies.file.sections import ThresholdConfig
from studies.home import Home
from studies.release.locate import open_view
from studies.search.view import StudyView, TrialView
from studies.worker.calibration import CALIBRATION, read_calibration
from studies.worker.jobs import ARTIFACTS, RESULT_FILE, read_result
from studies.worker.scores import read_scores
from tests.helpers.builders import raw_config
from tests.helpers.command_line import set_home, study
from tests.helpers.widgets import copy_stores


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home of its own with the finished study ``tiny``."""
    folder = tmp_path / "work"
    shutil.copytree(finished, folder)
    set_home(monkeypatch, folder)
    return Home.from_environment()


def selected(home: Home) -> tuple[StudyView, TrialView]:
    view = open_view("tiny", home)
    trial = view.selected()
    assert trial is not None
    return view, trial


def asked(*words: object) -> dict[str, object]:
    ended = study("threshold", *words, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_it_shows_counts_at_rates_and_changes_nothing(home: Home) -> None:
    view, trial = selected(home)
    before = {path: path.read_bytes() for path in trial.final_folder.rglob("*") if path.is_file()}
    ledger = home.ledger(view.header.uid).read_bytes()
    data = asked("tiny")
    (product,) = data["products"]
    calibration = read_calibration(trial.final_folder)
    good = calibration.good_scores.values
    assert [row["rate"] for row in product["rates"]] == list(RATES)
    for row in product["rates"]:
        assert row["stopped"] == np.sum(good >= row["value"])
        defective = calibration.scores[calibration.labels == 1]
        assert row["validation"]["caught"] == np.sum(defective >= row["value"])
        assert row["validation"]["defective"] == len(defective)
        assert row["supports_rate"] == (1 / (len(good) + 1) <= row["rate"])
    assert data["changes"] == []
    assert {path: path.read_bytes() for path in trial.final_folder.rglob("*") if path.is_file()} == before
    assert home.ledger(view.header.uid).read_bytes() == ledger
    shown = study("threshold", "tiny")
    assert "needs 99 good images" in shown.out
    assert "on validation it finds" in shown.out


def test_a_rate_is_set_everywhere_and_test_is_not_scored(home: Home) -> None:
    view, trial = selected(home)
    ledger = home.ledger(view.header.uid).read_bytes()
    (change,) = asked("tiny", "--rate", 0.2)["changes"]
    threshold = Threshold.from_json({key: change["after"][key] for key in Threshold(0, "value", "", 0).to_json()})
    assert (threshold.rate, threshold.supports_rate) == (0.2, True)
    assert threshold.value < change["before"]["value"]
    assert home.ledger(view.header.uid).read_bytes() == ledger
    result, scores = read_result(trial.final_folder), read_scores(trial.final_folder / ARTIFACTS)
    assert load_artifact(trial.detectors[""]).threshold == Threshold.from_json(result.threshold) == threshold
    alarms = scores.values >= threshold.value
    assert scores.threshold == threshold.value
    assert [image.verdict for image in scores.images] == ["defective" if alarm else "good" for alarm in alarms]
    assert result.metrics["test/image_recall"] == alarms[scores.labels == 1].mean()
    assert result.metrics["test/false_alarm_rate"] == alarms[scores.labels == 0].mean()
    assert result.metrics["threshold"] == threshold.value
    assert result.metrics["test/image_auroc"] == trial.final.metrics["test/image_auroc"]
    # It stays when the study is run again, which has nothing else to do.
    again = study("run", "tiny.yaml", "--inline", "--device", "cpu", "--offline")
    assert again.code == 0, again.err
    assert load_artifact(trial.detectors[""]).threshold == threshold
    assert home.ledger(view.header.uid).read_bytes() == ledger


def test_an_edited_study_file_wins_over_what_was_set_before(home: Home) -> None:
    view, trial = selected(home)
    ledger = home.ledger(view.header.uid).read_bytes()
    asked("tiny", "--value", 3.5)
    assert load_artifact(trial.detectors[""]).threshold.value == 3.5
    words = ("run", "tiny.yaml", "--inline", "--device", "cpu", "--offline")
    ended = study(*words, "--set", "threshold.rate=0.3")
    assert ended.code == 0, ended.err
    threshold = load_artifact(trial.detectors[""]).threshold
    assert (threshold.rule, threshold.rate) == ("false_alarm_rate", 0.3)
    assert home.ledger(view.header.uid).read_bytes() == ledger  # no refit, no look at test
    assert len(StudyView(view.study, view.header, home).trials()) == 1


def test_costs_decide(home: Home) -> None:
    _, trial = selected(home)
    costs = {"cost_miss": 50.0, "cost_alarm": 1.0, "share_defective": 0.3}
    words = [word for name, value in costs.items() for word in (f"--{name.replace('_', '-')}", value)]
    (change,) = asked("tiny", *words)["changes"]
    after = change["after"]
    assert {name: after[name] for name in costs} == costs
    section = ThresholdConfig(rule="cost", **costs)
    assert after["value"] == read_calibration(trial.final_folder).threshold(section).value
    assert load_artifact(trial.detectors[""]).threshold.rule == "cost"


def test_images_of_another_day(home: Home, tmp_path: Path, tiny_mvtec: Path) -> None:
    other = tmp_path / "other_day"
    other.mkdir()
    for index, path in enumerate(sorted((tiny_mvtec / "widget" / "train" / "good").iterdir())[:9]):
        pixels = np.array(Image.open(path)).astype(int)
        Image.fromarray(np.clip(pixels + 3, 0, 255).astype(np.uint8)).save(other / f"{index}.png")
    (change,) = asked("tiny", "--images", other, "--rate", 0.1, "--device", "cpu")["changes"]
    assert (change["after"]["normals"], change["after"]["source"]) == (9, str(other))
    known = study("threshold", "tiny", "--images", tiny_mvtec / "widget" / "train" / "good", "--device", "cpu")
    assert known.code == 2
    assert "shows the same pixels as" in known.error


def test_a_study_without_kept_scores_rests_on_validation(home: Home) -> None:
    _, trial = selected(home)
    (trial.final_folder / CALIBRATION).unlink()
    (product,) = asked("tiny", "--device", "cpu")["products"]
    assert product["rates"][-1]["source"] == "validation"
    assert product["rates"][-1]["normals"] == 6
    (change,) = asked("tiny", "--rate", 0.3, "--device", "cpu")["changes"]
    assert (change["after"]["normals"], change["after"]["out_of_fold"]) == (6, 0)


def test_a_registered_model_gets_a_new_version_through_the_gate(home: Home) -> None:
    assert study("promote", "tiny", "--device", "cpu").code == 0
    _, trial = selected(home)
    before = trial.detectors[""].joinpath("detector.json").read_bytes()
    name = "models:/tiny@champion"
    value = load_artifact(trial.detectors[""]).threshold.value + 1e-4
    data = asked(name, "--value", value, "--device", "cpu")
    assert (data["version"], data["promoted"]) == ("2", True)
    assert data["products"][0]["threshold"]["value"] == value
    assert trial.detectors[""].joinpath("detector.json").read_bytes() == before  # the study keeps its own
    listed = json.loads(study("models", "tiny", "--json").out)["tiny"]["versions"]
    assert {version["version"]: version["aliases"] for version in listed} == {"2": ["champion"], "1": ["previous"]}
    far = study("threshold", name, "--value", 1e6, "--device", "cpu")
    assert far.code == REFUSED
    assert "where the champion finds" in far.out + far.err
    listed = json.loads(study("models", "tiny", "--json").out)["tiny"]["versions"]
    assert {version["version"]: version["aliases"] for version in listed}["2"] == ["champion"]


def test_a_version_keeps_what_its_threshold_rests_on(home: Home, tmp_path: Path, tiny_mvtec: Path) -> None:
    assert study("promote", "tiny", "--device", "cpu").code == 0
    other = tmp_path / "other_day"
    other.mkdir()
    for index, path in enumerate(sorted((tiny_mvtec / "widget" / "train" / "good").iterdir())[:12]):
        pixels = np.array(Image.open(path)).astype(int)
        Image.fromarray(np.clip(pixels + 2, 0, 255).astype(np.uint8)).save(other / f"{index}.png")
    ended = study("threshold", "models:/tiny@champion", "--images", other, "--rate", 0.08, "--device", "cpu", "--json")
    version = json.loads(ended.out)["version"]
    name = f"models:/tiny/{version}"
    assert asked(name, "--device", "cpu")["products"][0]["rates"][0]["source"] == str(other)
    shutil.rmtree(other)  # the scores are kept
    ended = study("threshold", name, "--rate", 0.5, "--device", "cpu", "--json")
    assert json.loads(ended.out)["changes"][0]["after"]["normals"] == 12


def test_a_refit_that_was_cut_off_is_made_again(home: Home) -> None:
    view, trial = selected(home)
    (trial.final_folder / RESULT_FILE).unlink()
    words = ("run", "tiny.yaml", "--inline", "--device", "cpu", "--offline", "--set", "threshold.rate=0.2")
    ended = study(*words)
    assert ended.code == 0, ended.err
    result = read_result(trial.final_folder)
    assert result is not None
    assert result.threshold_set is None  # a new refit
    assert Threshold.from_json(result.threshold).rate == 0.2
    assert len(view.ledger()) == 2


def test_under_protocol_paper_the_scores_of_the_trial_are_counted_again(home: Home) -> None:
    trial = open_view("defaults", home).selected()
    assert trial is not None
    before = trial.final.metrics["test/image_recall"]
    (change,) = asked("defaults", "--value", -1.0)["changes"]
    assert change["after"]["value"] == -1.0
    metrics = read_result(trial.final_folder).metrics
    assert (metrics["test/image_recall"], metrics["test/false_alarm_rate"]) == (1.0, 1.0)
    asked("defaults", "--value", 1e6)
    assert read_result(trial.final_folder).metrics["test/image_recall"] == 0.0 < before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", 0.1, "--value", 3), "--rate and --value contradict each other"),
        (("--rate", 1.5), "threshold.rate"),
        (("--cost-miss", 3), "a threshold by costs needs --cost-alarm as well"),
        (("--cost-miss", 3, "--cost-alarm", 1, "--share-defective", 2), "threshold.share_defective"),
        (("--value", "nan"), "threshold"),
    ],
)
def test_what_cannot_be_set_is_refused(home: Home, words: tuple[object, ...], message: str) -> None:
    _, trial = selected(home)
    before = trial.detectors[""].joinpath("detector.json").read_bytes()
    ended = study("threshold", "tiny", *words)
    assert ended.code == 2
    assert message in ended.error
    assert trial.detectors[""].joinpath("detector.json").read_bytes() == before


def test_no_such_study_product_or_model(home: Home) -> None:
    assert "no study 'tinny' was run here; did you mean tiny?" in study("threshold", "tinny").error
    assert "'tiny/lid' is no detector; there are: tiny" in study("threshold", "tiny/lid").error
    assert study("threshold", "models:/tiny@champion").code == 2


def test_predict_takes_another_threshold_for_one_run(home: Home, tiny_mvtec: Path, tmp_path: Path) -> None:
    image = next((tiny_mvtec / "widget" / "test" / "dent").iterdir())
    _, trial = selected(home)
    before = trial.detectors[""].joinpath("detector.json").read_bytes()
    for value, verdict in ((1e9, "good"), (-1e9, "defective")):
        ended = study("predict", "tiny", image, "--threshold", value, "--out", tmp_path / "out", "--json")
        assert ended.code == 0, ended.err
        (row,) = json.loads(ended.out)
        assert (row["verdict"], row["threshold"]) == (verdict, value)
    assert trial.detectors[""].joinpath("detector.json").read_bytes() == before
    assert study("predict", "tiny", image, "--threshold", "nan", "--out", tmp_path / "out").code == 2


def test_each_of_several_products_may_have_its_own(
    tiny_mvtec: Path, empty_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = tmp_path / "products", tmp_path / "work"
    for product in ("lid", "cup"):
        shutil.copytree(tiny_mvtec / "widget", root / product)
    folder.mkdir()
    copy_stores(empty_stores, folder / "home")
    set_home(monkeypatch, folder)
    raw = raw_config(root, name="both", budget={"trials": 1})
    raw["data"]["category"] = ["lid", "cup"]
    (folder / "both.yaml").write_text(yaml.safe_dump(raw))
    words = ("run", "both.yaml", "--inline", "--device", "cpu", "--offline")
    assert study(*words).code == 0
    assert len(asked("both", "--rate", 0.2)["changes"]) == 2
    (change,) = asked("both/cup", "--rate", 0.3)["changes"]
    assert change["product"] == "cup"
    assert study("threshold", "both", "--images", root / "lid" / "train" / "good").code == 2
    rates = {"lid": 0.2, "cup": 0.3}
    for _ in range(2):
        trial = open_view("both").selected()
        assert {name: load_artifact(path).threshold.rate for name, path in trial.detectors.items()} == rates
        stored = trial.final.threshold["products"]
        assert {name: one["rate"] for name, one in stored.items()} == rates
        for name, one in stored.items():
            assert read_scores(trial.final_folder / ARTIFACTS / name).threshold == one["value"]
        assert "test/image_recall" in trial.final.metrics
        again = study(*words)
        assert again.code == 0, again.err
    assert len(open_view("both").ledger()) == 2  # one scoring of each product, by the refit
