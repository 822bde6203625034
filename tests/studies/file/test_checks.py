"""Checks across the sections of a study file, and against the parameters of its detector."""

from __future__ import annotations

import pytest

from tests.helpers.builders import BACKBONE
from tests.helpers.study_files import check, refused


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


# --- pruners


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pruner": {"name": "median"}, "objectives": {"image_auroc": "maximize", "fps": "maximize"}},
            "pruner median needs a single objective",
        ),
        ({"pruner": {"name": "hyperband"}, "data": {"category": ["a", "b"]}}, "pruner hyperband compares epochs"),
        ({"pruner": {"name": "wilcoxon"}}, "needs a study over at least 5 products"),
        ({"pruner": {"name": "wilcoxon"}, "data": {"category": list("abcd")}}, "at least 5 products"),
    ],
)
def test_a_pruner_compares_what_it_is_made_for(changes, words):
    assert words in refused(**changes)


def test_pruners_over_several_products():
    assert check(pruner={"name": "wilcoxon"}, data={"category": list("abcde")}).pruner.name == "wilcoxon"
    assert check(pruner={"name": "wilcoxon"}, data={"category": "all"}).pruner.name == "wilcoxon"
    assert check(pruner={"name": "median"}, data={"category": list("ab")}).pruner.name == "median"


def test_a_grid_is_finite():
    message = refused(sampler={"name": "grid"})
    assert "search.shrinkage: sampler grid needs choices, an int range or a float range with a step" in message
    finite = {"n_features": {"int": [4, 40]}, "shrinkage": {"float": [0.0, 0.5], "step": 0.25}}
    assert check(sampler={"name": "grid"}, search=finite).sampler.name == "grid"


# --- whose a parameter is, in a study over several detectors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"n_features": {"int": [4, 9]}}}, "search.n_features: not a parameter of every detector; give it under"),
        ({"search": {"n_features": {"int": [4, 9]}}}, "(search.padim.n_features). For all of them: backbone, layers,"),
        ({"search": {"cflow.epochs": {"int": [4, 9]}}}, "search.cflow.epochs: this study is over padim, spade"),
        ({"fixed": {"padim.layers@resnet18": [8]}}, "fixed.padim.layers@resnet18: a parameter is given for all"),
        ({"search": {".layers": {"choices": [[8]]}}}, "search..layers: "),
        ({"search": {"padim": {"a.b": {"int": [1, 2]}}}}, "search.padim: 'a.b' is not the name of a parameter"),
        ({"search": {}, "baselines": []}, "nothing to try: give a search, or baselines"),
        ({"search": {"padim": {"n_features": {"int": [0, 9]}}}}, "padim: search.n_features: n_features: 0 is out of range"),
        ({"search": {"padim": {"n_feature": {"int": [1, 9]}}}}, "padim: search.n_feature: unknown parameter of padim"),
    ],
)  # fmt: skip
def test_whose_a_parameter_is(changes, words):
    search, fixed = {"layers": {"choices": [[8], [16]]}}, {"backbone": BACKBONE}
    assert words in refused(**{"detector": ["padim", "spade"], "search": search, "fixed": fixed} | changes)
