"""Metrics against scikit-learn, against plain loops written from the definitions, and what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score, roc_curve

from detectors.errors import InputError, NumericalError
from detectors.scoring.metrics import (
    UndefinedMetricError,
    aupro,
    auroc,
    average_precision,
    bootstrap_auroc,
    check_finite,
    f1_at,
    f1_max,
    paired_bootstrap_difference,
    pixel_metrics,
    pr_curve_points,
    roc_curve_points,
)


def sample(kind, seed, n=400):
    """Scores [n] and labels [n] of one kind of difficulty."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(np.int8)
    scores = generator.normal(size=n) + labels
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "constant":
        scores = np.zeros(n)
    elif kind == "perfect":
        scores = scores + 100 * labels
    elif kind == "inverted":
        scores = scores - 100 * labels
    elif kind == "signed zeros":
        scores = np.where(generator.random(n) < 0.5, -0.0, 0.0)
    elif kind == "float32":
        scores = scores.astype(np.float32)
    elif kind == "outlier":
        scores[np.flatnonzero(labels == 0)[0]] = 1e30
    return scores, labels


KINDS = ["smooth", "ties", "constant", "perfect", "inverted", "signed zeros", "float32", "outlier"]


def sklearn_f1_max(scores, labels):
    precision, recall, _ = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        return np.nanmax(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_image_metrics_agree_with_scikit_learn(kind, seed):
    scores, labels = sample(kind, seed)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert f1_max(scores, labels)[0] == pytest.approx(sklearn_f1_max(scores, labels), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_f1_threshold_gives_the_f1_and_is_the_highest_that_does(kind):
    scores, labels = sample(kind, 5)
    best, threshold = f1_max(scores, labels)

    def f1_at(cut):
        alarms = scores >= cut
        return 2 * np.sum(alarms & (labels == 1)) / (np.sum(alarms) + np.sum(labels))

    assert f1_at(threshold) == pytest.approx(best, abs=1e-12)
    higher = np.unique(scores[scores > threshold])
    assert all(f1_at(cut) < best for cut in higher)


labelled = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(-6, 6)),
        arrays(np.bool_, n).filter(lambda labels: labels.any() and not labels.all()),
    )
)


@given(labelled)
def test_only_the_ranks_matter(case):
    scores, labels = case[0].astype(np.float64), case[1]
    warped = np.exp(scores) * 1e-3 - 7
    for metric in (auroc, average_precision, lambda s, y: f1_max(s, y)[0]):
        assert metric(scores, labels) == metric(warped, labels)


@given(labelled)
def test_turning_labels_or_scores_round_mirrors_the_auroc(case):
    scores, labels = case
    area = auroc(scores, labels)
    assert auroc(scores, ~labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - area, abs=1e-12)


@given(labelled)
def test_bounds(case):
    scores, labels = case
    share = labels.mean()
    assert 0 <= auroc(scores, labels) <= 1
    assert 0 < average_precision(scores, labels) <= 1
    # Calling everything anomalous is always possible.
    assert f1_max(scores, labels)[0] >= 2 * share / (1 + share) - 1e-12


@given(labelled, st.randoms())
def test_order_of_the_samples_does_not_matter(case, random):
    scores, labels = case
    order = list(range(len(scores)))
    random.shuffle(order)
    assert auroc(scores, labels) == auroc(scores[order], labels[order])
    assert f1_max(scores, labels) == f1_max(scores[order], labels[order])


def test_a_normal_outlier_costs_exactly_its_rank():
    scores, labels = np.array([0.1, 0.2, 0.3, 0.8, 0.9], np.float32), [0, 0, 0, 1, 1]
    scores[0] = 1e30
    assert auroc(scores, labels) == pytest.approx(4 / 6)
    assert auroc(np.where(scores > 1e29, 1.0, scores), labels) == pytest.approx(4 / 6)


def test_arguments_are_left_as_they_were():
    scores, labels = sample("smooth", 0)
    before = scores.copy()
    auroc(scores, labels)
    bootstrap_auroc(scores, labels, seed=0, replicates=10)
    maps, masks = scene(0)
    maps_before, masks_before = maps.copy(), masks.copy()
    pixel_metrics(maps, masks)
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(maps, maps_before)
    np.testing.assert_array_equal(masks, masks_before)


# Curves


