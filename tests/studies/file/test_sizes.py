"""Image sizes: how they are written in a study file, and where a trial may have its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import InputError
from studies.file.config import StudyConfig, validate
from studies.file.sizes import parse_size, size_of, written_size
from tests.helpers.builders import make_config, raw_config

SIDES = st.integers(32, 2048)


@given(SIDES, SIDES)
def test_a_size_is_read_as_it_is_written(height: int, width: int) -> None:
    assert parse_size(written_size((height, width))) == parse_size([height, width]) == (height, width)
    assert parse_size(height) == (height, height)
    assert size_of({"image_size": written_size((height, width))}, (1, 1)) == (height, width)
    assert size_of({"layers": [8]}, (height, width)) == (height, width)


@pytest.mark.parametrize(
    "value", [31, 2049, [32], [32, 32, 32], [32, 31], "32", "32x", "32x31", "x", True, [True, 64], 64.0, None]
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"image_size|out of range"):
        parse_size(value)


def test_sizes_are_written_alike_wherever_a_trial_may_have_them(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        search={"image_size": {"choices": [64, [64, 96], "96x64"]}, "n_features": {"int": [4, 40]}},
        baselines=[{"image_size": [64, 96]}],
    )
    assert config.search["image_size"].choices == [64, "64x96", "96x64"]
    assert config.baselines == [{"image_size": "64x96"}]
    assert StudyConfig.from_store(config.to_json()) == config
    fixed = make_config(tmp_path, fixed={"backbone": "resnet18@random", "image_size": [48, 64]})
    assert fixed.fixed["image_size"] == "48x64"


def test_each_detector_may_search_its_own_sizes(tmp_path: Path) -> None:
    search = {
        "padim": {"image_size": {"choices": [[48, 64], 64]}},
        "spade": {"n_neighbors": {"int": [1, 3]}},
    }
    config = make_config(tmp_path, detector=["padim", "spade"], search=search)
    assert config.for_detector("padim").search["image_size"].choices == ["48x64", 64]
    assert "image_size" not in config.for_detector("spade").search


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"image_size": {"int": [64, 256]}}, ("search.image_size", "give choices")),
        ({"image_size": {"choices": [64, [64, 64]]}}, ("search.image_size", "the same choice is given twice")),
        ({"image_size": {"choices": [64, 16]}}, ("search.image_size.choices", "a side of 16 pixels is out of range")),
        (
            {"image_size": {"choices": [64, "big"]}},
            ("search.image_size.choices", "'big' is no size in pixels", "[height, width]"),
        ),
    ],
)
def test_a_search_over_what_is_no_size_is_told(tmp_path: Path, search: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as told:
        validate(raw_config(tmp_path, search=search), source="tiny.yaml")
    assert all(word in str(told.value) for word in words), told.value
