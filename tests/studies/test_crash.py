"""Whatever kills a study, and wherever: the same command goes on, and nothing is lost, doubled or left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from builders import raw_config
from conftest import copy_stores
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from optuna.trial import TrialState
from preloaded import Ended, quick_trials, study

from studies import storage as studies_storage
from studies.home import Home
from studies.storage import open_storage
from studies.view import DISCARDED, StudyView

TRIALS = 3
BASELINES = [{"n_features": 12, "shrinkage": 0.1}]
PATIENCE = 60.0
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


MLFLOW, OPTUNA, DRIVER = "mlflow:MlflowClient", "optuna:Study", "studies.driver:Driver"
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
    "in training": Point("studies.trial:_Worker._fit", 2, "before"),
    "before the result": Point("studies.trial:_Worker._finish", 2, "before"),
    "after the result, before it is told": Point("studies.executors.inline:InlineExecutor.poll", 2, "after"),
    "between outcome and tell": Point(f"{OPTUNA}.tell", 2, "before"),
    "after tell, before the projection": Point(f"{OPTUNA}.tell", 2, "after"),
    "before the batch": Point(f"{MLFLOW}.log_batch", 5, "before"),
    "between batch and end": Point(f"{MLFLOW}.log_batch", 5, "after"),
    "between files and end": Point(f"{MLFLOW}.log_artifacts", 3, "after"),
    "before the end was synced": Point(f"{MLFLOW}.set_tag", 4, "before"),
    "before the refit": Point(f"{DRIVER}._run_final", 1, "before"),
    "after the refit": Point(f"{DRIVER}._run_final", 1, "after"),
    "before the selected trial is marked": Point("tracking.projection:Projection.write_trial", 7, "before"),
    "while the selected trial is marked": Point(f"{MLFLOW}.log_inputs", 5, "after"),
    "before the parent is closed": Point(f"{DRIVER}._close_parent", 1, "before"),
    "while the parent is closed": Point(f"{MLFLOW}.set_terminated", 5, "before"),
    "after the parent was closed": Point(f"{DRIVER}._close_parent", 1, "after"),
}
IN_THE_REFIT = {
    "before test is scored": Point("studies.trial:_Worker._choose_threshold", 1, "after"),
    "between ledger and detector": Point("studies.trial:save_artifact", 1, "before"),
    "between detector and result": Point("studies.trial:save_artifact", 1, "after"),
}
IN_RECOVERY = {
    "before the orphan is looked at": Point(f"{DRIVER}._settle", 1, "before"),
    "before its result is told": Point(f"{DRIVER}._tell", 1, "before"),
    "between its outcome and tell": Point(f"{OPTUNA}.tell", 1, "before"),
    "after its result was told": Point(f"{OPTUNA}.tell", 1, "after"),
    "while its run is written": Point(f"{MLFLOW}.log_batch", 2, "after"),
}


@dataclass(frozen=True)
class Scene:
    """A study file and a home of its own."""

    folder: Path
    home: Path

    def run(self, point: Point | None = None) -> Ended:
        """The command, in a process that a point may end."""
        before = partial(arm, point) if point else quick_trials
        words = ["run", self.folder / "tiny.yaml", "--inline", "--offline", "--device", "cpu"]
        environment = {"STUDY_HOME": str(self.home), "STUDY_STORAGE": None, "MLFLOW_TRACKING_URI": None}
        return study(words, folder=self.folder, environment=environment, before=before)

    def start(self) -> subprocess.Popen[bytes]:
        """The command as a person gives it, with worker processes, as the leader of a process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "studies.cli", "run", self.folder / "tiny.yaml", "--offline", "--device", "cpu"],
            cwd=self.folder,
            env={**os.environ, "STUDY_HOME": str(self.home)},
            stdout=(self.folder / "out.txt").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def view(self) -> StudyView:
        home = Home(self.home)
        return StudyView(*studies_storage.load_study(open_storage(home), "tiny"), home)

    def running(self) -> list[object]:
        """Trials and runs that count as running."""
        trials = self.view().study.get_trials(states=[TrialState.RUNNING])
        return [*trials, *(run for run in self.runs() if run.info.status == "RUNNING")]

    def runs(self) -> list[Run]:
        client = MlflowClient(tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=1000))


