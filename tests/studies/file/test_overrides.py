"""``--set`` and ``--enqueue``."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.errors import InputError
from studies.file.overrides import override, parse_idea, parse_overrides
from tests.helpers.builders import BACKBONE, raw_config
from tests.helpers.study_files import check

LAYERS = {"choices": [[8], [8, 16]]}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("budget.trials=7", ("budget", "trials"), 7),
        ("search.n_features.int=[20, 100]", ("search", "n_features", "int"), [20, 100]),
        ("fixed.regularization=1e-3", ("fixed", "regularization"), 1e-3),
        ("sampler.seed=3", ("sampler", "seed"), 3),
        ("data.root=/a=b", ("data", "root"), "/a=b"),
        ("name='007'", ("name",), "007"),
        ("budget.timeout=2h", ("budget", "timeout"), "2h"),
        ("baselines=[]", ("baselines",), []),
    ],
)
def test_override(setting, path, value):
    found = override(raw_config(Path("images")), [setting])
    for part in path:
        found = found[part]
    assert found == value


def test_the_last_override_wins():
    raw = override(raw_config(Path("images")), ["budget.trials=7", "budget.trials=8"])
    assert raw["budget"]["trials"] == 8


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("budget.trials", "give KEY=VALUE, e.g. --set data.image_size=320"),
        ("=7", "give KEY=VALUE"),
        ("name.first=7", "'name' is a value, not a section"),
        ("fixed.layers.0=4", "'layers' is a value, not a section"),
        ("budget.trials=[7", "--set budget.trials, line 1"),
    ],
)
def test_impossible_overrides(setting, words):
    with pytest.raises(InputError) as caught:
        override(raw_config(Path("images")), [setting])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_as_values_are_those_of_the_texts():
    texts = ["data.root=/a", "data.image_size=[64, 96]", "search.n_features={int: [4, 9]}", "budget.trials=7"]
    values = {
        "data.root": Path("/a"),
        "data.image_size": (64, 96),
        "search.n_features": {"int": (4, 9)},
        "budget.trials": 7,
    }
    assert parse_overrides(texts) == parse_overrides(values)
    assert override(raw_config(Path("images")), texts) == override(raw_config(Path("images")), values)


def test_the_last_of_two_overrides_is_applied_last():
    assert list(parse_overrides(["a.b=1", "a={}", "a.b=2"]).items()) == [("a", {}), ("a.b", 2)]


def test_overrides_that_are_one_text_are_refused():
    with pytest.raises(
        InputError, match=r"settings: a mapping or a list of KEY=VALUE, not the text 'budget\.trials=7'"
    ):
        parse_overrides("budget.trials=7")


# --- settings to try


def test_a_setting_to_try_becomes_a_baseline():
    assert parse_idea("n_features = 12, shrinkage=0", check()) == {"n_features": 12, "shrinkage": 0}
    assert parse_idea("smoothing_sigma=1e-1", check()) == {"smoothing_sigma": 0.1}


@pytest.mark.parametrize("layers", ["8+16", [8, 16], (8, 16)])
def test_a_setting_to_try_may_be_given_as_values(layers):
    config = check(search={"layers": LAYERS, "n_features": {"int": [4, 40]}}, fixed={"backbone": BACKBONE})
    assert parse_idea({"layers": layers, "n_features": 12}, config) == {"layers": [8, 16], "n_features": 12}
    with pytest.raises(
        InputError, match=r"^--enqueue layers=8\+16,n_features=99: baselines\.0: n_features: 99 is outside"
    ):
        parse_idea({"layers": layers, "n_features": 99}, config)


def test_a_setting_to_try_is_checked_without_the_files_own_baselines():
    config = check(search={}, fixed={}, baselines=[{"backbone": BACKBONE}])
    assert parse_idea(f"backbone={BACKBONE},n_features=9", config) == {"backbone": BACKBONE, "n_features": 9}
    with pytest.raises(InputError, match=r"^--enqueue n_features=9: no backbone: give search\.backbone"):
        parse_idea("n_features=9", config)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_features=12", "baselines.0: say which detector: one of padim, spade"),
        ("detector=cflow,n_features=12", "say which detector"),
        ("detector=padim,n_features=0", "padim: baselines.0: n_features: 0 is out of range"),
        ("detector=spade,n_features=12", "spade: baselines.0: unknown parameter of spade 'n_features'"),
    ],
)
def test_a_setting_to_try_names_its_detector_where_there_are_several(text, words):
    search = {"padim": {"n_features": {"int": [4, 40]}}, "layers": LAYERS}
    config = check(detector=["padim", "spade"], search=search, fixed={"backbone": BACKBONE})
    assert parse_idea("detector=padim,n_features=12", config) == {"detector": "padim", "n_features": 12}
    with pytest.raises(InputError) as caught:
        parse_idea(text, config)
    assert f"--enqueue {text}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["{a: 1}", "null", "[a]", "2026-01-01"])
def test_a_setting_to_try_has_plain_values(value):
    with pytest.raises(InputError, match=r"--enqueue n_features=.*: n_features .* is not valid"):
        parse_idea(f"n_features={value}", check())
