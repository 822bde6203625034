"""Whatever kills a study, and wherever: the same command goes on, and nothing is lost, doubled or left running."""

from __future__ import annotations

import os
import shutil
import signal
from importlib import import_module
from pathlib import Path

import psutil
import pytest

from studies.search.ledger_count import ATTRIBUTE
from tests.helpers.scenes import (
    IN_RECOVERY,
    IN_THE_REFIT,
    PATIENCE,
    POINTS,
    TRIALS,
    Point,
    Scene,
    assert_whole,
    at_its_second_trial,
    wait_for,
    workers_of,
)
from tests.helpers.widgets import copy_stores

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def warm(tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds the features and the mark of checked images, which each case would only make again."""
    folder = tmp_path_factory.mktemp("warm")
    scene = Scene.write(folder, tiny_mvtec, copy_stores(empty_stores, folder / "home"))
    ended = scene.run()
    assert ended.code == 0, ended.err
    return scene.home


@pytest.fixture
def scene(warm: Path, tiny_mvtec: Path, study_home: Path, tmp_path: Path) -> Scene:
    for name in ("features", "checked"):
        shutil.copytree(warm / name, study_home / name)
    return Scene.write(tmp_path, tiny_mvtec, study_home)


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


def test_a_scoring_whose_count_was_cut_off_is_counted_by_the_next_run(scene: Scene) -> None:
    assert scene.run(Point("studies.search.opened:count_ledger", 2, "before")).code == -signal.SIGKILL
    assert [len(scene.view().ledger()), *counted(scene)] == [1, 0]
    assert scene.view().ledger_faults() == []
    again = scene.run()
    assert again.code == 0, again.err
    assert "at fault" not in again.out + again.err
    assert_whole(scene)
    assert counted(scene) == [1]


def counted(scene: Scene) -> list[int]:
    attributes = scene.view().study.user_attrs
    return [value["lines"] for name, value in attributes.items() if name.startswith(ATTRIBUTE)]


@pytest.mark.parametrize("name", IN_RECOVERY)
def test_a_recovery_that_is_killed_is_recovered_from(scene: Scene, name: str) -> None:
    assert scene.run(POINTS["after the result, before it is told"]).code == -signal.SIGKILL
    assert scene.run(IN_RECOVERY[name]).code == -signal.SIGKILL
    again = scene.run()
    assert again.code == 0, again.err
    view = assert_whole(scene)
    assert [trial.state for trial in view.trials()] == ["COMPLETE"] * TRIALS
    assert [trial.submission.attempt for trial in view.trials()] == [1, 1, 1]


def test_a_driver_that_is_killed_again_and_again_at_the_same_trial_gives_it_up(scene: Scene) -> None:
    for point in (
        Point("studies.worker.fitting:Fitting.fit", 2, "before"),
        Point("studies.worker.fitting:Fitting.fit", 1, "before"),
    ):
        assert scene.run(point).code == -signal.SIGKILL
    again = scene.run()
    assert again.code == 0, again.err
    view = assert_whole(scene)
    assert [trial.state for trial in view.trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "the driver ended 2 times" in view.trials()[1].failure


# With worker processes


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
        assert [trial.submission.attempt for trial in view.trials()] == [1, 2, 1]
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
    assert [trial.submission.attempt for trial in view.trials()] == [1, 2, 1]


def test_kills_at_random_moments(study_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of the benchmark, which has ten times as many."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "benchmarks")
    script = import_module("kill_driver")
    study = script.Study(tmp_path, trials=3)
    study.prepare()
    told: list[str] = []
    report = script.run(study, kills=2, terminations=0, reach=3.0, seed=1, tell=told.append)
    assert report.faults == [], "\n".join([*told, study.output])
    assert report.states["COMPLETE"] == 3
