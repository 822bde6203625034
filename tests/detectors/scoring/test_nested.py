"""The nested estimate: no image has a say in what it is judged by, scales do not matter, and the figure is not too good."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.errors import InputError, NumericalError
from detectors.scoring.metrics import UndefinedMetricError, auroc
from detectors.scoring.nested import Choose, auroc_interval, nested_estimate, repeated_folds

LABELS = np.repeat(np.array([0, 1], dtype=np.int8), 10)
KINDS = ["good"] * 10 + ["dent"] * 6 + ["scratch"] * 4


def folds_of(labels: NDArray[np.int8], *, seed: int = 0, repeats: int = 10) -> NDArray[np.int64]:
    kinds = ["dent" if label else "good" for label in labels]
    return repeated_folds(kinds, labels, range(len(labels)), seed=seed, repeats=repeats)


def best_on(scores: NDArray[np.float64], labels: NDArray[np.int8]) -> Choose:
    """The rule of a search: the setting with the best AUROC on the images that it is given."""

    def choose(rows: NDArray[np.int64]) -> int:
        good, defective = rows[labels[rows] == 0], rows[labels[rows] == 1]
        return int(np.argmax((scores[:, defective, None] > scores[:, None, good]).mean(axis=(1, 2))))

    return choose


def test_every_image_is_in_one_fold_of_each_repeat_and_every_fold_has_both_labels() -> None:
    folds = repeated_folds(KINDS, LABELS, range(20), seed=3)
    assert folds.shape == (10, 20)
    assert len({tuple(row) for row in folds}) == 10
    for row in folds:
        assert set(row) == {1, 2, 3, 4, 5}
        for fold in set(row):
            assert LABELS[row == fold].tolist() == [0, 0, 1, 1]
        # Four scratches lie in four folds, six dents in all five.
        assert sorted(np.bincount(row[16:], minlength=6)[1:]) == [0, 1, 1, 1, 1]
        assert set(row[10:16]) == {1, 2, 3, 4, 5}
    assert (folds == repeated_folds(KINDS, LABELS, range(20), seed=3)).all()
    assert (folds != repeated_folds(KINDS, LABELS, range(20), seed=4)).any()


def test_copies_lie_in_one_fold_and_the_rarer_label_limits_the_folds() -> None:
    groups = [0, 0, 1, 2, 3, 4, 4, 5]
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1], dtype=np.int8)
    folds = repeated_folds(["good"] * 5 + ["dent"] * 3, labels, groups, seed=0)
    for row in folds:
        assert set(row) == {1, 2}
        assert row[0] == row[1]
        assert row[5] == row[6] != row[7]
    with pytest.raises(UndefinedMetricError, match="at least two good and two defective"):
        repeated_folds(["good", "good", "dent", "dent"], np.array([0, 0, 1, 1], dtype=np.int8), [0, 1, 2, 2], seed=0)


def test_a_single_setting_is_judged_by_its_pairs_within_folds() -> None:
    scores = np.array([[1.0, 2, 3, 4, 2.5, 3.5]])
    labels = np.array([0, 0, 0, 1, 1, 1], dtype=np.int8)
    folds = np.array([[1, 2, 3, 1, 2, 3], [1, 2, 3, 3, 2, 1]])
    # Pairs: (1, 4), (2, 2.5), (3, 3.5); (1, 3.5), (2, 2.5), (3, 4): all in order.
    found = nested_estimate(scores, labels, folds, choose=lambda rows: 0)
    assert (found.auroc, found.recall, found.chosen, found.repeats, found.folds) == (1.0, None, {0: 6}, 2, 3)
    # With (3, 2.5) and (2, 3.5) for (2, 2.5) and (3, 3.5), one of the three is not.
    found = nested_estimate(scores, labels, np.array([[1, 2, 3, 1, 3, 2]]), choose=lambda rows: 0)
    assert found.auroc == pytest.approx(2 / 3)
    tied = nested_estimate(np.zeros((1, 6)), labels, folds, choose=lambda rows: 0)
    assert tied.auroc == 0.5


def test_the_scale_of_a_setting_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(4, 20)) + LABELS * np.array([0.2, 0.5, 0.8, 1.2])[:, None]
    folds = folds_of(LABELS)
    plain = nested_estimate(scores, LABELS, folds, choose=best_on(scores, LABELS))
    scaled = scores * np.array([1.0, 1e3, 1e-3, 7])[:, None] + np.array([0.0, 5e5, -2, 90])[:, None]
    assert nested_estimate(scaled, LABELS, folds, choose=best_on(scaled, LABELS)) == plain
    assert len(plain.chosen) > 1


def test_no_image_has_a_say_in_what_it_is_judged_by() -> None:
    """One setting for each image that is right about it alone: who knows the image would choose that one."""
    count = len(LABELS)
    scores = np.full((count + 1, count), 0.5)
    scores[np.arange(count), np.arange(count)] = LABELS
    seen: list[tuple[int, frozenset[int]]] = []

    def choose(rows: NDArray[np.int64]) -> int:
        # The first image outside the fold names its setting.
        seen.append((int(rows[0]), frozenset(rows.tolist())))
        return int(rows[0])

    found = nested_estimate(scores, LABELS, folds_of(LABELS), choose=choose)
    assert found.auroc == 0.5
    assert all(setting in outside for setting, outside in seen)
    assert sum(found.chosen.values()) == len(seen) == 50


def test_settings_that_know_nothing_are_not_flattered_while_their_best_is() -> None:
    """30 settings of pure chance on 24 images: the best of them looks good, the nested estimate does not."""
    labels = np.repeat(np.array([0, 1], dtype=np.int8), 12)
    best, nested = [], []
    for seed in range(30):
        scores = np.random.default_rng(seed).normal(size=(30, 24))
        best.append((scores[:, 12:, None] > scores[:, None, :12]).mean(axis=(1, 2)).max())
        found = nested_estimate(scores, labels, folds_of(labels, seed=seed), choose=best_on(scores, labels))
        nested.append(found.auroc)
    assert np.mean(best) > 0.7
    # Standard error about 0.02.
    assert 0.42 < np.mean(nested) < 0.55


def test_thresholds_come_from_outside_the_fold() -> None:
    scores = np.vstack((np.arange(20.0), 100 * np.arange(20.0)))
    used: list[tuple[int, tuple[int, ...]]] = []

    def alarm(setting: int, rows: NDArray[np.int64]) -> float | None:
        used.append((setting, tuple(rows.tolist())))
        good = rows[LABELS[rows] == 0]
        return float(scores[setting, good].max()) + 0.5

    folds = folds_of(LABELS)
    found = nested_estimate(scores, LABELS, folds, choose=lambda rows: int(rows[0] % 2), alarm=alarm)
    assert found.recall == 1.0
    # The good image with the highest score raises an alarm whenever it is held out, the second where both are.
    assert found.false_alarm_rate == pytest.approx(0.1 * (1 + np.mean(folds[:, 8] == folds[:, 9])))
    assert found.recall_interval is not None
    assert found.recall_interval.low == pytest.approx(0.722, abs=0.001)
    assert found.false_alarm_interval is not None
    assert found.false_alarm_rate is not None
    assert found.false_alarm_interval.low < found.false_alarm_rate < found.false_alarm_interval.high
    assert len(used) == 50
    assert all(len(rows) == 16 for _, rows in used)
    none = nested_estimate(scores, LABELS, folds, choose=lambda rows: 0, alarm=lambda setting, rows: None)
    assert (none.recall, none.false_alarm_rate, none.recall_interval) == (None, None, None)


@pytest.mark.parametrize("value", [0.5, 0.8, 0.95, 0.0, 1.0])
def test_the_interval_is_symmetric_in_the_labels_and_narrows(value: float) -> None:
    wide, narrow = auroc_interval(value, good=10, defective=10), auroc_interval(value, good=100, defective=100)
    assert 0 <= wide.low <= narrow.low <= value <= narrow.high <= wide.high <= 1
    mirrored = auroc_interval(1 - value, good=10, defective=10)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((wide.low, wide.high), abs=1e-6)
    assert auroc_interval(value, good=5, defective=9) == pytest.approx(auroc_interval(value, good=9, defective=5))


def test_the_interval_of_a_perfect_estimate_has_a_width() -> None:
    """A bootstrap of 8 + 8 separated images says [1, 1]."""
    interval = auroc_interval(1.0, good=8, defective=8)
    assert interval.high == 1.0
    assert 0.75 < interval.low < 0.9


def test_the_interval_covers() -> None:
    """Of 400 samples of 15 + 15 images with a true AUROC of about 0.921, about 95 % of the intervals hold it."""
    generator = np.random.default_rng(1)
    labels = np.repeat(np.array([0, 1], dtype=np.int8), 15)
    true = 0.9214  # P(N(2, 1) > N(0, 1))
    covered = 0
    for _ in range(400):
        value = auroc(generator.normal(size=30) + 2 * labels, labels)
        low, high = auroc_interval(value, good=15, defective=15)
        covered += low <= true <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(InputError, match=r"scores \[1, 19\]"):
        nested_estimate(np.zeros((1, 19)), LABELS, folds_of(LABELS), choose=lambda rows: 0)
    with pytest.raises(NumericalError, match="scores"):
        nested_estimate(np.full((1, 20), np.nan), LABELS, folds_of(LABELS), choose=lambda rows: 0)
    apart = np.where(LABELS == 1, 1, 2)[None]
    with pytest.raises(UndefinedMetricError, match="no fold has both"):
        nested_estimate(np.zeros((1, 20)), LABELS, apart, choose=lambda rows: 0)
