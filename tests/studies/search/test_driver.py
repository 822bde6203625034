"""The driver with executors that follow a script, on a real Optuna storage and a real MLflow store."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from detectors.errors import InputError
from detectors.scoring.operating_point import Threshold
from studies.executors.inline import InlineExecutor
from studies.file.sections import ThresholdConfig
from studies.search import storage as studies_storage
from studies.search import thresholds
from studies.search.attributes import JOB, OUTCOME, Submission
from studies.search.notices import Finished, Notice, Opened, Progressed, Remark, Retried, Started
from studies.search.opened import OpenStudy
from studies.search.outcome import StudyFailedError
from studies.search.queue import Queue
from studies.search.storage import open_storage
from studies.search.thresholds import Operating
from studies.search.view import StudyView, TrialView
from studies.show import study_json, study_tables, tables
from studies.worker.jobs import DETECTOR, RESULT_FILE, Done, Event, Job, Lost, LostKind, Report, Stage
from tests.helpers.bench import Answer, Bench, Killed, ScriptedExecutor, Training, by_layers, quality, three
from tests.helpers.builders import BACKBONE, make_config
from tracking.projection import Projection

# Budget and order


def test_another_threshold_rate_is_chosen_anew_without_a_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first, same, changed = ScriptedExecutor(), ScriptedExecutor(), ScriptedExecutor()
    bench.run(first, budget={"trials": 2})
    bench.run(same, budget={"trials": 2})
    chosen = Threshold(3.0, "false_alarm_rate", "validation", 20, rate=0.2)
    sections, written = [], []

    def operating(
        view: StudyView, trial: TrialView, wanted: Mapping[str, ThresholdConfig], **options: Any
    ) -> list[Operating]:
        sections.extend(wanted.values())
        return []

    monkeypatch.setattr(thresholds, "operating", operating)
    monkeypatch.setattr(thresholds, "choose", lambda points, section: {"": chosen})
    monkeypatch.setattr(thresholds, "write", lambda trial, points, chosen: written.append((trial.number, chosen)))
    outcome = bench.run(changed, budget={"trials": 2}, threshold={"rate": 0.2})
    assert [len(executor.jobs) for executor in (same, changed)] == [0, 0]
    assert outcome.selected is not None
    assert [section.rate for section in sections] == [0.2]
    assert written == [(outcome.selected.number, {"": chosen})]
    assert any(
        isinstance(notice, Remark) and notice.text == "threshold: 3 by the study file" for notice in bench.notices
    )


def test_budget_is_the_total_over_resumptions(bench: Bench) -> None:
    first, second, third = ScriptedExecutor(), ScriptedExecutor(), ScriptedExecutor()
    bench.run(first, budget={"trials": 2})
    outcome = bench.run(second, budget={"trials": 4})
    assert [len(first.trials), len(second.trials)] == [2, 2]
    assert bench.states() == ["COMPLETE"] * 4
    assert outcome.reason == "4 of 4 trials are done"
    again = bench.run(third, budget={"trials": 4})
    assert third.jobs == []
    assert again.selected is not None
    assert outcome.selected is not None
    assert again.selected.number == outcome.selected.number
    opened = [notice for notice in bench.notices if isinstance(notice, Opened)]
    assert [(notice.new, notice.counted, notice.budget) for notice in opened] == [
        (True, 0, 2),
        (False, 2, 4),
        (False, 4, 4),
    ]
    assert bench.parent().info.status == "FINISHED"
    assert sorted(bench.children()) == [0, 1, 2, 3]


def test_a_smaller_budget_ends_at_once(bench: Bench) -> None:
    bench.run(budget={"trials": 3})
    executor = ScriptedExecutor()
    assert bench.run(executor, budget={"trials": 1}).reason == "3 of 1 trials are done"
    assert executor.jobs == []


def test_baselines_come_first_and_once(bench: Bench) -> None:
    baselines = [{"n_features": 30, "shrinkage": 0.25, "smoothing_sigma": 3.0}, {"n_features": 7}]
    executor = ScriptedExecutor()
    bench.run(executor, baselines=baselines, budget={"trials": 3})
    bench.run(executor, baselines=baselines, budget={"trials": 5})
    settings = [(job.params["n_features"], job.params["smoothing_sigma"]) for job in executor.trials]
    assert settings[:2] == [(30, 3.0), (7, 2.0)]
    assert executor.trials[0].params["shrinkage"] == 0.25
    assert settings.count((30, 3.0)) == settings.count((7, 2.0)) == 1
    assert all(sigma == 2.0 for _, sigma in settings[2:])
    origins = [bench.children()[number].data.tags["trial.origin"] for number in range(5)]
    assert origins == ["baseline", "baseline", "search", "search", "search"]


def test_a_baseline_without_weights_is_skipped_without_a_word(bench: Bench) -> None:
    absent = "mobilenetv3_small_050@random"
    study = {
        "search": {"backbone": {"choices": [BACKBONE, absent]}, "n_features": {"int": [4, 40]}},
        "fixed": {"layers": [8, 16]},
        "baselines": [{"backbone": absent, "n_features": 9}, {"backbone": BACKBONE, "n_features": 11}],
    }
    executor = ScriptedExecutor()
    bench.run(executor, **study)
    assert absent not in bench.said()
    assert executor.trials[0].params["n_features"] == 11
    assert {job.params["backbone"] for job in executor.trials} == {BACKBONE}
    # Its weights came too late: the backbones of a study are fixed when it is created.
    later = ScriptedExecutor()
    bench.run(later, backbones=[BACKBONE, absent], **study | {"budget": {"trials": 6}})
    assert {job.params["backbone"] for job in later.trials} == {BACKBONE}


def test_baselines_alone_are_run_to_the_last(bench: Bench) -> None:
    executor = ScriptedExecutor()
    study = {"search": {}, "protocol": "holdout", "baselines": [{"n_features": 12}, {"n_features": 5}]}
    outcome = bench.run(executor, **study, budget={"trials": 40})
    assert outcome.reason == "every baseline was tried"
    assert [job.params["n_features"] for job in executor.trials] == [12, 5]


def test_duplicates_are_never_run_and_an_exhausted_space_ends_the_study(bench: Bench) -> None:
    executor = ScriptedExecutor(by_layers)
    outcome = bench.run(executor, **three(baselines=[{"layers": [16]}, {"layers": [16]}]))
    assert outcome.reason == "every configuration of the search space was tried"
    assert executor.trials[0].params["layers"] == [16]
    assert sorted(job.params["layers"] for job in executor.trials) == [[8], [8, 16], [16]]
    assert bench.states() == ["COMPLETE"] * 3
    assert len(bench.all_frozen()) > 3
    assert sorted(bench.children()) == [trial.number for trial in bench.frozen()]


def test_a_space_with_one_setting_that_always_crashes_is_exhausted_all_the_same(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: "crashed" if job.params["layers"] == [8] else by_layers(job))
    outcome = bench.run(executor, **three())
    assert outcome.reason == "every configuration of the search space was tried"
    assert sorted(bench.states()) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert outcome.selected is not None
    assert outcome.selected.params["layers"] == [8, 16]


def test_stagnation_ends_the_search(bench: Bench) -> None:
    values = iter([0.5, 0.9, 0.6, 0.7, 0.8, 0.95])
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": next(values)})
    outcome = bench.run(executor, budget={"trials": 20, "stagnation": 3})
    assert outcome.reason == "no better trial among the last 3"
    assert len(executor.trials) == 5


def test_stagnation_counts_trials_that_meet_the_constraints_alone(bench: Bench) -> None:
    # The first trial has the best value of all and is too slow, as is the fourth: neither may end the search.
    answers = iter(
        [(0.99, 1.0), (0.5, 50.0), (0.6, 50.0), (0.7, 1.0), (0.55, 50.0), (0.7, 50.0), (0.6, 50.0), (0.6, 50.0)]
    )

    def answer(job: Job) -> dict[str, float]:
        value, fps = next(answers)
        return {"val/image_auroc": value, "fps": fps}

    executor = ScriptedExecutor(answer)
    outcome = bench.run(executor, budget={"trials": 20, "stagnation": 2}, constraints={"fps": ">= 10"})
    assert outcome.reason == "no better trial among the last 2"
    assert len(executor.trials) == 8
    assert outcome.selected is not None
    assert outcome.selected.number == 5


def test_the_time_limit_lets_running_trials_finish(bench: Bench) -> None:
    now = [0.0]

    def takes_a_minute(job: Job) -> dict[str, float]:
        now[0] += 60
        return quality(job)

    executor = ScriptedExecutor(takes_a_minute, slots=2)
    outcome = bench.run(executor, budget={"trials": 20, "timeout": "100s"}, clock=lambda: now[0])
    assert outcome.reason == "the time limit of 100 s is reached"
    assert bench.states() == ["COMPLETE"] * 3
    later = bench.run(ScriptedExecutor(), budget={"trials": 4, "timeout": "100s"}, clock=lambda: now[0])
    assert later.reason == "4 of 4 trials are done"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_study_tries_what_an_uninterrupted_one_does(bench: Bench, tmp_path: Path, sampler: str) -> None:
    study = {"sampler": {"name": sampler, "seed": 3, **({"startup": 3} if sampler == "tpe" else {})}}
    whole, first, second = ScriptedExecutor(), ScriptedExecutor(), ScriptedExecutor()
    bench.run(whole, name="whole", **study, budget={"trials": 8})
    bench.run(first, **study, budget={"trials": 3})
    bench.run(second, **study, budget={"trials": 8})
    assert [job.params for job in [*first.trials, *second.trials]] == [job.params for job in whole.trials]
    assert [job.seed for job in [*first.trials, *second.trials]] == [job.seed for job in whole.trials]
    assert len({str(job.params) for job in whole.trials}) == 8


# Failures


def test_a_crashed_trial_is_tried_again_under_its_number(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: "crashed" if (job.number, job.attempt) == (1, 1) else quality(job))
    bench.run(executor)
    assert [(job.number, job.attempt) for job in executor.trials] == [(0, 1), (1, 1), (1, 2), (2, 1)]
    assert executor.trials[1].params == executor.trials[2].params
    assert executor.trials[1].seed == executor.trials[2].seed
    assert bench.states() == ["COMPLETE"] * 3
    child = bench.children()[1]
    assert (child.info.status, child.data.tags["trial.attempt"]) == ("FINISHED", "2")
    assert [(notice.number, notice.attempt) for notice in bench.notices if isinstance(notice, Retried)] == [(1, 2)]


@pytest.mark.parametrize(
    ("kind", "attempts"), [("crashed", 3), ("out_of_memory", 3), ("node_lost", 3), ("exception", 1), ("timeout", 1)]
)
def test_only_failures_of_the_surroundings_are_tried_again(bench: Bench, kind: LostKind, attempts: int) -> None:
    executor = ScriptedExecutor(lambda job: kind if job.number == 1 else quality(job))
    bench.run(executor, execution={"attempts": 3})
    assert [job.attempt for job in executor.trials if job.number == 1] == list(range(1, attempts + 1))
    assert bench.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert bench.frozen()[1].user_attrs[OUTCOME]["failure"] == f"{kind}: as the script says"
    child = bench.children()[1]
    assert (child.info.status, child.data.tags["trial.state"]) == ("FAILED", "FAIL")
    assert child.data.tags["trial.failure"] == f"{kind}: as the script says"
    client = MlflowClient(tracking_uri=bench.home.tracking_uri)
    local = Path(client.download_artifacts(child.info.run_id, "log_tail.txt"))
    assert f"how it went: {kind}" in local.read_text()


def test_memory_that_ran_out_is_answered_by_smaller_batches(bench: Bench) -> None:
    wanted = {0: 0, 1: 2, 2: 0}
    executor = ScriptedExecutor(
        lambda job: "out_of_memory" if job.memory_halvings < wanted[job.number] else quality(job)
    )
    bench.run(executor, execution={"attempts": 3})
    tried = [(job.number, job.attempt, job.memory_halvings) for job in executor.trials]
    assert tried == [(0, 1, 0), (1, 1, 0), (1, 2, 1), (1, 3, 2), (2, 1, 0)]
    assert bench.states() == ["COMPLETE"] * 3
    assert bench.frozen()[1].user_attrs[JOB]["memory_halvings"] == 2
    assert [notice.how for notice in bench.notices if isinstance(notice, Retried)] == [" with smaller batches"] * 2


def test_a_refit_without_memory_is_tried_with_smaller_batches(bench: Bench) -> None:
    executor = ScriptedExecutor(final=lambda job: {"test/image_auroc": 0.7} if job.memory_halvings else "out_of_memory")
    bench.run(executor)
    assert [(job.attempt, job.memory_halvings) for job in executor.finals] == [(1, 0), (2, 1)]


def test_a_driver_that_follows_keeps_the_smaller_batches(bench: Bench) -> None:
    three = {"attempts": 3}
    bench.kill(ScriptedExecutor(lambda job: Killed() if job.memory_halvings else "out_of_memory"), execution=three)
    executor = ScriptedExecutor()
    bench.run(executor, execution=three)
    assert (executor.trials[0].attempt, executor.trials[0].memory_halvings) == (3, 1)


def test_a_study_with_failures_can_be_shown(bench: Bench) -> None:
    bench.run(ScriptedExecutor(lambda job: "exception" if job.number == 0 else quality(job)))
    view = bench.view()
    console = tables.console()
    with console.capture() as capture:
        for part in study_tables.study_parts(view):
            console.print(part)
    assert "exception: as the script says" in capture.get()
    assert [trial["seconds"] for trial in study_json.study_json(view)["trials"]] == [None, 0.5, 0.5, 0.5]


def test_bad_input_ends_the_study_and_its_setting_is_tried_first_once_it_is_mended(bench: Bench) -> None:
    study = {"baselines": [{"n_features": 33, "smoothing_sigma": 1.0}]}
    with pytest.raises(InputError, match="as the script says"):
        bench.run(ScriptedExecutor(lambda job: "bad_input"), **study)
    assert bench.states()[0] == "FAIL"
    assert bench.parent().info.status == "FAILED"
    executor = ScriptedExecutor()
    bench.run(executor, **study)
    settings = [(job.params["n_features"], job.params["smoothing_sigma"]) for job in executor.trials]
    assert settings[0] == (33, 1.0)
    assert settings.count((33, 1.0)) == 1
    assert bench.states() == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert bench.parent().info.status == "FINISHED"


def test_failures_in_a_row_end_the_study(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: quality(job) if job.number == 2 else "exception")
    with pytest.raises(StudyFailedError, match=r"^3 trials failed in a row, the last with: exception: as the script"):
        bench.run(executor, execution={"failures_in_a_row": 3}, budget={"trials": 9})
    assert bench.states() == ["FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert bench.parent().info.status == "FAILED"


def test_losing_a_study_leaves_no_other_trial_running(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: "exception", slots=3)
    with pytest.raises(StudyFailedError):
        bench.run(executor, execution={"failures_in_a_row": 1}, budget={"trials": 9})
    assert [state for state in bench.states() if state != "WAITING"] == ["FAIL"] * 3
    assert sorted(run.info.status for run in bench.children().values()) == ["FAILED", "KILLED", "KILLED"]
    later = ScriptedExecutor()
    bench.run(later, budget={"trials": 2})
    assert [job.params for job in later.trials] == [job.params for job in executor.trials[1:]]


@pytest.mark.parametrize("value", [{}, {"val/image_auroc": math.inf}, {"val/image_auroc": math.nan}])
def test_an_undefined_objective_fails_the_trial(bench: Bench, value: dict[str, float]) -> None:
    bench.run(ScriptedExecutor(lambda job: value if job.number == 1 else quality(job)))
    assert bench.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    failure = bench.children()[1].data.tags["trial.failure"]
    assert failure.startswith("exception: objective image_auroc is undefined")


def test_intermediate_values_arrive_once_even_over_two_attempts(bench: Bench) -> None:
    class Reporting(ScriptedExecutor):
        def events(self, timeout: float) -> Sequence[Event]:
            events = list(super().events(timeout))
            if events and isinstance(events[0], Stage) and self.waiting[0].task == "trial":
                job = self.waiting[0]
                events += [Report(job.number, job.attempt, step, 0.1 * step) for step in range(3)]
            return events

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*already reported.*")
        bench.run(Reporting(lambda job: "crashed" if job.attempt == 1 else quality(job)), budget={"trials": 1})
    assert bench.frozen()[0].intermediate_values == {0: 0.0, 1: 0.1, 2: 0.2}
    client = MlflowClient(tracking_uri=bench.home.tracking_uri)
    points = client.get_metric_history(bench.children()[0].info.run_id, "intermediate")
    assert [(point.step, point.value) for point in points] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_reports_of_a_study_with_two_objectives_are_passed_over(bench: Bench) -> None:
    class Reporting(ScriptedExecutor):
        def events(self, timeout: float) -> Sequence[Event]:
            events = list(super().events(timeout))
            return [*events, Report(events[0].number, events[0].attempt, 0, 0.5)] if events else events

    outcome = bench.run(Reporting(), objectives={"image_auroc": "maximize", "fps": "maximize"}, budget={"trials": 2})
    assert outcome.selected is not None
    assert len(bench.frozen()[0].values) == 2


MEDIAN = {"name": "median", "startup": 2, "min_epochs": 1}


@pytest.mark.parametrize("deaf", [False, True])
def test_a_training_behind_the_median_is_pruned_and_counts(bench: Bench, deaf: bool) -> None:
    executor = Training(curve=lambda number: 0.9 - 0.1 * number, deaf=deaf)
    outcome = bench.run(executor, pruner=MEDIAN, budget={"trials": 4})
    assert bench.states() == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert executor.stopped == [2, 3]
    assert outcome.selected is not None
    assert outcome.selected.number == 0
    assert [list(trial.intermediate_values) for trial in bench.frozen()] == [[1, 2, 3, 4], [1, 2, 3, 4], [1], [1]]
    children = bench.children()
    assert [children[number].info.status for number in range(4)] == ["FINISHED", "FINISHED", "KILLED", "KILLED"]
    assert "val/image_auroc" not in children[2].data.metrics


def test_hyperband_prunes_by_epochs_and_a_resumed_study_goes_on_pruning(bench: Bench) -> None:
    def curve(number: int) -> float:
        return 0.9 if number == 0 else 0.1

    changes = {"pruner": {"name": "hyperband", "min_epochs": 1, "reduction_factor": 2}}
    bench.run(Training(curve=curve), budget={"trials": 3}, **changes)
    executor = Training(curve=curve)
    bench.run(executor, budget={"trials": 12}, **changes)
    assert set(bench.states()) == {"COMPLETE", "PRUNED"}
    assert executor.stopped
    assert len(bench.children()) == 12


def test_a_pruned_training_whose_worker_crashes_is_judged_again(bench: Bench) -> None:
    class Crashing(Training):
        def events(self, timeout: float) -> Sequence[Event]:
            if self.waiting and self.waiting[0].number in self.stopped and self.waiting[0].attempt == 1:
                job = self.waiting.popleft()
                self.stopped.remove(job.number)
                self.done[job.number] = 0
                return [Lost(job.number, job.attempt, "crashed", "as the script says")]
            return super().events(timeout)

    bench.run(Crashing(curve=lambda number: 0.9 - 0.1 * number), pruner=MEDIAN, budget={"trials": 3})
    assert bench.states() == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert bench.frozen()[2].user_attrs[JOB]["attempt"] == 2


def test_a_pruned_result_left_behind_is_told_as_pruned(bench: Bench) -> None:
    class Dying(Training):
        def events(self, timeout: float) -> Sequence[Event]:
            events = super().events(timeout)
            if events and isinstance(events[0], Done) and events[0].result.pruned:
                raise Killed
            return events

    bench.kill(Dying(curve=lambda number: 0.9 - 0.1 * number), pruner=MEDIAN, budget={"trials": 3})
    assert bench.states() == ["COMPLETE", "COMPLETE", "RUNNING"]
    executor = Training()
    bench.run(executor, pruner=MEDIAN, budget={"trials": 3})
    assert bench.states() == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert not executor.trials


def test_each_detector_gets_its_share_before_the_sampler_chooses(bench: Bench) -> None:
    several: dict[str, Any] = {
        "detector": ["padim", "patchcore", "cflow"],
        "search": {"smoothing_sigma": {"float": [1.0, 8.0]}, "patchcore": {"coreset_ratio": {"float": [0.01, 0.1]}}},
        "fixed": {"backbone": BACKBONE, "layers": [8]},
        "baselines": [{"detector": "cflow", "smoothing_sigma": 4.0}],
        "budget": {"trials": 8, "each": 2},
    }

    def dying(job: Job) -> dict[str, float]:
        if job.number == 3:
            raise Killed
        return {"val/image_auroc": 0.5 + job.number / 100}

    bench.kill(ScriptedExecutor(dying), **several)
    bench.run(ScriptedExecutor(lambda job: {"val/image_auroc": 0.5}), **several)
    drawn = [frozen.params["detector"] for frozen in bench.frozen()]
    assert drawn[:6] == ["cflow", "padim", "patchcore", "padim", "patchcore", "cflow"]
    assert len(drawn) == 8
    assert len({frozen.params["smoothing_sigma"] for frozen in bench.frozen()}) == 8


def test_the_selected_setting_is_scored_with_several_seeds(bench: Bench) -> None:
    class Seeded(ScriptedExecutor):
        def events(self, timeout: float) -> Sequence[Event]:
            events = super().events(timeout)
            if events and isinstance(events[0], Done) and events[0].result.task != "trial":
                job = next(job for job in reversed(self.jobs) if job.task == events[0].result.task)
                return [Done(job.number, 1, self._result(job, {"test/image_auroc": 0.7 + 0.1 * (len(self.jobs) - 3)}))]
            return events

    executor = Seeded()
    outcome = bench.run(executor, seeds=3, budget={"trials": 2})
    later = [job for job in executor.jobs if job.task != "trial"]
    assert [job.task for job in later] == ["final", "replicate", "replicate"]
    assert len({job.seed for job in later}) == len({job.structural_seed for job in later}) == 3
    assert len({job.folder for job in later}) == 3
    assert later[0].seed == executor.trials[later[0].number].seed
    selected = outcome.selected
    assert selected is not None
    metrics = selected.test_metrics
    assert metrics["test/image_auroc"] == pytest.approx(0.7)
    assert metrics["seeds"] == 3
    assert metrics["test/image_auroc_seeds_mean"] == pytest.approx(0.8)
    assert metrics["test/image_auroc_seeds_std"] == pytest.approx(0.1)
    assert bench.children()[selected.number].data.metrics["test/image_auroc_seeds_mean"] == pytest.approx(0.8)
    again = Seeded()
    bench.run(again, seeds=3, budget={"trials": 2})
    assert not again.jobs


def test_replicates_leave_a_line_each_in_the_ledger_and_no_detector(bench: Bench) -> None:
    outcome = bench.run(InlineExecutor(), seeds=2, budget={"trials": 1})
    assert [line.purpose for line in outcome.view.ledger()] == ["selected", "replicate"]
    selected = outcome.selected
    assert selected is not None
    assert (selected.final_folder / DETECTOR).is_dir()
    assert not (selected.replicate_folder(1) / DETECTOR).exists()
    assert {"test/image_auroc_seeds_mean", "test/image_auroc_seeds_std"} <= set(selected.test_metrics)


def test_an_error_of_the_program_itself_puts_running_trials_back(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: RuntimeError("a bug") if job.number == 1 else quality(job), slots=2)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.run(executor, budget={"trials": 4})
    assert executor.closed
    assert bench.parent().info.status == "FAILED"
    assert "RUNNING" not in bench.states()
    assert all(run.info.status != "RUNNING" for run in bench.children().values())
    bench.run(budget={"trials": 4})
    assert bench.states().count("COMPLETE") == 4


# Selection


def test_infeasible_trials_are_not_selected(bench: Bench) -> None:
    outcomes = [(0.99, 5.0), (0.7, 20.0), (0.8, 30.0)]
    executor = ScriptedExecutor(lambda job: dict(zip(("val/image_auroc", "fps"), outcomes[job.number], strict=True)))
    outcome = bench.run(executor, constraints={"fps": ">= 10"})
    assert outcome.selected is not None
    assert outcome.selected.number == 2
    tags = {number: run.data.tags for number, run in bench.children().items()}
    assert [tags[number]["trial.feasible"] for number in range(3)] == ["false", "true", "true"]
    assert [tags[number]["study.selected"] for number in range(3)] == ["false", "false", "true"]
    assert [job.number for job in executor.finals] == [2]


def test_no_feasible_trial_is_an_error_that_names_the_constraints(bench: Bench) -> None:
    with pytest.raises(StudyFailedError, match=r"no finished trial meets the constraints \(fps >= 100\); relax them"):
        bench.run(constraints={"fps": ">= 100"})
    outcome = bench.run(constraints={"fps": ">= 40"})
    assert outcome.selected is not None


def test_no_trial_at_all_is_an_error(bench: Bench) -> None:
    with pytest.raises(StudyFailedError, match=r"no trial finished; `study show tiny`"):
        bench.run(ScriptedExecutor(lambda job: "exception"), **three())


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ([(0.8, 10.0), (0.8, 30.0), (0.8, 20.0)], 1),
        ([(0.8, 10.0), (0.8, 10.0), (0.7, 90.0)], 0),
        ([(0.8, 10.0), (0.81, 1.0), (0.8, 99.0)], 1),
    ],
)
def test_ties_go_to_the_faster_then_to_the_earlier(
    bench: Bench, outcomes: list[tuple[float, float]], best: int
) -> None:
    executor = ScriptedExecutor(lambda job: dict(zip(("val/image_auroc", "fps"), outcomes[job.number], strict=True)))
    outcome = bench.run(executor)
    assert outcome.selected is not None
    assert outcome.selected.number == best


def test_a_cost_can_be_minimised(bench: Bench) -> None:
    costs = [30.0, 10.0, 20.0]
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": 0.9, "latency_ms_p50": costs[job.number]})
    outcome = bench.run(executor, objectives={"latency_ms_p50": "minimize"})
    assert outcome.selected is not None
    assert outcome.selected.number == 1


def test_figures_on_test_are_those_of_the_selected_trial_alone(bench: Bench) -> None:
    executor = ScriptedExecutor()
    outcome = bench.run(executor)
    assert outcome.selected is not None
    scored = {
        number for number, run in bench.children().items() if any(name.startswith("test/") for name in run.data.metrics)
    }
    assert scored == {outcome.selected.number} == {job.number for job in executor.finals}
    assert all("test/image_auroc" not in trial.user_attrs[OUTCOME]["metrics"] for trial in bench.frozen())


def test_a_better_trial_after_a_resumption_takes_over(bench: Bench) -> None:
    values = [0.5, 0.6, 0.7, 0.9]
    bench.run(ScriptedExecutor(lambda job: {"val/image_auroc": values[job.number]}), budget={"trials": 2})
    executor = ScriptedExecutor(lambda job: {"val/image_auroc": values[job.number]})
    bench.run(executor, budget={"trials": 4})
    assert [job.number for job in executor.finals] == [3]
    selected = [run.data.tags["study.selected"] for _, run in sorted(bench.children().items())]
    assert selected == ["false", "false", "false", "true"]


def test_a_refit_that_crashes_is_tried_again_and_one_that_fails_ends_the_study(bench: Bench) -> None:
    class Refit(ScriptedExecutor):
        losses: deque[LostKind]

        def events(self, timeout: float) -> Sequence[Event]:
            if self.waiting and self.waiting[0].task == "final" and self.losses:
                job = self.waiting.popleft()
                return [Lost(job.number, job.attempt, self.losses.popleft(), "in the refit")]
            return super().events(timeout)

    first = Refit()
    first.losses = deque(["exception"])
    with pytest.raises(StudyFailedError, match=r"the refit of trial \d failed: exception: in the refit"):
        bench.run(first)
    second = Refit()
    second.losses = deque(["crashed"])
    outcome = bench.run(second)
    assert [job.attempt for job in second.finals] == [1, 2]
    assert second.trials == []
    assert outcome.selected is not None
    assert outcome.selected.final is not None


def test_constraints_of_the_last_run_are_those_that_show_sees(bench: Bench) -> None:
    outcomes = [(0.99, 5.0), (0.7, 20.0), (0.8, 30.0)]
    executor = ScriptedExecutor(lambda job: dict(zip(("val/image_auroc", "fps"), outcomes[job.number], strict=True)))
    bench.run(executor)
    assert bench.view().selected().number == 0  # type: ignore[union-attr]
    bench.run(executor, constraints={"fps": ">= 10"}, sampler={"name": "random", "seed": 0})
    selected = bench.view().selected()
    assert selected is not None
    assert selected.number == 2
    assert selected.detector is not None


# Interruptions


def interrupt_at(kind: type[Notice], count: int = 1) -> Callable[[Notice], None]:
    """A listener that presses Ctrl-C at the n-th notice of one kind."""
    seen = 0

    def listen(notice: Notice) -> None:
        nonlocal seen
        if isinstance(notice, kind):
            seen += 1
            if seen == count:
                raise KeyboardInterrupt

    return listen


def test_an_interrupted_trial_is_closed_and_its_setting_comes_first_and_counts_once(bench: Bench) -> None:
    first, second = ScriptedExecutor(), ScriptedExecutor()
    with pytest.raises(KeyboardInterrupt):
        bench.run(first, listener=interrupt_at(Progressed, 2))
    assert first.closed
    assert [state for state in bench.states() if state != "WAITING"] == ["COMPLETE", "FAIL"]
    child = bench.children()[1]
    assert (child.info.status, child.data.tags["trial.failure"]) == ("KILLED", "interrupted")
    assert bench.parent().info.status == "KILLED"
    bench.run(second)
    assert second.trials[0].params == first.trials[1].params
    assert bench.states().count("COMPLETE") == 3
    settings = [trial.user_attrs[JOB]["params"] for trial in bench.frozen() if trial.state == TrialState.COMPLETE]
    assert settings.count(first.trials[1].params) == 1
    assert bench.parent().info.status == "FINISHED"


def test_an_interrupted_baseline_keeps_what_lies_outside_the_search(bench: Bench) -> None:
    study = {"baselines": [{"n_features": 33, "smoothing_sigma": 1.5}]}
    with pytest.raises(KeyboardInterrupt):
        bench.run(listener=interrupt_at(Progressed), **study)
    executor = ScriptedExecutor()
    bench.run(executor, **study)
    settings = [(job.params["n_features"], job.params["smoothing_sigma"]) for job in executor.trials]
    assert settings[0] == (33, 1.5)
    assert settings.count((33, 1.5)) == 1


@pytest.mark.parametrize("kind", [Opened, Started, Progressed, Finished, Remark])
@pytest.mark.parametrize("slots", [1, 2])
def test_an_interruption_at_any_notice_leaves_nothing_running(bench: Bench, kind: type[Notice], slots: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.run(ScriptedExecutor(slots=slots), listener=interrupt_at(kind))
    assert "RUNNING" not in bench.states()
    assert all(run.info.status != "RUNNING" for run in bench.runs())
    bench.run(ScriptedExecutor(slots=slots))
    assert bench.states().count("COMPLETE") == 3
    assert "WAITING" not in bench.states()
    assert bench.parent().info.status == "FINISHED"


@pytest.mark.parametrize("method", ["ask", "suggest", "write", "write_trial", "trial"])
def test_an_interruption_while_a_trial_is_made_loses_neither_trial_nor_baseline(bench: Bench, method: str) -> None:
    study = {"baselines": [{"n_features": 33}]}
    driver = bench.driver(**study)
    original: Callable[..., Any]

    def once(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, method, original)
        if method in ("ask", "suggest"):
            original(*args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        owner = {
            "ask": optuna.Study,
            "suggest": Queue,
            "write": Submission,
            "write_trial": Projection,
            "trial": OpenStudy,
        }[method]
        original = getattr(owner, method)
        patch.setattr(owner, method, once)
        with pytest.raises(KeyboardInterrupt):
            driver.run()
    assert "RUNNING" not in bench.states()
    assert all(run.info.status != "RUNNING" for run in bench.children().values())
    executor = ScriptedExecutor()
    bench.run(executor, **study)
    assert executor.trials[0].params["n_features"] == 33
    assert bench.states().count("COMPLETE") == 3


def test_a_limit_leaves_no_trial_waiting_for_another_attempt(bench: Bench) -> None:
    now = [0.0]

    def slow_crash(job: Job) -> Answer:
        now[0] += 60
        return "crashed" if job.number == 1 else quality(job)

    outcome = bench.run(ScriptedExecutor(slow_crash), budget={"trials": 9, "timeout": "100s"}, clock=lambda: now[0])
    assert outcome.reason.startswith("the time limit")
    assert [state for state in bench.states() if state != "WAITING"] == ["COMPLETE", "FAIL"]
    assert bench.children()[1].info.status == "KILLED"
    bench.run(budget={"trials": 2})
    assert bench.states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_second_driver_is_refused(bench: Bench) -> None:
    refusals = []

    def start_another(notice: Notice) -> None:
        if isinstance(notice, Started) and not refusals:
            with pytest.raises(
                InputError, match=r"'tiny' is being run by (another process|process \d+ on \S+); wait for it or stop it"
            ) as info:
                bench.run()
            refusals.append(info)

    bench.run(listener=start_another)
    assert refusals
    assert bench.states() == ["COMPLETE"] * 3
    bench.run(name="other")


# Killed drivers


def test_a_result_left_behind_is_told_and_not_computed_again(bench: Bench) -> None:
    first = ScriptedExecutor(lambda job: Killed() if job.number == 1 else quality(job), leave_result=True)
    bench.kill(first)
    assert bench.states() == ["COMPLETE", "RUNNING"]
    second = ScriptedExecutor()
    bench.run(second)
    assert [job.number for job in second.trials] == [2]
    assert bench.states() == ["COMPLETE"] * 3
    assert bench.frozen()[1].values == [pytest.approx(quality(first.trials[1])["val/image_auroc"])]
    assert bench.children()[1].info.status == "FINISHED"


def test_a_trial_killed_between_its_constraints_and_its_end_is_told_without_a_warning(bench: Bench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "tell", _die)
        bench.kill(ScriptedExecutor(), constraints={"fps": ">= 10"})
    assert bench.frozen()[0].constraints == {"fps": -40.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*already set.*")
        bench.run(constraints={"fps": ">= 10"})
    assert bench.states() == ["COMPLETE"] * 3


def test_a_damaged_result_is_no_result(bench: Bench) -> None:
    first = ScriptedExecutor(lambda job: Killed(), leave_result=True)
    bench.kill(first)
    path = first.jobs[0].path / RESULT_FILE
    path.write_bytes(path.read_bytes()[:-30])
    second = ScriptedExecutor()
    bench.run(second)
    assert [(job.number, job.attempt) for job in second.trials] == [(0, 2), (1, 1), (2, 1)]
    assert bench.states() == ["COMPLETE"] * 3


def test_a_trial_of_a_killed_driver_goes_on_as_its_next_attempt(bench: Bench) -> None:
    first, second = ScriptedExecutor(lambda job: Killed(), slots=2), ScriptedExecutor(slots=2)
    bench.kill(first)
    assert bench.states() == ["RUNNING", "RUNNING"]
    bench.run(second)
    assert [(job.number, job.attempt) for job in second.trials] == [(0, 2), (1, 2), (2, 1)]
    assert [job.params for job in second.trials[:2]] == [job.params for job in first.trials]
    assert bench.states() == ["COMPLETE"] * 3


def test_a_trial_that_its_drivers_never_survive_fails_in_the_end(bench: Bench) -> None:
    bench.kill(ScriptedExecutor(lambda job: Killed()))
    bench.kill(ScriptedExecutor(lambda job: Killed()))
    executor = ScriptedExecutor()
    bench.run(executor, execution={"failures_in_a_row": 1})
    assert bench.states() == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "the driver ended 2 times" in bench.children()[0].data.tags["trial.failure"]


def test_more_orphans_than_the_budget_leaves_room_for_are_put_back(bench: Bench) -> None:
    bench.kill(ScriptedExecutor(lambda job: Killed() if job.number == 1 else quality(job), slots=3))
    assert sorted(bench.states()) == ["COMPLETE", "RUNNING", "RUNNING", "RUNNING"][: len(bench.states())]
    bench.run(budget={"trials": 1})
    assert "RUNNING" not in bench.states()
    assert all(run.info.status != "RUNNING" for run in bench.runs())
    bench.run()
    assert bench.states().count("COMPLETE") == 3
    assert "WAITING" not in bench.states()


@pytest.mark.parametrize("suggested", [False, True])
def test_a_trial_killed_within_ask_is_adopted(bench: Bench, monkeypatch: pytest.MonkeyPatch, suggested: bool) -> None:
    study = {"baselines": [{"n_features": 33}]}
    suggest = Queue.suggest

    def die(*args: Any) -> Any:
        if suggested:
            suggest(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "suggest", die)
        bench.driver(**study).kill()
    (orphan,) = bench.frozen()
    assert orphan.state == TrialState.RUNNING
    assert JOB not in orphan.user_attrs
    executor = ScriptedExecutor()
    bench.run(executor, **study)
    assert [(job.number, job.attempt) for job in executor.trials] == [(0, 1), (1, 1), (2, 1)]
    assert executor.trials[0].params["n_features"] == 33
    assert bench.states() == ["COMPLETE"] * 3


def test_an_outcome_that_was_decided_but_not_told_stands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", _die)
        bench.kill(ScriptedExecutor(lambda job: "exception"))
    assert bench.states() == ["RUNNING"]
    executor = ScriptedExecutor()
    bench.run(executor)
    assert [job.number for job in executor.trials] == [1, 2, 3]
    assert bench.children()[0].data.tags["trial.failure"] == "exception: as the script says"


def test_a_duplicate_killed_before_it_was_told_stays_discarded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    discard = Queue.discard
    with monkeypatch.context() as patch:

        def die(queue: Queue, trial: Any) -> None:
            patch.setattr(optuna.Study, "tell", _die)
            discard(queue, trial)

        patch.setattr(Queue, "discard", die)
        bench.driver(ScriptedExecutor(by_layers), **three()).kill()
    assert any(trial.state == TrialState.RUNNING for trial in bench.all_frozen())
    bench.run(ScriptedExecutor(by_layers), **three())
    assert all(trial.state != TrialState.RUNNING for trial in bench.all_frozen())
    assert bench.states() == ["COMPLETE"] * 3


def _die(*args: Any, **kwargs: Any) -> None:
    raise Killed


# Identity


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"search": {"n_features": {"int": [4, 41]}, "shrinkage": {"float": [0.0, 0.5]}}}, "search.n_features"),
        ({"fixed": {"backbone": BACKBONE, "layers": [8], "smoothing_sigma": 2.0}}, "fixed.layers"),
        ({"objectives": {"image_ap": "maximize"}}, "objectives"),
        ({"sampler": {"seed": 1}}, "seed"),
    ],
)
def test_another_identity_under_the_same_name_is_refused(bench: Bench, changes: dict[str, Any], told: str) -> None:
    bench.run()
    before = bench.parent()
    with pytest.raises(InputError, match=rf"'tiny' was created differently: .*{told}.*--fresh"):
        bench.run(**changes)
    assert bench.states() == ["COMPLETE"] * 3
    assert bench.parent().info.end_time == before.info.end_time
    assert bench.view().config == make_config(bench.root)


def test_the_order_of_objectives_is_part_of_the_identity(bench: Bench) -> None:
    bench.run(objectives={"image_auroc": "maximize", "fps": "maximize"})
    with pytest.raises(InputError, match="created differently: objectives"):
        bench.run(objectives={"fps": "maximize", "image_auroc": "maximize"})


def test_a_baseline_backbone_that_the_file_names_no_more_is_told_as_such(bench: Bench) -> None:
    other = "mobilenetv3_small_050@random"
    bench.run(backbones=[BACKBONE, other], baselines=[{"backbone": other, "n_features": 9}])
    with pytest.raises(InputError, match=rf"{other}, which the study file names no more"):
        bench.run()


def test_what_is_not_part_of_the_identity_may_change(bench: Bench) -> None:
    bench.run(budget={"trials": 2})
    outcome = bench.run(
        budget={"trials": 3, "timeout": "1h"},
        sampler={"name": "random", "seed": 0},
        execution={"attempts": 1},
        constraints={"fps": ">= 1"},
        baselines=[{"n_features": 39}],
    )
    assert outcome.reason == "3 of 3 trials are done"
    assert bench.frozen()[2].params["n_features"] == 39


def test_fresh_starts_a_new_study_beside_the_old_one(bench: Bench) -> None:
    bench.run()
    bench.run(fresh=True, budget={"trials": 2}, sampler={"seed": 5})
    assert studies_storage.study_names(open_storage(bench.home)) == ["tiny", "tiny#2"]
    parents = [run for run in bench.runs() if run.data.tags["study.role"] == "study"]
    assert sorted(run.info.run_name for run in parents) == ["tiny", "tiny#2"]
    assert len({run.data.tags["study.uid"] for run in parents}) == 2
    executor = ScriptedExecutor()
    bench.run(executor, budget={"trials": 3}, sampler={"seed": 5})
    assert len(executor.trials) == 1
    assert len(bench.frozen("tiny")) == len(bench.frozen("tiny#2")) == 3
    assert bench.view("tiny").study.study_name == "tiny#2"
    assert bench.view("tiny#1").study.study_name == "tiny"
    assert bench.view("tiny#2").study.study_name == "tiny#2"
    with pytest.raises(InputError, match="no study 'tiny#3'"):
        bench.view("tiny#3")


def test_a_study_stopped_while_it_was_created_is_taken_up(bench: Bench) -> None:
    storage = open_storage(bench.home)
    optuna.create_study(study_name="tiny", storage=storage, directions=["minimize", "minimize"])
    with pytest.raises(InputError, match="stopped while it was created"):
        bench.view()
    assert list(studies_storage.all_studies(storage)) == []
    outcome = bench.run(fresh=True)
    assert outcome.view.study.study_name == "tiny"
    assert [direction.name for direction in outcome.view.study.directions] == ["MAXIMIZE"]


# With real trials


def test_a_finished_study_is_scored_on_test_once_however_often_it_is_run(bench: Bench) -> None:
    first = bench.run(InlineExecutor(), budget={"trials": 1})
    second = bench.run(InlineExecutor(), budget={"trials": 1})
    (line,) = second.view.ledger()
    assert (line.purpose, line.trial, line.study_uid) == ("selected", 0, first.view.header.uid)
    metrics = bench.children()[0].data.metrics
    assert {"val/image_auroc", "test/image_auroc", "fps", "train_seconds"} <= set(metrics)
    assert second.selected is not None
    assert second.selected.detector is not None
