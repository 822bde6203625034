"""A study that runs as a process which may be killed anywhere, in a home and stores of its own, and what it must have left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from optuna.trial import TrialState

from studies.home import Home
from studies.search import storage as studies_storage
from studies.search.attributes import DISCARDED
from studies.search.storage import open_storage
from studies.search.view import StudyView
from tests.helpers.builders import raw_config
from tests.helpers.preloaded import Ended, quick_trials, study

TRIALS = 3
BASELINES = [{"n_features": 12, "shrinkage": 0.1}]
PATIENCE = 180.0
"""Seconds until something that must happen counts as not happening."""


@dataclass(frozen=True)
class Point:
    """Where a process kills itself: at the n-th call of one function, before or after its work."""

    place: str
    """``module:Class.method``"""
    count: int
    when: str

    def __str__(self) -> str:
        return f"{self.when}-{self.place.rpartition(':')[2]}-{self.count}"


def arm(point: Point) -> None:
    """Patch the one function of a point, so that its n-th call ends the process as ``kill -9`` would."""
    quick_trials()
    module, _, path = point.place.partition(":")
    *owners, name = path.split(".")
    owner = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == point.count and point.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = original(*args, **kwargs)
        if calls == point.count:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(owner, name, deadly)


MLFLOW, OPTUNA = "mlflow:MlflowClient", "optuna:Study"
REFIT, OPENED = "studies.search.refit:Refit", "studies.search.opened:OpenStudy"
TRIAL = "optuna.trial:Trial"
# The first run of MLflow is the parent's; each trial is written when it starts and when it ends, in one batch each.
POINTS = {
    "while the study is created": Point("optuna:create_study", 1, "after"),
    "before the parent run": Point(f"{MLFLOW}.create_run", 1, "before"),
    "after the parent run": Point(f"{MLFLOW}.create_run", 1, "after"),
    "before the first trial": Point(f"{MLFLOW}.update_run", 1, "after"),
    "after a baseline was queued": Point(f"{OPTUNA}.enqueue_trial", 1, "after"),
    "after ask, with a baseline": Point(f"{OPTUNA}.ask", 1, "after"),
    "after ask": Point(f"{OPTUNA}.ask", 2, "after"),
    "between two suggestions": Point(f"{TRIAL}.suggest_int", 2, "after"),
    "after the job was noted": Point(f"{TRIAL}.set_user_attr", 3, "after"),
    "after the child run was made": Point(f"{MLFLOW}.create_run", 3, "after"),
    "before the start was synced": Point(f"{MLFLOW}.set_tag", 3, "before"),
    "in training": Point("studies.worker.fitting:Fitting.fit", 2, "before"),
    "before the result": Point("studies.worker.trial:_Worker._finish", 2, "before"),
    "after the result, before it is told": Point("studies.executors.inline:InlineExecutor._run", 2, "after"),
    "between outcome and tell": Point(f"{OPTUNA}.tell", 2, "before"),
    "after tell, before the projection": Point(f"{OPTUNA}.tell", 2, "after"),
    "before the batch": Point(f"{MLFLOW}.log_batch", 5, "before"),
    "between batch and end": Point(f"{MLFLOW}.log_batch", 5, "after"),
    "between files and end": Point(f"{MLFLOW}.log_artifacts", 3, "after"),
    "before the end was synced": Point(f"{MLFLOW}.set_tag", 4, "before"),
    "before the refit": Point(f"{REFIT}.run", 1, "before"),
    "after the refit": Point(f"{REFIT}.run", 1, "after"),
    "before the selected trial is marked": Point("tracking.projection:Projection.write_trial", 7, "before"),
    "while the selected trial is marked": Point(f"{MLFLOW}.log_inputs", 5, "after"),
    "before the parent is closed": Point(f"{OPENED}.close_parent", 1, "before"),
    "while the parent is closed": Point(f"{MLFLOW}.set_terminated", 5, "before"),
    "after the parent was closed": Point(f"{OPENED}.close_parent", 1, "after"),
}
IN_THE_REFIT = {
    "before test is scored": Point("studies.worker.trial:_Worker._calibrate", 1, "after"),
    "between ledger and detector": Point("studies.worker.trial:_Worker._score_on_test", 1, "after"),
    # Each trial ends as well.
    "between detector and result": Point("studies.worker.trial:_Worker._finish", TRIALS + 1, "before"),
}
IN_RECOVERY = {
    "before the orphan is looked at": Point("studies.search.run:take_up", 1, "before"),
    "before its result is told": Point("studies.search.telling:Telling.tell", 1, "before"),
    "between its outcome and tell": Point(f"{OPTUNA}.tell", 1, "before"),
    "after its result was told": Point(f"{OPTUNA}.tell", 1, "after"),
    "while its run is written": Point(f"{MLFLOW}.log_batch", 2, "after"),
}


@dataclass(frozen=True)
class Scene:
    """A study file, a home of its own, and the stores."""

    folder: Path
    home: Path
    experiment: str = "tiny/widget"
    stores: Mapping[str, str | None] = field(
        default_factory=lambda: {"STUDY_STORAGE": None, "MLFLOW_TRACKING_URI": None}
    )
    """Variables of the environment that name them; None is the home's own."""

    @classmethod
    def write(cls, folder: Path, root: Path, home: Path, *, dataset: str = "tiny", **fields: Any) -> Scene:
        """Write the study file. Stores that hold more than this study know it by the name of its data set."""
        raw = raw_config(root, budget={"trials": TRIALS}, baselines=BASELINES)
        raw["data"]["dataset"] = dataset
        (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
        return cls(folder, home, f"{dataset}/widget", **fields)

    @property
    def environment(self) -> dict[str, str | None]:
        return {"STUDY_HOME": str(self.home), **self.stores}

    def run(self, point: Point | None = None, *, before: Callable[[], None] = quick_trials) -> Ended:
        """The command, in a process that a point may end."""
        words = ["run", self.folder / "tiny.yaml", "--inline", "--offline", "--device", "cpu"]
        before = partial(arm, point) if point else before
        return study(words, folder=self.folder, environment=self.environment, before=before)

    def start(self) -> subprocess.Popen[bytes]:
        """The command as a person gives it, with worker processes, as the leader of a process group."""
        variables = {**os.environ, **self.environment}
        return subprocess.Popen(
            [sys.executable, "-m", "studies.cli", "run", self.folder / "tiny.yaml", "--offline", "--device", "cpu"],
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdout=(self.folder / "out.txt").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.stores["MLFLOW_TRACKING_URI"] or f"sqlite:///{self.home / 'mlflow.db'}")

    def view(self) -> StudyView:
        home, given = Home(self.home), {name: value or "" for name, value in self.stores.items()}
        with mock.patch.dict(os.environ, given):
            return StudyView(*studies_storage.load_study(open_storage(home), "tiny"), home)

    def running(self) -> list[object]:
        """Trials and runs that count as running."""
        trials = self.view().study.get_trials(states=[TrialState.RUNNING])
        return [*trials, *(run for run in self.runs() if run.info.status == "RUNNING")]

    def runs(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name(self.experiment)
        ids = [experiment.experiment_id] if experiment else []
        return list(self.client.search_runs(ids, run_view_type=ViewType.ALL, max_results=1000)) if ids else []


def assert_whole(scene: Scene, *, scorings: int = 1) -> StudyView:
    """Every trial once and ended, in Optuna and in MLflow alike."""
    view = scene.view()
    assert view.ledger_faults() == []
    frozen = view.study.get_trials()
    assert [trial.number for trial in frozen] == list(range(len(frozen)))
    assert {trial.state for trial in frozen} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert sum(trial.state == TrialState.COMPLETE for trial in frozen) == TRIALS
    settings = [str(trial.params) for trial in frozen if trial.state == TrialState.COMPLETE]
    assert len(set(settings)) == TRIALS
    assert (
        sum((trial.params["n_features"], trial.params["shrinkage"]) == (12, 0.1) for trial in view_complete(view)) == 1
    )
    runs = scene.runs()
    parents = [run for run in runs if run.data.tags["study.role"] == "study"]
    assert [run.info.status for run in parents] == ["FINISHED"]
    children = {int(run.data.tags["trial.number"]): run for run in runs if run.data.tags["study.role"] == "trial"}
    assert len(children) == len(runs) - 1
    assert sorted(children) == [trial.number for trial in frozen if DISCARDED not in trial.user_attrs]
    selected = view.selected()
    assert selected is not None
    assert selected.final is not None
    assert selected.detector is not None
    for number, run in children.items():
        complete = frozen[number].state == TrialState.COMPLETE
        assert run.info.status in (("FINISHED",) if complete else ("FAILED", "KILLED"))
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert tags["trial.synced"]
        assert tags["trial.state"] == frozen[number].state.name
        assert (tags["study.selected"] == "true") == (number == selected.number)
        assert any(name.startswith("test/") for name in run.data.metrics) == (number == selected.number)
        assert_no_point_twice(scene, run)
        if complete:
            assert run.data.metrics["val/image_auroc"] == frozen[number].values[0]
            assert run.data.params["n_features"] == str(frozen[number].params["n_features"])
            assert run.info.end_time is not None
            contexts = sorted(entry.tags[0].value for entry in run.inputs.dataset_inputs)
            assert contexts == ["test", "train", "validation"][0 if number == selected.number else 1 :]
    assert len(view.ledger()) == scorings
    return view


def view_complete(view: StudyView) -> list[Any]:
    return view.study.get_trials(states=[TrialState.COMPLETE])


def assert_no_point_twice(scene: Scene, run: Run) -> None:
    client = scene.client
    assert {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics} == dict.fromkeys(
        run.data.metrics, 1
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the command ended before it was time"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def at_its_second_trial(scene: Scene) -> Callable[[], bool]:
    """Whether a worker has begun trial 1; its log is the first thing it writes."""
    return lambda: any(scene.home.glob("trials/*/00001/log.txt"))


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
