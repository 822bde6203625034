"""What is drawn of a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors.runtime.verdicts import Verdict, contour_level, heat_map

PEAK = 7.0
GRAY = np.full((20, 20, 3), 128, np.uint8)


class Model:
    normal_scores = np.array([1.0, 2.0, 3.0])
    threshold: Any = None


def make_verdict(score: float, threshold: float | None) -> Verdict:
    scores = np.zeros((20, 20), np.float32)
    scores[5:9, 5:9] = PEAK
    word = None if threshold is None else ("defective" if score >= threshold else "good")
    return Verdict(score, threshold, word, None, scores)


def test_the_level_is_the_threshold_where_the_score_is_the_peak():
    assert contour_level(make_verdict(PEAK, 4.0)) == 4.0


@pytest.mark.parametrize("score", [0.5, 4.0, 4.1, 90.0, -3.0])
@pytest.mark.parametrize("threshold", [4.0, -5.0])
def test_the_level_is_reached_in_defective_images_alone(score, threshold):
    verdict = make_verdict(score, threshold)
    assert (contour_level(verdict) <= PEAK) == (verdict.verdict == "defective")


def test_only_defective_images_have_a_contour():
    drawn = {score: heat_map(Model(), GRAY, make_verdict(score, 4.0)) for score in (3.9, 4.0)}
    outside = np.ones((20, 20), bool)
    outside[5:9, 5:9] = False
    assert np.array_equal(drawn[3.9][outside], GRAY[outside])
    assert not np.array_equal(drawn[4.0][outside], GRAY[outside])
    assert heat_map(Model(), GRAY, make_verdict(4.0, None)).shape == GRAY.shape
    with pytest.raises(ValueError, match="no threshold"):
        contour_level(make_verdict(4.0, None))
