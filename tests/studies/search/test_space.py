"""Search space -> suggestions, with Optuna itself."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from detectors import catalog
from detectors.backbones.architecture import channels_by_layer
from detectors.backbones.bundled import SMALLEST
from detectors.errors import InputError
from studies.file.config import validate
from studies.file.encoding import canonical, decode_layers, encode
from studies.file.overrides import parse_idea
from studies.search.space import SearchSpace, describe_dimension
from tests.helpers.builders import BACKBONE, raw_config

WITHOUT_4 = "visformer_tiny@random"
"""Offers strides 8, 16 and 32 only."""


def make_space(backbones=None, **changes) -> SearchSpace:
    config = validate(raw_config(Path("images"), **changes), source="tiny.yaml")
    return SearchSpace(config, backbones=config.backbones if backbones is None else backbones)


def make_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=RandomSampler(seed=seed), direction="maximize")


def suggested(space: SearchSpace, count: int = 30) -> list[tuple[dict, optuna.Trial]]:
    study = make_study()
    return [(space.suggest(trial), trial) for trial in (study.ask() for _ in range(count))]


TWO = {
    "search": {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8, 16], [16, 32], [4, 8, 16]]},
        "n_features": {"int": [50, 550], "log": True},
    },
    "fixed": {},
}


# --- what is suggested


def test_a_size_is_part_of_a_setting_where_it_is_searched_fixed_or_given():
    sizes = {"image_size": {"choices": [64, [64, 96]]}, "n_features": {"int": [4, 40]}}
    searched = make_space(search=sizes, baselines=[{"image_size": [64, 96]}])
    assert {params["image_size"] for params, _ in suggested(searched)} == {64, "64x96"}
    assert searched.no_numbers == ["image_size"]
    assert ("image_size", "64, 64x96") in searched.describe()
    assert searched.optuna_params({"image_size": "64x96"}) == ({"image_size": "64x96"}, {})
    with pytest.raises(InputError, match="is not among the choices"):
        searched.optuna_params({"image_size": 96})
    fixed = make_space(fixed={"backbone": BACKBONE, "layers": [8], "image_size": 96})
    assert {params["image_size"] for params, _ in suggested(fixed)} == {96}
    assert ("image_size", "96 (fixed)") in fixed.describe()
    given = make_space()
    assert given.suggest(make_study().ask(), {"image_size": 48})["image_size"] == 48
    assert "image_size" not in given.suggest(make_study().ask())
    grid = make_space(
        search={"image_size": {"choices": [64, 96]}, "n_features": {"int": [4, 5]}}, sampler={"name": "grid"}
    )
    assert len(list(grid.grid())) == 4


def test_a_suggestion_is_the_full_setting():
    for params, trial in suggested(make_space()):
        assert set(params) == {"backbone", "layers", *catalog.parameters("padim")}
        assert (params["backbone"], params["layers"], params["smoothing_sigma"]) == (BACKBONE, [8, 16], 2.0)
        assert params["regularization"] == 0.01
        assert 4 <= params["n_features"] <= 40
        assert 0 <= params["shrinkage"] <= 0.5
        assert set(trial.params) == {"n_features", "shrinkage"}
        assert json.loads(json.dumps(params)) == params


def test_the_bound_of_n_features_follows_backbone_and_layers():
    seen = set()
    for params, trial in suggested(make_space(**TWO), 60):
        channels = sum(channels_by_layer(params["backbone"])[stride] for stride in params["layers"])
        drawn = trial.distributions["n_features"]
        assert drawn == IntDistribution(50, min(550, channels), log=True)
        assert 50 <= params["n_features"] <= min(550, channels)
        seen.add((params["backbone"], tuple(params["layers"])))
    assert len(seen) == 6


def test_where_the_range_lies_above_the_channels_these_are_the_value():
    space = make_space(search={"n_features": {"int": [500, 600]}}, fixed={"backbone": BACKBONE, "layers": [4]})
    assert {params["n_features"] for params, _ in suggested(space, 5)} == {64}


def test_a_fixed_value_and_the_default_are_cut_to_the_channels():
    fixed = {"backbone": BACKBONE, "layers": [4]}
    search = {"shrinkage": {"float": [0, 0.5]}}
    assert suggested(make_space(search=search, fixed=fixed), 1)[0][0]["n_features"] == 64  # the default is 100
    assert suggested(make_space(search=search, fixed=fixed | {"n_features": 65}), 1)[0][0]["n_features"] == 64
    assert suggested(make_space(search=search, fixed=fixed | {"n_features": 63}), 1)[0][0]["n_features"] == 63


def test_kinds_of_dimensions():
    space = make_space(
        search={
            "n_features": {"int": [10, 30], "step": 10},
            "regularization": {"float": [1e-4, 1e-1], "log": True},
            "shrinkage": {"float": [0, 0.5], "step": 0.25},
            "smoothing_sigma": {"choices": [1, 2.5]},
        },
        fixed={"backbone": BACKBONE},
    )
    drawn = suggested(space, 40)
    assert drawn[0][1].distributions == {
        "n_features": IntDistribution(10, 30, step=10),
        "regularization": FloatDistribution(1e-4, 1e-1, log=True),
        "shrinkage": FloatDistribution(0.0, 0.5, step=0.25),
        "smoothing_sigma": CategoricalDistribution((1, 2.5)),
    }
    assert {params["n_features"] for params, _ in drawn} == {10, 20, 30}
    assert {params["shrinkage"] for params, _ in drawn} == {0.0, 0.25, 0.5}
    assert {params["smoothing_sigma"] for params, _ in drawn} == {1.0, 2.5}
    assert all(isinstance(params["smoothing_sigma"], float) for params, _ in drawn)
    assert all(isinstance(params["n_features"], int) for params, _ in drawn)


def test_only_backbones_with_weights_are_suggested():
    space = make_space([SMALLEST], **TWO)
    assert {params["backbone"] for params, _ in suggested(space, 10)} == {SMALLEST}
    assert space.backbones == (SMALLEST,)


# --- layers


def test_backbones_with_the_same_choice_of_layers_share_one_name():
    for params, trial in suggested(make_space(**TWO), 10):
        assert trial.params["layers"] == encode(params["layers"])
        assert set(trial.params) == {"backbone", "layers", "n_features"}


def test_a_backbone_with_fewer_layers_has_a_name_of_its_own():
    space = make_space(
        search={
            "backbone": {"choices": [BACKBONE, WITHOUT_4]},
            "layers": {"choices": [[8, 16], [4, 8], [16, 32]]},
        },
        fixed={},
    )
    drawn = suggested(space, 40)
    for params, trial in drawn:
        own = params["backbone"] == WITHOUT_4
        name = f"layers@{WITHOUT_4}" if own else "layers"
        assert set(trial.params) == {"backbone", name}
        choices = ("8+16", "16+32") if own else ("8+16", "4+8", "16+32")
        assert trial.distributions[name] == CategoricalDistribution(choices)
        assert params["layers"] == decode_layers(trial.params[name])
    assert {params["backbone"] for params, _ in drawn} == {BACKBONE, WITHOUT_4}


def test_tpe_goes_on_over_conditional_names_and_moving_bounds():
    space = make_space(
        search={
            "backbone": {"choices": [BACKBONE, WITHOUT_4]},
            "layers": {"choices": [[4], [8, 16], [16, 32]]},
            "n_features": {"int": [4, 900], "log": True},
        },
        fixed={},
    )
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4, constant_liar=True), direction="maximize"
    )
    for number in range(12):
        trial = study.ask()
        params = space.suggest(trial)
        assert params["n_features"] <= sum(channels_by_layer(params["backbone"])[s] for s in params["layers"])
        study.tell(trial, number / 12)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 12


def test_strides_are_all_that_some_trial_may_ask_for():
    layers = {"choices": [[8, 16], [4, 8]]}
    space = make_space(
        search={"backbone": {"choices": [BACKBONE, WITHOUT_4]}, "layers": layers},
        fixed={},
    )
    assert space.strides(BACKBONE) == [4, 8, 16]
    assert space.strides(WITHOUT_4) == [8, 16]


def test_strides_of_baselines_count_where_the_backbone_offers_them():
    space = make_space(baselines=[{"layers": [4, 32]}])
    assert space.strides(BACKBONE) == [4, 8, 16, 32]
    assert make_space(fixed={"backbone": BACKBONE}).strides(BACKBONE) == [8, 16]


# --- baselines


def enqueued(space: SearchSpace, baseline: dict, *, seed: int = 0) -> dict:
    """The setting that a baseline ends as, by way of Optuna's queue."""
    study = make_study(seed)
    searched, overrides = space.optuna_params(baseline)
    study.enqueue_trial(params=searched, user_attrs={"overrides": overrides})
    trial = study.ask()
    return space.suggest(trial, trial.user_attrs["overrides"])


