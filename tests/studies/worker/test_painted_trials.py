"""Trials on painted defects: the ranking score, normals that are held out in turns, and the first version of recipes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detectors.backbones.pyramid import build_backbone
from detectors.base import Detector, FitContext
from detectors.data.painted_types import PAINTED
from detectors.data.samples import ImageSet
from detectors.errors import InputError
from detectors.heads.padim.head import Padim
from detectors.scoring.evaluation import IMAGE_METRICS
from detectors.scoring.ranked_by import RANKING_SCORE
from detectors.scoring.ranking import ranking_score
from studies.search.plan import Plan
from studies.worker.calibration import read_calibration
from studies.worker.jobs import DETECTOR
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
