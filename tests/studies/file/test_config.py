"""The study file: what is accepted, and how each slip is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from detectors.backbones.weights import BUNDLED, PIXELS
from detectors.errors import InputError
from detectors.scoring.evaluation import METRICS
from studies.file import library
from studies.file.config import StudyConfig, validate
from studies.file.demo import DEMO_TRIALS, load_demo
from studies.file.library import config_names, find, load, packaged_configs
from studies.file.overrides import override
from studies.file.sections import COST_METRICS, Dimension, parse_duration
from tests.helpers.builders import BACKBONE, raw_config

PACKAGED = sorted(packaged_configs().glob("*.yaml"))


def check(**changes) -> StudyConfig:
    return validate(raw_config(Path("images"), **changes), source="tiny.yaml")


def refused(**changes) -> str:
    with pytest.raises(InputError) as caught:
        check(**changes)
    message = str(caught.value)
    assert message.startswith("tiny.yaml: ")
    assert "\n" not in message
    return message


def write(folder: Path, name: str = "mine", **changes) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw_config(folder / "images", name=name, **changes)))
    return path


# --- the files that come with the package


def test_there_are_packaged_files():
    assert {"padim", "padim_screw", "padim_carpet"} <= {path.stem for path in PACKAGED}


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_file_loads_under_its_own_name(path):
    config = load(str(path))
    assert config.name == path.stem
    assert len(config.detectors) > 1 or config.detectors[0] in path.stem
    assert config.backbones
    assert validate(config.to_json(), source="again") == config


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_file_has_a_demo(path):
    demo = load_demo(str(path))
    assert demo.name == f"{path.stem}-demo"
    assert demo.data.dataset == "rendered"
    assert set(demo.backbones) <= {BUNDLED, PIXELS}


def test_a_packaged_file_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("padim_screw").data.category == "screw"


# --- what a sound file means


def test_defaults():
    config = check()
    assert (config.protocol, config.objectives, config.constraints) == ("holdout", {"image_auroc": "maximize"}, {})
    assert config.direction == "maximize"
    assert (config.sampler.name, config.sampler.seed, config.sampler.startup) == ("tpe", 0, 5)
    assert (config.budget.trials, config.budget.timeout, config.budget.stagnation) == (3, None, None)
    assert (config.execution.attempts, config.threshold.rate) == (2, 0.01)


def test_plain_form_and_back():
    config = check(
        constraints={"fps": ">= 10", "latency_ms_p95": "<= 2.5e1"},
        budget={"trials": 5, "timeout": "1h30m"},
        data={"category": "screw", "image_size": [64, 96]},
        baselines=[{"n_features": 12}],
        search={"n_features": {"int": [4, 40], "log": True}, "layers": {"choices": [[8], [8, 16]]}},
        fixed={"backbone": BACKBONE},
    )
    assert config.budget.timeout == 5400
    assert config.data.size == (64, 96)
    assert validate(config.to_json(), source="again") == config


def test_backbones_in_the_order_of_the_file():
    config = check(
        search={"backbone": {"choices": ["resnet18", BUNDLED]}},
        fixed={},
        baselines=[{"backbone": BUNDLED}, {"backbone": "resnet18"}],
    )
    assert config.backbones == ["resnet18", BUNDLED]


def test_baselines_alone_may_name_the_backbone():
    config = check(search={}, fixed={}, baselines=[{"backbone": "resnet18"}, {"backbone": BUNDLED}])
    assert config.backbones == ["resnet18", BUNDLED]


def test_every_metric_may_be_constrained():
    limits = dict.fromkeys((*METRICS, *COST_METRICS), "<= 1e3")
    assert check(constraints=limits).constraints == limits


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


# --- unknown keys


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"detectr": "padim"}, ["unknown key 'detectr'", "did you mean detector?", "known here: baselines, budget"]),
        ({"data": {"categry": "a"}}, ["'data.categry'", "did you mean category?", "dataset, image_size, root"]),
        (
            {"sampler": {"seeed": 1}},
            ["'sampler.seeed'", "did you mean seed?", "known here: name, population, seed, startup"],
        ),
        ({"budget": {"trails": 3}}, ["'budget.trails'", "did you mean trials?", "stagnation, timeout, trials"]),
        ({"execution": {"retries": 3}}, ["'execution.retries'", "attempts", "trial_timeout"]),
        ({"threshold": {"rat": 0.1}}, ["'threshold.rat'", "did you mean rate?"]),
        (
            {"search": {"n_features": {"chioces": [4]}}},
            ["'search.n_features.chioces'", "did you mean choices?", "choices, float, int, log, step"],
        ),
        ({"searhc": {}, "fixd": {}}, ["unknown key", "(and 1 more)"]),
    ],
)
def test_unknown_keys_are_named_with_what_is_known(changes, words):
    message = refused(**changes)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"n_feature": {"int": [4, 40]}}},
        {"fixed": {"backbone": BACKBONE, "n_feature": 3}},
        {"baselines": [{"n_feature": 3}]},
    ],
)
def test_unknown_parameters_are_named_with_what_is_known(changes):
    message = refused(**changes)
    (section,) = changes
    for word in (section, "'n_feature'", "did you mean n_features?", "backbone, layers", "smoothing_sigma"):
        assert word in message


@pytest.mark.parametrize("section", ["objectives", "constraints"])
def test_unknown_metrics(section):
    message = refused(**{section: {"image_aurocc": "maximize" if section == "objectives" else ">= 1"}})
    for word in (section, "'image_aurocc'", "did you mean image_auroc?", "pixel_aupro", "fps"):
        assert word in message


def test_an_unknown_key_explains_the_missing_one():
    assert "did you mean detector?" in refused(detector=None, detectr="padim")


def test_unknown_detector():
    message = refused(detector="padin")
    assert "detector: unknown detector 'padin'; did you mean padim? known:" in message


# --- wrong values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, ["name is missing"]),
        ({"detector": None}, ["detector is missing"]),
        ({"name": "two words"}, ["name: 'two words'", "pattern"]),
        ({"name": "-a"}, ["name: '-a'"]),
        ({"name": "x" * 65}, ["name: 'xxx"]),
        ({"name": 5}, ["name: 5", "string"]),
        ({"detector": 5}, ["detector: 5", "a list of them"]),
        ({"detector": []}, ["detector: []", "a list of them"]),
        ({"detector": ["padim", "padim"]}, ["detector", "listed twice"]),
        ({"protocol": "test"}, ["protocol: 'test'", "'holdout'", "'paper'", "'synthetic'"]),
        ({"data": 3}, ["data: 3", "dictionary"]),
        ({"data": {"dataset": "My Data"}}, ["data.dataset: 'My Data'"]),
        ({"data": {"image_size": "big"}}, ["data.image_size: 'big'", "integer"]),
        ({"data": {"image_size": [64, "x"]}}, ["data.image_size.1: 'x'", "integer"]),
        ({"data": {"image_size": [64]}}, ["data.image_size"]),
        ({"data": {"image_size": [64, 64, 3]}}, ["data.image_size: [64, 64, 3]", "at most 2"]),
        ({"data": {"image_size": 31}}, ["data.image_size: a side of 31 pixels", "32 to 2048"]),
        ({"data": {"image_size": [64, 4096]}}, ["data.image_size: a side of 4096 pixels", "32 to 2048"]),
        ({"search": []}, ["search: []", "dictionary"]),
        ({"search": {"n_features": 5}}, ["search.n_features: 5"]),
        ({"search": {"n_features": {"int": ["a", 40]}}}, ["search.n_features.int.0: 'a'", "integer"]),
        ({"search": {"n_features": {"int": [4]}}}, ["search.n_features.int.1 is missing"]),
        ({"search": {"shrinkage": {"float": [0, "x"]}}}, ["search.shrinkage.float.1: 'x'", "number"]),
        ({"search": {"n_features": {"choices": []}}}, ["search.n_features.choices: []", "at least 1"]),
        ({"search": {"n_features": {"choices": [{"a": 1}]}}}, ["search.n_features.choices.0: {'a': 1}", "integer"]),
        ({"search": {"n_features": {"int": [4, 9], "log": "often"}}}, ["search.n_features.log: 'often'", "boolean"]),
        ({"fixed": {"backbone": {"a": 1}}}, ["fixed.backbone: {'a': 1}", "string"]),
        ({"objectives": {}}, ["objectives: {}", "at least 1"]),
        ({"objectives": {"image_auroc": "up"}}, ["objectives.image_auroc: 'up'", "'maximize' or 'minimize'"]),
        ({"constraints": {"fps": 10}}, ["constraints.fps: '10' is not a condition", "'>= 10'"]),
        ({"constraints": {"fps": "> 10"}}, ["constraints.fps: '> 10'", "'>= 10'"]),
        ({"constraints": {"fps": ">= 1.2.3"}}, ["constraints.fps: '>= 1.2.3'", "'>= 10'"]),
        ({"constraints": {"fps": ">= ."}}, ["constraints.fps: '>= .'"]),
        ({"constraints": {"fps": ">= nan"}}, ["constraints.fps: '>= nan'"]),
        ({"sampler": {"name": "hill"}}, ["sampler.name: 'hill'", "'tpe'", "'grid'"]),
        ({"sampler": {"seed": -1}}, ["sampler.seed: -1", "greater than or equal to 0"]),
        ({"sampler": {"startup": 0}}, ["sampler.startup: 0"]),
        ({"budget": {"trials": 0}}, ["budget.trials: 0", "greater than or equal to 1"]),
        ({"budget": {"trials": 2.5}}, ["budget.trials: 2.5", "integer"]),
        ({"budget": {"stagnation": 0}}, ["budget.stagnation: 0"]),
        ({"execution": {"attempts": 11}}, ["execution.attempts: 11", "10"]),
        ({"execution": {"feature_store_gb": 0}}, ["execution.feature_store_gb: 0"]),
        ({"threshold": {"rule": "best"}}, ["threshold.rule: 'best'", "'f1_max'"]),
        ({"threshold": {"rate": 1}}, ["threshold.rate: 1", "less than 1"]),
        ({"baselines": [3]}, ["baselines.0: 3"]),
        ({"baselines": {"n_features": 3}}, ["baselines: {'n_features': 3}", "list"]),
    ],
)
def test_wrong_values_are_named_with_what_is_valid(changes, words):
    message = refused(**changes)
    for word in words:
        assert word in message


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


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([8], "8 is not a list of strides"),
        (["8+16"], "'8+16' is not a list of strides"),
        ([[16, 8]], "distinct ascending strides out of 4, 8, 16, 32"),
        ([[8, 8]], "distinct ascending strides"),
        ([[2, 8]], "distinct ascending strides"),
    ],
)
def test_impossible_layers(layers, words):
    message = refused(search={"layers": {"choices": layers}}, fixed={"backbone": BACKBONE})
    assert "search.layers.choices: layers" in message
    assert words in message


def test_backbone_and_layers_have_no_range():
    message = refused(search={"layers": {"int": [4, 32]}}, fixed={"backbone": BACKBONE})
    assert "search.layers: give choices" in message


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("resnet81", "unknown backbone 'resnet81'; did you mean"),
        ("resnet18@pretrained", "after @ only 'random' or 'random:SEED' is known"),
        ("resnet18@random:x", "after @ only"),
        (18, "18 is not a name"),
    ],
)
def test_impossible_backbones(backbone, words):
    message = refused(fixed={"backbone": backbone})
    assert "fixed.backbone: " in message
    assert words in message
    assert words in refused(fixed={}, search={"backbone": {"choices": [backbone]}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fixed": {"backbone": BACKBONE, "n_features": 5}}, "n_features is both searched and fixed"),
        ({"fixed": {}}, "no backbone: give search.backbone or fixed.backbone"),
        ({"fixed": {}, "baselines": [{"backbone": BACKBONE}]}, "no backbone"),
        ({"fixed": {}, "search": {}, "baselines": [{"backbone": BACKBONE}, {"n_features": 5}]}, "no backbone"),
        ({"search": {}}, "nothing to try: give a search, or baselines"),
        ({"protocol": "paper"}, "protocol paper scores the whole test set, so nothing may be searched on it"),
        ({"baselines": [{"n_features": 3}]}, "baselines.0: n_features: 3 is outside the range [4, 40]"),
        ({"baselines": [{"n_features": 5}, {"shrinkage": 0.9}]}, "baselines.1: shrinkage: 0.9 is outside the range"),
        ({"baselines": [{"shrinkage": "x"}]}, "baselines.0: shrinkage: 'x' is not a number"),
        (
            {"search": {"n_features": {"choices": [4, 8]}}, "baselines": [{"n_features": 5}]},
            "baselines.0: n_features: 5 is not among the choices [4, 8]",
        ),
        ({"fixed": {"backbone": BACKBONE, "smoothing_sigma": 99}}, "fixed.smoothing_sigma: smoothing_sigma: 99"),
        ({"fixed": {"backbone": BACKBONE, "layers": [16, 8]}}, "fixed.layers: layers: [16, 8]"),
    ],
)
def test_contradictions(changes, words):
    assert words in refused(**changes)


@pytest.mark.parametrize("raw", [None, 3, "padim", ["padim"]])
def test_a_study_file_is_a_mapping(raw):
    with pytest.raises(InputError, match=r"^x\.yaml: a study file is a mapping with name, detector"):
        validate(raw, source="x.yaml")


def test_a_huge_value_is_shown_in_short():
    assert len(refused(budget={"trials": ["x" * 10_000] * 100})) < 300


def test_sections_cannot_be_changed():
    config = check()
    with pytest.raises(ValueError, match="frozen"):
        config.budget.trials = 5


def test_bounds_belong_to_a_range():
    assert Dimension(int=(4, 9)).bounds == (4, 9)
    assert Dimension(float=(0.0, 0.5)).bounds == (0.0, 0.5)
    with pytest.raises(ValueError, match="no bounds"):
        _ = Dimension(choices=[1]).bounds


# --- overrides


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


def test_overrides_are_validated_like_the_file(tmp_path):
    path = write(tmp_path)
    assert load(str(path), ["budget.trials=9"]).budget.trials == 9
    with pytest.raises(InputError, match=r"mine\.yaml with --set: unknown key 'budget\.trails'; did you mean trials\?"):
        load(str(path), ["budget.trails=9"])


def test_an_override_of_something_that_is_no_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="is a mapping"):
        load(str(path), ["name=a"])


# --- find


def test_a_folder_configs_here_wins_over_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "padim_screw", budget={"trials": 2})
    write(tmp_path / "configs", "own_study")
    assert load("padim_screw").budget.trials == 2
    assert {"own_study", "padim_carpet"} <= set(config_names())
    assert config_names() == sorted(set(config_names()))


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_path_is_taken_as_it_is(tmp_path, suffix):
    path = write(tmp_path).rename(tmp_path / f"mine{suffix}")
    assert find(str(path)) == path
    assert load(str(path)).name == "mine"


def test_no_such_path(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such study file"):
        find(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="no such study file"):
        find(str(tmp_path))


def test_no_such_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find("padim_srew")
    message = str(caught.value)
    for word in ("no study 'padim_srew'", "did you mean padim_screw?", "padim_carpet", ".yaml file"):
        assert word in message
    assert "\n" not in message


def test_no_studies_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "packaged_configs", lambda: tmp_path / "nothing")
    with pytest.raises(InputError, match="known: none"):
        find("padim_screw")


# --- demo


def test_the_demo_is_the_search_itself_on_rendered_images(tmp_path):
    path = write(
        tmp_path,
        search={"backbone": {"choices": ["resnet18", BUNDLED]}, "n_features": {"int": [4, 40]}},
        fixed={"smoothing_sigma": 3.0},
        constraints={"fps": ">= 5"},
        baselines=[
            {"backbone": "resnet18", "n_features": 9},
            {"backbone": BUNDLED, "n_features": 8},
            {"n_features": 7},
        ],
        budget={"trials": 400, "timeout": "9h"},
        protocol="synthetic",
    )
    demo = load_demo(str(path))
    assert demo.name == "mine-demo"
    assert (demo.data.dataset, demo.data.category, demo.data.root) == ("rendered", "screw", None)
    assert demo.protocol == "holdout"
    assert demo.search["n_features"] == load(str(path)).search["n_features"]
    assert demo.backbones == [BUNDLED]
    assert demo.baselines == [{"backbone": BUNDLED, "n_features": 8}, {"n_features": 7}]
    assert (demo.budget.trials, demo.budget.timeout) == (DEMO_TRIALS, None)
    assert demo.fixed == {"smoothing_sigma": 3.0}
    assert demo.constraints == {"fps": ">= 5"}


def test_the_demo_of_a_fixed_backbone_and_of_baselines_alone(tmp_path):
    assert load_demo(str(write(tmp_path, "fixed"))).backbones == [BUNDLED]
    paper = write(tmp_path, "paper", protocol="paper", search={}, baselines=[{"n_features": 9}])
    assert load_demo(str(paper)).backbones == [BUNDLED]


def test_the_demo_keeps_pixels_where_a_detector_learns_from_them(tmp_path):
    search = {
        "backbone": {"choices": ["resnet18", BUNDLED]},
        "patchcore": {"backbone": {"choices": ["pixels"]}, "layers": {"choices": [[4], [2]]}},
    }
    several = write(tmp_path, "several", detector=["padim", "patchcore"], search=search, fixed={})
    demo = load_demo(str(several))
    assert demo.for_detector("padim").backbones == [BUNDLED]
    assert demo.for_detector("patchcore").backbones == [PIXELS]
    fixed = {"backbone": PIXELS, "layers": [4]}
    assert load_demo(str(write(tmp_path, "alone", fixed=fixed))).fixed == fixed


def test_the_demo_takes_overrides(tmp_path):
    path = write(tmp_path)
    assert load_demo(str(path), ["budget.trials=2", "data.image_size=64"]).budget.trials == 2
    with pytest.raises(InputError, match="with --demo: unknown key"):
        load_demo(str(path), ["budget.trails=2"])


@pytest.mark.parametrize("changes", [{"baselines": [5]}, {"search": [1]}, {"fixed": [1]}, {"baselines": 5}])
def test_the_demo_of_a_wrong_file_names_the_file(tmp_path, changes):
    (key,) = changes
    with pytest.raises(InputError, match=rf"mine\.yaml: {key}"):
        load_demo(str(write(tmp_path, **changes)))


def test_the_demo_of_something_that_is_no_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InputError, match=r"list\.yaml: a study file is a mapping"):
        load_demo(str(path))
