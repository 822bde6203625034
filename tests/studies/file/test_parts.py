"""What a study file says about one of its detectors."""

from __future__ import annotations

import pytest

from detectors.backbones.bundled import SMALLEST
from studies.file.parts import divide
from studies.file.sections import Dimension
from tests.helpers.builders import BACKBONE
from tests.helpers.study_files import check

SEVERAL = {
    "detector": ["padim", "patchcore"],
    "search": {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8, 16], [16, 32]]},
        "padim": {"n_features": {"int": [50, 550]}},
        "patchcore": {"layers": {"choices": [[8]]}},
    },
    "fixed": {"smoothing_sigma": 2.0, "patchcore": {"projection": 64, "smoothing_sigma": 3.0}},
    "baselines": [{"detector": "padim", "n_features": 100}, {"detector": "patchcore", "layers": [8]}],
}


def test_a_study_over_one_detector_has_one_part_with_everything() -> None:
    config = check()
    (part,) = config.parts.values()
    assert part.detector == "padim"
    assert (part.search, part.fixed, part.baselines) == (config.search, config.fixed, config.baselines)
    assert part.detector_only == frozenset()


def test_what_stands_under_a_detectors_name_wins_over_what_is_for_all() -> None:
    parts = check(**SEVERAL).parts
    assert list(parts) == ["padim", "patchcore"]
    assert list(parts["padim"].search) == ["backbone", "layers", "n_features"]
    assert parts["padim"].search["layers"].choices == [[8, 16], [16, 32]]
    assert parts["patchcore"].search["layers"].choices == [[8]]
    assert parts["padim"].fixed == {"smoothing_sigma": 2.0}
    assert parts["patchcore"].fixed == {"projection": 64, "smoothing_sigma": 3.0}
    assert parts["padim"].detector_only == {"n_features"}
    assert parts["patchcore"].detector_only == {"layers", "projection", "smoothing_sigma"}


def test_a_value_fixed_for_one_detector_wins_over_a_search_for_all() -> None:
    fixed = {"patchcore": {"layers": [8]}}
    parts = check(**SEVERAL | {"search": {**SEVERAL["search"], "patchcore": {}}, "fixed": fixed}).parts
    assert "layers" not in parts["patchcore"].search
    assert parts["patchcore"].fixed == {"layers": [8]}
    assert "layers" in parts["padim"].search


def test_a_baseline_belongs_to_the_detector_that_it_names() -> None:
    parts = check(**SEVERAL).parts
    assert parts["padim"].baselines == [SEVERAL["baselines"][0]]
    assert parts["patchcore"].baselines == [SEVERAL["baselines"][1]]


def test_backbones_of_each_detector() -> None:
    search = {"backbone": {"choices": [BACKBONE]}, "patchcore": {"backbone": {"choices": [SMALLEST, BACKBONE]}}}
    config = check(**SEVERAL | {"search": search, "fixed": {}, "baselines": []})
    assert config.for_detector("padim").backbones == [BACKBONE]
    assert config.for_detector("patchcore").backbones == [SMALLEST, BACKBONE]
    assert config.backbones == [BACKBONE, SMALLEST]


def test_there_is_no_part_of_another_detector() -> None:
    with pytest.raises(KeyError):
        check(**SEVERAL).for_detector("spade")


def test_detectors_of_ones_own_modules_have_parts_too() -> None:
    detectors = ["padim", "heads/v1.2/my_head.py:MyHead"]
    width = Dimension(int=(4, 9))
    parts = divide(detectors, {"heads/v1.2/my_head.py:MyHead.width": width}, {"backbone": BACKBONE}, [], {})
    assert parts[detectors[1]].search == {"width": width}
    assert parts["padim"].search == {}
    assert all(part.fixed == {"backbone": BACKBONE} for part in parts.values())
