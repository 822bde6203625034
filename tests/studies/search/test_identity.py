"""What a resumed study must agree on, and how differences are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from studies.search.identity import differences
from tests.helpers.builders import build_plan, make_config


def test_another_detector_is_named():
    assert differences({"detector": "padim"}, {"detector": "other"}) == ['detector (was "padim", now "other")']


IDENTITIES = st.dictionaries(
    st.sampled_from(["detector", "seed", "search", "fixed", "data"]),
    st.one_of(st.integers(0, 3), st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3)),
)


@given(IDENTITIES, IDENTITIES)
def test_there_is_a_difference_where_identities_differ_and_only_there(stored: dict[str, Any], wanted: dict[str, Any]):
    assert bool(differences(stored, wanted)) == (stored != wanted)
    assert differences(stored, stored) == []


def test_a_difference_is_reported_with_both_values():
    stored = {"search": {"a": {"int": [1, 2]}}, "data": {"train": "1", "test": "2"}}
    wanted = {"search": {"b": 3}, "data": {"train": "1", "test": "3"}, "networks": {"resnet18": "f00"}}
    assert differences(stored, wanted) == [
        "the images of test",
        'networks (was absent, now {"resnet18": "f00"})',
        'search.a (was {"int": [1, 2]}, now absent)',
        "search.b (was absent, now 3)",
    ]


def test_an_identity_survives_json_with_the_names_that_are_stored(tiny_mvtec: Path, tmp_path: Path) -> None:
    search = {"padim": {"n_features": {"int": [4, 40]}}, "smoothing_sigma": {"float": [1.0, 4.0]}}
    fixed = {"backbone": "resnet18@random", "spade": {"layers": [16]}}
    identity = build_plan(
        make_config(tiny_mvtec, detector=["padim", "spade"], search=search, fixed=fixed), tmp_path
    ).identity
    assert json.loads(json.dumps(identity)) == identity
    assert list(identity["search"]) == ["padim.n_features", "smoothing_sigma"]
    assert list(identity["fixed"]) == ["backbone", "spade.layers"]
    assert set(identity) == {
        "detector", "protocol", "data", "image_size", "search", "fixed", "objectives", "seed"
    }  # fmt: skip
