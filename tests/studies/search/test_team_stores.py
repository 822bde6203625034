"""A team's stores: Optuna in PostgreSQL, MLflow behind a server. Whatever ends or goes away, nothing is lost or doubled."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from studies.executors.inline import InlineExecutor
from studies.home import Home
from studies.release.promotion import Promoter, open_registry
from studies.search import storage as studies_storage
from studies.search.plan import Plan
from studies.search.storage import open_storage
from studies.search.view import StudyView
from studies.worker.jobs import Job
from tests.helpers.bench import Bench, ScriptedExecutor, quality
from tests.helpers.command_line import study
from tests.helpers.preloaded import Ended, quick_trials
from tests.helpers.scenes import IN_RECOVERY, IN_THE_REFIT, POINTS, TRIALS, Scene, assert_whole, wait_for, workers_of
from tests.helpers.servers import (
    PASSWORD,
    USER,
    MlflowServer,
    Postgres,
    free_port,
    losing_answers,
    silent_port,
    skip_without_postgres,
)
from tests.helpers.widgets import copy_stores
from tracking import store as store_module
from tracking.projection import Projection

OUTAGE_SECONDS = float(os.environ.get("STUDY_TEST_OUTAGE_SECONDS") or 2.0)
"""How long a store stays away in these tests; a longer time is for a patient person."""
KILLED = [
    "while the study is created",
    "after the parent run",
    "after ask, with a baseline",
    "after the job was noted",
    "after the child run was made",
    "in training",
    "between outcome and tell",
    "after tell, before the projection",
    "between batch and end",
    "between files and end",
    "while the selected trial is marked",
    "while the parent is closed",
]
"""Of all points those at which a store holds half of something."""

numbers = itertools.count()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    skip_without_postgres()
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow"), postgres.database()) as server:
        yield server


@pytest.fixture
def stores(postgres: Postgres, server: MlflowServer) -> dict[str, str]:
    """The environment that names them; the database holds nothing yet, the server what other tests left."""
    return {"STUDY_STORAGE": postgres.storage(), "MLFLOW_TRACKING_URI": server.uri}


@pytest.fixture(scope="module")
def warm(tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds the features and the mark of checked images, which each case would only make again."""
    folder = tmp_path_factory.mktemp("warm")
    scene = Scene.write(folder, tiny_mvtec, copy_stores(empty_stores, folder / "home"))
    ended = scene.run()
    assert ended.code == 0, ended.err
    return scene.home


@pytest.fixture
def scene(warm: Path, tiny_mvtec: Path, tmp_path: Path, stores: dict[str, str]) -> Scene:
    """A study whose data set has a name of its own, by which its runs are known on the server."""
    home = tmp_path / "home"
    for name in ("features", "checked"):
        shutil.copytree(warm / name, home / name)
    return Scene.write(tmp_path, tiny_mvtec, home, dataset=f"tiny{next(numbers)}", stores=stores)


@dataclass
class TeamBench(Bench):
    """One whose MLflow server holds other studies too."""

    def runs(self) -> list[Run]:
        uid = self.view().header.uid
        return [run for run in super().runs() if run.data.tags.get("study.uid") == uid]


