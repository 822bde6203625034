"""A study of few labelled images: all of them choose, and a nested estimate, which is no figure on test, judges the choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.files import write_json
from detectors.scoring.operating_point import threshold_at_false_alarm_rate
from studies.api.study import Study
from studies.file import datasets
from studies.file.resolving import nested_below
from studies.release.rules import limit_rules, nested_rule
from studies.report.on_test import products_on_test
from studies.report.search import Search
from studies.report.summary import summary_sentences, tiles
from studies.search import nested
from studies.search.view import StudyView
from studies.show.rows import study_rows
from studies.show.study_json import study_json
from studies.show.study_tables import study_parts
from studies.worker.jobs import ARTIFACTS, Job, TrialResult
from studies.worker.validation_scores import VALIDATION_SCORES_FILE, ValidationScores
from tests.helpers.bench import Bench, ScriptedExecutor
from tests.helpers.builders import build_job, build_plan, make_config

THREE: dict[str, Any] = {
    "nested": True,
    "search": {},
    "baselines": [{"n_features": 12}, {"n_features": 30}, {"n_features": 40}],
    "budget": {"trials": 3},
    "rerank": 0,
}
AIMS = ("val/image_auroc", "val/image_ap", "val/image_recall")
LEVELS = (0.5, 2.5, 2.0)


@dataclass
class Scoring(ScriptedExecutor):
    """Leaves scores of the labelled images as real trials do: of trial n apart by `levels[n]`, on a scale of its own."""

    levels: Sequence[float] = LEVELS
    images: Any = None
    out_of_fold: list[float] | None = None
    scored: dict[int, list[float]] = field(default_factory=dict)

    def _result(self, job: Job, metrics: Mapping[str, float]) -> TrialResult:
        if job.task == "trial":
            labels = self.images.labels
            noise = np.random.default_rng(job.number).normal(size=len(labels))
            scores = 10.0**job.number * (noise + self.levels[job.number] * labels)
            kept = ValidationScores(
                keys=[sample.key for sample in self.images.samples],
                labels=[1 if label else 0 for label in labels],
                scores=scores.tolist(),
                out_of_fold=self.out_of_fold,
            )
            write_json(job.path / ARTIFACTS / VALIDATION_SCORES_FILE, kept.model_dump(mode="json", exclude_none=True))
        return super()._result(job, metrics)


@pytest.fixture
def few(bench: Bench) -> Bench:
    """The bench, over images of which none is kept for test."""
    images = datasets.load(make_config(bench.root, nested=True), bench.home)
    return replace(bench, base=replace(bench.base, images=images))


def executor(few: Bench, **changes: Any) -> Scoring:
    values = (0.6, 0.95, 0.9, 0.8)
    return Scoring(
        lambda job: {**dict.fromkeys(AIMS, values[job.number]), "fps": 50.0},
        final=lambda job: {},
        images=few.base.splits.validation,
        **changes,
    )


def shown(view: StudyView) -> str:
    return "\n".join(str(part) for part in study_parts(view))


def test_the_choice_is_judged_by_a_nested_estimate_wherever_it_is_shown(few: Bench) -> None:
    outcome = few.run(executor(few), **THREE, seeds=3)
    view, selected = few.view(), outcome.selected
    assert selected is not None
    assert selected.number == 1
    assert view.is_nested
    found = view.nested()
    assert found is not None
    value = found.metrics["nested/image_auroc"]
    assert 0.5 < found.metrics["nested/image_auroc_low"] < value < found.metrics["nested/image_auroc_high"] <= 1
    assert 0 < found.metrics["nested/image_recall"] <= 1
    assert (found.good, found.defective, found.folds, found.repeats) == (12, 12, 5, 10)
    assert sum(found.chosen.values()) == 50
    assert next(iter(found.chosen)) == 1
    assert 9 <= found.normals <= 10  # of twelve good images two or three are in the fold
    headline = nested.headline(found)
    assert headline.startswith(f"image AUROC {value:.3f} (95 % interval ")

    data = study_json(view)
    assert data["nested"]["metrics"] == found.metrics
    assert data["nested"]["text"][0] == f"nested estimate: {headline}"
    assert json.loads(json.dumps(data["nested"])) == data["nested"]
    assert list(data["counts"]) == ["train", "validation"]
    text = shown(view)
    assert f"nested estimate: {headline}" in text
    assert "on all labelled images, which chose it: " in text
    assert "1 % needs 99" in text
    assert "on test, " not in text
    assert "test images were scored" not in text
    search = Search(view, "s")
    report = " ".join(summary_sentences(search, view.selected(), []))
    assert f"by a nested estimate {headline}." in report
    assert "scores it on test" not in report
    assert "image AUROC, nested estimate" in [tile.label for tile in tiles(search, view.selected(), [])]
    assert products_on_test(view, selected, id="s") == []
    assert headline in Study(view)._repr_html_()
    (row,) = study_rows(view)
    assert (row.image_auroc, row.nested_image_auroc, row.test_images) == (None, value, 0)
    assert row.test_digest.startswith("nested:")

    parent = few.parent()
    assert parent.data.metrics["nested/image_auroc"] == value
    assert not [name for name in parent.data.metrics if name.startswith("test/")]
    assert f"By a nested estimate: **{headline}**" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["study.judged_by"] == "nested estimate"
    assert {child.data.tags["study.judged_by"] for child in few.children().values()} == {"nested estimate"}


def test_every_look_at_an_estimate_is_a_line_in_the_ledger_and_no_refit_is(few: Bench) -> None:
    first = executor(few)
    few.run(first, **THREE, seeds=3)
    # No replicate: there are no images that it could be scored on.
    assert [job.task for job in first.jobs] == ["trial", "trial", "trial", "final"]
    (line,) = few.view().ledger()
    assert (line.purpose, line.trial) == ("nested", 1)
    before = few.view().nested()
    assert before is not None
    assert line.image_auroc == before.metrics["nested/image_auroc"]
    assert few.view().ledger_faults() == []
    few.run(executor(few), **THREE, seeds=3)
    assert few.view().nested() == before
    assert len(few.view().ledger()) == 1
    more = {**THREE, "baselines": [*THREE["baselines"], {"n_features": 20}], "budget": {"trials": 4}}
    few.run(executor(few, levels=(*LEVELS, 1.0)), **more)
    after = few.view().nested()
    assert after is not None
    assert after.basis != before.basis
    assert [line.purpose for line in few.view().ledger()] == ["nested", "nested"]


def test_while_the_search_goes_on_there_is_no_estimate(few: Bench) -> None:
    few.run(executor(few), **THREE)
    study = few.view().study
    study.set_user_attr(nested.NESTED, {**study.user_attrs[nested.NESTED], "basis": "another"})
    view = few.view()
    assert view.nested() is None
    assert "a nested estimate is made when the search ends" in shown(view)
    assert "makes a nested estimate when the search is over" in " ".join(
        summary_sentences(Search(view, "s"), view.selected(), [])
    )


def test_without_the_scores_of_the_trials_there_is_none(few: Bench) -> None:
    few.run(ScriptedExecutor(final=lambda job: {}), **THREE)
    assert few.view().nested() is None
    assert few.view().ledger() == []


def test_a_study_with_test_images_has_no_nested_estimate(bench: Bench) -> None:
    bench.run(ScriptedExecutor(), **{**THREE, "nested": None})
    view = bench.view()
    assert (view.is_nested, view.nested(), study_json(view)["nested"]) == (False, None, None)
    assert "nested" not in shown(view)


def estimated(
    few: Bench, scores: Sequence[NDArray[np.float64]], out_of_fold: list[float] | None = None, **changes: Any
) -> tuple[nested.Estimate, NDArray[np.int8]]:
    """The estimate of trials with these scores of the images of `few`."""
    few.run(executor(few), **{**THREE, **changes})
    view, images = few.view(), few.base.splits.validation
    assert images is not None
    for number, values in enumerate(scores):
        kept = ValidationScores(
            keys=[sample.key for sample in images.samples],
            labels=[1 if label else 0 for label in images.labels],
            scores=list(values),
            out_of_fold=out_of_fold,
        )
        folder = view.trial_folder(number) / ARTIFACTS
        write_json(folder / VALIDATION_SCORES_FILE, kept.model_dump(mode="json", exclude_none=True))
    found = nested.estimate(
        view.config,
        [trial.frozen for trial in view.trials()],
        view.remeasured,
        folder=view.trial_folder,
        samples=images.samples,
        groups=range(len(images)),
        time=0.0,
    )
    assert found is not None
    return found, images.labels


def test_thresholds_rest_on_good_images_outside_the_fold_and_on_those_of_train_that_were_kept(few: Bench) -> None:
    labels = np.repeat([1, 0], 12)  # dents come first
    good = np.arange(12.0)
    scores = np.where(labels == 1, 50.0, np.concatenate((good, good)))
    found, read = estimated(few, [scores] * 3)
    assert read.tolist() == labels.tolist()
    # The highest good image is above all others, so it raises an alarm whenever it is held out.
    assert found.metrics["nested/false_alarm_rate"] >= 1 / 12
    assert found.metrics["nested/image_recall"] == 1.0
    kept, _ = estimated(few, [scores] * 3, out_of_fold=[100.0] * 30)
    assert kept.metrics["nested/false_alarm_rate"] == 0
    assert kept.metrics["nested/image_recall"] == 0
    assert 39 <= kept.normals <= 40


def test_an_objective_at_the_threshold_is_chosen_by_anew_without_the_fold(few: Bench) -> None:
    """Two trials of which the first has the better AUROC and the second the better recall."""
    labels = np.repeat([1, 0], 12)
    ranks = np.where(labels == 1, 2.0, 1.0) + np.arange(24) * 1e-3
    ranks[-1] = 9.0  # one good image above all defects: no recall at a threshold that rests on it
    finds = np.where(labels == 1, 2.0, 1.0) + np.arange(24) * 1e-3
    finds[:3] = 0.0
    found, _ = estimated(few, [ranks, finds, ranks], objectives={"image_recall": "maximize"})
    assert threshold_at_false_alarm_rate(ranks[12:], 0.01) > 9
    # In the folds that hold the good image out, the first looks perfect.
    assert found.chosen == {1: 40, 0: 10}


def test_a_constraint_is_met_on_the_other_images(few: Bench) -> None:
    labels = np.repeat([1, 0], 12)
    perfect, fair = labels.astype(float), np.where(labels == 1, 1.0, 0.0)
    fair[0] = -1
    found, _ = estimated(few, [perfect, fair, fair], constraints={"fps": ">= 10", "image_ap": ">= 0.1"})
    assert found.chosen == {0: 50}


def test_a_refit_of_a_study_without_test_images_scores_none(
    tiny_mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studies.worker.trial import run_job

    monkeypatch.setattr("detectors.runtime.latency.MIN_SECONDS", 0.0)
    monkeypatch.setattr("detectors.runtime.latency.MIN_RUNS", 2)
    plan = build_plan(make_config(tiny_mvtec, nested=True, objectives={"image_recall": "maximize"}), tmp_path / "home")
    trial = run_job(job := build_job(plan, 0))
    assert not [name for name in trial.metrics if name.startswith("test/")]
    kept = ValidationScores.model_validate_json((job.path / ARTIFACTS / VALIDATION_SCORES_FILE).read_bytes())
    assert len(kept.scores) == 24
    assert len(kept.out_of_fold or []) == 24  # the training images, because the search aims at the operating point
    result = run_job(build_job(plan, 0, task="final"))
    assert not [name for name in result.metrics if name.startswith(("test/", "val/"))]
    assert result.threshold is not None
    assert result.threshold["normals"] == 24 + 12
    assert not plan.home.ledger("0123456789ab").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0),  # as studies that were stored before
        ({"recipes": 1}, 0),
        ({"recipes": 2}, 40),
        ({"recipes": 2, "nested": False}, 0),
        ({"recipes": 2, "objectives": {"pixel_aupro": "maximize"}}, 0),
        ({"recipes": 2, "objectives": {"image_auroc": "maximize", "fps": "maximize"}}, 40),
        ({"recipes": 2, "constraints": {"pixel_auroc": ">= 0.5"}}, 0),
        ({"recipes": 2, "protocol": "synthetic", "nested": True}, 0),
    ],
)
def test_when_labelled_images_are_halved(tmp_path: Path, changes: dict[str, Any], expected: int) -> None:
    assert nested_below(make_config(tmp_path, **{"nested": None, **changes})) == expected


def test_what_cannot_be_nested_is_refused(tmp_path: Path) -> None:
    from detectors.errors import InputError

    assert nested_below(make_config(tmp_path, nested=True)) > 10**6
    with pytest.raises(InputError, match="nested: true is not possible where pixel_aupro does not follow"):
        nested_below(make_config(tmp_path, nested=True, objectives={"pixel_aupro": "maximize"}))
    data = {"dataset": "tiny", "category": ["nut", "bolt"], "root": str(tmp_path), "image_size": 64}
    with pytest.raises(InputError, match="there are several products"):
        nested_below(make_config(tmp_path, nested=True, data=data))


def test_the_gate_s_floors_use_the_nested_estimate() -> None:
    from studies.file.sections import GateConfig
    from tests.studies.release.test_rules import found

    model, _ = found(20, 20, 0, 20)
    estimate = {"nested/image_auroc": 0.65, "nested/image_recall": 0.3}
    floor = limit_rules(GateConfig(), model, nested=estimate)[0]
    assert (floor.verdict, floor.value) == ("refused", 0.65)
    assert floor.outcome == "nested/image_auroc 0.6500 is below 0.7"
    estimate["nested/image_auroc"] = 0.75
    floor = limit_rules(GateConfig(), model, nested=estimate)[0]
    assert (floor.verdict, floor.outcome) == ("passed", "at least nested/image_auroc 0.7, nested/image_recall 0.1")
    none = limit_rules(GateConfig(ceiling={"false_alarm_rate": 0.1}), model, nested={})
    assert [rule.verdict for rule in none[:2]] == ["refused", "refused"]
    assert "nested/image_recall is unknown (there is no nested estimate)" in none[0].outcome
    warned = nested_rule(estimate, "tiny", 40)
    assert (warned.verdict, warned.value) == ("warning", 0.75)
    assert "all 40 labelled images took part in the choice" in warned.outcome
    assert "`study run tiny`" in nested_rule({}, "tiny", 40).outcome
