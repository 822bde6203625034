"""The paired bootstrap over images: replicates against a plain computation, groups, weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from detectors.errors import InputError
from detectors.scoring import metrics
from detectors.scoring.metrics import UndefinedMetricError
from detectors.scoring.paired import ScoredImages, draw, metric_replicates, metric_value, paired_difference

LABELS = np.repeat(np.array([0, 1], dtype=np.int8), (14, 18))


def scored(seed: int, *, shift: float = 1.0, weights: NDArray[np.float64] | None = None) -> ScoredImages:
    """Scores with ties: one decimal."""
    generator = np.random.default_rng(seed)
    scores = np.round(generator.normal(size=len(LABELS)) + shift * LABELS.astype(np.float64), 1)
    pixels = generator.integers(1, 30, size=(len(LABELS), 3)).cumsum(axis=1)
    return ScoredImages(scores, LABELS, weights=weights, threshold=0.8, pixels=pixels)


def plainly(metric: str, images: ScoredImages, weights: NDArray[np.float64]) -> float:
    """The metric with weights [N], from scikit-learn or in one line."""
    labels, scores, alarms = images.labels, images.scores, images.scores >= 0.8
    assert images.pixels is not None
    hits, marked, real = weights @ images.pixels
    precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
    values = {
        "image_auroc": roc_auc_score(labels, scores, sample_weight=weights),
        "ranking_score": roc_auc_score(labels, scores, sample_weight=weights),
        "image_ap": average_precision_score(labels, scores, sample_weight=weights),
        "image_f1_max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
        "image_recall": weights[labels == 1] @ alarms[labels == 1] / weights[labels == 1].sum(),
        "false_alarm_rate": weights[labels == 0] @ alarms[labels == 0] / weights[labels == 0].sum(),
        "seg_f1": 2 * hits / (marked + real),
    }
    return float(values[metric])


METRICS = ["image_auroc", "ranking_score", "image_ap", "image_f1_max", "image_recall", "false_alarm_rate", "seg_f1"]


@pytest.mark.parametrize("metric", METRICS)
def test_replicates_are_the_metric_with_the_counts_as_weights(metric: str) -> None:
    weights = np.random.default_rng(5).uniform(0.2, 3.0, len(LABELS))
    for images in (scored(1), scored(2, weights=weights)):
        counts = draw(LABELS, seed=3, replicates=40)
        own = weights if images.weights is not None else np.ones(len(LABELS))
        expected = [plainly(metric, images, row * own) for row in counts.astype(float)]
        np.testing.assert_allclose(metric_replicates(metric, images, counts), expected, rtol=1e-12, atol=1e-12)


def test_folds_compare_within_themselves() -> None:
    """The scales of two folds may be anything; the value is the mean over the defective images."""
    images = scored(6)
    folds = np.random.default_rng(2).integers(1, 4, len(LABELS))
    shifted = ScoredImages(images.scores + 100 * folds, LABELS, folds=folds)
    values = [roc_auc_score(LABELS[folds == fold], images.scores[folds == fold]) for fold in (1, 2, 3)]
    shares = [(LABELS[folds == fold] == 1).sum() for fold in (1, 2, 3)]
    assert metric_value("ranking_score", shifted) == pytest.approx(np.average(values, weights=shares), abs=1e-12)
    assert metric_value("ranking_score", shifted) != pytest.approx(metric_value("ranking_score", images))
    # A fold none of whose good images is drawn says nothing in that replicate.
    counts = np.ones((1, len(LABELS)), dtype=np.uint16)
    counts[0, (folds == 2) & (LABELS == 0)] = 0
    others = np.average([values[0], values[2]], weights=[shares[0], shares[2]])
    assert metric_replicates("ranking_score", shifted, counts)[0] == pytest.approx(others, abs=1e-12)


def test_the_value_is_that_of_the_metrics() -> None:
    images = scored(4)
    assert metric_value("image_auroc", images) == pytest.approx(metrics.auroc(images.scores, LABELS), abs=1e-15)
    assert metric_value("image_ap", images) == pytest.approx(metrics.average_precision(images.scores, LABELS))
    assert metric_value("image_f1_max", images) == pytest.approx(metrics.f1_max(images.scores, LABELS)[0])


def test_each_label_is_drawn_by_itself_and_a_group_as_a_whole() -> None:
    counts = draw(LABELS, seed=0, replicates=300)
    assert (counts[:, LABELS == 0].sum(axis=1) == 14).all()
    assert (counts[:, LABELS == 1].sum(axis=1) == 18).all()
    assert counts.mean() == pytest.approx(1.0)
    # Three painted images of each of six good ones, and two good ones more.
    labels = np.array([0] * 8 + [1] * 18, dtype=np.int8)
    groups = [*range(8), *(index for index in range(6) for _ in range(3))]
    counts = draw(labels, groups, seed=0, replicates=300)
    for index in range(6):
        painted = counts[:, 8 + 3 * index : 11 + 3 * index]
        assert (painted == counts[:, [index]]).all()
    assert (counts[:, :6].sum(axis=1) == 6).all()
    assert (counts[:, 6:8].sum(axis=1) == 2).all()


def test_painted_images_of_few_good_ones_are_less_certain_than_their_number() -> None:
    generator = np.random.default_rng(1)
    sources, painted = 15, 12
    level = np.repeat(generator.normal(size=sources), painted)
    labels = np.repeat(np.array([0, 1], dtype=np.int8), (sources, sources * painted))
    groups = (*range(sources), *np.repeat(np.arange(sources), painted).tolist())
    good = generator.normal(size=sources)
    scores = [np.concatenate((good, 1 + share * level + 0.1 * generator.normal(size=len(level)))) for share in (2, 0)]
    by_group, by_image = (
        paired_difference("image_auroc", *(ScoredImages(one, labels, groups=each) for one in scores), seed=0)
        for each in (groups, None)
    )
    assert by_group.value == by_image.value
    assert by_group.standard_error > 1.2 * by_image.standard_error


def test_the_standard_error_is_that_of_new_images() -> None:
    """Against 400 other samples of as many images."""
    generator = np.random.default_rng(9)
    labels = np.repeat(np.array([0, 1], dtype=np.int8), (60, 60))

    def sample() -> tuple[ScoredImages, ScoredImages]:
        shared = generator.normal(size=120)
        pair = (ScoredImages(shared + generator.normal(size=120) + gap * labels, labels) for gap in (1.5, 2.0))
        first, second = pair
        return first, second

    found = [metric_value("image_auroc", b) - metric_value("image_auroc", a) for a, b in (sample() for _ in range(400))]
    estimated = [paired_difference("image_auroc", *sample(), seed=0).standard_error for _ in range(20)]
    assert float(np.mean(estimated)) == pytest.approx(float(np.std(found)), rel=0.12)


def test_the_same_scores_differ_by_nothing_and_the_same_seed_says_the_same() -> None:
    a, b = scored(1), scored(2, shift=0.5)
    same = paired_difference("image_auroc", a, a, seed=0)
    assert (same.value, same.standard_error) == (0.0, 0.0)
    assert paired_difference("image_ap", a, b, seed=7) == paired_difference("image_ap", a, b, seed=7)
    assert paired_difference("image_ap", a, b, seed=7) != paired_difference("image_ap", a, b, seed=8)


def test_what_cannot_be_drawn_or_computed_is_refused() -> None:
    images = scored(1)
    with pytest.raises(UndefinedMetricError, match="at least two good images or groups of them; there are 1"):
        draw(np.array([0, 1, 1], dtype=np.int8), seed=0)
    with pytest.raises(UndefinedMetricError, match="at least two defective"):
        draw(np.array([0, 0, 1, 1], dtype=np.int8), ["a", "b", "c", "c"], seed=0)
    with pytest.raises(InputError, match="pixel_aupro does not follow from single images"):
        metric_value("pixel_aupro", images)
    bare = ScoredImages(images.scores, LABELS)
    for metric, reason in (("image_recall", "no threshold"), ("seg_f1", "pixels of the images are not known")):
        with pytest.raises(UndefinedMetricError, match=reason):
            metric_value(metric, bare)
    with pytest.raises(UndefinedMetricError, match="needs defective images"):
        metric_value("image_recall", ScoredImages(np.zeros(3), np.zeros(3, dtype=np.int8), threshold=1.0))
    with pytest.raises(InputError, match="not of the same images"):
        paired_difference("image_auroc", images, ScoredImages(images.scores, 1 - LABELS), seed=0)
    for wrong, reason in (
        ({"labels": LABELS[1:]}, "31 labels"),
        ({"labels": 2 * LABELS}, "labels must be 0"),
        ({"labels": LABELS, "weights": np.zeros(len(LABELS))}, "above 0"),
        ({"labels": LABELS, "pixels": np.zeros((2, 3), dtype=np.int64)}, r"pixels must be \[32, 3\]"),
    ):
        with pytest.raises(InputError, match=reason):
            ScoredImages(images.scores, **wrong)
    with pytest.raises(InputError, match="scores must be finite"):
        ScoredImages(np.full(len(LABELS), np.nan), LABELS)