def test_a_baseline_is_tried_as_it_was_written():
    baseline = {"backbone": SMALLEST, "layers": [4, 8, 16], "n_features": 100, "regularization": 0.5, "shrinkage": 0.25}
    space = make_space(**TWO | {"baselines": [baseline]})
    assert space.optuna_params(baseline) == (
        {"backbone": SMALLEST, "layers": "4+8+16", "n_features": 100},
        {"regularization": 0.5, "shrinkage": 0.25},
    )
    for seed in range(3):
        assert enqueued(space, baseline, seed=seed).items() >= baseline.items()


def test_a_baseline_wins_over_what_is_fixed():
    space = make_space(baselines=[{"smoothing_sigma": 7.0, "layers": [4], "n_features": 9}])
    assert enqueued(space, space.config.baselines[0])["smoothing_sigma"] == 7.0
    assert enqueued(space, space.config.baselines[0])["layers"] == [4]


def test_what_a_baseline_leaves_out_is_searched():
    space = make_space(**TWO | {"baselines": [{"layers": [16, 32]}]})
    found = [enqueued(space, space.config.baselines[0], seed=seed) for seed in range(12)]
    assert all(params["layers"] == [16, 32] for params in found)
    assert {params["backbone"] for params in found} == {BACKBONE, SMALLEST}


