"""Warm starts: the winners of earlier studies are tried first, as far as this study can take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from detectors.backbones.bundled import SMALLEST
from detectors.errors import InputError
from studies.report.search import Search
from studies.report.section_tables import trials_table
from studies.search.earlier import read_earlier
from studies.search.outcome import Outcome, StudyFailedError
from studies.search.space import SearchSpace
from studies.search.warm import WINNERS, Earlier, WarmSetting, Winner, warm_settings
from studies.show import study_json, study_tables
from studies.worker.jobs import Job
from tests.helpers.bench import Bench, BenchRun, Killed, ScriptedExecutor, quality
from tests.helpers.builders import BACKBONE, PARAMS, make_config

BEST = [
    {"n_features": 20, "shrinkage": 0.2},
    {"n_features": 22, "shrinkage": 0.25},
    {"n_features": 14, "shrinkage": 0.3},
]
"""The best settings that `quality` knows among those of `first_study`, the best first."""
WORSE = [{"n_features": 35, "shrinkage": 0.5}, {"n_features": 4, "shrinkage": 0.0}]


def first_study(bench: Bench, **changes: Any) -> Outcome:
    """A finished study ``old`` whose best settings are `BEST`."""
    baselines = [WORSE[0], BEST[2], BEST[0], WORSE[1], BEST[1]]
    return bench.run(**{"name": "old", "search": {}, "baselines": baselines, "budget": {"trials": 9}} | changes)


def warm(bench: Bench, names: Sequence[str], executor: Any = None, **changes: Any) -> BenchRun:
    """A run that starts from earlier studies."""
    driver = bench.driver(executor, **changes)
    earlier = read_earlier(bench.home, names, now=driver.plan.config.name)
    plan = replace(driver.plan, options=replace(driver.plan.options, earlier=earlier))
    return replace(driver, plan=plan)


def tried(executor: ScriptedExecutor) -> list[dict[str, Any]]:
    return [{name: job.params[name] for name in ("n_features", "shrinkage")} for job in executor.trials]


# --- the whole way


def test_the_best_settings_of_an_earlier_study_are_tried_first(bench: Bench) -> None:
    first_study(bench)
    executor = ScriptedExecutor()
    outcome = warm(bench, ["old"], executor, baselines=[{"n_features": 9}], budget={"trials": 5}).run()
    assert tried(executor)[:3] == BEST
    assert executor.trials[3].params["n_features"] == 9
    trials = outcome.view.trials()
    assert [trial.attributes.origin for trial in trials] == ["warm"] * 3 + ["baseline", "search"]
    assert [trial.attributes.warm_from for trial in trials[:4]] == ["old trial 2", "old trial 4", "old trial 1", None]
    assert "warm start from old trial 4 is tried first" in bench.said()


def test_where_they_come_from_is_shown_everywhere(bench: Bench) -> None:
    first_study(bench)
    outcome = warm(bench, ["old"], budget={"trials": 4}).run()
    view = outcome.view
    tags = {run.data.tags["trial.key"].partition("/")[0]: run for run in bench.runs() if "trial.key" in run.data.tags}
    assert len(tags) == 2
    new = [run.data.tags for run in bench.runs() if run.data.tags.get("study.uid") == view.header.uid]
    origins = {
        tag["trial.number"]: (tag["trial.origin"], tag.get("trial.warm_from")) for tag in new if "trial.number" in tag
    }
    assert origins == {
        "0": ("warm", "old trial 2"),
        "1": ("warm", "old trial 4"),
        "2": ("warm", "old trial 1"),
        "3": ("search", None),
    }
    shown = "\n".join(str(part) for part in study_tables.study_parts(view))
    assert "trials from a warm start: 0 (old trial 2), 1 (old trial 4), 2 (old trial 1)" in shown
    said = study_json.study_json(view)["trials"]
    assert [(one["origin"], one["warm_from"]) for one in said][2:] == [("warm", "old trial 1"), ("search", None)]
    table = trials_table(Search(view, "s0"))
    column = table.heads.index("from")
    assert [row.cells[column].text for row in table.rows][2:] == ["warm start: old trial 1", "search"]


def test_a_report_without_a_warm_start_has_no_column_for_it(bench: Bench) -> None:
    assert "from" not in trials_table(Search(first_study(bench).view, "s0")).heads


def test_each_is_tried_once_over_all_runs(bench: Bench) -> None:
    first_study(bench)
    first, second = ScriptedExecutor(), ScriptedExecutor()
    warm(bench, ["old"], first, budget={"trials": 3}).run()
    warm(bench, ["old"], second, budget={"trials": 5}).run()
    assert tried(first) == BEST
    assert not [setting for setting in tried(second) if setting in BEST]
    assert len(bench.all_frozen()) == 5


def test_an_interruption_loses_nothing_even_without_the_option(bench: Bench) -> None:
    first_study(bench)

    def stop(job: Job) -> dict[str, float] | BaseException:
        return KeyboardInterrupt() if job.number == 1 else quality(job)

    with pytest.raises(KeyboardInterrupt):
        warm(bench, ["old"], ScriptedExecutor(stop), budget={"trials": 4}).run()
    later = ScriptedExecutor()
    outcome = bench.run(later, budget={"trials": 4})
    assert sorted(map(str, tried(later)[:2])) == sorted(map(str, BEST[1:]))
    done = [trial for trial in outcome.view.trials() if trial.state == "COMPLETE"]
    assert sorted(trial.attributes.warm_from or "" for trial in done) == [
        "",
        "old trial 1",
        "old trial 2",
        "old trial 4",
    ]


def test_a_driver_that_was_killed_loses_nothing_either(bench: Bench) -> None:
    first_study(bench)
    warm(bench, ["old"], ScriptedExecutor(lambda job: Killed() if job.number == 1 else quality(job))).kill()
    later = ScriptedExecutor()
    bench.run(later, budget={"trials": 3})
    assert tried(later) == BEST[1:]


def test_the_same_setting_of_two_studies_is_tried_once(bench: Bench) -> None:
    first_study(bench)
    first_study(bench, name="other", baselines=[BEST[0], {"n_features": 30, "shrinkage": 0.1}])
    executor = ScriptedExecutor()
    warm(bench, ["old", "other", "old"], executor, budget={"trials": 4}).run()
    assert tried(executor) == [*BEST, {"n_features": 30, "shrinkage": 0.1}]


def test_a_trial_that_misses_a_constraint_is_no_winner(bench: Bench) -> None:
    def fast(job: Job) -> dict[str, float]:
        return quality(job) | {"fps": 5.0 if job.params["n_features"] == 20 else 50.0}

    baselines = [*BEST, WORSE[0]]
    bench.run(
        ScriptedExecutor(fast),
        name="old",
        search={},
        baselines=baselines,
        constraints={"fps": ">= 10"},
        budget={"trials": 4},
    )
    executor = ScriptedExecutor()
    warm(bench, ["old"], executor).run()
    assert tried(executor) == [BEST[1], BEST[2], WORSE[0]]


def test_a_study_that_found_nothing_is_named(bench: Bench) -> None:
    with pytest.raises(StudyFailedError, match="no finished trial meets the constraints"):
        first_study(bench, constraints={"fps": ">= 1000"})
    executor = ScriptedExecutor()
    outcome = warm(bench, ["old"], executor).run()
    assert "warm start from old skipped: no trial finished there and met the constraints" in bench.said()
    assert {trial.attributes.origin for trial in outcome.view.trials()} == {"search"}


def test_a_fresh_study_starts_from_the_one_that_bore_its_name(bench: Bench) -> None:
    first_study(bench, name="tiny")
    outcome = warm(bench, ["tiny"]).run(fresh=True)
    assert outcome.view.study.study_name == "tiny#2"
    assert outcome.view.trials()[0].attributes.warm_from == "tiny#1 trial 2"
    (both,) = read_earlier(bench.home, ["tiny#2"], now="tiny")
    assert both.study == "tiny#2"


def test_an_unknown_study_is_refused_with_those_there_are(bench: Bench) -> None:
    first_study(bench)
    for name, hint in (("odl", "did you mean old? "), ("old#7", "did you mean old? "), ("x", "")):
        with pytest.raises(InputError) as caught:
            read_earlier(bench.home, ["old", name], now="tiny")
        assert str(caught.value) == f"--warm-from {name}: no study of this name was run here; {hint}there are: old"


def test_without_any_study_there_is_none(bench: Bench) -> None:
    with pytest.raises(InputError, match="there are: none yet"):
        read_earlier(bench.home, ["old"], now="tiny")


# --- what another study can take


def winner(number: int = 0, detector: str = "padim", **setting: Any) -> Winner:
    return Winner("old", number, {"detector": detector, **PARAMS, **setting})


def fitted(
    *winners: Winner, backbones: Sequence[str] = (BACKBONE, SMALLEST), networks: Any = (), **changes: Any
) -> list[WarmSetting]:
    config = make_config("images", **changes)  # type: ignore[arg-type]
    space = SearchSpace(config, backbones=[name for name in config.backbones if name in backbones])
    return warm_settings([Earlier("old", winners)], config, space, networks=dict.fromkeys(networks))


WIDE = {
    "search": {
        "backbone": {"choices": [BACKBONE, SMALLEST]},
        "layers": {"choices": [[8, 16], [8]]},
        "n_features": {"int": [4, 400]},
        "regularization": {"float": [0.001, 0.1]},
    },
    "fixed": {},
}


OF_PATCHCORE = {"detector": "patchcore", "search": {"coreset_ratio": {"float": [0.01, 0.1]}}}


def test_a_setting_that_fits_is_taken_whole() -> None:
    (one,) = fitted(winner(7, n_features=30, regularization=0.02), **WIDE)
    assert (one.source, one.skipped, one.remark) == ("old trial 7", "", "")
    assert one.setting == {**PARAMS, "n_features": 30, "regularization": 0.02}


@pytest.mark.parametrize(
    ("setting", "changes", "reason"),
    [
        ({"n_features": 401}, WIDE, "n_features: 401 is outside the range [4, 400]"),
        ({"layers": [4]}, WIDE, "layers: [4] is not among the choices [[8, 16], [8]]"),
        ({"backbone": "resnet18"}, WIDE, "backbone: 'resnet18' is not among the choices"),
        ({"backbone": SMALLEST}, {**WIDE, "backbones": [BACKBONE]}, f"no weights for {SMALLEST} in this study"),
        ({"backbone": SMALLEST}, {}, f"backbone is {SMALLEST}, and this study fixes {BACKBONE}"),
        ({"layers": [4, 8]}, {}, "layers is 4+8, and this study fixes 8+16"),
        ({"gone": 3}, WIDE, "unknown parameter of padim 'gone'"),
        ({}, OF_PATCHCORE, "its detector is padim, and this study is over patchcore"),
    ],
)  # fmt: skip
def test_what_a_study_cannot_take_is_skipped_with_the_reason(
    setting: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    (one,) = fitted(winner(**setting), **changes)
    assert one.setting == {}
    assert reason in one.skipped


def test_what_this_study_fixes_holds() -> None:
    (one,) = fitted(winner(n_features=30, smoothing_sigma=7.5))
    assert "smoothing_sigma" not in one.setting
    assert one.setting["n_features"] == 30
    assert one.remark == "smoothing_sigma 2.0, as this study fixes it"


def test_settings_that_differ_in_what_is_fixed_alone_are_one() -> None:
    same = [winner(number, n_features=30, smoothing_sigma=float(number)) for number in (1, 2)]
    assert [one.source for one in fitted(*same, winner(3, n_features=31))] == ["old trial 1", "old trial 3"]


def test_of_several_detectors_those_of_this_study_are_taken() -> None:
    winners = [winner(1, "spade"), *(winner(number, n_features=10 + number) for number in range(2, 8))]
    first, *others = fitted(*winners)
    assert first.source == "old trial 1"
    assert first.skipped == "its detector is spade, and this study is over padim; the best of the others are taken"
    assert [one.source for one in others] == [f"old trial {number}" for number in (2, 3, 4)]
    assert len(others) == WINNERS


def test_a_study_over_several_detectors_takes_what_is_of_one_of_them() -> None:
    search = {"padim": {"n_features": {"int": [4, 40]}}, "spade": {"n_neighbors": {"int": [1, 9]}}}
    changes = {"detector": ["padim", "spade"], "search": search, "fixed": {"backbone": BACKBONE}}
    one, other = fitted(winner(1), winner(2, "cflow"), winner(3, n_features=99), **changes)[:2]
    assert one.setting["detector"] == "padim"
    assert one.setting["n_features"] == 12
    assert other.skipped == "n_features: 99 is outside the range [4, 40]"


def test_networks_that_are_not_looked_for() -> None:
    changes = {
        "detector": "cutpaste",
        "search": {"variant": {"choices": ["3way", "scar"]}},
        "fixed": {"backbone": "pixels", "layers": [2]},
        "backbones": ["pixels"],
    }
    setting = {"backbone": "pixels", "layers": [2], "variant": "scar"}
    other = Winner("old", 0, {"detector": "cutpaste", **setting, "network": "resnet18"})
    assert fitted(other, **changes)[0].skipped == "weights of resnet18 are not looked for in this study"
    assert fitted(other, networks=["resnet18"], **changes)[0].skipped == ""
    tail = Winner("old", 0, {"detector": "cutpaste", **setting, "network": "tail"})
    assert fitted(tail, **changes)[0].setting["network"] == "tail"


# --- a dry run


def test_a_dry_run_shows_what_is_tried_first(bench: Bench) -> None:
    first_study(bench, baselines=[{**BEST[0], "smoothing_sigma": 5.0}, {"n_features": 99}])
    absent = "mobilenetv3_small_050@random"
    search = {
        "backbone": {"choices": [BACKBONE, absent]},
        "n_features": {"int": [4, 40]},
        "shrinkage": {"float": [0, 0.5]},
    }
    changes = {"search": search, "fixed": {"layers": [8, 16], "smoothing_sigma": 2.0}}
    baselines = [{"backbone": absent, "n_features": 9}, {"backbone": BACKBONE, "n_features": 11}]
    plan = warm(bench, ["old"], baselines=baselines, **changes).plan
    console = Console(width=250)
    with console.capture() as captured:
        for table in study_tables.plan_tables(plan):
            console.print(table)
    text = captured.get()
    (line,) = [line for line in text.splitlines() if "old trial 0" in line]
    assert "n_features 20" in line
    assert "smoothing_sigma 2.0, as this study fixes it" in line
    (line,) = [line for line in text.splitlines() if "old trial 1" in line]
    assert "skipped: n_features: 99 is outside the range [4, 40]" in line
    (line,) = [line for line in text.splitlines() if "skipped: no weights" in line]
    assert f"backbone {absent}, n_features 9" in line
    assert f"no weights for {absent}" in line
    assert [line for line in text.splitlines() if f"backbone {BACKBONE}, n_features 11" in line]
    (line,) = [line for line in text.splitlines() if "baselines" in line]
    assert line.split()[-1] == "1"
