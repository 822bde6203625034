"""What an evaluation holds, what it leaves out and why."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from detectors.errors import InputError, NumericalError
from detectors.scoring import metrics
from detectors.scoring.evaluation import (
    IMAGE_METRICS,
    INTERVAL_METRICS,
    OPERATING_METRICS,
    PIXEL_METRICS,
    Evaluation,
    evaluate,
    operating_metrics,
    single_metric,
)
from detectors.scoring.operating_point import Threshold, count


def predictions(good=12, scratch=8, dent=6, seed=0):
    """A set as `evaluate` takes it: scratches easy to find, dents hard."""
    generator = np.random.default_rng(seed)
    types = ["good"] * good + ["scratch"] * scratch + ["dent"] * dent
    labels = np.array([int(kind != "good") for kind in types], dtype=np.int8)
    masks = np.zeros((len(types), 16, 16), dtype=bool)
    masks[labels == 1, 4:9, 5:8] = True
    shift = np.array([{"good": 0.0, "scratch": 6.0, "dent": 0.4}[kind] for kind in types])
    maps = (generator.normal(size=masks.shape) + masks * shift[:, None, None]).astype(np.float32)
    scores = (generator.normal(size=len(types)) + shift).astype(np.float32)
    return {"scores": scores, "maps": maps, "labels": labels, "masks": masks, "defect_types": types}


def test_every_metric_of_a_complete_set():
    given = predictions()
    found = evaluate(**given)
    assert set(found.metrics) == {*IMAGE_METRICS, *INTERVAL_METRICS, *PIXEL_METRICS}
    assert found.undefined == {}
    assert found.metrics["image_auroc"] == metrics.auroc(given["scores"], given["labels"])
    assert found.metrics["image_ap"] == metrics.average_precision(given["scores"], given["labels"])
    assert found.metrics["image_f1_max"] == metrics.f1_max(given["scores"], given["labels"])[0]
    pixels = metrics.pixel_metrics(given["maps"], given["masks"])
    pixel_values = [pixels.auroc, pixels.ap, pixels.f1_max, pixels.aupro, pixels.aupro_05]
    assert [found.metrics[name] for name in PIXEL_METRICS] == pixel_values
    interval = metrics.bootstrap_auroc(given["scores"], given["labels"], seed=0, level=0.95)
    assert (found.metrics["image_auroc_low"], found.metrics["image_auroc_high"]) == interval
    assert interval.low < found.metrics["image_auroc"] < interval.high


def test_each_defect_type_is_ranked_against_all_good_images():
    given = predictions()
    found = evaluate(**given).per_defect
    assert list(found) == ["dent", "scratch"]
    scores, types = given["scores"], np.array(given["defect_types"])
    good, dents = scores[types == "good"], scores[types == "dent"]
    by_hand = np.mean(dents[:, None] > good[None]) + 0.5 * np.mean(dents[:, None] == good[None])
    assert found["dent"] == pytest.approx(by_hand)
    assert found["scratch"] > 0.95 > found["dent"]


def test_tensors_and_arrays_give_the_same():
    given = predictions()
    tensors = {name: torch.from_numpy(value) if name != "defect_types" else value for name, value in given.items()}
    tensors["scores"].requires_grad_()
    assert evaluate(**tensors) == evaluate(**given)


def test_the_seed_moves_the_interval_alone():
    given = predictions()
    first, second = evaluate(**given, seed=1).metrics, evaluate(**given, seed=2).metrics
    assert evaluate(**given, seed=1).metrics == first
    assert {name for name in first if first[name] != second[name]} <= set(INTERVAL_METRICS)
    assert any(first[name] != second[name] for name in INTERVAL_METRICS)


@pytest.mark.parametrize(("absent", "reason"), [("maps", "this detector gives none"), ("masks", "this set has none")])
def test_without_maps_or_masks_the_image_metrics_remain(absent, reason):
    found = evaluate(**{**predictions(), absent: None})
    assert set(found.metrics) == {*IMAGE_METRICS, *INTERVAL_METRICS}
    assert set(found.undefined) == set(PIXEL_METRICS)
    assert all(reason in text for text in found.undefined.values())
    assert set(found.per_defect) == {"dent", "scratch"}


def test_without_defects_nothing_is_defined_and_every_reason_is_reported():
    found = evaluate(**predictions(scratch=0, dent=0))
    assert found.metrics == {}
    assert found.per_defect == {}
    assert set(found.undefined) == {*IMAGE_METRICS, *INTERVAL_METRICS, *PIXEL_METRICS, "per_defect"}
    assert "need defective samples; there are none among 12" in found.undefined["image_auroc"]
    assert "need anomalous pixels" in found.undefined["pixel_aupro"]


def test_without_good_images_the_pixel_metrics_remain():
    found = evaluate(**predictions(good=0))
    assert set(found.metrics) == set(PIXEL_METRICS)
    assert found.per_defect == {}
    assert "need good samples" in found.undefined["per_defect"]


def test_a_single_defective_image_gives_no_interval():
    found = evaluate(**predictions(scratch=1, dent=0))
    assert "image_auroc" in found.metrics
    assert set(found.undefined) == set(INTERVAL_METRICS)
    assert "there are 12 and 1" in found.undefined["image_auroc_low"]


def test_an_empty_set_has_no_metrics():
    found = evaluate(**predictions(good=0, scratch=0, dent=0))
    assert found.metrics == {}
    assert found.per_defect == {}


def test_a_defective_image_with_an_empty_mask_is_kept():
    given = predictions()
    given["masks"][-1] = False
    assert evaluate(**given).metrics["pixel_aupro"] == metrics.aupro(given["maps"], given["masks"])


def test_contradictions_are_refused():
    given = predictions()
    with pytest.raises(InputError, match="image 0 has label 0 but type 'scratch'"):
        evaluate(**{**given, "defect_types": ["scratch", *given["defect_types"][1:]]})
    with pytest.raises(InputError, match="image 12 has label 1 but type 'good'"):
        evaluate(**{**given, "defect_types": ["good"] * 13 + given["defect_types"][13:]})
    marked = given["masks"].copy()
    marked[3, 0, 0] = True
    with pytest.raises(InputError, match="image 3 is labelled good but its mask marks a defect"):
        evaluate(**{**given, "masks": marked})


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("scores", 1, r"scores are \[25\] but labels are \[26\]"),
        ("labels", 1, r"labels are \[25\] for 26 defect types"),
        ("defect_types", 1, r"labels are \[26\] for 25 defect types"),
        ("maps", 1, "there are 25 anomaly maps for 26 images"),
        ("masks", 1, r"masks are \[25, 16, 16\]"),
    ],
)
def test_lengths_that_differ_are_refused(name, cut, message):
    given = predictions()
    with pytest.raises(InputError, match=message):
        evaluate(**{**given, name: given[name][cut:]})


def test_half_precision_is_refused():
    given = predictions()
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(InputError, match=r"float32 or float64, got b?float16"):
            evaluate(**{**given, "scores": torch.from_numpy(given["scores"]).to(dtype)})


@pytest.mark.parametrize("with_masks", [True, False])
def test_scores_that_left_the_finite_numbers_are_no_missing_metric(with_masks):
    given = predictions()
    if not with_masks:
        given["masks"] = None
    scores = given["scores"].copy()
    scores[2] = np.nan
    with pytest.raises(NumericalError, match="scores: 1 of 26"):
        evaluate(**{**given, "scores": scores})
    given["maps"][4, 5, 6] = np.inf
    with pytest.raises(NumericalError, match=r"anomaly maps: 1 of .* at index \[4, 5, 6\]"):
        evaluate(**given)


def test_outlier_changes_nothing_but_its_rank():
    given = predictions()
    given["scores"][-1] = given["maps"][-1, 6, 6] = 50.0
    expected = evaluate(**given)
    given["scores"][-1] = given["maps"][-1, 6, 6] = 1e30
    assert evaluate(**given) == expected


@pytest.mark.parametrize("given", [predictions(), predictions(scratch=0, dent=0)], ids=["complete", "no defects"])
def test_evaluation_comes_back_from_json(given):
    found = evaluate(**given)
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"metrics": {}}, "evaluation: expected the keys"),
        ({"metrics": {}, "per_defect": {}, "undefined": {}, "more": 1}, "evaluation: expected the keys"),
        ([], "evaluation: expected the keys"),
        ({"metrics": [], "per_defect": {}, "undefined": {}}, "'metrics' must be a mapping, got list"),
        ({"metrics": {"a": "1"}, "per_defect": {}, "undefined": {}}, "'metrics.a' must be a float, got '1'"),
        ({"metrics": {}, "per_defect": {"a": True}, "undefined": {}}, "'per_defect.a' must be a float, got True"),
        ({"metrics": {}, "per_defect": {}, "undefined": {"a": 1}}, "'undefined.a' must be a str, got 1"),
    ],
)
def test_malformed_evaluations_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Evaluation.from_json(data)


def test_a_threshold_gives_recall_false_alarms_and_the_f1_of_pixels():
    given = predictions()
    threshold = Threshold(1.0, "value", "given", normals=0, pixel=3.0)
    found = evaluate(**given, threshold=threshold)
    alarms, types = given["scores"] >= 1.0, np.array(given["defect_types"])
    assert found.metrics["image_recall"] == np.mean(alarms[types != "good"])
    assert found.metrics["false_alarm_rate"] == np.mean(alarms[types == "good"])
    assert found.per_defect_recall == {kind: np.mean(alarms[types == kind]) for kind in ("dent", "scratch")}
    assert found.metrics["seg_f1"] == metrics.f1_at(given["maps"], given["masks"], 3.0)
    low, high = binomtest(int(alarms[types != "good"].sum()), 14).proportion_ci(method="wilson")
    assert (found.metrics["image_recall_low"], found.metrics["image_recall_high"]) == pytest.approx((low, high))
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    counted, per_defect = operating_metrics(count(given["scores"], given["labels"], given["defect_types"], 1.0))
    assert counted == {name: found.metrics[name] for name in counted}
    assert len(counted) == 6
    assert per_defect == found.per_defect_recall
    for name in OPERATING_METRICS:
        arguments = {key: given[key] for key in ("scores", "maps", "labels", "masks")}
        assert single_metric(name, **arguments, threshold=threshold) == found.metrics[name]


def test_without_defects_or_pixel_threshold_the_reasons_are_reported():
    threshold = Threshold(1.0, "value", "given", normals=0)
    found = evaluate(**predictions(scratch=0, dent=0), threshold=threshold)
    assert found.undefined["image_recall"] == "there are no defective images"
    assert "false_alarm_rate" in found.metrics
    found = evaluate(**predictions(), threshold=threshold)
    assert found.undefined["seg_f1"] == "there is no threshold for pixels"
    with pytest.raises(InputError, match="image_recall: there is no threshold"):
        single_metric("image_recall", scores=[1.0], maps=None, labels=[1], masks=None)


def test_an_evaluation_of_an_earlier_version_is_read():
    assert Evaluation.from_json({"metrics": {"image_auroc": 0.5}, "per_defect": {}, "undefined": {}}) == Evaluation(
        {"image_auroc": 0.5}
    )
