"""What a trial costs beside its fit: the driver's own milliseconds, with reads kept under the lease and with each asked anew.

    python benchmarks/driver.py --trials 40 --out benchmarks/results/driver.json

A PaDiM study on rendered screws whose jobs end at once (`studies.testing.jobs.act`), in this process, with SQLite for Optuna
and for MLflow in a home of its own. Both ways run in turn, as often as asked; the first run of each is left out, as it imports.
Counted is `run_study` without the opening of the stores: ask, submission, result, tell, MLflow's run of the trial, and its part
of the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from unittest import mock

import studies
from studies import api
from studies.search.patient_storage import PatientStorage
from studies.search.run import run_study
from studies.search.stores import Stores
from studies.testing.jobs import act
from studies.worker.jobs import Done, Event, Job


class AtOnce:
    """Does each job in no time."""

    slots = 1

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Keep a job for the next `poll`."""
        job.path.mkdir(parents=True, exist_ok=True)
        self._waiting.append(job)

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        """Answer the oldest job."""
        if self._waiting:
            job = self._waiting.popleft()
            handle(Done(job.number, job.attempt, act(job, handle, lambda: False)))

    def stop(self, number: int) -> None:
        """There is nothing to stop."""

    def close(self) -> None:
        """Forget what waits."""
        self._waiting.clear()


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many calls of the storage reach the database."""
    calls, original = [0], PatientStorage._patiently

    def patiently(self: PatientStorage, action: Callable[[], object]) -> object:
        calls[0] += 1
        return original(self, action)

    with mock.patch.object(PatientStorage, "_patiently", patiently):
        yield calls


def measured(trials: int, reads: AbstractContextManager[object]) -> dict[str, float]:
    """Milliseconds and calls of the storage for each trial of a new study."""
    with tempfile.TemporaryDirectory() as folder, reads, counted() as calls:
        settings = {"data.image_size": 64, "rerank": 0, "advice": False, "search.shrinkage": {"float": [0.0, 1.0]}}
        plan = api.plan_study(
            "padim", demo=True, trials=trials, settings=settings, offline=True, device="cpu", home=folder
        )
        stores = Stores.open(plan.home, lambda notice: None)
        before, begin = calls[0], time.perf_counter()
        run_study(plan, AtOnce(), stores)
        seconds = time.perf_counter() - begin
        return {"ms": 1000 * seconds / trials, "calls": (calls[0] - before) / trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "asked anew": lambda: mock.patch.object(PatientStorage, "reads_cached", return_value=nullcontext()),
        "kept": nullcontext,
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for repeat in range(arguments.repeats + 1):
        for name, reads in ways.items():
            one = measured(arguments.trials, reads())
            if repeat:
                found[name].append(one)
                print(f"{name:11} {one['ms']:6.0f} ms and {one['calls']:4.0f} calls of the storage a trial", flush=True)
    middle = {
        name: {key: round(median(one[key] for one in runs), 1) for key in ("ms", "calls")}
        for name, runs in found.items()
    }
    ratio = round(middle["asked anew"]["ms"] / middle["kept"]["ms"], 2)
    result = {"trials": arguments.trials, "repeats": arguments.repeats, **middle, "ratio": ratio}
    result |= {"version": studies.__version__, "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
