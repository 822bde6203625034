"""What is printed of a wrong study file: the key, its value, and what would be valid."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from detectors.errors import InputError
from studies.file.config import validate
from studies.file.messages import check_name, did_you_mean, first_problem, located
from studies.file.sections import DataConfig
from tests.helpers.builders import BACKBONE
from tests.helpers.study_files import refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"detectr": "padim"},
            ["unknown key 'detectr'", "did you mean detector?", "known here: advice, baselines, budget"],
        ),
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


@pytest.mark.parametrize("raw", [None, 3, "padim", ["padim"]])
def test_a_study_file_is_a_mapping(raw):
    with pytest.raises(InputError, match=r"^x\.yaml: a study file is a mapping with name, detector"):
        validate(raw, source="x.yaml")


def test_a_huge_value_is_shown_in_short():
    assert len(refused(budget={"trials": ["x" * 10_000] * 100})) < 300


def test_a_similar_name_is_offered():
    assert did_you_mean("padin", ["padim", "spade"]) == "did you mean padim? "
    assert did_you_mean("xyz", ["padim", "spade"]) == ""
    check_name("padim", ["padim"], "detector")
    with pytest.raises(InputError, match=r"^unknown detector 'padin'; did you mean padim\? known: padim, spade$"):
        check_name("padin", ["padim", "spade"], "detector")


def test_the_place_stands_ahead_of_what_is_wrong():
    with pytest.raises(ValueError, match=r"^search: n_features: too many$"), located("search"), located("n_features"):
        raise ValueError("too many")
    with pytest.raises(KeyError), located("search"):
        raise KeyError("a mistake of the program keeps its own words")


def test_keys_are_those_of_the_model_that_was_validated():
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"categry": "a"})
    message = first_problem(caught.value, DataConfig)
    assert message == ("unknown key 'categry'; did you mean category? known here: category, dataset, image_size, root")
