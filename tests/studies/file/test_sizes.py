"""Image sizes: how they are written in a study file, and where a trial may have its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import InputError
from detectors.tiles import Tiles
from studies.file.config import StudyConfig, validate
from studies.file.looks import check_look, look_of, parse_tiles, tiles_of, written_tiles
from studies.file.sizes import parse_size, size_of, written_size
from tests.helpers.builders import make_config, raw_config

SIDES = st.integers(32, 8192)


@given(SIDES, SIDES)
def test_a_size_is_read_as_it_is_written(height: int, width: int) -> None:
    assert parse_size(written_size((height, width))) == parse_size([height, width]) == (height, width)
    assert parse_size(height) == (height, height)
    assert size_of({"image_size": written_size((height, width))}, (1, 1)) == (height, width)
    assert size_of({"layers": [8]}, (height, width)) == (height, width)


@pytest.mark.parametrize(
    "value", [31, 8193, [32], [32, 32, 32], [32, 31], "32", "32x", "32x31", "x", True, [True, 64], 64.0, None]
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


@given(st.integers(32, 2048), st.floats(0, 0.5))
def test_tiles_are_read_as_they_are_written(side: int, share: float) -> None:
    tiles = Tiles(side, int(share * side))
    assert parse_tiles(written_tiles(tiles)) == parse_tiles({"side": side, "overlap": tiles.overlap}) == tiles
    assert parse_tiles(side) == parse_tiles(str(side)) == Tiles(side, 0)
    assert tiles_of({"tiles": written_tiles(tiles)}) == tiles


@pytest.mark.parametrize("value", [None, "none"])
def test_no_tiles_is_a_value_too(value: Any) -> None:
    assert parse_tiles(value) is None
    assert written_tiles(None) == "none"
    assert tiles_of({"layers": [8]}) is None


@pytest.mark.parametrize(
    "value",
    [
        *("64+", "+3", "64+3+1", "no", "64+33", True, 31, [64]),
        *({"overlap": 3}, {"side": 64, "scale": 1}, {"side": "64"}, {"side": 64.0}, {"side": True}),
        *({"side": 64, "overlap": 33}, {"side": 64, "overlap": -1}),
    ],
)
def test_what_are_no_tiles_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="tiles: "):
        parse_tiles(value)


def test_tiles_are_written_alike_wherever_a_trial_may_have_them(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        search={"tiles": {"choices": ["none", {"side": 64, "overlap": 8}, 96]}, "n_features": {"int": [4, 40]}},
        baselines=[{"tiles": {"side": 64, "overlap": 8}}],
    )
    assert config.search["tiles"].choices == ["none", "64+8", "96+0"]
    assert config.baselines == [{"tiles": "64+8"}]
    assert StudyConfig.from_store(config.to_json()) == config
    fixed = make_config(tmp_path, fixed={"backbone": "resnet18@random", "tiles": {"side": 48}})
    assert fixed.fixed["tiles"] == "48+0"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"side": 16}, "a side of 16 pixels is out of range; give 32 to 2048"),
        ({"side": 64, "overlap": 40}, "an overlap of 40 pixels is out of range; give 0 to half of the side, 32"),
        ({"side": 64, "scale": 2}, "'scale': 2}\" is neither none nor tiles"),
        ({"overlap": 2}, "is neither none nor tiles"),
        ([64], "is neither none nor tiles"),
    ],
)
def test_wrong_tiles_are_refused_in_a_study_file_with_the_reason(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make_config(tmp_path, search={"tiles": {"choices": ["none", value]}, "n_features": {"int": [4, 40]}})
    assert words in str(caught.value)
    assert "search.tiles" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "tiles", "words"),
    [
        ((2048, 2048), None, ""),
        ((2049, 64), None, "2049 x 64 pixels are too many for one look"),
        ((2000, 8000), Tiles(512), ""),
        ((2100, 8000), Tiles(512), "2100 x 8000 pixels are more than a detector takes"),
    ],
)
def test_an_image_that_is_too_large_for_a_look_is_refused(size: Any, tiles: Tiles | None, words: str) -> None:
    if not words:
        check_look(size, tiles)
        return
    with pytest.raises(InputError, match=words):
        check_look(size, tiles)


@pytest.mark.parametrize(
    ("backbone", "tiles", "size", "seen", "cut"),
    [
        ("resnet18", "100+10", (130, 333), (130, 333), Tiles(100, 10)),
        ("test_vit", "100+10", (130, 333), (130, 333), Tiles(96, 10)),
        ("test_vit", "100+10", (90, 333), (96, 333), Tiles(96, 10)),
        ("test_vit", "100+50", (333, 333), (333, 333), Tiles(96, 48)),
        ("test_vit", "none", (333, 100), (336, 96), None),
    ],
)
def test_backbones_get_the_nearest_tiles_that_they_take(backbone, tiles, size, seen, cut) -> None:
    assert look_of({"backbone": backbone, "tiles": tiles}, size) == (seen, cut)


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
