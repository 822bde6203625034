"""p of a bootstrap difference, and its adjustment for several."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.scoring.significance import holm, sign_test_p, two_sided_p


def test_holm_adjusts_as_in_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values: list[float]) -> None:
    adjusted = holm(values)
    for value, result in zip(values, adjusted, strict=True):
        assert value <= result <= min(1.0, len(values) * value) + 1e-12
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)


def test_p_counts_the_rarer_side_twice_and_the_sample_itself() -> None:
    assert two_sided_p(np.ones(99)) == pytest.approx(2 / 100)
    assert two_sided_p(-np.ones(99)) == pytest.approx(2 / 100)
    assert two_sided_p(np.zeros(99)) == 1
    assert two_sided_p(np.array([1.0] * 90 + [-1.0] * 9)) == pytest.approx(0.2)
    assert two_sided_p(np.array([1.0] * 90 + [0.0] * 9)) == pytest.approx(0.2)


def test_the_sign_test_is_the_tail_of_a_fair_coin() -> None:
    assert sign_test_p(5, 0) == pytest.approx(1 / 32)
    assert sign_test_p(10, 2) == pytest.approx((66 + 12 + 1) / 2**12)
    assert sign_test_p(1, 1) == pytest.approx(0.75)
    assert sign_test_p(0, 9) == 1.0
    assert sign_test_p(0, 0) == 1.0
    with pytest.raises(ValueError, match="counts"):
        sign_test_p(-1, 2)
