"""How a study searches: samplers, grids, goals, a person's own settings, trade-offs, and what it tells of its parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detectors.backbones.bundled import SMALLEST
from detectors.errors import InputError
from studies.file.config import validate
from studies.file.encoding import encode
from studies.file.overrides import parse_idea
from studies.search.attributes import ORIGIN
from studies.search.samplers import GP_TRIALS, ChosenSampler, choose_sampler, make_sampler
from studies.search.space import SearchSpace, dimension_values
from studies.show import insight, study_json, study_tables
from studies.worker.jobs import Job
from tests.helpers.bench import Bench, ScriptedExecutor, Training, quality
from tests.helpers.builders import BACKBONE, make_config

GRID = {"n_features": {"int": [10, 30], "step": 10}, "shrinkage": {"choices": [0.0, 0.2]}}


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random"])
def test_every_sampler_searches_and_goes_on_after_a_resumption(bench: Bench, name: str) -> None:
    sampler = {"name": name, "startup": 3, "population": 4}
    bench.run(budget={"trials": 5}, sampler=sampler)
    outcome = bench.run(budget={"trials": 9}, sampler=sampler)
    settings = [tuple(trial.params.items()) for trial in bench.frozen()]
    assert len(settings) == len(set(settings)) == 9
    assert outcome.selected is not None
    assert outcome.selected.value == max(trial.values[0] for trial in bench.frozen())


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random", "grid"])
def test_a_sampler_for_one_trial_draws_the_same_again(name: str, tmp_path) -> None:
    config = make_config(tmp_path, sampler={"name": name}, search=GRID)
    assert type(make_sampler(config, 3)) is type(make_sampler(config, 4))
    assert type(make_sampler(config, 3, at_random=True)).__name__ == "RandomSampler"


@pytest.mark.parametrize(("name", "trials"), [("tpe", 25), ("gp", 12)])
def test_gp_and_tpe_home_in_on_the_best_setting(bench: Bench, name: str, trials: int) -> None:
    outcome = bench.run(budget={"trials": trials}, sampler={"name": name})
    assert outcome.selected is not None
    assert outcome.selected.value is not None
    assert outcome.selected.value > 0.87


# --- what backbone and layers cut


def test_what_is_cut_is_told(bench: Bench) -> None:
    study = {
        "search": {"layers": {"choices": [[4], [8]]}, "n_features": {"int": [4, 400]}},
        "fixed": {"backbone": BACKBONE},
        "baselines": [{"layers": [4], "n_features": 100, "smoothing_sigma": 3.0}, {"n_features": 300}],
    }
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": 0.5, "fps": 50.0})
    bench.run(executor, **study)
    first, second = executor.trials[:2]
    assert first.params["n_features"] == 64
    assert "baseline is tried first: n_features 100 is cut to 64" in bench.said()
    channels = {"4": 64, "8": 128}[encode(second.params["layers"])]
    assert second.params["n_features"] == channels
    assert f"trial 1: n_features 300 became {channels} with this backbone and these layers" in bench.said()
    # Neither is tried again when the study goes on.
    later = ScriptedExecutor(lambda job: {"val/image_auroc": 0.5, "fps": 50.0})
    bench.run(later, **study | {"budget": {"trials": 5}})
    assert not [job for job in later.trials if job.params["n_features"] in (64, channels)]


def test_a_trials_own_setting_may_be_tried_first_elsewhere(bench: Bench) -> None:
    study = {
        "detector": "patchcore",
        "search": {"layers": {"choices": [[4]]}, "projection": {"choices": [128, 256]}},
        "fixed": {"backbone": BACKBONE},
    }
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": 0.5, "fps": 50.0})
    outcome = bench.run(executor, **study, budget={"trials": 4})
    assert outcome.reason == "every configuration of the search space was tried"
    (only,) = executor.trials
    assert only.params["projection"] == 64
    driver = bench.driver(executor, name="other", **study, budget={"trials": 1})
    options = replace(driver.plan.options, ideas=(parse_idea(only.params, driver.plan.config),))
    replace(driver, plan=replace(driver.plan, options=options)).run()
    assert executor.trials[-1].params == only.params
    assert bench.frozen("other")[0].user_attrs["origin"] == "person"


# --- auto


def chosen(**changes: Any) -> ChosenSampler:
    """What ``auto`` comes to."""
    config = make_config(Path("images"), **{"sampler": {"name": "auto"}, **changes})
    return choose_sampler(config, SearchSpace(config, backbones=config.backbones))


LAYERS = {"choices": [[8], [8, 16]]}
PATCHCORE = {"detector": "patchcore", "fixed": {"backbone": BACKBONE}}


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({}, "gp", "every searched parameter is a number, and 3 trials are few"),
        ({"budget": {"trials": GP_TRIALS}}, "gp", "100 trials are few"),
        ({"budget": {"trials": GP_TRIALS + 1}}, "tpe", "101 trials are more than the 100"),
        ({"search": {"layers": LAYERS}, "fixed": {"backbone": BACKBONE}}, "tpe", "choices are no numbers: layers"),
        ({**PATCHCORE, "search": {"whitening": {"choices": [0.0, 0.1]}}}, "tpe", "choices are no numbers: whitening"),
        (
            {"search": {"backbone": {"choices": [BACKBONE, SMALLEST]}, "n_features": {"int": [4, 40]}}, "fixed": {}},
            "tpe",
            "choices are no numbers: backbone",
        ),
        ({"objectives": {"image_auroc": "maximize", "fps": "maximize"}}, "tpe", "there are several objectives"),
        ({"pruner": {"name": "median"}}, "tpe", "learns nothing from trainings that the pruner ended"),
        ({"search": {}, "baselines": [{"n_features": 9}]}, "tpe", "nothing is searched"),
        (
            {"detector": ["padim", "spade"], "search": {"smoothing_sigma": {"float": [1, 8]}}, "fixed": {"backbone": BACKBONE}},
            "tpe",
            "choices are no numbers: detector",
        ),
    ],
)  # fmt: skip
def test_auto_takes_a_gaussian_process_for_few_trials_over_numbers(
    changes: dict[str, Any], name: str, reason: str
) -> None:
    found = chosen(**changes)
    assert found.name == name
    assert reason in found.reason


def test_a_single_choice_is_no_search() -> None:
    search = {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8], [2, 4]]},
        "n_features": {"int": [4, 40]},
    }
    config = make_config(Path("images"), search=search, fixed={}, sampler={"name": "auto"})
    assert choose_sampler(config, SearchSpace(config, backbones=[BACKBONE])).name == "gp"
    assert choose_sampler(config, SearchSpace(config, backbones=[BACKBONE, SMALLEST])).name == "tpe"


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random", "grid"])
def test_a_named_sampler_is_taken_as_it_is(name: str) -> None:
    assert chosen(sampler={"name": name}, search=GRID) == (name, "")


def test_the_study_says_which_sampler_auto_came_to(bench: Bench) -> None:
    outcome = bench.run(sampler={"name": "auto"}, budget={"trials": 7})
    assert outcome.view.config.sampler.name == "gp"
    assert bench.view().config.sampler.name == "gp"
    assert bench.parent().data.tags["study.sampler"] == "gp"
    settings = [trial.params for trial in bench.frozen()]
    # From the sixth trial on it is the process that suggests: close to the best of the first five.
    assert all("gp:relative_params:0" in trial.system_attrs for trial in bench.frozen()[5:]), settings


def test_a_process_suggests_where_all_values_so_far_are_the_same(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": 1.0, "fps": 50.0})
    bench.run(executor, sampler={"name": "auto"}, budget={"trials": 7}, constraints={"fps": ">= 10"})
    assert len({str(job.params) for job in executor.trials}) == 7


# --- grid


def test_a_grid_is_tried_once_in_its_order_over_every_resumption(bench: Bench) -> None:
    changes = {"search": GRID, "sampler": {"name": "grid"}}
    bench.run(budget={"trials": 2}, **changes)
    outcome = bench.run(budget={"trials": 99}, **changes)
    tried = [(trial.params["n_features"], trial.params["shrinkage"]) for trial in bench.frozen()]
    assert tried == [(10, 0.0), (10, 0.2), (20, 0.0), (20, 0.2), (30, 0.0), (30, 0.2)]
    assert outcome.reason == "every configuration of the search space was tried"
    assert not [trial for trial in bench.all_frozen() if trial.number >= 6]


def test_a_grid_goes_on_where_two_trials_at_a_time_were_interrupted(bench: Bench) -> None:
    def stop(job: Job) -> dict[str, float] | BaseException:
        return KeyboardInterrupt() if job.number == 3 else quality(job)

    changes = {"search": GRID, "sampler": {"name": "grid"}, "budget": {"trials": 99}}
    with pytest.raises(KeyboardInterrupt):
        bench.run(ScriptedExecutor(stop, slots=2), **changes)
    bench.run(**changes)
    done = [trial for trial in bench.frozen() if trial.state.name == "COMPLETE"]
    assert len({(trial.params["n_features"], trial.params["shrinkage"]) for trial in done}) == len(done) == 6


def test_a_baseline_within_the_grid_is_not_tried_twice(bench: Bench) -> None:
    baselines = [{"n_features": 20, "shrinkage": 0.2}]
    bench.run(search=GRID, sampler={"name": "grid"}, budget={"trials": 99}, baselines=baselines)
    tried = [(trial.params["n_features"], trial.params["shrinkage"]) for trial in bench.frozen()]
    assert tried[0] == (20, 0.2)
    assert len(tried) == len(set(tried)) == 6


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        ({"choices": [[8], [8, 16]]}, [[8], [8, 16]]),
        ({"int": [2, 5]}, [2, 3, 4, 5]),
        ({"int": [2, 9], "step": 3}, [2, 5, 8]),
        ({"int": [10, 80], "log": True}, [10, 20, 40, 80]),
        ({"float": [0.0, 0.3], "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_values_of_a_finite_dimension(tmp_path, dimension, values) -> None:
    name = "layers" if isinstance(values[0], list) else "n_features" if isinstance(values[0], int) else "shrinkage"
    fixed = {"backbone": BACKBONE}
    config = make_config(tmp_path, search={name: dimension}, fixed=fixed)
    found = dimension_values(config.search[name])
    assert found == (pytest.approx(values) if name == "shrinkage" else values)


def test_a_grid_over_a_continuous_range_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"search.shrinkage: sampler grid needs .* a step"):
        make_config(tmp_path, sampler={"name": "grid"})


# --- goal


def test_the_search_ends_at_its_goal(bench: Bench) -> None:
    values = {0: 0.6, 1: 0.85, 2: 0.7, 3: 0.95}
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": values[job.number], "fps": 5.0 + 20 * job.number})
    changes = {"budget": {"trials": 20, "goal": 0.8}, "constraints": {"fps": ">= 30"}}
    outcome = bench.run(executor, **changes)
    assert outcome.reason == "the goal of 0.8 is reached"
    assert len(executor.trials) == 4  # trial 1 reaches it, but is too slow
    again = ScriptedExecutor()
    bench.run(again, **changes)
    assert not again.trials


def test_a_goal_to_stay_below(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": 0.5, "model_size_mb": 50.0 - 10 * job.number})
    outcome = bench.run(executor, objectives={"model_size_mb": "minimize"}, budget={"trials": 20, "goal": 30})
    assert outcome.reason == "the goal of 30 is reached"
    assert len(executor.trials) == 3


# --- a person's own setting


def test_a_persons_setting_is_tried_first_and_once(bench: Bench) -> None:
    bench.run(budget={"trials": 2})
    config = make_config(bench.root)
    idea = parse_idea("n_features=33,shrinkage=0.25", config)
    for _ in range(2):
        driver = bench.driver(budget={"trials": 4})
        driver.plan = _with_ideas(driver.plan, idea)
        driver.run()
    trials = bench.frozen()
    assert trials[2].params == {"n_features": 33, "shrinkage": 0.25}
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert [trial.user_attrs.get(ORIGIN) for trial in done].count("person") == 1
    assert bench.children()[2].data.tags["trial.origin"] == "person"
    assert len(done) == 4


def _with_ideas(plan, *ideas):
    from dataclasses import replace

    return replace(plan, options=replace(plan.options, ideas=ideas))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_features", ["KEY=VALUE"]),
        ("n_features=", ["KEY=VALUE"]),
        ("n_features=10,n_features=11", ["given twice"]),
        ("n_feature=10", ["n_feature", "did you mean n_features?"]),
        ("n_features=100", ["n_features", "outside the range [4, 40]"]),
        ("layers=8+7", ["layers", "distinct ascending strides"]),
        ("layers=big", ["layers", "not a list of strides"]),
        ("n_features=[1", ["--enqueue n_features"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(tmp_path, text, words) -> None:
    with pytest.raises(InputError) as caught:
        parse_idea(text, make_config(tmp_path))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_are_given_as_optuna_shows_them(tmp_path) -> None:
    config = make_config(tmp_path, search={"layers": {"choices": [[8, 16], [16]]}}, fixed={"backbone": BACKBONE})
    assert parse_idea("layers=8+16, n_features=12", config) == {"layers": [8, 16], "n_features": 12}


# --- trade-offs


def test_the_pareto_front_is_marked_everywhere(bench: Bench) -> None:
    points = [(0.9, 10.0), (0.8, 50.0), (0.7, 40.0), (0.95, 5.0), (0.6, 90.0)]
    executor = ScriptedExecutor(
        lambda job: {"val/image_auroc": points[job.number][0], "fps": points[job.number][1], "throughput": 1.0}
    )
    outcome = bench.run(
        executor,
        objectives={"image_auroc": "maximize", "fps": "maximize"},
        constraints={"fps": "<= 60"},
        budget={"trials": 5},
    )
    assert {trial.number for trial in outcome.view.trials() if trial.pareto} == {0, 1, 3}
    tags = {number: run.data.tags["trial.pareto"] for number, run in bench.children().items()}
    assert tags == {0: "true", 1: "true", 2: "false", 3: "true", 4: "false"}
    assert [trial["pareto"] for trial in study_json.study_json(outcome.view)["trials"]] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert outcome.selected is not None
    assert outcome.selected.number == 3


def test_a_pruner_with_two_objectives_is_refused_with_the_way_out(tmp_path) -> None:
    with pytest.raises(InputError, match=r"pruner hyperband needs a single objective.*constraints.*pruner.name: none"):
        make_config(tmp_path, objectives={"image_auroc": "maximize", "fps": "maximize"}, pruner={"name": "hyperband"})


# --- what the search says


def test_importances_find_the_parameter_that_matters(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": 0.5 + job.params["shrinkage"], "fps": 50.0})
    outcome = bench.run(executor, sampler={"name": "random"}, budget={"trials": 24})
    shares = insight.importances(outcome.view)
    assert list(shares) == ["shrinkage", "n_features"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["shrinkage"] > 0.6


def test_what_pruning_saved_is_told(bench: Bench) -> None:
    study = {
        "detector": "cflow",
        "search": {"clamp": {"float": [1.0, 3.0]}},
        "fixed": {"backbone": BACKBONE, "layers": [16], "epochs": 6},
        "pruner": {"name": "median", "startup": 2, "min_epochs": 1},
        "budget": {"trials": 4},
    }
    view = bench.run(Training(curve=lambda number: 0.9 - 0.1 * number, epochs=6), **study).view
    # Four fits of 0.1 s; two of them ended after the first of six epochs.
    saved = insight.savings(view)
    assert saved == insight.Savings(trials=2, epochs=10, seconds=pytest.approx(1.0), spent=pytest.approx(0.4))
    assert "pruning ended 2 trainings early and saved about 1 s (71% of" in study_tables.savings_text(saved)
    assert study_json.study_json(view)["savings"]["epochs"] == 10
    assert insight.savings(bench.run(name="none", budget={"trials": 2}).view) is None


def test_importances_want_enough_trials_and_a_difference(bench: Bench) -> None:
    assert insight.importances(bench.run(budget={"trials": 3}).view) == {}
    same = ScriptedExecutor(lambda job: {"val/image_auroc": 0.5, "fps": 50.0})
    view = bench.run(same, name="same", budget={"trials": 10}).view
    assert sum(insight.importances(view).values()) in (0, pytest.approx(1.0))


def test_effects_are_means_over_the_trials_with_a_value(bench: Bench) -> None:
    changes = {"search": GRID, "sampler": {"name": "grid"}, "budget": {"trials": 99}}
    view = bench.run(**changes).view
    found = {(effect.parameter, effect.value): effect for effect in insight.effects(view)}
    assert set(found) == {
        ("n_features", "10"),
        ("n_features", "20"),
        ("n_features", "30"),
        ("shrinkage", "0.0"),
        ("shrinkage", "0.2"),
    }
    values = [trial.values[0] for trial in bench.frozen() if trial.params["shrinkage"] == 0.2]
    effect = found["shrinkage", "0.2"]
    assert (effect.trials, effect.mean, effect.best) == (3, pytest.approx(sum(values) / 3), max(values))


def test_effects_of_a_range_are_told_in_parts_that_hold_every_trial(bench: Bench) -> None:
    view = bench.run(sampler={"name": "random"}, budget={"trials": 21}).view
    for name in ("n_features", "shrinkage"):
        parts = [effect for effect in insight.effects(view) if effect.parameter == name]
        assert len(parts) == insight.BINS
        assert sum(effect.trials for effect in parts) == 21


def test_show_tells_importances_and_effects(bench: Bench) -> None:
    view = bench.run(sampler={"name": "random"}, budget={"trials": 12}).view
    assert len(list(study_tables.insight_parts(view))) == 2
    data = study_json.study_json(view)
    assert set(data["importances"]) <= {"n_features", "shrinkage"}
    assert data["effects"][0].keys() == {"parameter", "value", "trials", "mean", "best"}
    assert validate(data["config"], source="stored").name == "tiny"
