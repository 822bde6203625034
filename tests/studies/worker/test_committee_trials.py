"""Trials that look with several backbones at once: from the study file to the saved detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detectors.committee import Committee
from detectors.data.images import read_image
from detectors.errors import InputError
from detectors.runtime.artifact import load_artifact
from detectors.runtime.verdicts import judge
from studies.worker.jobs import ARTIFACTS, DETECTOR
from studies.worker.scores import read_scores
from studies.worker.trial import run_job
from tests.helpers.builders import build_job, build_plan, make_config

ONE, OTHER = "resnet18@random", "resnet18@random:2"
BOTH = f"{ONE}+{OTHER}"
SEARCH = {"backbone": {"choices": [ONE, BOTH]}, "n_features": {"int": [4, 40]}}


@pytest.fixture
def plan(tiny_mvtec: Path, tmp_path: Path):
    config = make_config(tiny_mvtec, search=SEARCH, fixed={"layers": [8, 16], "smoothing_sigma": 2.0})
    return build_plan(config, tmp_path / "home")


def test_a_trial_with_several_backbones_finds_what_one_has_stored(plan):
    assert list(plan.backbones) == [ONE, BOTH]
    run_job(build_job(plan, params={"backbone": ONE}))
    stored = {entry.folder for entry in store_entries(plan)}
    result = run_job(build_job(plan, 1, params={"backbone": BOTH}))
    assert result.backbone["name"] == BOTH
    assert {"val/image_auroc", "val/pixel_auroc"} <= result.metrics.keys()
    after = {entry.folder for entry in store_entries(plan)}
    # Two strides of two sets for the other one, and nothing again for the first.
    assert stored < after
    assert len(after - stored) == 4
    again = run_job(build_job(plan, 2, params={"backbone": BOTH}))
    for name, value in result.metrics.items():
        if name.startswith("val/"):
            assert again.metrics[name] == value


def store_entries(plan):
    from studies.worker.feature_store import FeatureStore

    return FeatureStore(plan.home.features).entries()


def test_the_refit_is_a_committee_whose_threshold_rests_on_folds(plan):
    job = build_job(plan, task="final", params={"backbone": BOTH})
    result = run_job(job)
    artifact = load_artifact(job.path / DETECTOR)
    assert isinstance(artifact.detector, Committee)
    assert result.threshold is not None
    assert result.threshold["out_of_fold"] > 0
    stored = read_scores(job.path / ARTIFACTS)
    images = [read_image(sample.file) for sample in plan.splits.test.samples]
    found = [verdict.score for verdict in judge(artifact, images)]
    np.testing.assert_allclose(found, [image.score for image in stored.images], rtol=1e-3, atol=1e-3)


def test_several_backbones_are_refused_for_a_detector_that_trains_before_the_first_trial(
    tiny_mvtec: Path, tmp_path: Path
):
    config = make_config(
        tiny_mvtec,
        detector="fastflow",
        search={"backbone": {"choices": [BOTH]}},
        fixed={"layers": [8], "smoothing_sigma": 2.0},
    )
    with pytest.raises(
        InputError, match="several at once are for detectors that do not train, and fastflow does; take one"
    ):
        build_plan(config, tmp_path / "home")