@pytest.mark.parametrize("kind", KINDS)
def test_roc_corners_lie_on_the_curve_and_span_its_area(kind):
    scores, labels = sample(kind, 1)
    fpr, tpr = roc_curve_points(scores, labels)
    full = set(
        zip(*(values.tolist() for values in roc_curve(labels, scores, drop_intermediate=False)[:2]), strict=True)
    )
    assert set(zip(fpr.tolist(), tpr.tolist(), strict=True)) <= full
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1])) / 2 == pytest.approx(auroc(scores, labels), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_pr_corners_lie_on_the_curve_and_hold_its_average_precision(kind):
    scores, labels = sample(kind, 1)
    recall, precision = pr_curve_points(scores, labels)
    full_precision, full_recall, _ = precision_recall_curve(labels, scores)
    full = set(zip(full_recall.round(12).tolist(), full_precision.round(12).tolist(), strict=True))
    assert set(zip(recall.round(12).tolist(), precision.round(12).tolist(), strict=True)) <= full
    assert (recall[0], precision[0], recall[-1]) == (0, 1, 1)
    assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(average_precision(scores, labels), abs=1e-9)


def test_thinned_curve_keeps_its_ends_and_its_shape():
    generator = np.random.default_rng(0)
    labels = generator.random(20_000) < 0.5
    scores = generator.normal(size=20_000) + labels
    fpr, tpr = roc_curve_points(scores, labels)
    thin_fpr, thin_tpr = roc_curve_points(scores, labels, limit=100)
    assert len(fpr) > 5000
    assert 50 <= len(thin_fpr) <= 100
    assert (thin_fpr[0], thin_tpr[0], thin_fpr[-1], thin_tpr[-1]) == (0, 0, 1, 1)
    # Two monotone curves: within s along the anti-diagonal means within s after a shift by s.
    step = 2 / 99
    assert np.all(np.interp(fpr + step, thin_fpr, thin_tpr) >= tpr - step)
    assert np.all(np.interp(fpr - step, thin_fpr, thin_tpr) <= tpr + step)
    assert len(roc_curve_points(scores, labels, limit=10**6)[0]) == len(fpr)
    assert len(pr_curve_points(scores, labels, limit=100)[0]) <= 100


def test_a_perfect_curve_is_its_corner():
    fpr, tpr = roc_curve_points([0, 1, 2, 7, 8, 9], [0, 0, 0, 1, 1, 1], limit=3)
    assert (fpr.tolist(), tpr.tolist()) == ([0, 0, 1], [0, 1, 1])
    with pytest.raises(InputError, match="at least 2 points"):
        roc_curve_points([0, 1], [0, 1], limit=1)


# Pixels


def scene(seed, shape=(5, 24, 20), levels=None):
    """Maps and masks with several regions, one empty mask, scores that partly follow them."""
    generator = np.random.default_rng(seed)
    masks = np.zeros(shape, dtype=bool)
    for index in range(shape[0] - 1):
        for _ in range(3):
            y, x = generator.integers(shape[1]), generator.integers(shape[2])
            masks[index, y : y + 1 + generator.integers(6), x : x + 1 + generator.integers(6)] = True
    maps = generator.normal(size=shape) + 1.5 * masks * generator.random((shape[0], 1, 1))
    if levels is not None:
        maps = np.round(maps * levels) / levels
    return maps.astype(np.float32), masks


def pro_by_definition(maps, masks, limit):
    """Per-region overlap at every distinct score, one after the other, integrated by trapezoids up to the limit."""
    regions = []
    for index, mask in enumerate(masks):
        numbered, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, numbered == number) for number in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        found = maps >= threshold
        rate = float(found[~masks].mean())
        points.append((rate, float(np.mean([found[index][region].mean() for index, region in regions]))))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.3, 1.0, 0.05, 1e-4])
@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_aupro_agrees_with_its_definition(limit, levels, dtype):
    maps, masks = scene(3, levels=levels)
    assert not masks[-1].any()
    expected = pro_by_definition(maps, masks, limit)
    assert aupro(maps.astype(dtype), masks, fpr_limit=limit) == pytest.approx(expected, abs=1e-9)
    found = pixel_metrics(maps.astype(dtype), masks)
    if limit in (0.3, 0.05):
        assert (found.aupro if limit == 0.3 else found.aupro_05) == pytest.approx(expected, abs=1e-9)


small_scene = st.tuples(
    arrays(np.float32, (2, 4, 5), elements=st.integers(0, 7).map(float)),
    arrays(np.bool_, (2, 4, 5)).filter(lambda masks: masks.any() and not masks.all()),
    st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.75, 1.0]),
)


