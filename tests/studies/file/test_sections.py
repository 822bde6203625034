"""The sections of the study file: durations, and the values that a parameter may take."""

from __future__ import annotations

import pytest

from studies.file.sections import Dimension, parse_duration
from tests.helpers.study_files import check, refused


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h5s", 3605), (" 2h ", 7200), (45, 45)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds
    assert check(budget={"timeout": text}).budget.timeout == seconds


@pytest.mark.parametrize("value", ["soon", "2d", "h", "-5", "1.5h", "30m2h", "", True])
def test_no_durations(value):
    message = refused(budget={"timeout": value})
    assert "budget.timeout" in message
    assert repr(value) in message
    assert "30m" in message


@pytest.mark.parametrize("value", [0, "0", "0s", -3])
def test_a_duration_is_above_zero(value):
    message = refused(execution={"trial_timeout": value})
    assert "execution.trial_timeout" in message
    assert "greater than 0" in message


def test_duration_of_blanks():
    assert "budget.timeout" in refused(budget={"timeout": "  "})


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        ({}, "exactly one of choices, int, float"),
        ({"log": True}, "exactly one of choices, int, float"),
        ({"int": [4, 9], "float": [4, 9]}, "exactly one of choices, int, float"),
        ({"choices": [4, 9], "log": True}, "log and step belong to a range"),
        ({"choices": [4, 9], "step": 2}, "log and step belong to a range"),
        ({"choices": [4, 9, 4]}, "the same choice is given twice"),
        ({"int": [9, 4]}, "the range [9, 4] is empty"),
        ({"int": [0, 9], "log": True}, "log needs a lower bound above 0"),
        ({"int": [4, 9], "log": True, "step": 2}, "no step"),
        ({"int": [4, 9], "step": 0.5}, "step 0.5 is not a whole number"),
        ({"int": [4, 9], "step": 0}, "greater than 0"),
        ({"float": [4.0, 9.0]}, "n_features is a whole number; give int: [low, high]"),
        ({"int": [0, 9]}, "n_features: 0 is out of range; it must be at least 1"),
        ({"choices": [4, 2.5]}, "n_features: 2.5 is not a whole number"),
        ({"choices": [True]}, "n_features: True is not a whole number"),
        ({"choices": ["many"]}, "n_features: 'many' is not a whole number"),
    ],
)
def test_impossible_dimensions(dimension, words):
    message = refused(search={"n_features": dimension})
    assert "search.n_features" in message
    assert words in message


@pytest.mark.parametrize("bounds", [[0, float("inf")], [float("nan"), 0.5], [0, 1.5], [-0.1, 0.5]])
def test_impossible_bounds(bounds):
    assert "search.shrinkage" in refused(search={"shrinkage": {"float": bounds}})


def test_sections_cannot_be_changed():
    config = check()
    with pytest.raises(ValueError, match="frozen"):
        config.budget.trials = 5


def test_bounds_belong_to_a_range():
    assert Dimension(int=(4, 9)).bounds == (4, 9)
    assert Dimension(float=(0.0, 0.5)).bounds == (0.0, 0.5)
    with pytest.raises(ValueError, match="no bounds"):
        _ = Dimension(choices=[1]).bounds
