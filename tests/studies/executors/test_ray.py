"""Jobs on a real Ray cluster on this machine: a head without room for trials and two nodes, one with GPUs by name only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

import ray
from ray.cluster_utils import Cluster

from detectors.errors import InputError
from studies.executors.ray import executor as ray_module
from studies.executors.ray.executor import RayExecutor
from studies.search.notices import Notice, Progressed, Retried
from studies.search.plan import Plan
from studies.testing import checks as contract
from studies.testing import jobs as scripted_jobs
from studies.testing.checks import Record, all_gone, poll, seen
from studies.worker.jobs import DETECTOR, LOG_FILE, Done, Event, Lost, Stage, TrialResult, read_result
from studies.worker.ledger import chain_faults, read_ledger
from studies.worker.trial import run_job
from tests.helpers import ROOT
from tests.helpers.bench import Bench
from tests.helpers.builders import build_job, build_plan, make_config
from tests.helpers.servers import free_port

STORE_BYTES = 80 * 2**20
# A node that is gone is noticed in seconds instead of twenty.
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
SECONDS = 180.0
CLIENT_PORT = free_port()


@pytest.fixture(scope="module")
def node_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STUDY_HOME of the nodes."""
    return tmp_path_factory.mktemp("node") / "home"


@pytest.fixture(scope="module")
def cluster(node_home: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("STUDY_HOME", str(node_home))
        patch.delenv("MVTEC_AD_ROOT", raising=False)
        head = {
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "ray_client_server_port": CLIENT_PORT,
            "_system_config": QUICK_TO_NOTICE,
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            add_node(cluster, num_gpus=2)
            add_node(cluster)
            assert ray_module._connect(ray, cluster.address)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Cluster, **changes: Any) -> Any:
    return cluster.add_node(**{"num_cpus": 2, "object_store_memory": STORE_BYTES} | changes)


@pytest.fixture(scope="module")
def plan(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build_plan(make_config(tiny_mvtec), tmp_path_factory.mktemp("home"))


@pytest.fixture
def known_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes count as sound: their real check takes seconds."""
    monkeypatch.setattr("studies.executors.ray.node.check", scripted_jobs.sound)


@pytest.fixture
def make(cluster: Cluster) -> Iterator[Callable[..., RayExecutor]]:
    """Executors on the cluster whose jobs are scripted."""
    made: list[RayExecutor] = []

    def build(**options: Any) -> RayExecutor:
        made.append(RayExecutor(**{"device": "cpu", "cpus_per_trial": 1, "run": scripted_jobs.act} | options))
        return made[-1]

    yield build
    for executor in made:
        executor.close()


def until(executor: RayExecutor, wanted: Callable[[Event], bool]) -> Event:
    """Poll until an event of the wanted kind comes."""
    return until_all(executor, wanted, 1)[0]


def until_all(executor: RayExecutor, wanted: Callable[[Event], bool], count: int) -> list[Event]:
    """Poll until so many events of the wanted kind have come."""
    found: list[Event] = []
    deadline = time.monotonic() + SECONDS
    while len(found) < count:
        found += [event for event in poll(executor, 1.0) if wanted(event)]
        assert time.monotonic() < deadline, f"events that never came; only {found}"
    return found


def begun(event: Event) -> bool:
    return isinstance(event, Stage)


def ended(event: Event) -> bool:
    return isinstance(event, Done | Lost)


# --- the contract of all executors


@pytest.fixture(scope="module")
def reference(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
    return run_job(build_job(plan, 5, folder=tmp_path_factory.mktemp("reference")))


@pytest.fixture(scope="module")
def record(cluster: Cluster, plan: Plan, reference: TrialResult, tmp_path_factory: pytest.TempPathFactory) -> Record:
    # Each real job spends seconds on its imports, and the scripted ones fail in every way.
    jobs = contract.batch(partial(build_job, plan), tmp_path_factory.mktemp("jobs"))
    jobs = {name: jobs[name] for name in ("trial", "final")}
    return contract.run(RayExecutor(device="cpu", cpus_per_trial=1, jobs=2), jobs, reference)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(record: Record, check: Callable[[Record], None]):
    check(record)


@pytest.fixture(scope="module")
def scripted(cluster: Cluster, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Record:
    jobs = contract.scripted(partial(build_job, plan), tmp_path_factory.mktemp("jobs"), in_processes=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("studies.executors.ray.node.check", scripted_jobs.sound)
        executor = RayExecutor(device="cpu", cpus_per_trial=1, jobs=2, run=scripted_jobs.act)
        return contract.run(executor, jobs)


@pytest.mark.parametrize("check", contract.SCRIPTED_CHECKS, ids=lambda check: check.__name__)
def test_scripted_contract(scripted: Record, check: Callable[[Record], None]):
    check(scripted)


@pytest.mark.usefixtures("known_nodes")
def test_closing_ends_hanging_workers_and_their_children(make, plan: Plan, tmp_path: Path):
    contract.closing_ends_everything(make(), partial(build_job, plan), tmp_path)


@pytest.mark.usefixtures("known_nodes")
def test_hanging_jobs_are_lost_in_time(make, plan: Plan, tmp_path: Path):
    contract.hanging_jobs_are_lost_in_time(make(trial_timeout=1.0), partial(build_job, plan), tmp_path)


@pytest.mark.usefixtures("known_nodes")
@pytest.mark.parametrize(("gpus_per_trial", "slots"), [(1.0, 2), (0.5, 4)])
def test_a_gpu_slot_never_has_two_trials(make, plan: Plan, tmp_path: Path, gpus_per_trial: float, slots: int):
    executor = make(device="auto", cpus_per_trial=None, gpus_per_trial=gpus_per_trial)
    assert executor.slots == slots  # the node without GPUs takes no part
    jobs = {
        str(number): build_job(plan, number, folder=tmp_path / str(number), params={"seconds": 0.4})
        for number in range(slots + 2)
    }
    contract.run(executor, jobs)
    together = contract.at_the_same_time(list(jobs.values()))
    assert set(together) == {"0", "1"}
    assert max(together.values()) <= 1 / gpus_per_trial
    for ran in map(seen, jobs.values()):
        assert ran["device"] == "cuda:0"
        assert ran["threads"] == int(ran["omp"]) == max(1, 2 // slots)
        assert not ran["torch"]


# --- nodes


@pytest.mark.usefixtures("known_nodes")
def test_a_removed_node_costs_only_its_own_jobs_an_attempt(make, cluster: Cluster, plan: Plan, tmp_path: Path):
    executor = make()
    assert executor.slots == 4
    doomed = add_node(cluster, num_cpus=3)
    executor._looked = 0.0
    assert executor.slots == 7
    jobs = {number: build_job(plan, number, folder=tmp_path / str(number)) for number in range(7)}
    for job in jobs.values():
        executor.submit(replace(job, params=job.params | {"act": "until stopped"}))
    until_all(executor, begun, 7)
    hit = {task.job.number for task in executor._running.values() if task.node == doomed.node_id}
    assert len(hit) == 3
    pids = {seen(jobs[number])["pid"] for number in hit}
    cluster.remove_node(doomed, allow_graceful=False)

    losses = until_all(executor, ended, len(hit))
    assert {loss.number for loss in losses} == hit
    assert {(loss.kind, loss.attempt) for loss in losses if isinstance(loss, Lost)} == {("node_lost", 1)}
    assert executor.slots == 4
    assert all_gone(pids)
    for number in set(jobs) - hit:
        executor.stop(number)
    others = until_all(executor, ended, 4)
    assert {other.number for other in others} == set(jobs) - hit
    assert all(isinstance(other, Done) for other in others)
    assert poll(executor, 0.0) == []
    again = jobs[min(hit)]
    executor.submit(replace(again, attempt=2))
    done = until(executor, ended)
    assert isinstance(done, Done)
    assert done.attempt == 2


@pytest.mark.usefixtures("known_nodes")
def test_a_study_outlives_a_node(make, cluster: Cluster, bench: Bench):
    executor = make(run=scripted_jobs.linger, jobs=4)
    doomed = [add_node(cluster, num_cpus=4)]

    def remove_node(notice: Notice) -> None:
        busy = {task.node for task in executor._running.values() if isinstance(notice, Progressed)}
        if doomed and doomed[0].node_id in busy:
            cluster.remove_node(doomed.pop(), allow_graceful=False)

    outcome = bench.driver(executor, budget={"trials": 8}, listener=remove_node).run()
    assert not doomed
    assert outcome.reason == "8 of 8 trials are done"
    assert bench.states() == ["COMPLETE"] * 8
    retried = [notice for notice in bench.notices if isinstance(notice, Retried)]
    assert retried
    assert all("node_lost" in notice.reason for notice in retried)
    attempts = {trial.number: trial.submission.attempt for trial in outcome.view.trials()}
    assert {number for number, attempt in attempts.items() if attempt == 2} == {notice.number for notice in retried}
    assert {run.info.status for run in bench.runs()} == {"FINISHED"}
    assert sorted(bench.children()) == list(range(8))
    assert outcome.selected is not None
    assert outcome.selected.detector is not None


def test_a_node_without_the_data_is_left_out(
    make, cluster: Cluster, tiny_mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MVTEC_AD_ROOT", str(tiny_mvtec))
    data = {"dataset": "mvtec", "category": "widget", "image_size": 64}
    plan = build_plan(make_config(tiny_mvtec, data=data), tmp_path / "home")
    bare = add_node(cluster, num_cpus=9, env_vars={"MVTEC_AD_ROOT": str(tmp_path / "nowhere")})
    try:
        said: list[str] = []
        executor = make(say=said.append)
        assert executor.slots == 4 + 9
        for number in range(2):
            executor.submit(build_job(plan, number))
        assert all(isinstance(event, Done) for event in until_all(executor, ended, 2))
        deadline = time.monotonic() + SECONDS
        while not said and time.monotonic() < deadline:
            executor.submit(build_job(plan, 2))
            until(executor, ended)
        (line,) = said
        assert "is left out: " in line
        assert str(tmp_path / "nowhere") in line
        assert executor.slots == 4
    finally:
        cluster.remove_node(bare)


def test_a_study_without_any_sound_node_ends_with_the_reason(make, plan: Plan, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("studies.executors.ray.node.check", scripted_jobs.unsound)
    said: list[str] = []
    executor = make(say=said.append)
    executor.submit(build_job(plan, 3, folder=tmp_path))
    end = until(executor, ended)
    assert isinstance(end, Lost)
    assert (end.kind, end.attempt) == ("bad_input", 1)
    assert end.message.startswith("no node of the cluster can do this; ")
    assert end.message.endswith(": no data set at /nowhere")
    assert len(said) == 2
    assert executor.slots == 0


def test_a_node_whose_check_dies_is_left_out(make, plan: Plan, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("studies.executors.ray.node.check", scripted_jobs.deadly)
    said: list[str] = []
    executor = make(say=said.append)
    executor.submit(build_job(plan, 3, folder=tmp_path))
    end = until(executor, ended)
    assert isinstance(end, Lost)
    assert end.kind == "bad_input"
    assert all("anomaly-studies does not run there (WorkerCrashedError" in line for line in said)


@pytest.mark.usefixtures("known_nodes")
def test_a_cluster_without_nodes_is_waited_for_and_then_given_up(make, monkeypatch: pytest.MonkeyPatch):
    executor = make(cpus_per_trial=64)
    assert executor.slots == 0
    begin = time.monotonic()
    assert poll(executor, 1.5) == []
    assert time.monotonic() - begin >= 1.5  # a driver that asks again and again does not spin
    monkeypatch.setattr(ray_module, "ABSENT_SECONDS", 0.0)
    time.sleep(ray_module.NODES_SECONDS)
    with pytest.raises(InputError, match="no node for a trial on cpu"):
        poll(executor, 0.5)


# --- nodes with a home of their own


@pytest.fixture
def apart(make, plan: Plan) -> RayExecutor:
    """An executor whose nodes do not see the driver's home."""
    executor: RayExecutor = make()
    executor._orders = replace(ray_module.orders_of(build_job(plan)), secret="another")
    return executor


@pytest.mark.usefixtures("known_nodes")
def test_a_jobs_folder_comes_back(apart: RayExecutor, plan: Plan, node_home: Path):
    job = build_job(plan, 50, task="final", study_uid="aaaaaaaaaaaa")
    apart.submit(job)
    end = until(apart, ended)
    assert isinstance(end, Done)
    assert end.result == read_result(job.path)
    assert (job.path / DETECTOR / "detector.json").read_text() == "{}"
    assert [line.trial for line in read_ledger(plan.home.ledger(job.study_uid))] == [50]
    assert chain_faults(plan.home.ledger(job.study_uid)) == []
    assert seen(job)["home"].startswith(f"{node_home}{os.sep}")
    assert not Path(seen(job)["home"]).exists()
    assert (node_home / "features").is_dir()


@pytest.mark.usefixtures("known_nodes")
def test_what_is_lost_brings_its_log_and_leaves_its_checkpoints(apart: RayExecutor, plan: Plan, tmp_path: Path):
    failing = build_job(plan, 51, folder=tmp_path / "failing", params={"act": "fail"})
    apart.submit(failing)
    end = until(apart, ended)
    assert isinstance(end, Lost)
    assert (end.kind, end.message) == ("exception", "ValueError: the setting makes no sense")
    assert "Traceback" in (failing.path / LOG_FILE).read_text()
    assert read_result(failing.path) is None

    crashing = build_job(plan, 52, folder=tmp_path / "crashing", params={"act": "crash once"})
    for attempt, kind in ((1, Lost), (2, Done)):
        apart.submit(replace(crashing, attempt=attempt))
        assert isinstance(until(apart, ended), kind)
    assert "WorkerCrashedError" in (crashing.path / LOG_FILE).read_text()
    assert read_result(crashing.path) is not None


# --- Ray itself


@pytest.mark.usefixtures("known_nodes")
def test_a_waiting_job_can_be_stopped(make, plan: Plan, tmp_path: Path):
    executor = make(jobs=1)
    job = build_job(plan, 1, folder=tmp_path, params={"act": "until stopped"})
    executor.submit(job)  # to wait for the check of the nodes
    executor.stop(1)
    end = until(executor, ended)
    assert isinstance(end, Done)
    assert end.result.pruned


@pytest.mark.usefixtures("known_nodes")
def test_waiting_for_others_on_the_cluster_is_told_once(make, plan: Plan, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ray_module, "PATIENCE_SECONDS", 0.5)
    said: list[str] = []
    mine, others = make(say=said.append, cpus_per_trial=2), make(cpus_per_trial=2)
    for number in range(2):
        others.submit(build_job(plan, number, folder=tmp_path / str(number), params={"act": "until stopped"}))
    until_all(others, begun, 2)
    mine.submit(build_job(plan, 7, folder=tmp_path / "mine"))
    deadline = time.monotonic() + SECONDS
    while not said and time.monotonic() < deadline:
        assert poll(mine, 0.5) == []
    poll(mine, 1.0)
    assert said == ["trial 7 waits for room on its node; somebody else uses the cluster"]
    others.close()
    assert isinstance(until(mine, ended), Done)


def test_a_driver_outside_the_cluster_goes_through_rays_client(cluster: Cluster, plan: Plan, tmp_path: Path):
    """``--ray-address ray://HOST:PORT``, from another process: this one belongs to the cluster."""
    jobs = [build_job(plan, number, folder=tmp_path / str(number), params={"act": "report"}) for number in range(2)]
    script = f"""
import json, sys, time
from studies.executors.ray import executor as ray_module, node
from studies.worker.jobs import Done, Job, Lost, Report
from studies.testing import jobs as scripted_jobs
node.check = scripted_jobs.sound
executor = ray_module.RayExecutor(
    address="ray://127.0.0.1:{CLIENT_PORT}", device="cpu", cpus_per_trial=1, run=scripted_jobs.act
)
for fields in {[asdict(job) for job in jobs]!r}:
    executor.submit(Job(**fields))
told, deadline = [], time.monotonic() + {SECONDS}
while sum(isinstance(event, Done | Lost) for event in told) < 2 and time.monotonic() < deadline:
    executor.poll(1.0, told.append)
executor.close()
print(json.dumps([[type(event).__name__, event.number, getattr(event, "step", 0)] for event in told]))
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for number in range(2):
        mine = [(name, step) for name, own, step in told if own == number]
        assert [step for name, step in mine if name == "Report"] == list(range(1, scripted_jobs.STEPS + 1))
        assert mine[-1][0] == "Done"


def test_without_ray_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'anomaly-studies\[ray\]'"):
        RayExecutor()


def test_what_cannot_be_is_told():
    with pytest.raises(InputError, match="give auto, cpu or cuda"):
        RayExecutor(device="cuda:1")
    with pytest.raises(InputError, match=r"gpus_per_trial: 1\.5"):
        RayExecutor(gpus_per_trial=1.5)


def test_no_cluster_is_told_in_one_line():
    def init(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify")

    absent = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    with pytest.raises(InputError, match=r"no Ray cluster at auto .*`ray start --head`") as caught:
        ray_module._connect(absent, "auto")
    assert "\n" not in str(caught.value)


def aborted() -> ConnectionAbortedError:
    return ConnectionAbortedError(
        "Initialization failure from server:\nTraceback:\nRuntimeError: no server was started\n"
    )


def test_a_head_that_could_not_start_a_clients_server_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_module, "CLIENT_WAITS", (0.0, 0.0))
    answers: list[Exception | None] = [aborted(), aborted(), None]
    calls: list[str] = []

    def init(**options: object) -> None:
        calls.append("init")
        if answer := answers[calls.count("init") - 1]:
            raise answer

    head = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: calls.append("shutdown"))
    assert ray_module._connect(head, "ray://head:10001")
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]

    calls.clear()
    answers[:] = [aborted(), aborted(), aborted()]
    with pytest.raises(InputError) as caught:
        ray_module._connect(head, "ray://head:10001")
    assert str(caught.value) == (
        "the Ray cluster at ray://head:10001 takes no client, asked 3 times (RuntimeError: no server was started)"
    )
    assert calls.count("init") == calls.count("shutdown") == 3


DRIVER = """
import json, signal, sys, time
import psutil
from studies.executors.ray import node
from studies.executors.ray.executor import RayExecutor
from studies.worker.jobs import Job, Stage
from studies.testing import jobs as scripted_jobs

node.check = scripted_jobs.sound

def interrupt(number, frame):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    fields = json.loads(sys.stdin.read())
    job = Job(**fields | {"strides": tuple(fields["strides"])})
    for last in (False, True):
        executor = RayExecutor(device="cpu", run=scripted_jobs.act)
        assert signal.getsignal(signal.SIGTERM) is interrupt
        executor.submit(job)
        events = []
        while not any(isinstance(event, Stage) for event in events):
            executor.poll(1.0, events.append)
        family = [child.pid for child in psutil.Process().children(recursive=True)]
        if not last:
            executor.close()
            executor.close()
        print(json.dumps(family), flush=True)
    time.sleep(600)
"""


@pytest.mark.ray
def test_a_ray_of_our_own_ends_with_its_executor_or_its_driver(plan: Plan, tmp_path: Path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    job = build_job(plan, folder=tmp_path / "job", params={"act": "hang"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        assert driver.stderr is not None
        driver.stdin.write(json.dumps(asdict(job)))
        driver.stdin.close()
        closed = json.loads(driver.stdout.readline() or "[]")
        assert len(closed) > 3, driver.stderr.read()
        assert all_gone(closed)
        running = json.loads(driver.stdout.readline() or "[]")
        assert len(running) > 3, driver.stderr.read()
        assert all(psutil.pid_exists(pid) for pid in running)
        # Ray's own agents take a minute or two to notice that their node is gone.
        agents = {pid for pid in running if "Agent" in " ".join(psutil.Process(pid).cmdline())}
        assert seen(job)["pid"] in set(running) - agents
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert all_gone(set(running) - agents)
        assert driver.stdout.read() == ""  # no lines of Ray's among ours