def test_layers_of_a_baseline_go_to_whatever_backbone_is_drawn():
    baseline = {"layers": [8, 16]}
    space = make_space(
        search={"backbone": {"choices": [BACKBONE, WITHOUT_4]}, "layers": {"choices": [[8, 16], [4, 8], [8, 32]]}},
        fixed={},
        baselines=[baseline],
    )
    assert space.optuna_params(baseline)[0] == {"layers": "8+16", f"layers@{WITHOUT_4}": "8+16"}
    found = [enqueued(space, baseline, seed=seed) for seed in range(12)]
    assert all(params["layers"] == [8, 16] for params in found)
    assert {params["backbone"] for params in found} == {BACKBONE, WITHOUT_4}


def test_layers_that_only_one_backbone_offers():
    baseline = {"layers": [4, 8]}
    space = make_space(
        search={"backbone": {"choices": [BACKBONE, WITHOUT_4]}, "layers": {"choices": [[8, 16], [4, 8]]}},
        fixed={},
        baselines=[baseline],
    )
    for seed in range(12):
        params = enqueued(space, baseline, seed=seed)
        assert params["layers"] == ([8, 16] if params["backbone"] == WITHOUT_4 else [4, 8])


@pytest.mark.parametrize(
    "changes",
    [
        {"fixed": {"backbone": WITHOUT_4}, "baselines": [{"layers": [4, 8]}]},
        {
            "search": {"backbone": {"choices": [BACKBONE, WITHOUT_4]}, "layers": {"choices": [[8, 16], [4, 8]]}},
            "fixed": {},
            "baselines": [{"backbone": WITHOUT_4, "layers": [4, 8]}],
        },
    ],
)
def test_a_baseline_that_cannot_be_run_is_refused_before_anything_runs(changes):
    with pytest.raises(InputError, match=r"visformer_tiny@random offers the layers \[8, 16, 32\]") as caught:
        make_space(**changes)
    assert str(caught.value).startswith("baseline {")


# --- what backbone and layers cut

OF_PATCHCORE = {
    "detector": "patchcore",
    "search": {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8], [8, 16]]},
        "projection": {"choices": [64, 128, 256]},
        "coreset_ratio": {"float": [0.01, 0.1], "log": True},
    },
    "fixed": {},
}
"""The bundled backbone has 40 channels at stride 8: less than each projection."""


