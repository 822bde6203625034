"""Trials on painted defects: the ranking score, normals that are held out in turns, and the first version of recipes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.data.painted_types import PAINTED
from detectors.data.samples import ImageSet
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import load_artifact, read_description
from detectors.scoring.evaluation import IMAGE_METRICS
from detectors.scoring.ranked_by import RANKING_SCORE
from detectors.scoring.ranking import ranking_score
from studies.search.plan import Plan
from studies.worker.calibration import read_calibration
from studies.worker.jobs import DETECTOR, FIRST_DETECTOR, PROVISIONAL, Event, Stage
from studies.worker.trial import run_job
from tests.helpers.builders import BACKBONE, PARAMS, build_job, build_plan, make_config


@pytest.fixture
def plan(tiny_mvtec, tmp_path) -> Plan:
    return build_plan(make_config(tiny_mvtec, protocol="synthetic", recipes=2), tmp_path)


def by_hand(plan: Plan, train: ImageSet, validation: ImageSet) -> np.ndarray:
    """Scores [N] of validation, each image by a detector that was fitted to the other folds."""
    scores = np.empty(len(validation))
    for fold in range(1, plan.splits.folds + 1):
        fitted = [index for index, sample in enumerate(train.samples) if sample.fold != fold]
        rows = [index for index, sample in enumerate(validation.samples) if sample.fold == fold]
        names = [parameter.name for parameter in Padim.searchable]
        head = Padim(**{name: PARAMS[name] for name in names})
        detector = Detector(
            build_backbone(BACKBONE, (8, 16)), head, image_size=(64, 64), smoothing_sigma=PARAMS["smoothing_sigma"]
        )
        detector.fit(train.images(fitted), FitContext(seed=0, structural_seed=0))
        scores[rows] = detector(validation.images(rows)).scores.numpy()
    return scores


def test_few_normals_are_scored_by_detectors_that_did_not_see_them(plan):
    splits = plan.splits
    assert splits.folds == 5
    assert splits.validation is not None
    result = run_job(build_job(plan))
    expected = ranking_score(by_hand(plan, splits.train, splits.validation), splits.validation.painted)
    assert result.metrics[f"val/{RANKING_SCORE}"] == pytest.approx(expected, abs=1e-3)
    assert 0.5 < expected < 1.0
    for name in IMAGE_METRICS:
        assert f"val/{name}" not in result.metrics
        assert "painted" in result.undefined[name]
    kinds = {name.rpartition("/")[2] for name in result.metrics if name.startswith(f"val/{RANKING_SCORE}/")}
    assert len(kinds) == 9
    low, high = (result.metrics[f"val/{RANKING_SCORE}_{end}"] for end in ("low", "high"))
    assert low < result.metrics[f"val/{RANKING_SCORE}"] < high


def test_the_first_detector_is_there_before_anything_painted_is_looked_at(plan):
    seen: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Stage):
            if event.name == FIRST_DETECTOR and event.done:
                description = read_description(job.path / DETECTOR)
                assert description.provenance[PROVISIONAL]
                assert description.provenance["metrics"] == {}
                assert load_artifact(job.path / DETECTOR).detector.threshold is not None
            seen.append(f"{event.name} {event.done}" if event.name == FIRST_DETECTOR else event.name)

    job = replace(build_job(plan), keep_above=-math.inf)
    result = run_job(job, listen)
    assert seen.index(f"{FIRST_DETECTOR} 1") < seen.index("features (validation)")
    # It is fitted to all good images, with a threshold that rests on them out of fold, and stays when its figures are known.
    artifact, calibration = load_artifact(job.path / DETECTOR), read_calibration(job.path)
    assert calibration is not None
    assert len(artifact.normal_scores) == len(calibration.good) == len(plan.splits.train)
    assert {entry.origin for entry in calibration.good} == {"fold"}
    assert artifact.provenance["metrics"].keys() == result.metrics.keys()
    images = plan.splits.train.images([0, 1])
    refit = run_job(build_job(plan, task="final"))
    final = load_artifact(build_job(plan, task="final").path / DETECTOR)
    assert artifact.detector(images).scores.tolist() == pytest.approx(final.detector(images).scores.tolist(), rel=1e-5)
    assert artifact.detector.threshold == final.detector.threshold
    # What it is judged by, and the time of its fit, are those of any trial.
    plain = run_job(build_job(plan, number=1))
    assert not (build_job(plan, number=1).path / DETECTOR).exists()
    assert plain.metrics[f"val/{RANKING_SCORE}"] == result.metrics[f"val/{RANKING_SCORE}"]
    assert set(result.seconds) - set(plain.seconds) == {FIRST_DETECTOR, "save"}
    assert refit.threshold is not None


def test_only_a_trial_that_is_kept_in_any_case_leaves_one_early(plan):
    seen: list[str] = []
    job = replace(build_job(plan), keep_above=0.2)
    run_job(job, lambda event: seen.append(event.name) if isinstance(event, Stage) else None)
    assert FIRST_DETECTOR not in seen
    assert (job.path / DETECTOR).is_dir()


def test_the_threshold_of_a_refit_rests_on_no_image_that_it_saw(plan):
    result = run_job(build_job(plan, task="final"))
    job = build_job(plan, task="final")
    calibration = read_calibration(job.path)
    assert calibration is not None
    assert {entry.origin for entry in calibration.good} == {"fold"}
    assert len(calibration.good) == len(plan.splits.train)
    assert (job.path / DETECTOR).is_dir()
    assert 0 <= result.metrics[f"test/{RANKING_SCORE}"] <= 1
    assert "test/image_auroc" not in result.metrics
    assert any(name.startswith(f"test/image_recall/{PAINTED}") for name in result.metrics)


def test_the_search_aims_at_the_ranking_score_and_says_so(plan):
    assert plan.config.objectives == {RANKING_SCORE: "maximize"}
    assert len(plan.resolutions) == 1
    assert "no labelled defects" in plan.resolutions[0]
    assert "says nothing of how many real defects are found" in plan.resolutions[0]


def test_a_study_of_an_earlier_version_goes_on_as_it_was(tiny_mvtec, tmp_path):
    plan = build_plan(make_config(tiny_mvtec, protocol="synthetic"), tmp_path)
    assert plan.config.objectives == {"image_auroc": "maximize"}
    assert plan.resolutions == ()
    assert plan.splits.folds == 0
    result = run_job(build_job(plan))
    assert "val/image_auroc" in result.metrics
    assert f"val/{RANKING_SCORE}" not in result.metrics


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": "synthetic", "recipes": 2, "constraints": {"image_auroc": ">= 0.9"}}, "no labelled defects"),
        ({"protocol": "holdout", "objectives": {RANKING_SCORE: "maximize"}}, "protocol holdout has real ones"),
        ({"protocol": "synthetic", "objectives": {RANKING_SCORE: "maximize"}}, "protocol synthetic has real ones"),
    ],
)
def test_an_aim_that_the_images_do_not_define_is_refused(tiny_mvtec, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        build_plan(make_config(tiny_mvtec, **changes), tmp_path)


def test_a_goal_is_named_for_what_it_is_now(tiny_mvtec, tmp_path):
    config = make_config(tiny_mvtec, protocol="synthetic", recipes=2, budget={"trials": 3, "goal": 0.9})
    plan = build_plan(config, tmp_path)
    assert any("goal of 0.9 is now one of the ranking score" in line for line in plan.resolutions)


def test_pixel_metrics_are_of_some_images_and_their_masks(plan):
    config = plan.config.model_copy(update={"objectives": {"pixel_aupro": "maximize"}})
    pixels = replace(plan, config=config)
    result = run_job(build_job(pixels))
    assert 0 < result.metrics["val/pixel_aupro"] <= 1
