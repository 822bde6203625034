"""The detector that a person has while the search goes on: which trial's it is, and when it goes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from studies.search.notices import Remark
from studies.search.outcome import StudyFailedError
from studies.worker.jobs import Job
from tests.helpers.bench import Answer, Bench, Killed, ScriptedExecutor

VALUES = (0.5, 0.7, 0.6, 0.8)


def by_number(job: Job) -> dict[str, float]:
    return {"val/image_auroc": VALUES[job.number], "fps": 50.0}


def stopped_after(trials: int, error: BaseException) -> Callable[[Job], Answer]:
    return lambda job: by_number(job) if job.number < trials else error


def kept(bench: Bench) -> list[int]:
    return [trial.number for trial in bench.view().provisional()]


def test_the_first_detector_is_kept_and_told_and_better_ones_replace_it(bench: Bench) -> None:
    seen: list[list[int]] = []

    def look(notice: object) -> None:
        if isinstance(notice, Remark) and "usable now" in notice.text:
            seen.append(kept(bench))

    executor = ScriptedExecutor(stopped_after(3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        bench.run(executor, budget={"trials": 4}, listener=look)
    assert [job.keep_above for job in executor.trials] == [-math.inf, 0.5, 0.7, 0.7]
    # Told after the first trial, and once more to whoever ended the run.
    assert seen == [[0], [1]]
    assert "`study predict tiny IMAGE...` takes that of trial 0, provisional" in bench.said()
    assert kept(bench) == [1]
    usable = bench.view().usable()
    assert usable is not None
    assert (usable.number, usable.provisional) == (1, True)
    assert bench.view().ledger() == []


def told_usable(bench: Bench) -> list[str]:
    return [
        notice.text for notice in bench.notices if isinstance(notice, Remark) and "detector is usable" in notice.text
    ]


def test_a_detector_is_told_before_its_trial_is_judged_and_stays_when_that_ends(bench: Bench) -> None:
    executor = ScriptedExecutor(stopped_after(2, KeyboardInterrupt()), leave_first=True)
    states: list[tuple[str, bool]] = []

    def look(notice: object) -> None:
        usable = bench.view().usable() if isinstance(notice, Remark) else None
        if usable is not None:
            states.append((usable.state, usable.provisional))

    with pytest.raises(KeyboardInterrupt):
        bench.run(executor, budget={"trials": 4}, listener=look)
    assert states[0] == ("RUNNING", True)
    assert [job.keep_above for job in executor.trials] == [-math.inf, 0.5, 0.7]
    first, last = told_usable(bench)
    assert "takes that of trial 0, not judged yet and provisional until the search ends" in first
    assert "takes that of trial 1, provisional until the search ends" in last
    # How long it takes is known once the first trial has ended.
    texts = [notice.text for notice in bench.notices if isinstance(notice, Remark)]
    assert sum("the search goes on with up to 3 more trials" in text for text in texts) == 1
    assert kept(bench) == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Killed()])
def test_a_detector_outlives_a_run_that_ends_before_its_trial_does(bench: Bench, error: BaseException) -> None:
    executor = ScriptedExecutor(lambda job: error, leave_first=True)
    if isinstance(error, Killed):
        bench.kill(executor, budget={"trials": 2})
    else:
        with pytest.raises(KeyboardInterrupt):
            bench.run(executor, budget={"trials": 2})
    assert kept(bench) == [0]
    # The next run judges its own; what the first one left goes with the refit.
    later = ScriptedExecutor(by_number, leave_first=True)
    bench.run(later, budget={"trials": 2})
    assert later.trials[0].keep_above == -math.inf
    assert bench.view().with_own_detector() == []


def test_a_first_detector_is_worth_having_where_its_trial_failed(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: "exception" if job.number == 0 else by_number(job), leave_first=True)
    seen: list[list[int]] = []
    bench.run(executor, budget={"trials": 2}, listener=lambda notice: seen.append(kept(bench)))
    assert [0] in seen
    assert [1] in seen
    assert seen.index([0]) < seen.index([1])
    # Trial 1 is the first that ends: it replaces the one that was never judged.
    assert [job.keep_above for job in executor.trials] == [-math.inf, -math.inf, 0.7]


def test_that_of_a_trial_which_still_runs_is_left_to_its_worker(bench: Bench) -> None:
    executor = ScriptedExecutor(by_number, leave_first=True, slots=2)
    seen: list[list[tuple[int, str]]] = []

    def look(notice: object) -> None:
        seen.append([(trial.number, trial.state) for trial in bench.view().with_own_detector()])

    bench.run(executor, budget={"trials": 2}, listener=look)
    # Both trials began before there was a detector; the first one's end takes nothing from under the second one's worker.
    assert [job.keep_above for job in executor.trials] == [-math.inf, -math.inf]
    assert [(0, "RUNNING"), (1, "RUNNING")] in seen or [(0, "COMPLETE"), (1, "RUNNING")] in seen
    assert bench.view().with_own_detector() == []


def test_the_refit_takes_its_place(bench: Bench) -> None:
    bench.run(ScriptedExecutor(by_number), budget={"trials": 3})
    assert kept(bench) == []
    usable = bench.view().usable()
    assert usable is not None
    assert (usable.number, usable.provisional) == (1, False)
    # Who goes on has a detector that was refitted: no trial keeps another, and until the next refit it is the one to use.
    later = ScriptedExecutor(by_number, final=lambda job: "exception")
    with pytest.raises(StudyFailedError):
        bench.run(later, budget={"trials": 4})
    assert [job.keep_above for job in later.trials] == [None]
    assert kept(bench) == []
    usable = bench.view().usable()
    assert usable is not None
    assert (usable.number, usable.provisional) == (1, False)
    assert (bench.view().selected() or usable).number == 3


def test_what_is_better_when_less_is_kept_by_the_turned_sign(bench: Bench) -> None:
    executor = ScriptedExecutor(lambda job: {"val/false_alarm_rate": 0.5 - job.number / 10, "fps": 50.0})
    bench.run(executor, objectives={"false_alarm_rate": "minimize"}, budget={"trials": 1})
    assert [job.keep_above for job in executor.trials] == [-math.inf]


def test_a_killed_driver_leaves_the_detector_and_the_next_one_goes_on(bench: Bench) -> None:
    bench.kill(ScriptedExecutor(stopped_after(2, Killed())), budget={"trials": 4})
    assert kept(bench) == [1]
    before = len(bench.notices)
    later = ScriptedExecutor(by_number)
    bench.run(later, budget={"trials": 4})
    assert later.trials[0].keep_above == 0.7
    assert not any(isinstance(notice, Remark) and "usable now" in notice.text for notice in bench.notices[before:])
    assert kept(bench) == []


def test_one_that_misses_the_constraints_is_better_than_nothing(bench: Bench) -> None:
    executor = ScriptedExecutor(by_number)
    with pytest.raises(StudyFailedError):
        bench.run(executor, constraints={"fps": ">= 60"}, budget={"trials": 2})
    usable = bench.view().usable()
    assert usable is not None
    assert usable.provisional