@pytest.fixture(scope="module")
def warm(tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds the features and the mark of checked pictures, which each case would only make again."""
    folder = tmp_path_factory.mktemp("warm")
    scene = _scene(folder, tiny_mvtec, copy_stores(empty_stores, folder / "home"))
    ended = scene.run()
    assert ended.code == 0, ended.err
    return scene.home


@pytest.fixture
def scene(warm: Path, tiny_mvtec: Path, study_home: Path, tmp_path: Path) -> Scene:
    for name in ("features", "checked"):
        shutil.copytree(warm / name, study_home / name)
    return _scene(tmp_path, tiny_mvtec, study_home)


def _scene(folder: Path, root: Path, home: Path) -> Scene:
    raw = raw_config(root, budget={"trials": TRIALS}, baselines=BASELINES)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    return Scene(folder, home)


def assert_whole(scene: Scene, *, scorings: int = 1) -> StudyView:
    """Every trial once and ended, in Optuna and in MLflow alike."""
    view = scene.view()
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
    client = MlflowClient(tracking_uri=f"sqlite:///{scene.home / 'mlflow.db'}")
    assert {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics} == dict.fromkeys(
        run.data.metrics, 1
    )


def test_nobody_is_killed(scene: Scene) -> None:
    ended = scene.run()
    assert ended.code == 0, ended.err
    assert [trial.number for trial in assert_whole(scene).trials()] == [0, 1, 2]


@pytest.mark.parametrize("name", POINTS)
def test_a_killed_driver_goes_on(scene: Scene, name: str) -> None:
    killed = scene.run(POINTS[name])
    assert killed.code == -signal.SIGKILL, killed
    again = scene.run()
    assert again.code == 0, again.err
    view = assert_whole(scene)
    # An orphan keeps its number: no trial is thrown away.
    assert [trial.state for trial in view.trials()] == ["COMPLETE"] * TRIALS


@pytest.mark.parametrize("name", IN_THE_REFIT)
def test_a_killed_refit_is_done_again_and_every_scoring_on_test_is_on_record(scene: Scene, name: str) -> None:
    assert scene.run(IN_THE_REFIT[name]).code == -signal.SIGKILL
    scored = len(scene.view().ledger())
    assert scored == (0 if name == "before test is scored" else 1)
    again = scene.run()
    assert again.code == 0, again.err
    assert_whole(scene, scorings=scored + 1)


@pytest.mark.parametrize("name", IN_RECOVERY)
def test_a_recovery_that_is_killed_is_recovered_from(scene: Scene, name: str) -> None:
    assert scene.run(POINTS["after the result, before it is told"]).code == -signal.SIGKILL
    assert scene.run(IN_RECOVERY[name]).code == -signal.SIGKILL
    again = scene.run()
    assert again.code == 0, again.err
    view = assert_whole(scene)
    assert [trial.state for trial in view.trials()] == ["COMPLETE"] * TRIALS
    assert [trial.job["attempt"] for trial in view.trials()] == [1, 1, 1]


def test_a_driver_that_is_killed_again_and_again_at_the_same_trial_gives_it_up(scene: Scene) -> None:
    for point in (Point("studies.trial:_Worker._fit", 2, "before"), Point("studies.trial:_Worker._fit", 1, "before")):
        assert scene.run(point).code == -signal.SIGKILL
    again = scene.run()
    assert again.code == 0, again.err
    view = assert_whole(scene)
    assert [trial.state for trial in view.trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "the driver ended 2 times" in view.trials()[1].failure


# With worker processes


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


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_to_a_driver_with_a_busy_worker(scene: Scene, how: str) -> None:
    with scene.start() as process:
        wait_for(at_its_second_trial(scene), process)
        workers = workers_of(process)
        assert len(workers) == 1
        # Ctrl-C in a terminal reaches the workers too.
        (os.killpg if how == "SIGINT" else os.kill)(process.pid, signal.Signals[how])
        code = process.wait(PATIENCE)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert alive == []
    if how == "SIGKILL":
        assert code == -signal.SIGKILL
        assert scene.running()
    else:
        assert code == 130
        assert scene.output.rstrip().endswith("interrupted; the same command goes on from here")
        assert "Traceback" not in scene.output
        assert scene.running() == []
        statuses = [run.info.status for run in scene.runs() if run.data.tags["study.role"] == "study"]
        assert statuses == ["KILLED"]
    if how == "SIGTERM":
        with scene.start() as process:
            assert process.wait(PATIENCE) == 0, scene.output
    else:
        assert scene.run().code == 0
    view = assert_whole(scene)
    if how == "SIGKILL":
        assert [trial.job["attempt"] for trial in view.trials()] == [1, 2, 1]
    else:
        states = [(trial.state, trial.failure) for trial in view.trials()]
        assert states == [("COMPLETE", ""), ("FAIL", "interrupted"), ("COMPLETE", ""), ("COMPLETE", "")]


def test_a_killed_worker_is_replaced_and_its_trial_tried_again(scene: Scene) -> None:
    with scene.start() as process:
        wait_for(at_its_second_trial(scene), process)
        (worker,) = workers_of(process)
        worker.kill()
        assert process.wait(PATIENCE) == 0, scene.output
    assert "crashed: worker ended by SIGKILL" in scene.output
    view = assert_whole(scene)
    assert [trial.job["attempt"] for trial in view.trials()] == [1, 2, 1]
