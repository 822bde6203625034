"""What a node of a cluster does with a job, without a cluster: homes, parcels, mailbox, check."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from detectors import head_texts
from detectors.errors import InputError
from detectors.head_texts import HeadCode
from studies.executors.ray import node
from studies.executors.ray.node import SHARED, STALE_SECONDS, Begun, Mailbox, Orders, own_home
from studies.executors.ray.orders import orders_of
from studies.executors.ray.parcels import pack, unpack
from studies.home import Home
from studies.search.plan import Plan
from studies.worker.jobs import LOG_FILE, RESULT_FILE, Stage
from tests.helpers import ROOT
from tests.helpers.builders import BACKBONE, build_job, build_plan, make_config
from tests.helpers.worked_example import EXAMPLE


@pytest.fixture(scope="module")
def plan(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build_plan(make_config(tiny_mvtec), tmp_path_factory.mktemp("home"))


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(str(tmp_path / "beacon"), "secret", data_root=None, weights=None)


# --- parcels


def test_a_parcel_gives_the_same_files(tmp_path: Path):
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "artifacts" / "heatmaps").mkdir(parents=True)
    (there / "checkpoints").mkdir()
    (there / "artifacts" / "heatmaps" / "1.png").write_bytes(b"\x89\0")
    (there / RESULT_FILE).write_text("{}")
    (there / LOG_FILE).write_text("second\n")
    (there / "checkpoints" / "large").write_bytes(b"x" * 1000)
    (there / "link").symlink_to("/etc/hostname")
    (here / "artifacts").mkdir(parents=True)
    (here / "artifacts" / "of an earlier attempt").touch()
    (here / LOG_FILE).write_text("first\n")

    files = pack(there, without=["checkpoints"], most_bytes=100)
    unpack(files, here)
    found = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    assert found == {"artifacts/heatmaps/1.png", RESULT_FILE, LOG_FILE}
    assert (here / "artifacts" / "heatmaps" / "1.png").read_bytes() == b"\x89\0"
    assert (here / LOG_FILE).read_text() == "first\nsecond\n"


def test_the_result_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    monkeypatch.setattr("studies.executors.ray.parcels.write_bytes", lambda path, data: written.append(path.name))
    unpack({"detector/detector.json": b"{}", RESULT_FILE: b"{}", "z.txt": b""}, tmp_path)
    assert written[-1] == RESULT_FILE
    assert len(written) == 3


def test_a_parcel_too_large_is_refused(tmp_path: Path):
    (tmp_path / "model").write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="put STUDY_HOME on a drive that all nodes share"):
        pack(tmp_path, most_bytes=100)


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped"])
def test_a_parcel_stays_in_its_folder(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack({name: b""}, tmp_path / "job")
    assert not (tmp_path / "escaped").exists()


# --- homes


def test_a_nodes_jobs_share_what_costs_time_and_nothing_else(plan: Plan, tmp_path: Path):
    job, other = (build_job(plan, number) for number in (1, 2))
    first, second = own_home(tmp_path, job), own_home(tmp_path, other)
    assert first != second
    for name in SHARED:
        (first / name / "made by the first").touch()
        assert (second / name / "made by the first").exists()
    Home(first).ledger(job.study_uid).parent.mkdir()
    Home(first).ledger(job.study_uid).write_text("scored\n")
    assert not Home(second).ledger(job.study_uid).exists()


def test_of_an_earlier_attempt_only_checkpoints_are_left(plan: Plan, tmp_path: Path):
    job = build_job(plan, 1)
    own = own_home(tmp_path, job)
    for name in ("ledgers", "job/artifacts", "job/checkpoints"):
        (own / name).mkdir(parents=True)
        (own / name / "file").touch()
    (own / "job" / RESULT_FILE).touch()
    (tmp_path / "features" / "kept").touch()
    again = own_home(tmp_path, replace(job, attempt=2))
    assert again == own
    files = {path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file() and "job" in path.parts}
    assert files == {"job/checkpoints/file"}
    assert not (own / "ledgers").exists()
    assert (own / "features" / "kept").exists()


def test_checkpoints_that_nobody_comes_back_for_go(plan: Plan, tmp_path: Path):
    abandoned = own_home(tmp_path, build_job(plan, 1))
    (tmp_path / "features" / "kept").touch()
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(abandoned, (long_ago, long_ago))
    recent = own_home(tmp_path, build_job(plan, 2))
    own_home(tmp_path, build_job(plan, 3))
    assert not abandoned.exists()
    assert recent.exists()
    assert (tmp_path / "features" / "kept").exists()


def test_a_node_recognises_the_drivers_home(orders: Orders, tmp_path: Path):
    assert not orders.share_home()
    (tmp_path / "beacon").write_text("of another driver")
    assert not orders.share_home()
    (tmp_path / "beacon").write_text("secret")
    assert orders.share_home()


def test_the_nodes_own_places_win(plan: Plan, orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    absent, present = tmp_path / "absent", tmp_path / "present"
    present.mkdir()
    job = replace(build_job(plan), weights_dir=str(absent))
    assert replace(orders, data_root="/data", weights=str(absent)).prepare(job).weights_dir is None
    assert os.environ.pop("MVTEC_AD_ROOT") == "/data"
    assert "STUDY_WEIGHTS" not in os.environ
    monkeypatch.setenv("MVTEC_AD_ROOT", "/own")
    kept = replace(orders, data_root="/data", weights=str(present)).prepare(replace(job, weights_dir=str(present)))
    assert kept.weights_dir == str(present)
    assert (os.environ["MVTEC_AD_ROOT"], os.environ.pop("STUDY_WEIGHTS")) == ("/own", str(present))


def test_a_head_in_a_file_reaches_a_node_with_a_home_of_its_own(
    plan: Plan, orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = build_job(plan)
    text = EXAMPLE.read_bytes()
    code = HeadCode(EXAMPLE.name, "Diagonal", sha256(text).hexdigest())
    monkeypatch.setattr(head_texts, "_texts", head_texts._Texts())
    head_texts.remember(code, text)
    there = orders_of(replace(job, home=str(tmp_path), config={**job.config, "heads": {"diagonal": code.to_json()}}))
    assert there.heads == {code.sha256: text}

    # Another machine, on which nobody named the file, and whose copy of an earlier study was damaged.
    monkeypatch.setattr(head_texts, "_texts", head_texts._Texts())
    home = Home(tmp_path / "node").prepare()
    home.heads.mkdir()
    (home.heads / f"{code.sha256}.py").write_bytes(text[:100])
    there.keep_heads(home)
    assert head_texts.text_of(code) == text
    assert (home.heads / f"{code.sha256}.py").read_bytes() == text


def test_a_job_sets_its_threads_before_torch_is_imported():
    code = (
        "import sys, studies.executors.ray.node, studies.executors.ray.executor; "
        "print(*{'torch', 'ray', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- check


def test_a_sound_node_is_found_sound(plan: Plan, orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUDY_HOME", str(tmp_path / "node"))
    assert node.check(build_job(plan), orders) is None


def test_what_a_node_lacks_is_told_in_one_line(plan: Plan, orders: Orders, tmp_path: Path):
    job = build_job(plan)
    elsewhere = {**job.config, "data": {**job.config["data"], "root": str(tmp_path / "nowhere")}}
    found = [
        node.check(replace(job, splits_digest="0" * 64), orders),
        node.check(replace(job, weights_sha256="0" * 64), orders),
        node.check(replace(job, config=elsewhere), orders),
        node.check(replace(job, params={**job.params, "backbone": "wide_resnet50_2"}), orders),
        node.check(job, replace(orders, version="0.0.1")),
        node.check(replace(job, params={}), orders),
    ]
    for problem, words in zip(
        found,
        [
            "its images of tiny/widget are not the driver's",
            f"its weights of {BACKBONE} are not the driver's",
            str(tmp_path / "nowhere"),
            "wide_resnet50_2",
            "and 0.0.1 on the driver; install the same",
            "KeyError: 'backbone'",
        ],
        strict=True,
    ):
        assert problem is not None
        assert words in problem
        assert "\n" not in problem


# --- mailbox


def test_the_mailbox_keeps_order_and_waits_for_news():
    async def scene() -> None:
        box = Mailbox()
        assert await box.take(0.0) == []
        waiting = asyncio.create_task(box.take(30.0))
        await asyncio.sleep(0)
        await box.tell("a", Begun(1))
        assert await waiting == [("a", Begun(1))]
        stages = [Stage(1, 1, str(index)) for index in range(5)]
        for stage in stages:
            await box.tell("a", stage)
        assert await box.take(0.0) == [("a", stage) for stage in stages]
        assert await box.take(0.0) == []

    asyncio.run(scene())


def test_the_mailbox_wakes_up_without_news():
    async def scene() -> None:
        box = Mailbox()
        waiting = asyncio.create_task(box.take(30.0))
        await asyncio.sleep(0)
        await box.wake()
        assert await waiting == []

    asyncio.run(scene())


def test_a_stop_order_is_for_one_job():
    async def scene() -> None:
        box = Mailbox()
        await box.stop("a")
        assert await box.is_stopped("a")
        assert not await box.is_stopped("b")

    asyncio.run(scene())