@pytest.fixture
def bench(
    base_plan: Plan, tiny_mvtec: Path, tmp_path: Path, stores: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> TeamBench:
    for name, value in stores.items():
        monkeypatch.setenv(name, value)
    return TeamBench(base_plan, tiny_mvtec, Home(tmp_path / "home").prepare())


def os_errors_as_input_errors(ended: Ended, *words: str) -> None:
    """Exit code 2, one line with these words, and no password."""
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err
    assert_no_password(ended.out + ended.err)


def assert_no_password(text: str) -> None:
    assert PASSWORD not in text
    assert "pass%2Fword" not in text


# Run, go on, look


def test_a_study_runs_goes_on_and_is_looked_at(
    scene: Scene, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = scene.run()
    assert ended.code == 0, ended.err
    assert_no_password(ended.out + ended.err)
    view = assert_whole(scene)
    assert not (scene.home / "studies.db").exists()
    assert not (scene.home / "mlflow.db").exists()
    again = scene.run()
    assert again.code == 0, again.err
    assert_whole(scene)

    for name, value in scene.environment.items():
        monkeypatch.setenv(name, str(value))
    shown = study("show", "tiny")
    assert shown.code == 0
    assert "padim" in shown.out
    plain = json.loads(study("show", "tiny", "--json").out)
    assert [trial["state"] for trial in plain["trials"]] == ["COMPLETE"] * TRIALS
    selected = view.selected()
    assert selected is not None
    listed = study("list")
    assert "tiny" in listed.out
    compared = study("compare", "tiny")
    assert compared.code == 0, compared.err
    checked = study("doctor")
    for ended_too in (shown, listed, compared, checked):
        assert_no_password(ended_too.out + ended_too.err)
    parent = next(run for run in scene.runs() if run.data.tags["study.role"] == "study")
    found = MlflowClient(server.uri).list_artifacts(parent.info.run_id)
    assert {"config.yaml", "trials.csv"} <= {Path(entry.path).name for entry in found}


# Killed drivers


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_driver_goes_on(scene: Scene, name: str) -> None:
    killed = scene.run(POINTS[name])
    assert killed.code == -signal.SIGKILL, killed
    # The dead driver's lease is not waited for: one can see that it is dead.
    again = scene.run()
    assert again.code == 0, again.err
    assert "finding out" not in again.out
    view = assert_whole(scene)
    assert [trial.state for trial in view.trials()] == ["COMPLETE"] * TRIALS


def test_a_killed_refit_is_done_again(scene: Scene) -> None:
    assert scene.run(IN_THE_REFIT["between ledger and detector"]).code == -signal.SIGKILL
    again = scene.run()
    assert again.code == 0, again.err
    assert_whole(scene, scorings=2)


@pytest.mark.parametrize("name", ["after its result was told", "while its run is written"])
def test_a_recovery_that_is_killed_is_recovered_from(scene: Scene, name: str) -> None:
    assert scene.run(POINTS["after the result, before it is told"]).code == -signal.SIGKILL
    assert scene.run(IN_RECOVERY[name]).code == -signal.SIGKILL
    again = scene.run()
    assert again.code == 0, again.err
    view = assert_whole(scene)
    assert [trial.submission.attempt for trial in view.trials()] == [1, 1, 1]


# Two drivers


def test_a_second_driver_of_another_home_is_refused_in_one_line(
    scene: Scene, warm: Path, tiny_mvtec: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for name in ("features", "checked"):
        shutil.copytree(warm / name, other / "home" / name)
    second = Scene.write(
        other, tiny_mvtec, other / "home", dataset=scene.experiment.partition("/")[0], stores=scene.stores
    )
    with scene.start() as process:
        wait_for(lambda: any(scene.home.glob("trials/*/00000/log.txt")), process)
        refused = second.run()
        assert process.wait(120) == 0, scene.output
    os_errors_as_input_errors(
        refused, f"study 'tiny' is being run by process {process.pid} on {socket.gethostname()}; wait for it or stop it"
    )
    assert_no_password(scene.output)
    assert_whole(scene)
    assert list(second.home.glob("trials/*")) == []


def test_two_machines_may_begin_with_an_empty_database(postgres: Postgres, tmp_path: Path) -> None:
    """Both make the tables."""
    address, errors = postgres.database(), []

    def open_it(home: Home) -> None:
        try:
            studies_storage._open(address)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it, args=[Home(tmp_path / str(number))]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert studies_storage.study_names(studies_storage._open(address)) == []


# Stores that are away for a while


def once(executor: ScriptedExecutor, number: int, go_away: Callable[[], None]) -> None:
    """Let something happen while trial `number` is under way."""
    happened = []

    def script(job: Job) -> Mapping[str, float]:
        if job.number == number and not happened:
            happened.append(True)
            go_away()
        return quality(job)

    executor.script = script


def assert_complete(bench: Bench, trials: int) -> None:
    frozen = bench.all_frozen()
    assert [trial.number for trial in frozen] == list(range(len(frozen)))
    assert [trial.state for trial in bench.frozen()] == [TrialState.COMPLETE] * trials
    children = bench.children()  # asserts that no number is there twice
    assert sorted(children) == [trial.number for trial in bench.frozen()]
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert bench.parent().info.status == "FINISHED"
    for run in children.values():
        assert run.data.tags["trial.synced"]
        client = MlflowClient(bench.home.tracking_uri)
        histories = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
        assert all(len(history) == 1 for history in histories)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_database_is_restarted_in_mid_study(bench: TeamBench, postgres: Postgres, mode: str) -> None:
    """Optuna's is gone, and so is the one behind the MLflow server."""
    executor = ScriptedExecutor()
    begin = []

    def go_away() -> None:
        begin.append(postgres.away(OUTAGE_SECONDS, mode))
        begin[0].__enter__()

    once(executor, 2, go_away)
    try:
        bench.run(executor, budget={"trials": 5})
    finally:
        begin[0].__exit__(None, None, None)
    assert_complete(bench, 5)
    assert [job.attempt for job in executor.trials] == [1] * 5
    said = bench.said()
    shown = f"Optuna storage postgresql+psycopg://{USER}:***@127.0.0.1:{postgres.port}/"
    assert f"{shown}" in said
    assert " does not answer; waiting for it, for up to " in said
    assert " is back after " in said
    assert_no_password(said)


def test_the_mlflow_server_is_killed_and_restarted_in_mid_study(bench: TeamBench, server: MlflowServer) -> None:
    executor = ScriptedExecutor()
    away = server.away(OUTAGE_SECONDS)
    once(executor, 2, away.__enter__)
    try:
        bench.run(executor, budget={"trials": 5})
    finally:
        away.__exit__(None, None, None)
    assert_complete(bench, 5)
    said = bench.said()
    assert f"MLflow store {server.uri} does not answer; waiting for it, for up to " in said
    assert f"MLflow store {server.uri} is back after " in said
    assert "Optuna storage" not in said


def test_a_database_that_comes_and_goes_loses_nothing(bench: TeamBench, postgres: Postgres) -> None:
    """Crashes at no chosen moments: in the middle of whatever the driver, Optuna and the MLflow server are at."""
    over = threading.Event()

    def shake() -> None:
        while not over.wait(0.7):
            with postgres.away(0.1, "immediate"):
                pass

    shaker = threading.Thread(target=shake)
    shaker.start()
    try:
        bench.run(budget={"trials": 12})
    finally:
        over.set()
        shaker.join()
    settled = ScriptedExecutor()
    bench.run(settled, budget={"trials": 12})
    assert settled.trials == []
    assert_complete(bench, 12)


def go_away_in_the_second_trial(folder: str) -> None:
    """In the process of a command: ask this one to let both stores go away."""
    quick_trials()
    original = InlineExecutor.submit

    def submit(executor: InlineExecutor, job: Job) -> None:
        original(executor, job)
        if job.number == 1:
            Path(folder, "go").touch()
            while not Path(folder, "gone").exists():
                time.sleep(0.01)

    InlineExecutor.submit = submit  # type: ignore[method-assign]


def test_the_command_waits_for_both_and_says_so(
    scene: Scene, postgres: Postgres, server: MlflowServer, tmp_path: Path
) -> None:
    def take_away() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        with server.away(OUTAGE_SECONDS), postgres.away(OUTAGE_SECONDS):
            (tmp_path / "gone").touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    ended = scene.run(before=partial(go_away_in_the_second_trial, str(tmp_path)))
    thread.join()
    assert ended.code == 0, ended.err
    assert f"Optuna storage postgresql+psycopg://{USER}:***@127.0.0.1:{postgres.port}/" in ended.out
    assert "does not answer; waiting for it, for up to" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert_no_password(ended.out + ended.err)
    view = assert_whole(scene)
    assert [(trial.state, trial.submission.attempt) for trial in view.trials()] == [("COMPLETE", 1)] * TRIALS


@pytest.mark.parametrize(("what", "which"), [("runs/create", {1, 2, 4}), ("", {4, 17, 31, 46, 62})])
def test_an_answer_that_is_lost_on_its_way_doubles_nothing(
    bench: TeamBench, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, what: str, which: set[int]
) -> None:
    """The server did what it was asked to, and whoever asked never heard of it."""
    seen, lost = itertools.count(1), []

    def lose(path: str) -> bool:
        if what in path and next(seen) in which:
            lost.append(path)
            return True
        return False

    with losing_answers(server, lose) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        bench.run()
        assert len(lost) == len(which)
        assert_complete(bench, 3)


# Interrupted while a store is away


@pytest.mark.parametrize("what", ["database", "server"])
def test_sigterm_ends_a_study_that_waits(scene: Scene, postgres: Postgres, server: MlflowServer, what: str) -> None:
    with scene.start() as process:
        wait_for(lambda: any(scene.home.glob("trials/*/00001/log.txt")), process)
        workers = workers_of(process)
        (postgres.stop if what == "database" else server.kill)()
        try:
            wait_for(lambda: "does not answer; waiting for it" in scene.output, process)
            process.terminate()
            assert process.wait(120) == 130, scene.output
            assert not any(worker.is_running() for worker in workers)
        finally:
            (postgres.start if what == "database" else server.start)()
    assert scene.output.rstrip().endswith("interrupted; the same command goes on from here")
    again = scene.run()
    assert again.code == 0, again.err
    assert [trial.state for trial in assert_whole(scene).trials() if trial.state == "COMPLETE"] == ["COMPLETE"] * TRIALS


# Stores that are not there


def test_a_database_that_is_not_there_is_told_at_once(scene: Scene, postgres: Postgres) -> None:
    url = f"postgresql+psycopg://{USER}:pass%2Fword%3A1@127.0.0.1:{free_port()}/studies"
    ended = with_stores(scene, STUDY_STORAGE=url).run()
    os_errors_as_input_errors(
        ended, "Optuna storage postgresql+psycopg://study:***@127.0.0.1:", "refused", "check STUDY_STORAGE"
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda postgres: postgres.url("postgres", password="wrong:Secret"), "password authentication failed"),
        (lambda postgres: postgres.url("nowhere"), 'database "nowhere" does not exist'),
        (lambda postgres: "postgresql+psycopg://study:Secret@nohost.invalid/x", "nohost.invalid"),
    ],
)
def test_a_database_that_refuses_is_told_at_once(
    scene: Scene, postgres: Postgres, change: Callable[[Postgres], str], word: str
) -> None:
    ended = with_stores(scene, STUDY_STORAGE=change(postgres)).run()
    os_errors_as_input_errors(ended, "Optuna storage postgresql+psycopg://study:***@", word, "check STUDY_STORAGE")
    assert "Secret" not in ended.err


def test_a_database_that_never_answers_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(studies_storage.CONNECTION, "connect_timeout", 2)
    with silent_port() as port:
        monkeypatch.setenv("STUDY_STORAGE", f"postgresql+psycopg://study:Secret@127.0.0.1:{port}/x")
        monkeypatch.setenv("STUDY_HOME", str(scene.home))
        ended = study("list")
    assert ended.code == 2
    assert "timeout expired" in ended.error
    assert "Secret" not in ended.error


def test_an_mlflow_server_that_is_not_there_is_told_at_once(scene: Scene) -> None:
    ended = with_stores(scene, MLFLOW_TRACKING_URI=f"http://ann:Secret@127.0.0.1:{free_port()}").run()
    os_errors_as_input_errors(ended, "MLflow server http://ann:***@127.0.0.1:", "refused", "MLFLOW_TRACKING_URI")
    assert "Secret" not in ended.err


def test_an_mlflow_server_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ANSWER_SECONDS", 0.5)
    with (
        silent_port() as port,
        pytest.raises(ValueError, match=r"cannot be reached \(no answer within 0.5 s\)") as info,
    ):
        Projection(f"http://ann:Secret@127.0.0.1:{port}")
    assert "Secret" not in str(info.value)


def test_an_mlflow_server_without_its_database_is_told(scene: Scene, postgres: Postgres, server: MlflowServer) -> None:
    stores = {"STUDY_STORAGE": f"sqlite:///{scene.home}/studies.db"}
    postgres.stop()
    try:
        ended = with_stores(scene, **stores).run()
    finally:
        postgres.start()
    os_errors_as_input_errors(ended, f"MLflow store {server.uri}: ", "check MLFLOW_TRACKING_URI")


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+nodriver"])
def test_an_mlflow_database_that_is_not_there_is_told_at_once(scheme: str) -> None:
    skip_without_postgres()
    with pytest.raises(ValueError, match=r"^MLflow store postgresql\+\w+://ann:\*\*\*@127") as info:
        Projection(f"{scheme}://ann:Secret@127.0.0.1:{free_port()}/mlflow")
    assert "Secret" not in str(info.value)
    assert "\n" not in str(info.value)


def with_stores(scene: Scene, **stores: str) -> Scene:
    return Scene(scene.folder, scene.home, scene.experiment, {**scene.stores, **stores})


def test_a_role_that_may_make_no_tables_is_told(bench: TeamBench, postgres: Postgres) -> None:
    """The database's owner made Optuna's tables, and the team's role may only fill them."""
    postgres.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    own = os.environ["STUDY_STORAGE"]
    name = own.rpartition("/")[2]
    for granted in ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES"):
        postgres.execute(f"GRANT {granted} IN SCHEMA public TO guest", database=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_STORAGE", f"postgresql+psycopg://guest:guest@127.0.0.1:{postgres.port}/{name}")
        with pytest.raises(ValueError, match=r"cannot note in the database who runs it \(permission denied"):
            bench.run()


def test_the_view_is_the_same_from_every_home(scene: Scene, tmp_path: Path) -> None:
    """Trials, params and figures are in the database; a colleague sees them without the folders."""
    assert scene.run().code == 0
    colleague = Scene(scene.folder, tmp_path / "colleague", scene.experiment, scene.stores)
    mine, theirs = scene.view(), colleague.view()
    assert isinstance(theirs, StudyView)
    assert [(trial.number, trial.params, trial.metrics) for trial in theirs.trials()] == [
        (trial.number, trial.params, trial.metrics) for trial in mine.trials()
    ]


# --- the registry


def test_models_are_promoted_rolled_back_and_fetched_over_http(bench: TeamBench, server: MlflowServer) -> None:
    bench.run(InlineExecutor(), budget={"trials": 2}, gate={"floor": {}})
    name = "tiny"
    registry = open_registry(bench.home)
    promoter = Promoter(bench.home, open_storage(bench.home), registry, device="cpu")
    view = bench.view()
    selected = view.selected()
    assert selected is not None
    first = promoter.promote_trial(view, selected)
    assert first.promoted, first.report and first.report.reasons
    other = next(trial for trial in view.trials() if not trial.selected)
    refitted = bench.driver(InlineExecutor(), budget={"trials": 2}, gate={"floor": {}}).refit(other.number)
    second = promoter.promote_trial(bench.view(), refitted)
    assert second.version is not None
    if second.promoted:
        champion, before = promoter.roll_back(name)
        assert (champion.version, before.version) == ("1", "2")
    model = mlflow.pyfunc.load_model(str(registry.fetch_model(registry.version(name, "champion"))))
    image = next(iter(bench.base.splits.test.samples)).file.read_bytes()
    (answer,) = model.predict([{"image": base64.b64encode(image).decode()}])
    assert answer.model_version == "tiny/1"
    assert registry.faults(name) == []
    with server.away(OUTAGE_SECONDS):
        # Waits, and finds it.
        assert registry.version(name, "champion").version == "1"
