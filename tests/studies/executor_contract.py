"""What every executor must do, checked on what becomes of one and the same batch of jobs.

A test module gives each of its executors the jobs of `batch`, collects what happens with `run`, and hands the `Record` to
every function in `CHECKS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from builders import build_job, repeatable

from studies.executors.base import Executor
from studies.jobs import ARTIFACTS, DETECTOR, LOG_FILE, Done, Event, Job, Lost, Stage, TrialResult, read_result
from studies.plan import Plan

GIVE_UP_SECONDS = 240.0
UNKNOWN_NUMBER = 999


@dataclass
class Record:
    """What became of a batch."""

    jobs: dict[str, Job]
    reference: TrialResult
    """What `run_job` itself gives for the job ``trial``."""
    slots: int = 0
    events: list[Event] = field(default_factory=list)
    pids: dict[str, set[int]] = field(default_factory=dict)
    """Worker processes seen after each submission, by the job's name."""

    def of(self, name: str) -> list[Event]:
        """Events of one job, in the order in which they came."""
        return [event for event in self.events if event.number == self.jobs[name].number]

    def end(self, name: str) -> Done | Lost:
        """The last event of a job."""
        event = self.of(name)[-1]
        assert isinstance(event, Done | Lost)
        return event

    def log(self, name: str) -> str:
        """The log of a job."""
        return (self.jobs[name].path / LOG_FILE).read_text()


def batch(plan: Plan, folder: Path) -> dict[str, Job]:
    """Sound jobs and jobs that really fail, by what they are; numbers do not ascend, attempts differ."""

    def job(name: str, number: int, **changes: object) -> Job:
        return build_job(plan, number, folder=folder / name, **changes)

    too_many = {"n_features": 10_000}
    lacking = job("params lack a key", 2, task="final")
    return {
        "trial": job("trial", 5),
        "too many features": job("too many features", 4, task="final", params=too_many, attempt=2),
        "params lack a key": replace(
            lacking, params={name: value for name, value in lacking.params.items() if name != "regularization"}
        ),
        "other pictures": job("other pictures", 3, task="final", splits_digest="0" * 64),
        "other weights": job("other weights", 7, task="final", weights_sha256="0" * 64),
        "final": job("final", 6, task="final", attempt=3),
    }


def run(executor: Executor, jobs: dict[str, Job], reference: TrialResult) -> Record:
    """Do all jobs, as many at a time as the executor has slots, as a driver would."""
    record = Record(jobs, reference, slots=executor.slots)
    waiting, under_way = list(jobs.items()), set[int]()
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while waiting or under_way:
        while waiting and len(under_way) < executor.slots:
            name, job = waiting.pop(0)
            executor.submit(job)
            under_way.add(job.number)
            record.pids[name] = worker_pids()
            executor.stop(UNKNOWN_NUMBER)
        if "trial" in record.pids:
            executor.stop(jobs["trial"].number)  # nothing in this job looks for it, so it still has to end
        for event in executor.poll(1.0):
            record.events.append(event)
            if isinstance(event, Done | Lost):
                under_way.discard(event.number)
        assert time.monotonic() < deadline, f"jobs that never end: {under_way}"
    record.events.extend(executor.poll(0.0))
    return record


def worker_pids() -> set[int]:
    """Processes that this one has started, without multiprocessing's own helpers: other tests use a fork server."""
    helpers = ("resource_tracker", "forkserver")
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not any(helper in command for helper in helpers):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def every_job_ends_once_and_says_nothing_after(record: Record) -> None:
    for name in record.jobs:
        ends = [isinstance(event, Done | Lost) for event in record.of(name)]
        assert ends.count(True) == 1, name
        assert ends[-1], name


def events_carry_number_and_attempt(record: Record) -> None:
    known = {(job.number, job.attempt) for job in record.jobs.values()}
    assert {(event.number, event.attempt) for event in record.events} == known


def stages_come_in_order(record: Record) -> None:
    stages = [event for event in record.of("trial") if isinstance(event, Stage)]
    names = list(dict.fromkeys(stage.name for stage in stages))
    assert names == [
        "backbone", "features (train)", "fit", "features (validation)", "score (validation)", "speed", "pictures",
    ]  # fmt: skip
    for name in names:
        done = [stage.done for stage in stages if stage.name == name]
        assert done == sorted(done)
    assert [stage.name for stage in stages] == sorted((s.name for s in stages), key=names.index)


def a_trial_is_done_with_its_result_on_disk(record: Record) -> None:
    job, end = record.jobs["trial"], record.end("trial")
    assert isinstance(end, Done), end
    assert end.result == read_result(job.path)
    assert (end.result.task, end.result.number, end.result.attempt) == ("trial", job.number, job.attempt)
    assert end.result.params == job.params
    assert (job.path / ARTIFACTS / "metrics.json").is_file()


def a_trial_gives_what_it_gives_anywhere(record: Record) -> None:
    end = record.end("trial")
    assert isinstance(end, Done)
    assert repeatable(end.result.metrics) == repeatable(record.reference.metrics)


def a_final_job_leaves_its_detector(record: Record) -> None:
    end = record.end("final")
    assert isinstance(end, Done), end
    assert end.result.task == "final"
    assert (record.jobs["final"].path / DETECTOR / "detector.json").is_file()


def an_exception_is_one_line_with_its_traceback_in_the_log(record: Record) -> None:
    for name, message in (
        ("too many features", "ValueError: n_features=10000: strides [8, 16] offer 1 to 384 channels"),
        ("params lack a key", "KeyError: 'regularization'"),
    ):
        end = record.end(name)
        assert isinstance(end, Lost), name
        assert (end.kind, end.message) == ("exception", message)
        assert "Traceback (most recent call last)" in record.log(name)
        assert message in record.log(name)


def bad_input_is_told_as_such(record: Record) -> None:
    for name, words in (("other pictures", "the pictures of tiny/widget changed"), ("other weights", "--fresh")):
        end = record.end(name)
        assert isinstance(end, Lost), name
        assert end.kind == "bad_input"
        assert words in end.message
        assert "\n" not in end.message
        assert "Traceback (most recent call last)" in record.log(name)


def a_lost_job_leaves_no_result(record: Record) -> None:
    for name, job in record.jobs.items():
        assert (read_result(job.path) is None) == isinstance(record.end(name), Lost)


def never_more_jobs_at_a_time_than_slots(record: Record) -> None:
    under_way: set[int] = set()
    for event in record.events:
        under_way.add(event.number)
        assert len(under_way) <= record.slots
        if isinstance(event, Done | Lost):
            under_way.discard(event.number)
    # A worker that just ended its only job may not be gone yet when the next one starts.
    assert all(len(pids) <= 2 * record.slots for pids in record.pids.values())


CHECKS: Sequence[Callable[[Record], None]] = (
    every_job_ends_once_and_says_nothing_after,
    events_carry_number_and_attempt,
    stages_come_in_order,
    a_trial_is_done_with_its_result_on_disk,
    a_trial_gives_what_it_gives_anywhere,
    a_final_job_leaves_its_detector,
    an_exception_is_one_line_with_its_traceback_in_the_log,
    bad_input_is_told_as_such,
    a_lost_job_leaves_no_result,
    never_more_jobs_at_a_time_than_slots,
)


def closing_leaves_nothing(executor: Executor, job: Job) -> None:
    """Closed in mid-job, and once more; afterwards nothing runs and nothing is told."""
    executor.submit(job)
    executor.close()
    assert worker_pids() == set()
    assert list(executor.poll(0.0)) == []
    executor.stop(job.number)
    executor.close()
    assert read_result(job.path) is None