@pytest.mark.parametrize(
    ("changes", "setting", "cut"),
    [
        (TWO, {"backbone": SMALLEST, "layers": [8, 16], "n_features": 153}, {"n_features": 152}),
        (OF_PATCHCORE, {"backbone": SMALLEST, "layers": [8], "projection": 64}, {"projection": 40}),
        (OF_PATCHCORE, {"backbone": SMALLEST, "layers": [8, 16], "projection": 128}, {}),
        # What lies outside of the search, and is a baseline's alone.
        ({"search": {"shrinkage": {"float": [0, 0.5]}}}, {"n_features": 385}, {"n_features": 384}),
        # A range with steps is cut to one of them.
        (
            {
                "search": {"n_features": {"int": [10, 100], "step": 10}},
                "fixed": {"backbone": BACKBONE, "layers": [4]},
            },
            {"n_features": 90},
            {"n_features": 60},
        ),
        # A range above the channels has these as its only value.
        (
            {"search": {"n_features": {"int": [500, 600]}}, "fixed": {"backbone": BACKBONE, "layers": [4]}},
            {"n_features": 512},
            {"n_features": 64},
        ),
    ],
)
def test_what_backbone_and_layers_do_not_allow_is_cut_as_in_the_search(changes, setting, cut, recwarn):
    space = make_space(**changes | {"baselines": [setting]})
    assert enqueued(space, setting).items() >= {**setting, **cut}.items()
    assert space.bounded(setting) == cut
    assert not [warning for warning in recwarn if "out of range" in str(warning.message)]


def test_a_value_whose_bound_is_drawn_later_is_cut_then(recwarn):
    setting = {"n_features": 400}
    space = make_space(**TWO | {"baselines": [setting]})
    assert space.bounded(setting) == {}
    found = [enqueued(space, setting, seed=seed) for seed in range(12)]
    for params in found:
        channels = sum(channels_by_layer(params["backbone"])[stride] for stride in params["layers"])
        assert params["n_features"] == min(400, channels)
    assert len({params["n_features"] for params in found}) > 1
    assert not [warning for warning in recwarn if "out of range" in str(warning.message)]


@pytest.mark.parametrize(
    "changes",
    [
        TWO,
        OF_PATCHCORE,
        {"search": {"n_features": {"int": [500, 600]}}, "fixed": {"backbone": BACKBONE, "layers": [4]}},
        {
            "search": {"n_features": {"choices": [50, 100, 500]}, "layers": {"choices": [[4], [8]]}},
            "fixed": {"backbone": SMALLEST},
        },
        {
            "search": {
                "backbone": {"choices": [BACKBONE, WITHOUT_4]},
                "layers": {"choices": [[4], [8, 16], [16, 32]]},
                "n_features": {"int": [4, 900], "log": True},
            },
            "fixed": {"smoothing_sigma": 3.0},
        },
    ],
)
def test_whatever_is_suggested_may_be_tried_again_as_a_persons_setting(changes):
    space = make_space(**changes)
    for params, _ in suggested(space, 25):
        channels = sum(channels_by_layer(params["backbone"])[stride] for stride in params["layers"])
        assert params.get("n_features", 0) <= channels
        assert params.get("projection", 0) <= channels
        text = ",".join(f"{name}={encode(value)}" for name, value in params.items())
        for idea in (parse_idea(params, space.config), parse_idea(text, space.config)):
            assert enqueued(space, idea, seed=7) == params


@pytest.mark.parametrize(
    ("idea", "words"),
    [
        ({"backbone": SMALLEST, "layers": [8], "projection": 50}, "projection: 50 is not among the choices"),
        ({"projection": 40}, "projection: 40 is not among the choices"),
        ({"backbone": SMALLEST, "layers": [8, 16], "projection": 40}, "projection: 40 is not among the choices"),
    ],
)
def test_what_the_search_does_not_reach_even_when_cut_is_refused(idea, words):
    with pytest.raises(InputError, match=words):
        parse_idea(idea, make_space(**OF_PATCHCORE).config)


def test_a_grid_has_each_setting_that_is_cut_once():
    finite = {name: one for name, one in OF_PATCHCORE["search"].items() if name != "coreset_ratio"}
    space = make_space([SMALLEST], **OF_PATCHCORE | {"search": finite})
    settings = list(space.grid())
    tried = [enqueued(space, setting) for setting in settings]
    assert [(params["layers"], params["projection"]) for params in tried] == [
        ([8], 40),
        ([8, 16], 64),
        ([8, 16], 128),
        ([8, 16], 152),
    ]


def test_a_baseline_of_a_backbone_without_weights_is_not_judged():
    baselines = [{"backbone": SMALLEST, "layers": [8, 16], "n_features": 153}]
    assert make_space([BACKBONE], **TWO | {"baselines": baselines}).backbones == (BACKBONE,)


# --- impossible spaces