@settings(deadline=None)
@given(small_scene)
def test_pixel_metrics_agree_with_the_definitions_under_heavy_ties(case):
    maps, masks, limit = case
    found = pixel_metrics(maps, masks)
    assert aupro(maps, masks, fpr_limit=limit) == pytest.approx(pro_by_definition(maps, masks, limit), abs=1e-9)
    assert found.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert found.ap == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert found.f1_max == pytest.approx(sklearn_f1_max(maps.ravel(), masks.ravel()), abs=1e-9)
    assert found.f1_threshold == f1_max(maps.ravel(), masks.ravel())[1]


@settings(deadline=None)
@given(small_scene, st.integers(-1, 8))
def test_f1_at_a_threshold_is_that_of_the_pixels(case, threshold):
    maps, masks, _ = case
    expected = f1_score(masks.ravel(), maps.ravel() >= threshold, zero_division=0.0)
    assert f1_at(maps, masks, threshold) == pytest.approx(expected, abs=1e-12)


def test_regions_count_alike_whatever_their_size():
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, 0, 0] = True
    masks[0, 5:15, 5:15] = True
    maps = np.zeros((1, 20, 20), dtype=np.float32)
    maps[0, 0, 0] = 1.0
    # The single pixel is found before any false positive, the large region only with everything else.
    assert aupro(maps, masks) == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    # So is the large one alone: the same, although it has a hundred times the pixels.
    assert aupro(masks * np.float32(1) - maps, masks) == pytest.approx(0.5 + 0.5 * 0.3 / 2)


def test_pixels_that_touch_at_a_corner_are_one_region():
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, [1, 2, 2], [1, 2, 3]] = True
    masks[0, 6, 6] = True
    maps = np.zeros((1, 8, 8), dtype=np.float32)
    maps[0, 1, 1] = 1.0
    # A third of the first of two regions; it would be one of three regions with 4-connectivity.
    assert aupro(maps, masks, fpr_limit=1.0) == pytest.approx(1 / 6 + (1 - 1 / 6) / 2)


def test_an_empty_mask_adds_normal_pixels_and_no_region():
    maps, masks = scene(0)
    loud = np.full((1, *maps.shape[1:]), 100, dtype=np.float32)
    with_empty = aupro(np.concatenate([maps, loud]), np.concatenate([masks, np.zeros_like(masks[:1])]), fpr_limit=1.0)
    share = (~masks).sum() / ((~masks).sum() + loud.size)
    assert with_empty == pytest.approx(aupro(maps, masks, fpr_limit=1.0) * share)


def test_perfect_and_useless_maps():
    _, masks = scene(1)
    perfect = pixel_metrics(masks.astype(np.float32), masks)
    assert (perfect.auroc, perfect.ap, perfect.f1_max, perfect.aupro) == (1, 1, 1, 1)
    assert perfect.f1_threshold == 1
    inverted = pixel_metrics(-masks.astype(np.float32), masks)
    assert (inverted.auroc, inverted.aupro) == (0, 0)
    constant = pixel_metrics(np.zeros(masks.shape, np.float32), masks)
    assert constant.auroc == pytest.approx(0.5)
    assert constant.aupro == pytest.approx(0.15)
    assert constant.ap == pytest.approx(masks.mean())


def test_pixel_outlier_disturbs_nothing():
    maps, masks = scene(2)
    index = tuple(np.argwhere(~masks)[17])
    maps[index] = maps.max() + 1
    expected = pixel_metrics(maps, masks)
    maps[index] = 1e30
    assert pixel_metrics(maps, masks) == expected
    maps[index] = maps.min() - 1
    expected = pixel_metrics(maps, masks)
    maps[index] = -1e30
    assert pixel_metrics(maps, masks) == expected


def test_pixel_metrics_do_not_depend_on_memory_layout():
    maps, masks = scene(2)
    assert pixel_metrics(np.asfortranarray(maps), masks[:, ::-1][:, ::-1]) == pixel_metrics(maps, masks)


# Bootstrap


def bootstrap_by_loop(scores, labels, seed, replicates):
    generator = np.random.default_rng(seed)
    good, defective = scores[labels == 0], scores[labels == 1]
    values = []
    for _ in range(replicates):
        drawn = np.concatenate([generator.choice(good, len(good)), generator.choice(defective, len(defective))])
        values.append(roc_auc_score(np.repeat([0, 1], [len(good), len(defective)]), drawn))
    return np.array(values)


@pytest.mark.parametrize("kind", ["smooth", "ties"])
def test_bootstrap_interval_agrees_with_a_plain_loop(kind):
    scores, labels = sample(kind, 4, n=90)
    naive = bootstrap_by_loop(scores, labels, seed=1, replicates=1000)
    interval = bootstrap_auroc(scores, labels, seed=2, replicates=20_000)
    assert interval.low < auroc(scores, labels) < interval.high
    # Two percentiles of 1000 draws: about 0.003 of sampling error each at a spread of 0.05.
    np.testing.assert_allclose(interval, np.quantile(naive, [0.025, 0.975]), atol=0.2 * naive.std())


