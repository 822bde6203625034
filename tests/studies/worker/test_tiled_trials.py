"""Trials that cut images into tiles: fitted, judged, refitted, calibrated and fitted again on new images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.data.images import read_image
from detectors.runtime.artifact import load_artifact
from detectors.runtime.verdicts import judge
from detectors.tiles import Tiles
from studies.file.sections import ThresholdConfig
from studies.worker.calibration import read_calibration
from studies.worker.jobs import ARTIFACTS, DETECTOR
from studies.worker.recalibration import calibration_for
from studies.worker.scores import read_scores
from studies.worker.trial import run_job
from studies.worker.validation_scores import VALIDATION_SCORES_FILE
from tests.helpers.builders import build_job, build_plan, make_config

TILED = {"tiles": "64+16", "image_size": 112}


@pytest.fixture
def plan(tiny_mvtec: Path, tmp_path: Path):
    return build_plan(make_config(tiny_mvtec), tmp_path / "home")


def test_a_trial_looks_at_tiles_and_is_judged_at_the_studys_size(plan):
    result = run_job(build_job(plan, params=TILED))
    assert {"val/image_auroc", "val/pixel_auroc", "fps"} <= result.metrics.keys()
    # A model for each of four tiles.
    whole = run_job(build_job(plan, 1, params={"image_size": 64}))
    assert result.metrics["model_size_mb"] > whole.metrics["model_size_mb"]


def test_pixels_of_a_trial_of_another_size_are_counted_at_the_studys_for_an_objective_on_them_too(
    tiny_mvtec: Path, tmp_path: Path
):
    plan = build_plan(make_config(tiny_mvtec, objectives={"seg_f1": "maximize"}), tmp_path / "home")
    job = build_job(plan, params=TILED)
    result = run_job(job)
    stored = json.loads((job.path / ARTIFACTS / VALIDATION_SCORES_FILE).read_text())
    hits, named, real = (sum(row[place] for row in stored["pixels"]) for place in range(3))
    assert 2 * hits / (named + real) == pytest.approx(result.metrics["val/seg_f1"])


def test_a_single_tile_is_the_trial_on_whole_images(plan):
    whole = run_job(build_job(plan, params={"image_size": 64}))
    tiled = run_job(build_job(plan, 1, params={"image_size": 64, "tiles": "64+16"}))
    for name, value in whole.metrics.items():
        if name.startswith("val/"):
            assert tiled.metrics[name] == pytest.approx(value, abs=1e-9)


def test_the_refit_keeps_its_tiles_and_its_threshold_rests_on_folds_of_them(plan):
    job = build_job(plan, task="final", params=TILED)
    result = run_job(job)
    one = load_artifact(job.path / DETECTOR).detector
    assert one.tiles == Tiles(64, 16)
    assert one.image_size == (112, 112)
    assert len(one.heads) == 4
    assert result.threshold is not None
    calibration = read_calibration(job.path)
    assert {image.origin for image in calibration.good} >= {"fold", "validation"}
    # What is stored of test is what the saved detector says of the images themselves.
    stored = read_scores(job.path / ARTIFACTS)
    test = plan.splits.test
    verdicts = judge(load_artifact(job.path / DETECTOR), [read_image(sample.file) for sample in test.samples])
    np.testing.assert_allclose([one.score for one in verdicts], [image.score for image in stored.images], rtol=1e-4)


def test_good_images_of_another_day_are_cut_in_the_same_way(plan, tiny_mvtec: Path, tmp_path: Path):
    job = build_job(plan, task="final", params=TILED)
    run_job(job)
    other = tmp_path / "other_day"
    other.mkdir()
    rng = np.random.default_rng(0)
    for index, sample in enumerate(plan.splits.train.samples[:5]):
        pixels = read_image(sample.file).astype(int) + rng.integers(-3, 4, (1, 1, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(other / f"{index}.png")
    found = calibration_for(
        job.path,
        ThresholdConfig(images=str(other)),
        "widget",
        splits=lambda: plan.splits,
        home=plan.home,
        device=torch.device("cpu"),
    )
    good = [image for image in found.good if image.origin == "images"]
    assert len(good) == 5
    artifact = load_artifact(job.path / DETECTOR)
    expected = {path.name: judge(artifact, [read_image(path)])[0].score for path in sorted(other.iterdir())}
    np.testing.assert_allclose(sorted(image.score for image in good), sorted(expected.values()), rtol=1e-4)
