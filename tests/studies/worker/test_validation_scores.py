"""What a trial keeps of its validation images, and that its figures follow from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.base import Prediction
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet
from detectors.errors import InputError
from detectors.scoring.operating_point import Threshold
from detectors.scoring.paired import metric_value
from studies.worker import validation_scores
from studies.worker.jobs import ARTIFACTS
from studies.worker.trial import run_job
from studies.worker.validation_scores import (
    VALIDATION_SCORES_FILE,
    ValidationScores,
    read_validation_scores,
    write_validation_scores,
)
from tests.helpers.builders import build_job, build_plan, make_config


@pytest.mark.parametrize("objective", ["image_auroc", "image_recall", "seg_f1"])
def test_the_objective_of_a_trial_follows_from_what_it_keeps(tiny_mvtec: Path, tmp_path: Path, objective: str) -> None:
    plan = build_plan(make_config(tiny_mvtec, objectives={objective: "maximize"}), tmp_path)
    job = build_job(plan)
    result = run_job(job)
    stored = read_validation_scores(job.path / ARTIFACTS)
    assert stored is not None
    assert plan.splits.validation is not None
    assert stored.keys == [sample.key for sample in plan.splits.validation.samples]
    assert (stored.pixels is not None) == (objective == "seg_f1")
    assert (stored.weights, stored.groups, stored.folds) == (None, None, None)
    assert metric_value(objective, stored.scored()) == pytest.approx(result.metrics[f"val/{objective}"], abs=1e-12)


def test_painted_images_keep_their_weights_groups_and_folds(tiny_mvtec: Path, tmp_path: Path) -> None:
    plan = build_plan(make_config(tiny_mvtec, protocol="synthetic", recipes=2), tmp_path)
    job = build_job(plan)
    result = run_job(job)
    stored = read_validation_scores(job.path / ARTIFACTS)
    assert stored is not None
    assert stored.groups is not None
    assert len(set(stored.groups)) == stored.labels.count(0)
    assert stored.folds is not None
    assert len(set(stored.folds)) == plan.splits.folds
    assert metric_value("ranking_score", stored.scored()) == pytest.approx(
        result.metrics["val/ranking_score"], abs=1e-12
    )


def labelled(tiny_mvtec: Path) -> ImageSet:
    return ImageSet("validation", read_mvtec(tiny_mvtec, "widget").test, (64, 64))


def test_scores_are_kept_to_the_last_bit_and_pixels_where_there_are_masks(tiny_mvtec: Path, tmp_path: Path) -> None:
    image_set = labelled(tiny_mvtec)
    generator = torch.Generator().manual_seed(0)
    prediction = Prediction(
        torch.rand(len(image_set), generator=generator, dtype=torch.float64),
        torch.rand(len(image_set), 64, 64, generator=generator),
    )
    masks = image_set.masks()
    assert masks is not None
    threshold = Threshold(0.5, "false_alarm_rate", "validation", normals=9, rate=0.1, expected_rate=0.1, pixel=0.9)
    write_validation_scores(prediction, image_set, tmp_path, threshold=threshold, masks=masks)
    stored = read_validation_scores(tmp_path)
    assert stored is not None
    assert (np.array(stored.scores) == prediction.scores.numpy()).all()
    marked = prediction.maps[-1].numpy() >= 0.9
    assert stored.pixels is not None
    assert stored.pixels[-1] == (int((marked & masks[-1]).sum()), int(marked.sum()), int(masks[-1].sum()))
    assert len(stored.pixels) == len(image_set)
    assert stored.threshold == 0.5
    write_validation_scores(prediction, image_set, tmp_path, threshold=None, masks=masks)
    assert (again := read_validation_scores(tmp_path)) is not None
    assert again.pixels is None


def test_of_very_many_images_nothing_is_kept(tiny_mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_set = labelled(tiny_mvtec)
    prediction = Prediction(torch.zeros(len(image_set)), torch.zeros(len(image_set), 1, 1))
    monkeypatch.setattr(validation_scores, "MOST_IMAGES", len(image_set) - 1)
    write_validation_scores(prediction, image_set, tmp_path, threshold=None)
    assert read_validation_scores(tmp_path) is None
    monkeypatch.setattr(validation_scores, "MOST_IMAGES", len(image_set))
    write_validation_scores(prediction, image_set, tmp_path, threshold=None)
    assert read_validation_scores(tmp_path) is not None


def test_a_damaged_file_counts_as_none_and_a_later_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / VALIDATION_SCORES_FILE
    whole = {"keys": ["a", "b"], "labels": [0, 1], "scores": [0.25, 0.5], "weights": [1.0, 2.0], "groups": ["a", "a"]}
    path.write_text(json.dumps(whole | {"added_later": 1}))
    stored = read_validation_scores(tmp_path)
    assert stored is not None
    assert stored.scored().groups == ("a", "a")
    path.write_text(json.dumps(whole)[:-5])
    assert read_validation_scores(tmp_path) is None
    assert read_validation_scores(tmp_path / "nowhere") is None
    with pytest.raises(InputError, match="1 labels"):
        ValidationScores(keys=["a", "b"], labels=[0], scores=[0.0, 1.0]).scored()
