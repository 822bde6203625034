"""What every executor must do, checked on what becomes of the same two batches of jobs; the class in `contract` runs all of it.

A test gives an executor the real jobs of `batch` and the `scripted` ones, which do on purpose what real jobs do rarely. It
collects what happens with `run`, and hands the `Record` to every function in `CHECKS`, `FAILURE_CHECKS` (for real jobs that fail)
and `SCRIPTED_CHECKS`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from studies.executors.base import Executor
from studies.testing import jobs as scripted_jobs
from studies.worker.jobs import (
    ARTIFACTS,
    DETECTOR,
    LOG_FILE,
    RETRIED,
    Done,
    Event,
    Job,
    Lost,
    Report,
    Stage,
    TrialResult,
    read_result,
)

MakeJob = Callable[..., Job]
"""Called with a number; ``folder``, ``task``, ``params`` and other fields of the job by name."""
COSTS = {
    "fps", "latency_ms_p50", "latency_ms_p95", "throughput", "peak_memory_mb", "train_seconds", "latency_threads",
    "latency_load",
}  # fmt: skip
"""Metrics that differ from run to run."""
GIVE_UP_SECONDS = 240.0
UNKNOWN_NUMBER = 999
STOPPED_AT = 3


@dataclass
class Record:
    """What became of a batch."""

    jobs: dict[str, Job]
    """As they were submitted last."""
    reference: TrialResult | None = None
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


def batch(make_job: MakeJob, folder: Path) -> dict[str, Job]:
    """Sound jobs and jobs that really fail, by what they are; numbers do not ascend, attempts differ."""

    def job(name: str, number: int, **changes: object) -> Job:
        return make_job(number, folder=folder / name, **changes)

    too_many = {"n_features": 10_000}
    lacking = job("params lack a key", 2, task="final")
    return {
        "trial": job("trial", 5),
        "too many features": job("too many features", 4, task="final", params=too_many, attempt=2),
        "params lack a key": replace(
            lacking, params={name: value for name, value in lacking.params.items() if name != "regularization"}
        ),
        "other images": job("other images", 3, task="final", splits_digest="0" * 64),
        "other weights": job("other weights", 7, task="final", weights_sha256="0" * 64),
        "final": job("final", 6, task="final", attempt=3),
    }


def scripted(make_job: MakeJob, folder: Path, *, in_processes: bool) -> dict[str, Job]:
    """Jobs for `scripted_jobs.act`, by what they do; without processes of their own, none that crashes."""
    deeds = ["report", "until stopped", "fail", "no memory", "bad input", "print", "work"]
    deeds += ["crash", "crash once"] if in_processes else []
    return {
        deed: make_job(number, folder=folder / deed, params={"act": deed})
        for number, deed in enumerate(deeds, start=20)
    }


def run(executor: Executor, jobs: dict[str, Job], reference: TrialResult | None = None) -> Record:
    """Do all jobs, as many at a time as the executor has slots, as a driver would: losses of the surroundings are tried again
    once, and the job ``until stopped`` is stopped at its third value. Closes the executor.
    """
    record = Record(dict(jobs), reference)
    waiting, under_way = list(jobs.items()), set[int]()
    deadline = time.monotonic() + GIVE_UP_SECONDS

    def note(event: Event) -> None:
        record.events.append(event)
        if isinstance(event, Report) and event.step == STOPPED_AT and event.number == jobs["until stopped"].number:
            executor.stop(event.number)
        if isinstance(event, Done | Lost):
            under_way.discard(event.number)
        if isinstance(event, Lost) and event.kind in RETRIED and event.attempt == 1:
            name = next(name for name, job in jobs.items() if job.number == event.number)
            record.jobs[name] = replace(jobs[name], attempt=2)
            waiting.insert(0, (name, record.jobs[name]))

    while waiting or under_way:
        record.slots = max(record.slots, executor.slots)
        while waiting and len(under_way) < executor.slots:
            name, job = waiting.pop(0)
            executor.submit(job)
            under_way.add(job.number)
            record.pids[name] = worker_pids()
            executor.stop(UNKNOWN_NUMBER)
        if "trial" in record.pids:
            executor.stop(jobs["trial"].number)  # nothing in this job looks for it, so it still has to end
        executor.poll(1.0, note)
        assert time.monotonic() < deadline, f"jobs that never end: {under_way}"
    executor.poll(0.0, record.events.append)
    executor.close()
    return record


def poll(executor: Executor, timeout: float) -> list[Event]:
    """The events of one call of `Executor.poll`."""
    events: list[Event] = []
    executor.poll(timeout, events.append)
    return events


def repeatable(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that two runs of one job agree on."""
    return {name: value for name, value in metrics.items() if name not in COSTS}


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
        for attempt in range(1, record.jobs[name].attempt + 1):
            ends = [isinstance(event, Done | Lost) for event in record.of(name) if event.attempt == attempt]
            if ends or attempt == record.jobs[name].attempt:
                assert ends.count(True) == 1, name
                assert ends[-1], name