def test_bootstrap_covers_the_true_auroc_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth, hits, labels = 0.7602, 0, np.repeat([0, 1], 40)  # Phi(1 / sqrt(2)) for two unit normals one apart
    for seed in range(200):
        low, high = bootstrap_auroc(generator.normal(size=80) + labels, labels, seed=seed, replicates=400)
        hits += low <= truth <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_bootstrap_follows_its_seed_and_its_level():
    scores, labels = sample("smooth", 0, n=60)
    first = bootstrap_auroc(scores, labels, seed=7)
    assert bootstrap_auroc(scores, labels, seed=7) == first
    assert bootstrap_auroc(scores, labels, seed=8) != first
    narrow = bootstrap_auroc(scores, labels, seed=7, level=0.5)
    assert first.low < narrow.low < narrow.high < first.high
    assert bootstrap_auroc(3 * scores - 8, labels, seed=7) == first


def test_bootstrap_in_batches_is_no_other_bootstrap(monkeypatch):
    scores, labels = sample("ties", 0, n=60)
    whole = bootstrap_auroc(scores, labels, seed=0, replicates=4000)
    monkeypatch.setattr("detectors.scoring.metrics._BOOTSTRAP_CELLS", 7 * 60)
    np.testing.assert_allclose(bootstrap_auroc(scores, labels, seed=0, replicates=4000), whole, atol=0.01)
    monkeypatch.setattr("detectors.scoring.metrics._BOOTSTRAP_CELLS", 1)
    assert bootstrap_auroc(scores, labels, seed=0, replicates=3).high <= 1


def test_bootstrap_of_separated_scores_is_certain():
    assert bootstrap_auroc([1, 2, 3, 7, 8, 9], [0, 0, 0, 1, 1, 1], seed=0) == (1.0, 1.0)


def test_paired_difference_sees_the_same_draws():
    scores, labels = sample("smooth", 3, n=80)
    same = paired_bootstrap_difference(scores, 1000 + 5 * scores, labels, seed=0)
    assert same == (0.0, (0.0, 0.0), 0.0)

    worse = scores + np.random.default_rng(9).normal(size=80) * 0.3
    paired = paired_bootstrap_difference(scores, worse, labels, seed=0)
    assert paired.difference == pytest.approx(auroc(worse, labels) - auroc(scores, labels))
    assert paired.interval.low < paired.difference < paired.upper < paired.interval.high
    # What pairing is for: images that are hard for both do not blur the difference.
    alone = bootstrap_auroc(scores, labels, seed=0)
    assert paired.interval.high - paired.interval.low < 0.6 * (alone.high - alone.low)


def test_paired_interval_agrees_with_a_plain_loop():
    scores, labels = sample("ties", 6, n=80)
    other = scores.copy()
    # b finds hard the very good images that a finds easy, so that drawing one of them moves the two apart.
    other[labels == 0] = -scores[labels == 0]
    generator = np.random.default_rng(1)
    good, defective = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    naive = []
    for _ in range(1000):
        drawn = np.concatenate([generator.choice(good, len(good)), generator.choice(defective, len(defective))])
        naive.append(roc_auc_score(labels[drawn], other[drawn]) - roc_auc_score(labels[drawn], scores[drawn]))
    paired = paired_bootstrap_difference(scores, other, labels, seed=2, replicates=20_000)
    tolerance = 0.2 * np.std(naive)
    np.testing.assert_allclose(paired.interval, np.quantile(naive, [0.025, 0.975]), atol=tolerance)
    assert paired.upper == pytest.approx(np.quantile(naive, 0.95), abs=tolerance)


def test_paired_difference_is_the_mirror_of_its_swap():
    scores, labels = sample("ties", 3, n=50)
    other = scores[::-1].copy()
    forth = paired_bootstrap_difference(scores, other, labels, seed=5)
    back = paired_bootstrap_difference(other, scores, labels, seed=5)
    assert forth.difference == pytest.approx(-back.difference)
    assert forth.interval == pytest.approx((-back.interval.high, -back.interval.low))


def test_paired_difference_tells_a_clearly_worse_detector():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], 60)
    good, bad = generator.normal(size=120) + 3 * labels, generator.normal(size=120) + 0.3 * labels
    assert paired_bootstrap_difference(good, bad, labels, seed=0).upper < 0
    assert paired_bootstrap_difference(bad, good, labels, seed=0).interval.low > 0


