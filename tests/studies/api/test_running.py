"""Studies from Python: run, go on, look at, compare, report."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import studies
from studies.api.offline import offline_hub
from studies.search.notices import Finished, Opened
from tests.helpers.bench import ScriptedExecutor


def run(**options: object) -> studies.Study:
    return studies.run("tiny.yaml", **{"offline": True, "executor": "inline", "progress": False, **options})


def test_a_study_goes_on_and_tells_a_listener(new_home: Path) -> None:
    notices: list[object] = []
    first = run(trials=1, settings={"budget.stagnation": 50}, progress=notices.append)
    assert (first.name, len(first.trials)) == ("tiny", 1)
    assert first.outcome is not None
    assert first.outcome.reason == "1 of 1 trials are done"
    assert [type(notice) for notice in notices if isinstance(notice, Opened | Finished)] == [Opened, Finished]
    more = run(trials=2, settings=["budget.stagnation=50"], enqueue=[{"n_features": 7}, "n_features=8"])
    assert list(more.trials.index) == [0, 1]
    assert more.trials.n_features[1] == 7
    # What was opened before sees what came since.
    assert len(first.trials) == 2
    assert [study.name for study in studies.list_studies()] == ["tiny"]


def test_lines_are_printed_while_it_runs(new_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(trials=1, progress=True)
    printed = capsys.readouterr().out
    assert "study tiny: new study, up to 1 trials" in printed
    assert "image_auroc" in printed


def test_mistakes_are_input_errors(new_home: Path) -> None:
    with pytest.raises(studies.InputError, match="did you mean padim_screw"):
        studies.run("padim_scerw")
    with pytest.raises(studies.InputError, match="did you mean trials"):
        run(settings={"budget.trails": 3})
    with pytest.raises(studies.InputError, match="a mapping or a list"):
        run(settings="budget.trials=3")
    with pytest.raises(studies.InputError, match="unknown executor 'locel'"):
        run(executor="locel")
    with pytest.raises(
        studies.InputError, match=r"executor local takes no address; leave it out, or take the executor"
    ):
        run(executor="local", ray_address="auto")
    run(trials=1)
    with pytest.raises(studies.InputError, match="created differently"):
        run(settings={"sampler.seed": 5})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"jobs": 0}, "jobs 0: give a number from 1 on"),
        ({"jobs": "2"}, "jobs '2': give a number from 1 on"),
        ({"jobs": 1.5}, "jobs 1.5: give a number from 1 on"),
        ({"jobs": True}, "jobs True: give a number from 1 on"),
        ({"enqueue": "n_features=100"}, "a list of settings"),
        ({"enqueue": {"n_features": 100}}, "a list of settings"),
        ({"progress": "yes"}, "True, False or a function"),
    ],
)
def test_an_argument_of_another_type_is_an_input_error(new_home: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(studies.InputError, match=words):
        studies.run("padim", images="parts", **{"offline": True, "progress": False} | arguments)


def test_an_executor_is_closed_where_planning_fails(new_home: Path) -> None:
    executor = ScriptedExecutor()
    with pytest.raises(studies.InputError):
        studies.run("padim", images="nowhere", executor=executor, progress=False)
    assert executor.closed == 1


def test_promote_refuses_two_things_at_once(here: Path) -> None:
    with pytest.raises(studies.InputError, match="a version and a trial contradict each other"):
        studies.promote("tiny", trial=0, version=1)


def test_a_promotion_without_a_gate_has_no_reasons() -> None:
    champion_already = studies.Promotion("tiny", None, None, promoted=False, before=None)
    assert champion_already.reasons == []


def test_export_and_compare_refuse_what_they_do_not_know(here: Path) -> None:
    with pytest.raises(studies.InputError, match="give 'onnx' or 'openvino'"):
        studies.export_model("tiny", "tensorrt")  # type: ignore[arg-type]
    with pytest.raises(studies.InputError, match="give each as an argument of its own"):
        studies.compare(["tiny"])  # type: ignore[arg-type]


def test_a_study_without_a_feasible_trial_fails(new_home: Path) -> None:
    with pytest.raises(studies.StudyFailedError, match="no finished trial meets the constraints"):
        run(trials=1, settings={"constraints.fps": ">= 1e9"})


def test_another_home_than_that_of_the_environment(here: Path, tmp_path: Path) -> None:
    with pytest.raises(studies.InputError, match="no studies in"):
        studies.list_studies(home=tmp_path)
    assert studies.open_study("tiny", home=here / "home").name == "tiny"


# Offline


def test_the_hub_is_offline_for_the_time_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def state() -> tuple[str | None, bool]:
        return os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE

    with offline_hub(False):
        assert state() == (None, False)
    inside, out = threading.Event(), threading.Event()

    def other() -> None:
        with offline_hub(True):
            inside.set()
            out.wait(10)

    thread = threading.Thread(target=other)

    def fail() -> None:
        with offline_hub(True):
            thread.start()
            inside.wait(10)
            assert state() == ("1", True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    # The other block is open still.
    assert state() == ("1", True)
    out.set()
    thread.join()
    assert state() == (None, False)


def test_a_run_leaves_the_environment_as_it_was(new_home: Path) -> None:
    before = dict(os.environ), constants.HF_HUB_OFFLINE
    run(trials=1)
    assert (dict(os.environ), constants.HF_HUB_OFFLINE) == before


# Looking


def test_trials_are_a_table_and_the_best_one_is_plain(here: Path) -> None:
    study = studies.open_study("tiny")
    table = study.trials
    assert table.index.name == "number"
    assert list(table.columns[:4]) == ["state", "selected", "feasible", "seconds"]
    assert {"n_features", "shrinkage", "backbone", "layers", "val/image_auroc", "fps", "test/image_auroc"} <= set(table)
    assert list(table.state) == ["COMPLETE"] * 3
    assert set(table.layers) == {"8+16"}
    best = study.best
    assert best is not None
    assert table.selected[best.number]
    assert best.value == table["val/image_auroc"].max()
    assert best.params["layers"] == [8, 16]
    assert best.test_metrics["test/image_auroc"] == table["test/image_auroc"][best.number]
    assert (best.folder / "result.json").is_file()
    assert study.trial(best.number) == best
    with pytest.raises(KeyError):
        study.trial(99)
    assert study.config.detectors == ["padim"]


def test_a_notebook_shows_studies_and_trials(here: Path) -> None:
    study = studies.open_study("tiny")
    assert "<td" in study._repr_html_()
    page = study._repr_html_()
    assert "tiny/widget" in page
    assert re.search(r"finds \d+ of \d+ defects at \d+ false alarms? in \d+ good images; image AUROC ", page)
    assert re.search(r"rests on \d+ .*?; expect .* false alarms", page)
    assert study.best is not None
    assert "test/image_auroc" in study.best._repr_html_()


def test_a_report_is_one_file(here: Path, tmp_path: Path) -> None:
    study = studies.open_study("tiny")
    path = study.report(tmp_path / "report.html")
    assert "tiny" in path.read_text(encoding="utf-8")
    assert study.report() == here / "home" / "reports" / "tiny.html"


def test_studies_are_compared(here: Path, tmp_path: Path) -> None:
    study = studies.open_study("tiny")
    compared = studies.compare(study, "tiny")
    assert list(compared.table.index) == ["tiny"]
    assert 0 <= compared.table.image_auroc["tiny"] <= 1
    assert set(compared.published) == set() or "source" in compared.published
    assert "tiny" in compared._repr_html_()
    for name in ("c.md", "c.csv", "c.json", "c.png"):
        assert compared.save(tmp_path / name).stat().st_size > 50
    with pytest.raises(studies.InputError, match="its name says no format"):
        compared.save(tmp_path / "c.txt")
    with pytest.raises(studies.InputError, match="at least one"):
        studies.compare()


def test_images_are_checked(here: Path) -> None:
    (report,) = studies.check_images("parts")
    assert report.ok
    assert sum(report.counts["train"].values()) > 0
    with pytest.raises(studies.InputError, match="no such folder"):
        studies.check_images("nowhere")


@pytest.mark.slow
def test_a_detector_becomes_champion_and_is_loaded_by_its_alias(here: Path) -> None:
    study = studies.open_study("tiny")
    steps: list[str] = []
    outcome = study.promote(device="cpu", to="line-1", progress=steps.append)
    assert outcome.report is not None
    assert outcome.promoted, outcome.report.reasons
    assert steps
    names = [model.name for model in studies.list_models()]
    assert names == ["line-1", "tiny"]
    champion = studies.load_detector("models:/line-1@champion", device="cpu")
    assert champion.predict("part.png").score == pytest.approx(study.detector().predict("part.png").score)
    with pytest.raises(studies.InputError):
        studies.rollback("line-1")
    again = studies.promote("line-1", version="champion", device="cpu")
    assert not again.promoted
    assert again.report is None