def events_carry_number_and_attempt(record: Record) -> None:
    known = {(job.number, job.attempt) for job in record.jobs.values()}
    assert {(event.number, event.attempt) for event in record.events} == known


def stages_come_in_order(record: Record) -> None:
    stages = [event for event in record.of("trial") if isinstance(event, Stage)]
    names = list(dict.fromkeys(stage.name for stage in stages))
    assert names[0] == "backbone"
    assert names[-2:] == ["speed", "plots"]
    assert names.index("features (train)") < names.index("fit") < names.index("score (validation)")
    begun = [stage.name for stage in stages if (stage.done, stage.total) == (0, 0)]
    assert begun.index("fit") < begun.index("speed")
    done = [stage.done for stage in stages if stage.name == "features (train)" and stage.total]
    assert done == sorted(done)


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
    assert record.reference is not None
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
    for name, words in (("other images", "the images of tiny/widget changed"), ("other weights", "--fresh")):
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


CHECKS: Sequence[Callable[[Record], None]] = (
    every_job_ends_once_and_says_nothing_after,
    events_carry_number_and_attempt,
    stages_come_in_order,
    a_trial_is_done_with_its_result_on_disk,
    a_trial_gives_what_it_gives_anywhere,
    a_final_job_leaves_its_detector,
    a_lost_job_leaves_no_result,
    never_more_jobs_at_a_time_than_slots,
)
FAILURE_CHECKS: Sequence[Callable[[Record], None]] = (
    an_exception_is_one_line_with_its_traceback_in_the_log,
    bad_input_is_told_as_such,
)
"""Of the real jobs that fail."""


# --- scripted jobs


def values_come_in_order_and_before_the_end(record: Record) -> None:
    steps = [(event.step, event.value) for event in record.of("report") if isinstance(event, Report)]
    assert steps == [(step, step / 10) for step in range(1, scripted_jobs.STEPS + 1)]
    assert isinstance(record.end("report"), Done)