def test_no_backbone_is_left():
    with pytest.raises(InputError, match=r"no backbone of search\.backbone has weights on this machine"):
        make_space([], **TWO)


def test_the_fixed_backbone_is_not_there():
    with pytest.raises(InputError, match=rf"no weights on this machine for fixed\.backbone {BACKBONE}"):
        make_space([SMALLEST])


def test_a_backbone_that_offers_none_of_the_layers():
    with pytest.raises(InputError, match=r"offers strides \[8, 16, 32\]: none of the layers in the study file"):
        make_space(fixed={"backbone": WITHOUT_4, "layers": [4, 8]})


# --- taking a trial up again


def test_an_adopted_trial_keeps_what_it_holds_and_gets_the_rest():
    space = make_space(**TWO)
    study = make_study()
    begun = study.ask()
    backbone = begun.suggest_categorical("backbone", [BACKBONE, SMALLEST])
    layers = begun.suggest_categorical("layers", ["8+16", "16+32", "4+8+16"])
    adopted = optuna.trial.Trial(study, begun._trial_id)
    params = space.suggest(adopted)
    assert (params["backbone"], encode(params["layers"])) == (backbone, layers)
    assert params["n_features"] == study.trials[0].params["n_features"]
    assert set(study.trials[0].params) == {"backbone", "layers", "n_features"}


def test_an_adopted_trial_that_was_complete_gives_the_same_setting():
    space = make_space(**TWO)
    study = make_study()
    trial = study.ask()
    first = space.suggest(trial)
    again = space.suggest(optuna.trial.Trial(study, trial._trial_id))
    assert again == first
    study.tell(trial, 0.5)


def test_an_adopted_baseline_keeps_its_values():
    baseline = {"backbone": SMALLEST, "layers": [16, 32], "n_features": 77, "regularization": 0.5}
    space = make_space(**TWO | {"baselines": [baseline]})
    study = make_study()
    searched, overrides = space.optuna_params(baseline)
    study.enqueue_trial(params=searched, user_attrs={"overrides": overrides})
    number = study.ask()._trial_id
    adopted = optuna.trial.Trial(study, number)
    assert space.suggest(adopted, adopted.user_attrs["overrides"]).items() >= baseline.items()


# --- words for people


def test_describe():
    rows = dict(make_space([SMALLEST], **TWO).describe())
    assert list(rows) == ["backbone", "layers", *catalog.parameters("padim")]
    assert (
        rows.items()
        >= {
            "backbone": SMALLEST,
            "layers": "8+16, 16+32, 4+8+16",
            "n_features": "50 .. 550 (log)",
            "regularization": "0.01 (fixed)",
            "shrinkage": "0.0 (fixed)",
            "smoothing_sigma": "4.0 (fixed)",
        }.items()
    )


def test_describe_what_is_fixed_and_what_baselines_bring():
    rows = dict(make_space(search={}, fixed={"layers": [4, 8]}, baselines=[{"backbone": BACKBONE}]).describe())
    assert rows["backbone"] == "by baseline"
    assert rows["layers"] == "4+8 (fixed)"


def test_describe_dimension():
    config = validate(
        raw_config(
            Path("images"),
            search={"n_features": {"int": [10, 30], "step": 10}, "shrinkage": {"float": [0, 0.5]}},
            fixed={"backbone": BACKBONE},
        ),
        source="tiny.yaml",
    )
    assert describe_dimension(config.search["n_features"]) == "10 .. 30 (step 10)"
    assert describe_dimension(config.search["shrinkage"]) == "0 .. 0.5"


@given(st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, unique=True))
def test_layers_survive_their_text(strides):
    assert decode_layers(encode(strides)) == strides


@given(st.permutations(["backbone", "layers", "n_features"]))
@settings(max_examples=6)
def test_one_text_for_one_setting(order):
    values = {"backbone": BACKBONE, "layers": [8, 16], "n_features": 5}
    assert canonical({name: values[name] for name in order}) == canonical(values)
    assert canonical(values) != canonical(values | {"n_features": 6})


def test_a_setting_with_a_backbone_without_weights_is_refused():
    space = make_space([SMALLEST], **TWO)
    with pytest.raises(InputError, match=f"no weights on this machine for {BACKBONE}"):
        space.optuna_params({"backbone": BACKBONE, "layers": [8, 16]})


# --- several detectors


