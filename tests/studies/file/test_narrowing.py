"""What ``--set`` leaves of a study file: baselines that no longer fit are left out aloud, dropped detectors take theirs along."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from detectors.backbones.bundled import SMALLEST
from detectors.errors import InputError
from studies.file import yaml_file
from studies.file.config import StudyConfig, validate
from studies.file.library import packaged_configs
from studies.file.narrowing import narrowed
from studies.file.overrides import override, parse_overrides
from tests.helpers.builders import BACKBONE, raw_config

WITHOUT_4 = "visformer_tiny@random"
PADIM = {
    "search": {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8, 16], [4, 8]]},
        "n_features": {"int": [4, 400]},
    },
    "fixed": {},
    "baselines": [
        {"backbone": BACKBONE, "layers": [8, 16], "n_features": 300},
        {"backbone": SMALLEST, "layers": [4, 8], "n_features": 30},
    ],
}
BOTH = {
    "detector": ["padim", "patchcore", "spade"],
    "search": {
        "layers": {"choices": [[8, 16], [8]]},
        "padim": {"n_features": {"int": [4, 100]}, "layers": {"choices": [[4, 8]]}},
        "patchcore": {"coreset_ratio": {"float": [0.01, 0.1]}},
        "spade.n_neighbors": {"int": [1, 9]},
    },
    "fixed": {"backbone": BACKBONE, "smoothing_sigma": 2.0, "patchcore": {"projection": 64}},
    "baselines": [
        {"detector": "padim", "layers": [4, 8]},
        {"detector": "patchcore", "coreset_ratio": 0.01},
        {"detector": "spade", "n_neighbors": 3},
    ],
}


def narrow(file: dict[str, Any], *settings: str) -> tuple[StudyConfig, tuple[str, ...]]:
    """The study of a file with settings, and what was said."""
    given = parse_overrides(settings)
    raw = override(copy.deepcopy(file), given)
    raw, lines = narrowed(raw, file, given, source="tiny.yaml")
    return validate(raw, source="tiny.yaml"), lines


def padim(**changes: Any) -> dict[str, Any]:
    return raw_config(Path("images"), **PADIM | changes)


@pytest.mark.parametrize(
    ("setting", "left", "line"),
    [
        (
            "search.n_features.int=[4,100]",
            [1],
            "baseline 1 of tiny.yaml is left out, because --set leaves no place for it: "
            "n_features: 300 is outside the range [4, 100]",
        ),
        (
            f"search.backbone.choices=[{BACKBONE}]",
            [0],
            f"baseline 2 of tiny.yaml is left out, because --set leaves no place for it: "
            f"backbone: '{SMALLEST}' is not among the choices ['{BACKBONE}']",
        ),
        ("search.layers={choices: [[8, 16]]}", [0], "layers: [4, 8] is not among the choices [[8, 16]]"),
        # A range that the channels of the baseline's layers cut as well leaves the baseline as it is.
        ("search.n_features.int=[4,500]", [0, 1], ""),
        ("budget.trials=7", [0, 1], ""),
    ],
)
def test_a_baseline_that_the_settings_leave_no_place_for_is_left_out_aloud(
    setting: str, left: list[int], line: str
) -> None:
    config, lines = narrow(padim(), setting)
    assert config.baselines == [PADIM["baselines"][index] for index in left]
    assert len(lines) == 2 - len(left)
    assert all(line in one for one in lines)


def test_every_baseline_may_go(tmp_path: Path) -> None:
    config, lines = narrow(padim(), "search.n_features.int=[4,9]")
    assert config.baselines == []
    assert [line[:10] for line in lines] == ["baseline 1", "baseline 2"]


def test_layers_that_the_fixed_backbone_does_not_offer(tmp_path: Path) -> None:
    file = raw_config(
        Path("images"), fixed={"backbone": BACKBONE}, search={"shrinkage": {"float": [0, 0.5]}}, baselines=[{"layers": [4]}]
    )  # fmt: skip
    config, lines = narrow(file, f"fixed.backbone={WITHOUT_4}")
    assert config.baselines == []
    assert "visformer_tiny@random offers the layers [8, 16, 32]" in lines[0]


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        # Wrong in the file, which nobody narrowed there.
        (padim(baselines=[{"n_features": 900}]), ["search.layers.choices=[[8, 16]]"], "900 is outside the range [4, 400]"),
        (padim(baselines=[{"n_feature": 9}]), ["search.n_features.int=[4,100]"], "unknown parameter of padim 'n_feature'"),
        (padim(baselines=[{"n_features": 900}]), [], "baselines.0: n_features: 900 is outside the range [4, 400]"),
        # Given on the same command line.
        (padim(), ["search.n_features.int=[4,9]", "baselines=[{n_features: 10}]"], "10 is outside the range [4, 9]"),
        # Wrong in the search itself.
        (padim(), ["search.n_features.int=[9,4]"], "the range [9, 4] is empty"),
        # Nothing would be left to try.
        (
            raw_config(Path("images"), search={}, fixed={}, baselines=[{"backbone": BACKBONE, "n_features": 9}]),
            ["detector=spade"],
            "baselines.0: unknown parameter of spade 'n_features'",
        ),
    ],
)  # fmt: skip
def test_an_outright_mistake_stays_an_error(file: dict[str, Any], settings: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        narrow(file, *settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def both() -> dict[str, Any]:
    return raw_config(Path("images"), **BOTH)


def test_a_detector_that_is_dropped_takes_its_search_and_its_baselines_along() -> None:
    config, lines = narrow(both(), "detector=[padim, spade]")
    assert config.detectors == ["padim", "spade"]
    assert set(config.search) == {"layers", "padim.n_features", "padim.layers", "spade.n_neighbors"}
    assert set(config.fixed) == {"backbone", "smoothing_sigma"}
    assert [baseline["detector"] for baseline in config.baselines] == ["padim", "spade"]
    assert lines == (
        "baseline 2 of tiny.yaml is left out, because --set leaves no place for it: its detector is patchcore",
    )


@pytest.mark.parametrize("stored", [False, True])
def test_a_single_detector_that_is_left_keeps_what_is_its_own(stored: bool) -> None:
    file = validate(both(), source="tiny.yaml").to_json() if stored else both()
    for setting, layers in (("detector=padim", [[4, 8]]), ("detector=[patchcore]", [[8, 16], [8]])):
        config, lines = narrow(file, setting)
        assert config.search["layers"].choices == layers
        assert len(config.detectors) == len(config.baselines) == 1
        assert len(lines) == 2
        name = config.detectors[0]
        whole = validate(both(), source="tiny.yaml").for_detector(name)
        assert config.for_detector(name).search == whole.search
        assert config.for_detector(name).fixed == whole.fixed


def test_another_detector_may_be_added_in_its_place() -> None:
    config, _ = narrow(both(), "detector=[padim, ganomaly]", "search.ganomaly={latent: {int: [8, 64]}}")
    assert set(config.search) == {"layers", "padim.n_features", "padim.layers", "ganomaly.latent"}


@pytest.mark.parametrize("path", sorted(packaged_configs().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_may_be_narrowed_to_the_bundled_backbone(path: Path) -> None:
    file = yaml_file.read(path)
    backbones = file.get("search", {}).get("backbone", {}).get("choices", [])
    if SMALLEST not in backbones:
        assert narrow(file)[1] == ()
        return
    config, lines = narrow(file, f"search.backbone.choices=[{SMALLEST}]")
    given = file.get("baselines", [])
    assert len(config.baselines) + len(lines) == len(given)
    assert [one["backbone"] for one in config.baselines] == [
        one["backbone"] for one in given if one["backbone"] in (SMALLEST, "pixels")
    ]