def a_stop_order_ends_a_training_early(record: Record) -> None:
    end = record.end("until stopped")
    assert isinstance(end, Done)
    assert end.result.pruned
    steps = [event.step for event in record.of("until stopped") if isinstance(event, Report)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= STOPPED_AT
    # Nobody else was meant.
    others = [record.end(name) for name in record.jobs if name != "until stopped"]
    assert not any(other.result.pruned for other in others if isinstance(other, Done))


def failures_are_told_by_kind(record: Record) -> None:
    wanted = {
        "fail": ("exception", "ValueError: the setting makes no sense"),
        "no memory": ("out_of_memory", "RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB"),
        "bad input": ("bad_input", "a.png: no such file"),
    }
    for name, words in wanted.items():
        end = record.end(name)
        assert isinstance(end, Lost), name
        assert (end.kind, end.message) == words
        assert "in two lines" in record.log("fail")


def what_is_the_settings_own_fault_is_not_tried_again(record: Record) -> None:
    attempts = {name: sum(isinstance(event, Lost) for event in record.of(name)) for name in record.jobs}
    assert {name: attempts[name] for name in ("fail", "bad input", "no memory")} == {
        "fail": 1,
        "bad input": 1,
        "no memory": 2,
    }


def a_crash_is_told_once_for_each_attempt(record: Record) -> None:
    if "crash" not in record.jobs:
        return
    ends = [event for event in record.of("crash") if isinstance(event, Done | Lost)]
    assert [(end.attempt, getattr(end, "kind", "done")) for end in ends] == [(1, "crashed"), (2, "crashed")]


def a_crash_that_does_not_come_again_costs_nothing(record: Record) -> None:
    if "crash once" not in record.jobs:
        return
    lost, done = (event for event in record.of("crash once") if isinstance(event, Done | Lost))
    assert isinstance(lost, Lost)
    assert (lost.attempt, lost.kind) == (1, "crashed")
    assert isinstance(done, Done)
    assert done.attempt == done.result.attempt == 2


def what_a_job_prints_is_in_its_log(record: Record) -> None:
    assert isinstance(record.end("print"), Done)
    if "crash" in record.jobs:  # in a process of its own
        assert record.log("print").splitlines() == ["said on the way", "said by a child"]


SCRIPTED_CHECKS: Sequence[Callable[[Record], None]] = (
    every_job_ends_once_and_says_nothing_after,
    values_come_in_order_and_before_the_end,
    a_stop_order_ends_a_training_early,
    failures_are_told_by_kind,
    what_is_the_settings_own_fault_is_not_tried_again,
    a_crash_is_told_once_for_each_attempt,
    a_crash_that_does_not_come_again_costs_nothing,
    what_a_job_prints_is_in_its_log,
    a_lost_job_leaves_no_result,
    never_more_jobs_at_a_time_than_slots,
)


# --- slots


def seen(job: Job) -> dict[str, Any]:
    """What a scripted job has noted of where it ran."""
    noted: dict[str, Any] = json.loads((job.path / scripted_jobs.SEEN_FILE).read_bytes())
    return noted


def at_the_same_time(jobs: Sequence[Job]) -> dict[str, int]:
    """Most jobs that ran at one moment, by what they saw as CUDA_VISIBLE_DEVICES."""
    ran = [seen(job) for job in jobs]
    return {
        gpus: max(
            sum(other["gpus"] == gpus and other["began"] <= one["began"] < other["ended"] for other in ran)
            for one in ran
            if one["gpus"] == gpus
        )
        for gpus in {one["gpus"] for one in ran}
    }


# --- the end


def alive(pid: int) -> bool:
    """Whether a process still runs or could."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(pids: Iterable[int], seconds: float = 60.0) -> bool:
    """Whether these processes end before we give up; a killed one takes a moment."""
    deadline = time.monotonic() + seconds
    left = set(pids)
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if alive(pid)}
        time.sleep(0.05)
    return not left


def hanging_jobs_are_lost_in_time(executor: Executor, make_job: MakeJob, folder: Path) -> None:
    """Those that hang, that ignore every signal they can, that are stopped: each is lost by the time limit, and gone."""
    jobs = {
        deed: make_job(number, folder=folder / deed, params={"act": deed})
        for number, deed in enumerate(["hang", "deaf", "frozen"], start=30)
    }
    record = run(executor, jobs)
    for name, job in jobs.items():
        end = record.end(name)
        assert isinstance(end, Lost), name
        assert (end.kind, end.attempt) == ("timeout", 1)
        assert "took longer than" in end.message
        assert read_result(job.path) is None
    assert all_gone(_pids(jobs.values()))


def closing_ends_everything(executor: Executor, make_job: MakeJob, folder: Path) -> None:
    """Closed while its jobs hang, and once more; afterwards nothing runs and nothing is told."""
    jobs = [
        make_job(number, folder=folder / deed, params={"act": deed})
        for number, deed in enumerate(["deaf", "frozen"], start=40)
    ]
    for job in jobs:
        executor.submit(job)
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not all((job.path / scripted_jobs.SEEN_FILE).exists() for job in jobs) or "child" not in seen(jobs[0]):
        poll(executor, 0.1)
        assert time.monotonic() < deadline
    executor.close()
    assert all_gone(_pids(jobs))
    assert poll(executor, 0.0) == []
    executor.stop(jobs[0].number)
    executor.close()
    assert not any(read_result(job.path) for job in jobs)


def _pids(jobs: Iterable[Job]) -> set[int]:
    return {seen(job)[key] for job in jobs for key in ("pid", "child") if key in seen(job)}


def closing_leaves_nothing(executor: Executor, job: Job) -> None:
    """Closed in mid-job, and once more; afterwards nothing runs and nothing is told."""
    executor.submit(job)
    executor.close()
    assert worker_pids() == set()
    assert poll(executor, 0.0) == []
    executor.stop(job.number)
    executor.close()
    assert read_result(job.path) is None
