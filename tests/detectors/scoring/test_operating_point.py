"""The operating point: what a threshold promises is what new images show."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from detectors.errors import InputError, NumericalError
from detectors.scoring.metrics import UndefinedMetricError, f1_max
from detectors.scoring.operating_point import (
    RATES,
    Costs,
    GoodScores,
    PixelSpread,
    Threshold,
    at_rates,
    choose_threshold,
    count,
    expected_false_alarm_rate,
    largest_false_alarm_rate,
    normals_needed,
    rate_interval,
    share_interval,
    threshold_at_false_alarm_rate,
)


def good(scores, **known):
    return GoodScores(np.asarray(scores), "validation", **known)


def at_rate(scores, rate, **known):
    return choose_threshold(rule="false_alarm_rate", good=good(scores, **known), rate=rate)


# The quantile


@given(
    arrays(np.float32, st.integers(1, 60), elements=st.integers(-5, 5).map(float)),
    st.floats(0, 1, exclude_max=True),
)
def test_the_threshold_is_the_smallest_that_keeps_the_promise(scores, rate):
    threshold = threshold_at_false_alarm_rate(scores, rate)
    n, alarms = len(scores), int(np.sum(scores >= threshold))
    below = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    more = int(np.sum(scores >= below))
    if alarms == 0 and (1 + 1e-9) / (n + 1) > rate:
        assert threshold > scores.max()
    else:
        assert (alarms + 1) / (n + 1) <= rate * (1 + 1e-9)
        assert more == n or (more + 1) / (n + 1) > rate * (1 - 1e-9)


def test_the_threshold_by_hand():
    scores = np.arange(99, dtype=np.float64) / 7
    for rate, alarms in [(0.0, 0), (0.009, 0), (0.01, 0), (0.02, 1), (0.025, 1), (0.07, 6), (0.29, 28), (0.57, 56)]:
        assert np.sum(scores >= threshold_at_false_alarm_rate(scores, rate)) == alarms
    tied = np.array([1.0, 2.0, 2.0, 2.0, 3.0])
    assert np.sum(tied >= threshold_at_false_alarm_rate(tied, 0.4)) == 1


def test_the_threshold_survives_the_way_through_json():
    scores = np.random.default_rng(0).normal(size=59).astype(np.float32)
    threshold = threshold_at_false_alarm_rate([float(score) for score in scores], 0.1)
    assert threshold == float(np.float32(threshold))
    assert np.sum(scores >= np.float32(threshold)) == 5


@pytest.mark.parametrize(("normals", "rate"), [(40, 0.05), (99, 0.01), (150, 0.1)])
def test_new_normals_raise_alarms_no_more_often_than_promised(normals, rate):
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(6000, normals + 1))
    alarms = [row[-1] >= threshold_at_false_alarm_rate(row[:-1], rate) for row in drawn]
    assert expected_false_alarm_rate(normals, rate) <= rate
    assert np.mean(alarms) == pytest.approx(expected_false_alarm_rate(normals, rate), abs=0.01)


@pytest.mark.parametrize(("normals", "rate"), [(8, 0.01), (40, 0.05)])
def test_the_false_alarm_rate_stays_below_its_bound_and_in_its_interval_as_often_as_promised(normals, rate):
    generator = np.random.default_rng(0)
    thresholds = [threshold_at_false_alarm_rate(generator.random(normals), rate) for _ in range(4000)]
    # Of uniform scores the share above a threshold is known.
    rates = 1 - np.asarray(thresholds)
    assert np.mean(rates <= largest_false_alarm_rate(normals, rate)) == pytest.approx(0.95, abs=0.015)
    assert np.mean(rates <= largest_false_alarm_rate(normals, rate, confidence=0.5)) == pytest.approx(0.5, abs=0.03)
    assert largest_false_alarm_rate(8, 0.01) == pytest.approx(1 - 0.05 ** (1 / 8))
    low, high = at_rate(generator.random(normals), rate).rate_interval
    assert np.mean((low <= rates) & (rates <= high)) == pytest.approx(0.95, abs=0.015)


def test_how_many_normals_a_rate_needs():
    for rate, needed in [(0.01, 99), (0.05, 19), (0.001, 999), (0.1, 9), (0.3, 3), (0.5, 1), (0.9, 1)]:
        assert normals_needed(rate) == needed
        assert expected_false_alarm_rate(needed, rate) <= rate * (1 + 1e-12)
        assert needed == 1 or expected_false_alarm_rate(needed - 1, rate) > rate


def test_a_rate_that_the_normals_do_not_support_is_told():
    threshold = at_rate(np.arange(20.0), 0.01)
    assert not threshold.supports_rate
    assert (threshold.expected_rate, threshold.alarms, threshold.normals_needed) == (1 / 21, 0, 99)
    assert threshold.value > 19
    assert threshold.rate_interval == rate_interval(20, 0)
    assert at_rate(np.arange(99.0), 0.01).supports_rate
    assert not at_rate(np.arange(98.0), 0.01).supports_rate
    assert not at_rate(np.arange(99.0), 0.0).supports_rate


# One image that decides


def test_the_image_that_decides_the_threshold_is_named():
    scores = np.linspace(1.0, 2.0, 30)
    names = [f"good/{index:03d}.png" for index in range(30)]
    plain = at_rate(scores, 0.01, names=names)
    assert (plain.decided_by, plain.without) == ("", None)
    scores[7] = 9.0
    threshold = at_rate(scores, 0.01, names=names)
    assert threshold.decided_by == "good/007.png"
    assert threshold.value > 9.0
    assert threshold.without == pytest.approx(2.0)
    assert at_rate(scores, 0.01).decided_by == "image 7"


def test_an_outlier_that_may_raise_an_alarm_decides_nothing():
    scores = np.linspace(1.0, 2.0, 200)
    scores[7] = 9.0
    assert at_rate(scores, 0.05).decided_by == ""
    assert at_rate([1.0, 9.0], 0.01).decided_by == ""


# The other rules


def labelled(seed=0):
    generator = np.random.default_rng(seed)
    scores = np.concatenate([generator.normal(size=40), generator.normal(2.0, size=30)])
    return scores, np.repeat([0, 1], [40, 30])


def test_the_threshold_of_least_cost_is_the_best_of_all():
    scores, labels = labelled()
    normals, defective = scores[labels == 0], scores[labels == 1]
    costs = Costs(miss=30.0, alarm=2.0, share_defective=0.02)

    def cost(threshold):
        missed, alarms = np.sum(defective < threshold), np.sum(normals >= threshold)
        return 0.02 * 30.0 * (missed + 1) / 31 + 0.98 * 2.0 * (alarms + 1) / 41

    threshold = choose_threshold(rule="cost", good=good(normals), scores=scores, labels=labels, costs=costs)
    assert cost(threshold.value) <= min(cost(value) for value in np.linspace(-4, 6, 5000)) + 1e-12
    assert (threshold.normals, threshold.defective, threshold.cost_miss) == (40, 30, 30.0)
    assert threshold.expected_rate == (np.sum(normals >= threshold.value) + 1) / 41
    dear = choose_threshold(rule="cost", good=good(normals), scores=scores, labels=labels, costs=Costs(1e6, 1.0, 0.5))
    assert dear.value <= defective.min()


def test_the_threshold_at_the_largest_f1_tells_what_it_rests_on():
    scores, labels = labelled()
    f1, value = f1_max(scores, labels)
    alone = choose_threshold(rule="f1_max", source="validation", scores=scores, labels=torch.from_numpy(labels))
    assert alone == Threshold(value, "f1_max", "validation", normals=40, defective=30, f1=f1)
    normals = np.linspace(-3, 3, 119)
    also = choose_threshold(rule="f1_max", source="validation", scores=scores, labels=labels, good=good(normals))
    assert (also.normals, also.expected_rate) == (119, (np.sum(normals >= value) + 1) / 120)


def test_a_given_value_tells_the_rate_to_expect():
    threshold = choose_threshold(rule="value", value=1.5, good=good(np.arange(19.0), out_of_fold=4), pixel=0.5)
    assert (threshold.value, threshold.normals, threshold.out_of_fold, threshold.pixel) == (1.5, 19, 4, 0.5)
    assert (threshold.expected_rate, threshold.alarms, threshold.supports_rate) == (18 / 20, 17, True)
    blind = choose_threshold(rule="value", value=1.5)
    assert (blind.normals, blind.expected_rate, blind.rate_interval, blind.largest_rate) == (0, None, None, None)
    assert choose_threshold(rule="value", value=-9.0, good=good(np.arange(3.0))).rate_interval.high == 1.0


def test_the_interval_of_a_given_value_is_clopper_and_pearsons():
    for alarms in (0, 3):
        threshold = choose_threshold(rule="value", value=39.5 - alarms, good=good(np.arange(40.0)))
        assert threshold.alarms == alarms
        expected = binomtest(alarms, 40).proportion_ci(method="exact")
        assert threshold.rate_interval == pytest.approx((expected.low, expected.high))


def test_the_least_cost_may_lie_below_every_good_score():
    threshold = choose_threshold(
        rule="cost", good=good([5.0, 6, 7, 8, 9]), scores=[1.0, 2, 10], labels=[1, 1, 1], costs=Costs(1000, 1, 0.5)
    )
    assert threshold.value == 1.0


def test_counts_compare_as_verdicts_do():
    score = np.float32(0.7)  # a little below 0.7
    assert count(np.array([score]), [1], ["dent"], 0.7).caught == int(float(score) >= 0.7) == 0


# Counts


def test_counts_of_alarms_by_type():
    counts = count([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 1, 1], ["good", "good", "dent", "scratch", "dent"], 2.0)
    assert (counts.caught, counts.defective, counts.alarms, counts.good) == (3, 3, 1, 2)
    assert counts.per_defect == {"dent": (2, 2), "scratch": (1, 1)}
    assert (counts.recall, counts.false_alarm_rate) == (1.0, 0.5)
    none = count([1.0], [0], ["good"], 2.0)
    assert (none.recall, none.false_alarm_rate) == (None, 0.0)


def test_rows_at_rates_count_what_each_threshold_does():
    scores, labels = labelled()
    normals = np.random.default_rng(1).normal(size=499)
    types = ["good" if not label else "dent" for label in labels]
    rows = at_rates(good(normals), scores, labels, types)
    assert [row.threshold.rate for row in rows] == list(RATES)
    assert [row.threshold.supports_rate for row in rows] == [rate >= 0.002 for rate in RATES]
    for row in rows:
        assert row.stopped == np.sum(normals >= row.threshold.value) == row.threshold.alarms
        assert row.counts == count(scores, labels, types, row.threshold.value)
    recalls = [row.counts.caught for row in rows]
    assert recalls == sorted(recalls)
    assert recalls[-1] > recalls[0]


@pytest.mark.parametrize(("part", "of"), [(0, 5), (5, 5), (3, 7), (44, 60), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(part, of):
    assert share_interval(part, of) == pytest.approx(binomtest(part, of).proportion_ci(method="wilson"), abs=1e-12)


# Pixels


def test_the_pixel_threshold_is_three_deviations_above_the_mean_of_all_good_pixels():
    maps = np.random.default_rng(0).normal(1e4, 2.0, size=(9, 12, 10)).astype(np.float32)
    spread = PixelSpread()
    assert spread.threshold is None
    spread.add(maps[:4])
    spread.add(torch.from_numpy(maps[4:]))
    exact = maps.astype(np.float64)
    assert spread.threshold == pytest.approx(exact.mean() + 3 * exact.std(), rel=1e-12)


# JSON and refusals


@pytest.mark.parametrize("rule", ["false_alarm_rate", "f1_max", "cost", "value"])
def test_thresholds_come_back_from_json(rule):
    scores, labels = labelled()
    threshold = choose_threshold(
        rule=rule, good=good(scores[:40], names=[str(i) for i in range(40)]), scores=scores, labels=labels, source="set",
        costs=Costs(5.0, 1.0, 0.1), value=1.0, pixel=2.5,
    )  # fmt: skip
    assert Threshold.from_json(json.loads(json.dumps(threshold.to_json(), allow_nan=False))) == threshold


def test_a_threshold_of_an_earlier_version_is_read():
    stored = {
        "value": 12.5, "rule": "false_alarm_rate", "source": "validation", "normals": 20, "defective": 0, "rate": 0.01,
        "expected_rate": 1 / 21, "f1": None,
    }  # fmt: skip
    threshold = Threshold.from_json(stored)
    assert (threshold.out_of_fold, threshold.pixel, threshold.alarms) == (0, None, 0)
    assert threshold.largest_rate == pytest.approx(largest_false_alarm_rate(20, 0.01))


def test_thresholds_that_cannot_be_chosen_are_refused():
    scores, labels = labelled()
    for rule, message in [
        ("false_alarm_rate", "needs scores of good images"),
        ("f1_max", "needs scores and labels"),
        ("cost", "and the costs"),
        ("value", "needs a finite number, got None"),
        ("median", "unknown threshold rule 'median'; valid are false_alarm_rate, f1_max, cost, value"),
    ]:
        with pytest.raises(InputError, match=message):
            choose_threshold(rule=rule)
    with pytest.raises(UndefinedMetricError, match="need defective samples"):
        choose_threshold(rule="f1_max", scores=scores[:9], labels=labels[:9])
    with pytest.raises(UndefinedMetricError, match="needs labelled defects"):
        choose_threshold(rule="cost", good=good(scores), scores=scores[:9], labels=labels[:9], costs=Costs(1, 1, 0.5))
    with pytest.raises(UndefinedMetricError, match="there are none"):
        at_rate([], 0.1)
    with pytest.raises(NumericalError, match="normal scores: 1 of 2"):
        at_rate([0.1, float("nan")], 0.1)
    with pytest.raises(InputError, match="2 names for 1 scores"):
        good([0.1], names=["a", "b"])


@pytest.mark.parametrize(
    ("miss", "alarm", "share", "message"),
    [
        (0.0, 1.0, 0.1, "cost of a miss must be above 0, got 0"),
        (1.0, float("nan"), 0.1, "cost of a false alarm must be above 0"),
        (1.0, 1.0, 1.0, "share of defective parts must lie between 0 and 1, got 1"),
    ],
)
def test_impossible_costs_are_refused(miss, alarm, share, message):
    with pytest.raises(InputError, match=message):
        Costs(miss, alarm, share)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_false_alarm_rates_are_refused(rate):
    for refused in (
        lambda: threshold_at_false_alarm_rate([0.1, 0.2], rate),
        lambda: expected_false_alarm_rate(10, rate),
        lambda: largest_false_alarm_rate(10, rate),
        lambda: normals_needed(rate),
    ):
        with pytest.raises(InputError, match=r"false-alarm rate must lie in"):
            refused()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "median"}, "'rule' must be one of false_alarm_rate, f1_max, cost, value, got 'median'"),
        ({"source": None}, "'source' must be a text"),
        ({"decided_by": 3}, "'decided_by' must be a text"),
        ({"value": None}, "'value' must be a finite number, got None"),
        ({"value": float("nan")}, "'value' must be a finite number"),
        ({"normals": 1.5}, "'normals' must be a finite number, got 1.5"),
        ({"normals": -1}, "'normals' must be 0 or more, got -1"),
        ({"rate": "1 %"}, "'rate' must be a finite number"),
        ({"expected_rate": 1.5}, "'expected_rate' must lie between 0 and 1, got 1.5"),
        ({"surplus": 1}, "threshold: expected the keys"),
    ],
)
def test_malformed_thresholds_are_refused(change, message):
    written = at_rate([0.1, 0.2], 0.01).to_json()
    with pytest.raises(InputError, match=message):
        Threshold.from_json({**written, **change})
    del written["value"]
    with pytest.raises(InputError, match="threshold: expected the keys"):
        Threshold.from_json(written)
