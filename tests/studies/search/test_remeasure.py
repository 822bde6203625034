"""Speed that was measured on a busy machine is measured again before the selection."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient

from studies.search.remeasure import MOST, missed_while_busy
from studies.show import study_json
from studies.worker.jobs import Job
from tests.helpers.bench import Answer, Bench, Killed, ScriptedExecutor
from tests.helpers.builders import make_config

BUSY = {"latency_load": 0.6}
LIMIT: dict[str, Any] = {"constraints": {"fps": ">= 10"}}


def answers(*trials: dict[str, float]) -> Any:
    """A script that gives each trial its metrics by number; the image AUROC under ``auroc``."""

    def script(job: Job) -> Answer:
        metrics = dict(trials[job.number])
        return {"val/image_auroc": metrics.pop("auroc"), **metrics}

    return script


def speeds(executor: ScriptedExecutor) -> list[int]:
    return [job.number for job in executor.jobs if job.task == "speed"]


SLOWED = [{"auroc": 0.7, "fps": 50.0}, {"auroc": 0.9, "fps": 4.0, **BUSY}, {"auroc": 0.95, "fps": 0.5, **BUSY}]
"""The best that could be selected is the second; the third misses its limit by more than other programs explain."""


def test_a_trial_that_other_programs_slowed_down_is_measured_again_and_selected(bench: Bench) -> None:
    executor = ScriptedExecutor(answers(*SLOWED), speed=lambda job: {"fps": 12.5, "latency_load": 0.02})
    outcome = bench.run(executor, budget={"trials": 3}, **LIMIT)
    assert speeds(executor) == [1]
    assert outcome.selected is not None
    assert outcome.selected.number == 1
    said = "trial 1 was measured again on a quiet machine: fps 12.5 instead of 4; it now meets fps >= 10"
    assert outcome.remeasured == (said,)
    assert said in bench.said()
    assert [job.number for job in executor.finals] == [1]
    # The stores show it: the trial's own figure stays in Optuna, MLflow's run and the study's views have the new one.
    view = bench.view()
    assert [(trial.feasible, trial.metrics["fps"]) for trial in view.trials()] == [
        (True, 50),
        (True, 12.5),
        (False, 0.5),
    ]
    child = bench.children()[1]
    assert child.data.metrics["fps"] == 12.5
    assert child.data.tags["trial.feasible"] == child.data.tags["study.selected"] == "true"
    assert "trial 1." in bench.parent().data.tags["mlflow.note.content"].split("once more after the search: ")[1]
    again = ScriptedExecutor()
    bench.run(again, budget={"trials": 3}, **LIMIT)
    assert again.jobs == []


def test_mlflow_shows_the_later_figure_where_it_is_lower_too(bench: Bench) -> None:
    trials = [{"auroc": 0.7, "latency_ms_p95": 20.0}, {"auroc": 0.9, "latency_ms_p95": 400.0, **BUSY}]
    executor = ScriptedExecutor(answers(*trials), speed=lambda job: {"latency_ms_p95": 80.0, "latency_load": 0.0})
    bench.run(executor, budget={"trials": 2}, constraints={"latency_ms_p95": "<= 100"})
    child = bench.children()[1]
    assert child.data.metrics["latency_ms_p95"] == 80.0
    client = MlflowClient(tracking_uri=bench.home.tracking_uri)
    assert [metric.value for metric in client.get_metric_history(child.info.run_id, "latency_ms_p95")] == [400.0, 80.0]


def test_a_machine_that_is_still_busy_is_said_and_the_same_command_measures_once_more(bench: Bench) -> None:
    busy = ScriptedExecutor(answers(*SLOWED), speed=lambda job: {"fps": 4.5, "latency_load": 0.43})
    outcome = bench.run(busy, budget={"trials": 3}, **LIMIT)
    assert outcome.selected is not None
    assert outcome.selected.number == 0
    assert outcome.remeasured == (
        "trial 1 was measured again, and the machine was busy again (other programs used 43 % of its cores): "
        "fps 4.5 instead of 4; it still misses fps >= 10; the same command measures it once more",
    )
    assert bench.view().trials()[1].metrics["fps"] == 4.5
    # A slower one among other programs says less than the one that is there.
    slower = ScriptedExecutor(speed=lambda job: {"fps": 2.0, "latency_load": 0.9})
    bench.run(slower, budget={"trials": 3}, **LIMIT)
    assert "fps 2 instead of 4.5; it still misses fps >= 10; the faster figure, the earlier one, stays" in bench.said()
    assert speeds(slower) == [1]
    assert bench.view().trials()[1].metrics["fps"] == 4.5
    quiet = ScriptedExecutor(speed=lambda job: {"fps": 12.0, "latency_load": 0.0})
    outcome = bench.run(quiet, budget={"trials": 3}, **LIMIT)
    assert (speeds(quiet), outcome.selected and outcome.selected.number) == ([1], 1)


def test_what_a_quiet_machine_finds_too_slow_stays_out(bench: Bench) -> None:
    executor = ScriptedExecutor(answers(*SLOWED), speed=lambda job: {"fps": 6.0, "latency_load": 0.0})
    outcome = bench.run(executor, budget={"trials": 3}, **LIMIT)
    assert outcome.remeasured[0].endswith("fps 6 instead of 4; it still misses fps >= 10")
    assert outcome.selected is not None
    assert outcome.selected.number == 0
    again = ScriptedExecutor()
    bench.run(again, budget={"trials": 3}, **LIMIT)
    assert again.jobs == []


def test_the_best_is_measured_first_and_no_more_than_needed(bench: Bench) -> None:
    slowed = [{"auroc": 0.8 + number / 100, "fps": 5.0, **BUSY} for number in range(3)]
    worse = {"auroc": 0.6, "fps": 5.0, **BUSY}
    fps = {3: 6.0, 2: 11.0}
    executor = ScriptedExecutor(
        answers({"auroc": 0.7, "fps": 50.0}, *slowed, worse),
        speed=lambda job: {"fps": fps[job.number], "latency_load": 0.0},
    )
    outcome = bench.run(executor, budget={"trials": 5}, **LIMIT)
    # Trial 1 is no better than 2, which meets the limit, and trial 4 no better than 0.
    assert speeds(executor) == [3, 2]
    assert outcome.selected is not None
    assert outcome.selected.number == 2


def test_only_so_many_are_measured_in_one_run(bench: Bench) -> None:
    slowed = [{"auroc": 0.8 + number / 100, "fps": 5.0, **BUSY} for number in range(MOST + 2)]
    executor = ScriptedExecutor(
        answers({"auroc": 0.7, "fps": 50.0}, *slowed), speed=lambda job: {"fps": 5.0, "latency_load": 0.0}
    )
    bench.run(executor, budget={"trials": MOST + 3}, **LIMIT)
    assert speeds(executor) == list(range(MOST + 2, 2, -1))


def test_it_may_be_the_only_trial_that_meets_the_limits(bench: Bench) -> None:
    executor = ScriptedExecutor(answers({"auroc": 0.9, "fps": 4.0, **BUSY}), speed=lambda job: {"fps": 20.0})
    outcome = bench.run(executor, budget={"trials": 1}, **LIMIT)
    assert outcome.selected is not None
    assert outcome.selected.metrics["fps"] == 20.0


def test_a_measurement_that_fails_does_not_end_the_study(bench: Bench) -> None:
    executor = ScriptedExecutor(answers(*SLOWED), speed=lambda job: "exception")
    outcome = bench.run(executor, budget={"trials": 3}, **LIMIT)
    assert "trial 1 could not be measured again" in outcome.remeasured[0]
    assert outcome.selected is not None
    assert outcome.selected.number == 0


def test_a_driver_that_is_killed_meanwhile_goes_on(bench: Bench) -> None:
    executor = ScriptedExecutor(answers(*SLOWED), speed=lambda job: Killed())
    bench.kill(executor, budget={"trials": 3}, **LIMIT)
    assert bench.view().remeasured == {}
    again = ScriptedExecutor(speed=lambda job: {"fps": 12.5, "latency_load": 0.0})
    outcome = bench.run(again, budget={"trials": 3}, **LIMIT)
    assert (speeds(again), again.trials) == ([1], [])
    assert outcome.selected is not None
    assert outcome.selected.number == 1
    assert study_json.study_json(bench.view())["trials"][1]["metrics"]["fps"] == 12.5


def test_a_long_fit_is_not_done_again_for_it(bench: Bench) -> None:
    slowed = SLOWED[1] | {"train_seconds": 7200.0}
    executor = ScriptedExecutor(answers(SLOWED[0], slowed))
    outcome = bench.run(executor, budget={"trials": 2}, **LIMIT)
    assert speeds(executor) == []
    assert "was not measured again, because its fit takes 120 minutes" in outcome.remeasured[0]


@pytest.mark.parametrize(
    ("metrics", "missed"),
    [
        ({"fps": 4.0, "model_size_mb": 10.0, **BUSY}, {"fps": 10.0}),
        ({"fps": 4.0, "model_size_mb": 10.0, "latency_load": 0.05}, {}),  # on a quiet machine
        ({"fps": 4.0, "model_size_mb": 10.0}, {}),  # nothing is known of the machine
        ({"fps": 4.0, "model_size_mb": 10.0, "latency_ms_p50": 250.0, "latency_ms_p95": 400.0}, {"fps": 10.0}),
        ({"fps": 4.0, "model_size_mb": 40.0, **BUSY}, {}),  # too large as well
        ({"fps": 1.0, "model_size_mb": 10.0, **BUSY}, {}),  # by a factor of ten
        ({"fps": 1.1, "model_size_mb": 10.0, **BUSY}, {"fps": 10.0}),
        ({"fps": 12.0, "model_size_mb": 10.0, **BUSY}, {}),
    ],
)
def test_what_may_be_the_fault_of_other_programs(tmp_path, metrics, missed) -> None:
    config = make_config(tmp_path, constraints={"fps": ">= 10", "model_size_mb": "<= 30"})
    assert missed_while_busy(config, metrics) == missed
