"""`kill -9` of a study's driver at random moments, again and again: is every trial there once at the end?

    python benchmarks/kill_driver.py --kills 30 --trials 40 --out benchmarks/results/kill_driver.json

A PaDiM study on small rendered screws with random weights: it needs no download and its trials cost seconds. The command runs
as a person gives it, with worker processes. A quarter of the kills comes at any moment of the start, the others within
`--reach` seconds after the first sign of a trial. Then as many runs as asked for are ended by SIGTERM in mid-trial. The last
run is left alone, and what the stores hold after it is checked. STUDY_STORAGE and MLFLOW_TRACKING_URI are passed on where set.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType
from optuna.trial import TrialState

from detectors.data.rendered import RenderSpec, render_dataset
from studies.home import Home
from studies.search import storage as studies_storage
from studies.search.attributes import DISCARDED
from studies.search.storage import open_storage
from studies.search.view import StudyView

NAME = "killed"
WORKER_SECONDS = 10.0
"""A worker that lives longer than that without its driver is an orphan."""
START_SECONDS = 10.0
"""What a start may take: imports, a look at the images, what was left of the run before."""
LONGEST_SECONDS = 600.0


@dataclass
class End:
    """One run that was ended."""

    seconds: float
    """Wall time until the signal."""
    phase: str
    """``start``, ``trials``, or ``over`` where the run was faster than the signal."""
    workers: int
    """Worker processes at that moment."""
    leaving: float
    """Seconds until all processes of the run were gone."""
    orphans: int
    code: int


@dataclass
class Report:
    """What came of it. `faults` is empty where all is as it should be."""

    trials: int
    kills: list[End] = field(default_factory=list)
    terminations: list[End] = field(default_factory=list)
    seconds: float = 0.0
    last_run_seconds: float = 0.0
    numbers: int = 0
    """Trials in the Optuna storage, discarded ones included."""
    states: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    """Of the counted trials."""
    runs: int = 0
    """In MLflow, without the parent."""
    scorings: int = 0
    """On test."""
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """The study file, its home, and the command that runs it."""

    folder: Path
    trials: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "STUDY_HOME": str(self.home), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def prepare(self) -> None:
        """Write images and study file."""
        root = render_dataset(self.folder / "images", RenderSpec(size=64, train=24, test_good=12, per_defect=4))
        config = {
            "name": NAME,
            "detector": "padim",
            "data": {"dataset": NAME, "category": "screw", "root": str(root), "image_size": 64},
            "search": {"n_features": {"int": [4, 120]}, "shrinkage": {"float": [0.0, 0.5]}},
            "fixed": {"backbone": "resnet18@random", "layers": [8, 16], "smoothing_sigma": 2.0},
            "budget": {"trials": self.trials},
        }
        (self.folder / f"{NAME}.yaml").write_text(yaml.safe_dump(config))

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The command, in a session of its own."""
        command = [sys.executable, "-m", "studies.cli", "run", self.folder / f"{NAME}.yaml"]
        with (self.folder / "out.txt").open("ab") as out:
            process = subprocess.Popen(
                [*map(str, command), "--offline", "--device", "cpu"],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def newest_log(self) -> float:
        """When a worker last wrote into a trial's log, seconds since the epoch."""
        return max((path.stat().st_mtime for path in self.home.glob("trials/*/*/log.txt")), default=0.0)

    def processes(self) -> list[psutil.Process]:
        """Whatever runs for this home on this machine."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("STUDY_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def end_a_run(study: Study, number: signal.Signals, phase: str, delay: float) -> End:
    """Start the command and end it by a signal to the driver alone.

    Args:
        phase: ``start``: `delay` counts from the command's start; ``trials``: from the first sign of a trial in this run.
    """
    begin = time.time()
    with study.running() as process:
        if phase == "trials":
            _wait(lambda: study.newest_log() > begin or process.poll() is not None)
        deadline = time.time() + delay
        _wait(lambda: time.time() >= deadline or process.poll() is not None)
        over = process.poll() is not None
        family = [] if over else psutil.Process(process.pid).children(recursive=True)
        workers = sum(_is_worker(child) for child in family)
        seconds = time.time() - begin
        sent = time.monotonic()
        if not over:
            os.kill(process.pid, number)
        code = process.wait(LONGEST_SECONDS)
        _, alive = psutil.wait_procs(family, timeout=WORKER_SECONDS)
        leaving = time.monotonic() - sent
    for orphan in alive:
        orphan.kill()
    return End(seconds, "over" if over else phase, workers, leaving, len(alive), code)


def run(study: Study, *, kills: int, terminations: int, reach: float, seed: int, tell: Callable[[str], None]) -> Report:
    """Kill, interrupt, finish, check."""
    chance, report, begin = random.Random(seed), Report(study.trials), time.monotonic()
    for index in range(kills):
        phase = "start" if chance.random() < 0.25 else "trials"
        end = end_a_run(study, signal.SIGKILL, phase, chance.uniform(0, START_SECONDS if phase == "start" else reach))
        report.kills.append(end)
        tell(_row(f"kill {index + 1}", end))
    for index in range(terminations):
        end = end_a_run(study, signal.SIGTERM, "trials", chance.uniform(0, reach))
        report.terminations.append(end)
        tell(_row(f"SIGTERM {index + 1}", end))
    last = time.monotonic()
    with study.running() as process:
        code = process.wait(LONGEST_SECONDS)
    report.last_run_seconds = time.monotonic() - last
    report.seconds = time.monotonic() - begin
    if code != 0:
        report.faults.append(f"the last run ended with exit code {code}: {study.output.splitlines()[-1:]}")
    check(study, report)
    return report


def check(study: Study, report: Report) -> None:
    """Look at both stores, the folders and the process table, and note what is not as it should be."""
    home, faults = Home(study.home), report.faults
    # The home's own addresses come from the environment.
    with mock.patch.dict(os.environ, study.environment):
        view = StudyView(*studies_storage.load_study(open_storage(home), NAME), home)
        client = MlflowClient(home.tracking_uri)
        frozen = view.study.get_trials()
        uid = view.header.uid
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(
            experiments, f"tags.`study.uid` = '{uid}'", run_view_type=ViewType.ALL, max_results=5000
        )
    shown = [trial for trial in frozen if DISCARDED not in trial.user_attrs and trial.state != TrialState.WAITING]
    counted = [trial for trial in shown if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    parents = [run for run in runs if run.data.tags.get("study.role") == "study"]
    children = [run for run in runs if run.data.tags.get("study.role") == "trial"]
    report.numbers, report.runs, report.scorings = len(frozen), len(children), len(view.ledger())
    report.states = dict(collections.Counter(trial.state.name for trial in shown))
    report.attempts = dict(collections.Counter(int(trial.user_attrs["job"]["attempt"]) for trial in counted))
    failures = (trial.user_attrs.get("outcome", {}).get("failure", "") for trial in shown)
    report.failures = dict(collections.Counter(text for text in failures if text))

    expect(faults, "counted trials", len(counted), study.trials)
    expect(faults, "trial numbers", [trial.number for trial in frozen], list(range(len(frozen))))
    settings = collections.Counter(json.dumps(trial.params, sort_keys=True) for trial in counted)
    expect(faults, "settings that were counted twice", [text for text, count in settings.items() if count > 1], [])
    expect(faults, "trials that are still running", report.states.get("RUNNING", 0), 0)
    expect(faults, "states of parent runs", [run.info.status for run in parents], ["FINISHED"])
    numbers = collections.Counter(int(run.data.tags["trial.number"]) for run in children)
    expect(faults, "trials with several runs", [number for number, count in numbers.items() if count > 1], [])
    expect(faults, "trials with a run", sorted(numbers), [trial.number for trial in shown])
    for run in children:
        trial = frozen[int(run.data.tags["trial.number"])]
        allowed = ("FINISHED",) if trial.state == TrialState.COMPLETE else ("FAILED", "KILLED")
        if run.info.status not in allowed or run.data.tags.get("trial.state") != trial.state.name:
            faults.append(f"run of trial {trial.number} is {run.info.status}, the trial {trial.state.name}")
        if trial.state == TrialState.COMPLETE and run.data.metrics.get("val/image_auroc") != trial.values[0]:
            faults.append(f"run of trial {trial.number} has another figure than the trial")
    selected = view.selected()
    if selected is None or selected.detector is None:
        faults.append("no detector of the selected trial")
    expect(faults, "orphaned workers", sum(end.orphans for end in (*report.kills, *report.terminations)), 0)
    expect(faults, "processes that are left", [process.pid for process in study.processes()], [])
    expect(faults, "exit codes after kill -9", {end.code for end in report.kills if end.phase != "over"} - {-9}, set())
    expect(
        faults,
        "exit codes after SIGTERM",
        {end.code for end in report.terminations if end.phase != "over"} - {130},
        set(),
    )


def expect(faults: list[str], what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        faults.append(f"{what}: {found} instead of {wanted}")


def table(report: Report) -> Mapping[str, Any]:
    """The figures in short."""
    kills, ends = report.kills, report.terminations
    with_workers = [end for end in kills if end.workers]
    return {
        "kills": len(kills),
        "of them in the start / among trials / too late": " / ".join(
            str(sum(end.phase == phase for end in kills)) for phase in ("start", "trials", "over")
        ),
        "of them with workers": len(with_workers),
        "until a killed driver's workers were gone, median and longest": _seconds(
            [end.leaving for end in with_workers]
        ),
        "SIGTERM": len(ends),
        "until exit 130 and workers gone, median and longest": _seconds([end.leaving for end in ends]),
        "trials wanted": report.trials,
        "trials by state": ", ".join(f"{count} {state}" for state, count in sorted(report.states.items())),
        "attempts of the counted trials": ", ".join(f"{count} x {n}" for n, count in sorted(report.attempts.items())),
        "failures": "; ".join(f"{count} x {text}" for text, count in report.failures.items()) or "none",
        "runs in MLflow": report.runs,
        "scorings on test": report.scorings,
        "orphaned workers": sum(end.orphans for end in (*kills, *ends)),
        "whole time": f"{report.seconds:.0f} s",
        "of it the last run, left alone": f"{report.last_run_seconds:.0f} s",
        "faults": "; ".join(report.faults) or "none",
    }


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s, {max(values):.2f} s" if values else "-"


def _row(name: str, end: End) -> str:
    return (
        f"{name:>11}  {end.phase:<6}  after {end.seconds:5.1f} s  workers {end.workers}  "
        f"gone {end.leaving:5.2f} s later  exit {end.code}"
    )


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the study does nothing; see its out.txt")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terminations", type=int, default=5)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--reach", type=float, default=4.0, help="seconds after the first sign of a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), arguments.trials)
        study.prepare()
        report = run(
            study,
            kills=arguments.kills,
            terminations=arguments.terminations,
            reach=arguments.reach,
            seed=arguments.seed,
            tell=lambda text: print(text, flush=True),
        )
    figures = table(report)
    for name, value in figures.items():
        print(f"{name:>62}: {value}")
    if arguments.out:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine, "figures": figures, "report": asdict(report)}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