# Refusals


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max, roc_curve_points, pr_curve_points])
@pytest.mark.parametrize(("labels", "missing"), [([0, 0, 0], "defective"), ([1, 1, 1], "good")])
def test_one_class_alone_defines_no_metric(metric, labels, missing):
    with pytest.raises(UndefinedMetricError, match=f"need {missing} samples; there are none among 3"):
        metric([0.1, 0.2, 0.3], labels)


def test_no_samples_define_no_metric():
    with pytest.raises(UndefinedMetricError, match="none among 0"):
        auroc([], [])
    with pytest.raises(UndefinedMetricError, match="none in 0 masks"):
        pixel_metrics(np.zeros((0, 4, 4), np.float32), np.zeros((0, 4, 4), bool))


@pytest.mark.parametrize("function", [pixel_metrics, aupro])
def test_pixels_of_one_class_define_no_metric(function):
    maps = np.zeros((2, 4, 4), np.float32)
    with pytest.raises(UndefinedMetricError, match="need anomalous pixels; there are none in 2 masks"):
        function(maps, np.zeros(maps.shape, bool))
    with pytest.raises(UndefinedMetricError, match="need normal pixels"):
        function(maps, np.ones(maps.shape, bool))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_left_the_finite_numbers_are_named(bad):
    scores = np.array([0.1, 0.2, bad, 0.4, bad], np.float32)
    labels = [0, 1, 0, 1, 0]
    message = rf"scores: 2 of 5 values are not finite, the first \({bad}\) at index 2"
    for refused in (
        lambda: auroc(scores, labels),
        lambda: bootstrap_auroc(scores, labels, seed=0),
        lambda: paired_bootstrap_difference([1, 2, 3, 4, 5], scores, labels, seed=0),
    ):
        with pytest.raises(NumericalError, match=message):
            refused()
    maps, masks = scene(0)
    maps[1, 2, 3] = bad
    with pytest.raises(NumericalError, match=r"anomaly maps: 1 of 2400 values .* at index \[1, 2, 3\]"):
        pixel_metrics(maps, masks)


def test_finite_values_pass_the_check():
    check_finite(np.array([1e30, -1e30], np.float32), "scores")
    check_finite(np.zeros((0, 3), np.float32), "maps")


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 1, 1], r"scores are \[2\] but labels are \[3\]"),
        ([[0.1, 0.2]], [[0, 1]], r"scores must be \[N\], got shape \[1, 2\]"),
        ([0.1, 0.2, 0.3], [0, 1, 2], "labels must be 0 .good. or 1 .defective., got 2 at index 2"),
        ([0.1, 0.2, 0.3], [0, -1, 1], "got -1 at index 1"),
        (np.array([0.1, 0.2], np.float16), [0, 1], "must be float32 or float64, got float16"),
        (["a", "b"], [0, 1], "must be float32 or float64"),
    ],
)
def test_malformed_scores_and_labels_are_refused(scores, labels, message):
    with pytest.raises(InputError, match=message):
        auroc(scores, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps, masks: (maps, masks[1:]), r"maps are \[5, 24, 20\] but masks are \[4, 24, 20\]"),
        (lambda maps, masks: (maps, masks[:, :, :-1]), r"bring both to one size"),
        (lambda maps, masks: (maps[0], masks[0]), r"anomaly maps must be \[N, H, W\], got shape \[24, 20\]"),
        (lambda maps, masks: (maps, masks.astype(np.uint8)), "masks must be bool, got uint8"),
        (lambda maps, masks: (maps.astype(np.float16), masks), "got float16"),
    ],
)
def test_malformed_maps_and_masks_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        pixel_metrics(*change(*scene(0)))


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_fpr_limits_are_refused(limit):
    with pytest.raises(InputError, match=r"fpr_limit must lie in \(0, 1\]"):
        aupro(*scene(0), fpr_limit=limit)


def test_impossible_bootstraps_are_refused():
    scores, labels = sample("smooth", 0)
    with pytest.raises(InputError, match="at least 1 replicate"):
        bootstrap_auroc(scores, labels, seed=0, replicates=0)
    for level in (0.0, 1.0, 95):
        with pytest.raises(InputError, match=r"confidence level must lie in \(0, 1\)"):
            bootstrap_auroc(scores, labels, seed=0, level=level)
    with pytest.raises(UndefinedMetricError, match="there are 3 and 1"):
        bootstrap_auroc([1, 2, 3, 4], [0, 0, 0, 1], seed=0)
    with pytest.raises(InputError, match="give one label per score"):
        paired_bootstrap_difference(scores, scores[1:], labels, seed=0)