BOTH = {
    "detector": ["padim", "patchcore"],
    "search": {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8, 16], [16, 32]]},
        "padim": {"n_features": {"int": [50, 550], "log": True}, "neighbourhood": {"int": [0, 2]}},
        "patchcore": {"layers": {"choices": [[8], [8, 16]]}, "coreset_ratio": {"float": [0.001, 0.1], "log": True}},
    },
    "fixed": {"smoothing_sigma": 2.0, "patchcore": {"projection": 64}},
    "baselines": [
        {"detector": "padim", "backbone": SMALLEST, "layers": [16, 32], "n_features": 100},
        {"detector": "patchcore", "backbone": SMALLEST, "layers": [8], "coreset_ratio": 0.01},
    ],
}


def test_each_trial_draws_a_detector_and_its_own_settings():
    seen = set()
    for params, trial in suggested(make_space(**BOTH), 40):
        name = params["detector"]
        assert set(params) == {"detector", "backbone", "layers", *catalog.parameters(name)}
        assert trial.params["detector"] == name
        assert all(parameter.partition(".")[0] == name for parameter in trial.params if "." in parameter)
        if name == "patchcore":
            assert params["layers"] in ([8], [8, 16])
            assert params["projection"] == min(
                64, sum(channels_by_layer(params["backbone"])[s] for s in params["layers"])
            )
            assert {"patchcore.layers", "patchcore.coreset_ratio"} <= set(trial.params)
        else:
            assert params["layers"] in ([8, 16], [16, 32])
            assert {"layers", "padim.n_features"} <= set(trial.params)
        assert params["smoothing_sigma"] == 2.0
        seen.add((name, params["backbone"], tuple(params["layers"])))
    assert len(seen) == 8


def test_baselines_of_several_detectors_can_be_enqueued():
    space, study = make_space(**BOTH), make_study()
    for baseline in space.config.baselines:
        searched, overrides = space.optuna_params(baseline)
        study.enqueue_trial(searched)
        params = space.suggest(study.ask(), overrides)
        assert {name: params[name] for name in baseline} == baseline


def test_baselines_alone_name_their_detector_outside_optuna():
    space = make_space(**BOTH | {"search": {}, "fixed": {}})
    for baseline in space.config.baselines:
        searched, overrides = space.optuna_params(baseline)
        assert searched == {}
        params = space.suggest(make_study().ask(), overrides)
        assert {name: params[name] for name in baseline} == baseline


def test_strides_of_several_detectors_are_those_of_all():
    assert make_space(**BOTH).strides(SMALLEST) == [8, 16, 32]


def test_several_detectors_are_described_each():
    rows = dict(make_space(**BOTH).describe())
    assert rows["detector"] == "padim, patchcore"
    assert rows["padim.layers"] == "8+16, 16+32"
    assert rows["patchcore.layers"] == "8, 8+16"
    assert rows["patchcore.projection"] == "64 (fixed)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"search": {**BOTH["search"], "n_features": {"int": [5, 9]}}},
            ["search.n_features", "search.padim.n_features"],
        ),
        ({"search": {**BOTH["search"], "padim": {"coreset_ratio": {"float": [0.1, 0.2]}}}}, ["coreset_ratio", "padim"]),
        ({"fixed": {"padim": {"n_features": 4}}}, ["padim", "n_features is both searched and fixed"]),
        ({"fixed": {"cflow.epochs": 4}}, ["fixed.cflow.epochs", "padim, patchcore"]),
        ({"baselines": [{"n_features": 4}]}, ["baselines.0", "which detector"]),
        ({"search": {"padim": {"n_features": {"int": [5, 9]}}}, "baselines": []}, ["no backbone"]),
        ({"detector": ["padim", "padmi"], "search": TWO["search"], "fixed": {}}, ["padmi", "did you mean padim?"]),
    ],
)
def test_what_belongs_to_which_detector_is_told(changes, words):
    with pytest.raises(InputError) as caught:
        make_space(**BOTH | changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_over_several_detectors_survives_its_plain_form():
    config = make_space(**BOTH).config
    again = validate(json.loads(json.dumps(config.to_json())), source="again")
    assert again == config
    assert config.for_detector("patchcore").search["layers"].choices == [[8], [8, 16]]
    assert config.backbones == [BACKBONE, SMALLEST]


def test_a_list_of_one_detector_is_that_detector():
    assert make_space(detector=["padim"]).config.detector == "padim"
