"""``study weights``, ``doctor``, ``clean`` and ``ui``."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml

from detectors.backbones.bundled import SMALLEST
from detectors.files import file_lock
from studies.commands import questions as ask
from studies.commands import ui
from studies.home import Home
from studies.release.locate import open_view
from studies.search.holding import driver_lock
from studies.upkeep import checks, inventory
from tests.helpers.builders import raw_config
from tests.helpers.command_line import Ended, study

VARIABLES = (
    "MVTEC_AD_ROOT", "STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS", "OMP_WAIT_POLICY", "OMP_NUM_THREADS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def finished(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished study of three trials; never write into it."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(raw_config(tiny_mvtec)))
    with pytest.MonkeyPatch.context() as patch:
        for variable in VARIABLES:
            patch.delenv(variable, raising=False)
        patch.setenv("STUDY_HOME", str(folder / "home"))
        ended = study("run", file, "--inline", "--device", "cpu", "--offline")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def used(finished: Path, home: Path) -> Path:
    """A copy of that home, with one of everything that may go."""
    shutil.copytree(finished / "home", home)
    view = open_view("tiny")
    selected = view.selected()
    assert selected is not None
    for trial in view.trials():
        (trial.folder / "checkpoints").mkdir()
        (trial.folder / "checkpoints" / "last.ckpt").write_bytes(bytes(1000))
        if trial.number != selected.number:
            shutil.copytree(selected.final_folder / "detector", trial.final_folder / "detector")
            (trial.final_folder / "result.json").write_text("{}")
    (home / "rendered" / "abc" / "screw").mkdir(parents=True)
    (home / "rendered" / "abc" / "screw" / "000.png").write_bytes(bytes(500))
    return home


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub cache: what somebody has on this machine does not matter."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


@pytest.mark.usefixtures("empty_cache")
def test_weights_list_names_what_is_here_and_what_studies_want(tmp_path: Path) -> None:
    own = tmp_path / "weights"
    own.mkdir()
    (own / "resnet34.safetensors").write_bytes(b"weights")
    (own / "resnet18.mine.pth").write_bytes(b"weights")
    rows = {row["backbone"]: row for row in json.loads(study("weights", "list", "--weights-dir", own, "--json").out)}
    assert rows[SMALLEST]["origin"] == "bundled"
    assert rows[SMALLEST]["sha256"].startswith("579344248a93")
    assert rows[SMALLEST]["channels"] == {"4": 24, "8": 40, "16": 112, "32": 320}
    assert (rows["resnet34"]["origin"], rows["resnet34"]["path"]) == ("folder", str(own / "resnet34.safetensors"))
    assert rows["resnet18"]["origin"] is None
    assert "unknown backbone" in rows["resnet18.mine"]["problem"]


@pytest.mark.usefixtures("empty_cache")
def test_weights_list_for_people() -> None:
    ended = study("weights", "list")
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    assert lines[f"{SMALLEST}:"].endswith(".pth")
    assert "bundled" in lines[SMALLEST]
    assert "4: 24, 8: 40, 16: 112, 32: 320" in lines[SMALLEST]
    assert "not here" in lines["resnet18"]
    fetch = "study weights fetch resnet18 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 wide_resnet50_2"
    assert fetch in ended.out
    assert "14: 384, blocks -12 to -1" in lines["vit_small_patch14_dinov2"]
    assert "apache-2.0" in lines["vit_small_patch14_dinov2"]


def test_weights_fetch_leaves_alone_what_is_here() -> None:
    ended = study("weights", "fetch", SMALLEST, "--json")
    assert ended.code == 0
    (row,) = json.loads(ended.out)
    assert (row["fetched"], row["origin"]) == (False, "bundled")


def test_weights_fetch_takes_several_one_by_one_and_tells_their_licences() -> None:
    ended = study("weights", "fetch", f"{SMALLEST}+tf_efficientnet_lite1", "--json")
    assert ended.code == 0
    assert [row["backbone"] for row in json.loads(ended.out)] == [SMALLEST, "tf_efficientnet_lite1"]
    assert f"{SMALLEST}: licence of the weights: apache-2.0" in ended.err


@pytest.mark.parametrize(("name", "told"), [("resnet18@random", "nothing to fetch"), ("resnet81", "unknown backbone")])
def test_weights_fetch_refuses(name: str, told: str) -> None:
    ended = study("weights", "fetch", SMALLEST, name)
    assert ended.code == 2
    assert told in ended.error


@pytest.mark.usefixtures("empty_cache")
def test_weights_fetch_without_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        ended = study("weights", "fetch", "resnet18")
    assert ended.code == 2
    for told in ("resnet18", "ConnectionRefusedError", SMALLEST, "--weights-dir"):
        assert told in ended.error


@pytest.mark.slow
def test_weights_fetch_downloads_into_the_cache_of_the_hub(tmp_path: Path) -> None:
    content = b"not real weights, but these very bytes"

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path.startswith("/timm/resnet18.a1_in1k/resolve/main/model.safetensors")
            self.send_response(200 if known else 404)
            self.send_header("ETag", '"' + "a" * 64 + '"')
            self.send_header("X-Repo-Commit", "b" * 40)
            self.send_header("Content-Length", str(len(content)) if known else "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    # The hub's client reads its settings when it is imported: a process of its own.
    hub = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "studies.cli", "weights", "fetch", "resnet18", "--json"],
            env={**os.environ, **hub, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["backbone"], row["origin"], row["fetched"]) == ("resnet18", "cache", True)
    assert Path(row["path"]).is_relative_to(tmp_path / "hf")
    assert Path(row["path"]).read_bytes() == content


# --- doctor -----------------------------------------------------------------------------------------------------------


def checked(ended: Ended) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(ended.out)["checks"]}


def test_doctor_on_a_new_machine_makes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    ended = study("doctor", "--json")
    assert ended.code == 0
    found = checked(ended)
    names = {"Python", "packages", "cores", "memory", "STUDY_HOME", "disk", "Optuna storage", "MLflow store", "weights"}
    assert names <= set(found)
    assert all(found[name]["status"] != "fail" for name in found)
    assert found["Optuna storage"]["found"] == f"sqlite:///{home}/studies.db, will be created"
    assert found["MLflow store"]["found"] == f"sqlite:///{home}/mlflow.db, will be created"
    assert found["OMP_WAIT_POLICY"]["status"] == "ok"
    assert (found["MVTec AD"]["status"], found["weights"]["found"].count(SMALLEST)) == ("warn", 1)
    assert "study data fetch mvtec" in found["MVTec AD"]["hint"]
    assert not home.exists()


def test_doctor_where_a_study_was_run(used: Path, tiny_mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVTEC_AD_ROOT", str(tiny_mvtec))
    before = listing(used)
    ended = study("doctor", "--json")
    assert ended.code == 0
    found = {name: (check["status"], check["found"]) for name, check in checked(ended).items()}
    assert found["Optuna storage"] == ("ok", f"sqlite:///{used}/studies.db, 1 study")
    assert found["MLflow store"] == ("ok", f"sqlite:///{used}/mlflow.db")
    assert found["MVTec AD"] == ("ok", f"{tiny_mvtec}: widget")
    entries = len(list(used.glob("features/*/entry.json")))
    assert found["stored features"] == ("ok", f"0.0 GB in {entries} entries; studies keep up to 20 GB")
    made = {path for path in listing(used) - before if not path.endswith(("-wal", "-shm", ".lock"))}
    assert made == set()


def test_doctor_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    ended = study("doctor")
    assert ended.code == 0
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert lines[1] == "check found what to do"
    assert any(line.startswith("ok Python 3.") for line in lines)
    assert any(
        line.startswith("warn OMP_WAIT_POLICY ACTIVE unset OMP_WAIT_POLICY: threads that spin") for line in lines
    )


@pytest.mark.parametrize("store", ["studies.db", "mlflow.db"])
def test_doctor_makes_no_tables_in_an_empty_database(store: str, home: Path) -> None:
    home.mkdir()
    (home / store).touch()
    ended = study("doctor", "--json")
    assert ended.code == 0
    assert sum("empty" in check["found"] for check in checked(ended).values()) == 1
    assert (home / store).stat().st_size == 0


def broken_storage(home: Path, patch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / "studies.db").write_text("this is not a database, whatever its name says" * 100)


def broken_mlflow(home: Path, patch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / "mlflow.db").write_text("this is not a database, whatever its name says" * 100)


def no_server(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def no_driver(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("STUDY_STORAGE", "nosuchdatabase://me:hunter2@somewhere/studies")


def home_in_a_file(home: Path, patch: pytest.MonkeyPatch) -> None:
    home.write_text("a file")
    patch.setenv("STUDY_HOME", str(home / "inside"))


def no_weights_folder(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("STUDY_WEIGHTS", str(home / "nowhere"))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (broken_storage, "Optuna storage"),
        (broken_mlflow, "MLflow store"),
        (no_server, "MLflow store"),
        (no_driver, "Optuna storage"),
        (home_in_a_file, "STUDY_HOME"),
        (no_weights_folder, "weights"),
    ],
)
def test_doctor_finds(
    damage: Callable[[Path, pytest.MonkeyPatch], None], name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(home, monkeypatch)
    ended = study("doctor", "--json")
    assert ended.code == 1
    failed = [check for check in checked(ended).values() if check["status"] == "fail"]
    assert [check["name"] for check in failed] == [name]
    assert "\n" not in failed[0]["found"]
    assert "hunter2" not in ended.out


def test_doctor_goes_on_after_a_look_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(home: Home) -> Iterator[checks.Check]:
        yield checks.Check("first half", "ok", "lost with the second")
        raise OSError("the second half\nbroke")

    monkeypatch.setattr(checks, "CHECKS", {"broken": broken, "Python": checks.CHECKS["Python"]})
    ended = study("doctor", "--json")
    assert ended.code == 1
    found = checked(ended)
    assert list(found) == ["broken", "Python"]
    assert found["broken"]["found"] == "OSError: the second half broke"


# --- clean ------------------------------------------------------------------------------------------------------------


def listing(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def files(root: Path) -> set[str]:
    """Files that are somebody's: not SQLite's own beside a database, not locks."""
    return {name for name in listing(root) if not name.endswith(("-wal", "-shm", ".lock", ".gate", ".work"))}


def kinds(ended: Ended) -> dict[str, dict[str, int]]:
    return {kind["kind"]: kind for kind in json.loads(ended.out)["kinds"]}


def test_clean_where_nothing_was_run_makes_nothing(home: Path) -> None:
    ended = study("clean", "--all", "--yes")
    assert ended.code == 0
    assert "freed 0 B" in ended.out
    assert not home.exists()


def test_clean_only_tells_where_nobody_can_be_asked(used: Path) -> None:
    before = files(used)
    ended = study("clean", "--all")
    assert ended.code == 0
    assert "nothing was deleted; --yes deletes" in ended.out
    found = kinds(study("clean", "--all", "--json"))
    assert found["checkpoints"] == {
        "kind": "checkpoints", "chosen": True, "items": 2, "bytes": 2000, "in_use": 0,
    }  # fmt: skip
    assert (found["detectors"]["items"], found["rendered"]["bytes"], found["checked"]["items"]) == (2, 500, 2)
    stored = sum(path.stat().st_size for path in (used / "features").glob("*/*") if path.suffix != ".lock")
    assert (found["features"]["bytes"], found["leftovers"]["items"]) == (stored, 0)
    assert files(used) == before


def test_clean_all_leaves_everything_that_counts(used: Path, finished: Path, tiny_mvtec: Path) -> None:
    before = files(used)
    selected = open_view("tiny").selected()
    assert selected is not None
    promised = json.loads(study("clean", "--all", "--json").out)
    ended = json.loads(study("clean", "--all", "--yes", "--json").out)
    assert ended["freed_bytes"] == sum(kind["bytes"] for kind in promised["kinds"]) > 0
    assert ended["deleted"] == len(promised["paths"])
    after = files(used)
    gone = before - after
    other = r"trials/\w+/(?:final/\d+/detector|\d+/checkpoints)/"
    assert all(re.match(rf"features/\w+/|checked/|rendered/abc/|{other}", name) for name in gone)
    kept = selected.folder.relative_to(used).as_posix()
    final = selected.final_folder.relative_to(used).as_posix()
    assert {name for name in before if name.startswith((f"{kept}/", f"{final}/"))} <= after
    assert len([name for name in after if name.endswith("/result.json")]) == 3 + 3
    for name in ("studies.db", "mlflow.db", f"ledgers/{open_view('tiny').header.uid}.jsonl"):
        assert name in after
    # And the study can be shown, and goes on.
    assert study("show", "tiny").code == 0
    again = study("run", finished / "tiny.yaml", "--trials", "4", "--inline", "--device", "cpu", "--offline")
    assert again.code == 0, again.err
    assert "continues after 3 trials" in again.out


@pytest.mark.parametrize(("keep", "left"), [(0, 0), (1, 1), (2, 2), (9, 3)])
def test_clean_keeps_the_checkpoints_of_the_best_trials(keep: int, left: int, used: Path) -> None:
    view = open_view("tiny")
    ranked = sorted(view.trials(), key=lambda trial: (trial.selected, trial.value, trial.metrics["fps"]), reverse=True)
    assert study("clean", "--trials", "--keep", keep, "--yes").code == 0
    assert [(trial.folder / "checkpoints").is_dir() for trial in ranked] == [rank < left for rank in range(3)]
    assert [trial.number for trial in view.trials() if trial.detector] == [ranked[0].number]
    assert kinds(study("clean", "--json"))["features"]["items"] > 0


def test_clean_keeps_the_checkpoints_of_what_is_not_finished(used: Path) -> None:
    view = open_view("tiny")
    selected = view.selected()
    assert selected is not None
    (selected.final_folder / "result.json").unlink()
    (selected.final_folder / "checkpoints").mkdir()
    left_running = view.trial_folder(view.study.ask().number) / "checkpoints"
    left_running.mkdir(parents=True)
    assert study("clean", "--trials", "--keep", "0", "--yes").code == 0
    kept = {path.parent for path in used.glob("trials/**/checkpoints")}
    assert kept == {selected.folder, selected.final_folder, left_running.parent}


def test_clean_without_options_takes_leftovers_alone(used: Path) -> None:
    trial = open_view("tiny").trials()[0].folder
    old = time.time() - 2 * inventory.ABANDONED_SECONDS
    gone = [
        used / ".write-test-0123abcd",
        used / "checked" / ".x.json.0123abcd.tmp",
        trial / ".result.json.0123abcd.tmp",
    ]
    gone += [used / "features" / ".0123.tmp" / "features.npy", trial / ".detector.0123abcd.trash" / "tensors"]
    gone += [used / "rendered" / "abc" / f".screw-{'0' * 32}.partial" / "train" / "000.png"]
    fresh = [used / "checked" / ".y.json.0123abcd.tmp"]
    only_copy = trial / ".detector.89abcdef.old" / "tensors"
    for path in (*gone, *fresh, only_copy):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10))
    for path in gone:
        for part in (path, path.parent, path.parent.parent):
            os.utime(part, (old, old))
    before = files(used)
    found = kinds(study("clean", "--json"))["leftovers"]
    assert (found["items"], found["bytes"], found["in_use"]) == (6, 60, 1)
    ended = study("clean", "--yes")
    assert "freed 60 B" in ended.out
    assert before - files(used) == {path.relative_to(used).as_posix() for path in gone}


def test_clean_leaves_a_running_study_alone(used: Path) -> None:
    before = files(used)
    with file_lock(driver_lock(Home(used), "tiny")):
        ended = study("clean", "--all", "--yes")
        assert "being run, and left alone: tiny" in ended.out
        found = kinds(study("clean", "--all", "--json"))
    gone = before - files(used)
    assert gone == {"rendered/abc/screw/000.png"}
    assert [found[kind]["items"] for kind in ("features", "checkpoints", "detectors", "checked")] == [0, 0, 0, 0]
    assert all(found[kind]["in_use"] > 0 for kind in ("features", "checkpoints", "detectors", "checked"))


def test_clean_leaves_features_and_images_to_a_driver_it_does_not_know(used: Path) -> None:
    with file_lock(driver_lock(Home(used), "about-to-be-created")):
        found = kinds(study("clean", "--all", "--json"))
    assert [found[kind]["items"] for kind in ("features", "rendered")] == [0, 0]
    assert found["checkpoints"]["items"] == 2


def test_clean_leaves_features_that_are_being_computed(used: Path) -> None:
    leftover = used / "features" / ".0123.tmp"
    leftover.mkdir()
    locks = sorted((used / "features" / "locks").glob("*.lock"))
    entries = kinds(study("clean", "--json"))["features"]["items"]
    with file_lock(locks[0]):
        found = kinds(study("clean", "--features", "--yes", "--json"))
    assert 0 < found["features"]["in_use"] < entries
    assert found["leftovers"]["in_use"] == 1
    assert leftover.is_dir()
    assert kinds(study("clean", "--json"))["features"]["items"] == found["features"]["in_use"]


def test_clean_looks_again_before_it_deletes(used: Path) -> None:
    home = Home(used)
    items = inventory.take_inventory(home, keep=0).items
    before = files(used)
    with ExitStack() as held:
        held.enter_context(file_lock(driver_lock(home, "tiny")))
        for lock in (used / "features" / "locks").glob("*.lock"):
            held.enter_context(file_lock(lock))
        gone = inventory.delete(items, home)
    assert {item.kind for item in gone} == {"rendered", "checked"}
    assert before - files(used) == {name for name in before if name.startswith(("rendered/", "checked/"))}


def test_clean_frees_features_when_the_database_cannot_be_opened(used: Path) -> None:
    (used / "studies.db").write_text("not a database")
    for rest in used.glob("studies.db-*"):
        rest.unlink()
    ended = study("clean", "--all", "--yes")
    assert ended.code == 0
    assert "trials are left alone" in ended.out
    assert list((used / "features").glob("*/features.npy")) == []
    assert len(list(used.glob("trials/*/*/checkpoints/last.ckpt"))) == 3


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_clean_deletes_after_a_yes_alone(answer: str, left: int, used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "somebody_is_there", lambda: True)
    ended = study("clean", "--features", typed=answer)
    assert ended.code == 0
    assert bool(list(used.glob("features/*/features.npy"))) == bool(left)
    assert ("freed" in ended.out) == (not left)


@pytest.mark.slow
def test_clean_asks_at_a_terminal(used: Path) -> None:
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.cli", "clean", "--features"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = read_until(mine, "[y/N]")
    os.write(mine, b"y\n")
    rest = read_until(mine, None)
    os.close(mine)
    assert process.wait(60) == 0
    assert re.search(r"Delete \d+ of these, [\d.]+ [kM]?B\?", said)
    assert "freed" in rest
    assert list(used.glob("features/*/features.npy")) == []


def read_until(descriptor: int, words: str | None) -> str:
    """What a terminal shows until these words, or until its program ends."""
    said = b""
    while words is None or words.encode() not in said:
        ready, _, _ = select.select([descriptor], [], [], 60)
        assert ready, said.decode()
        try:
            said += os.read(descriptor, 4096)
        except OSError:  # how Linux tells that the other side is closed
            break
    return said.decode()


# --- ui ---------------------------------------------------------------------------------------------------------------

DASHBOARD = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.storage.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

def run_server(storage, host="localhost", port=8080):
    server = HTTPServer((host, port), Page)
    server.storage = storage
    server.serve_forever()
"""


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.kill
def test_ui_shows_studies_and_leaves_no_process_behind(used: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "optuna_dashboard.py").write_text(DASHBOARD)
    here = tmp_path / "here"
    here.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "studies.cli", "ui", "--port", str(wanted)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONUNBUFFERED": "1"},
        )
        try:
            said = list(iter_until(process, "Ctrl-C ends it"))
            children = psutil.Process(process.pid).children(recursive=True)
            text = "".join(said)
            mlflow, dashboard = (int(port) for port in re.findall(r": http://127\.0\.0\.1:(\d+)\n", text))
            assert f"port {wanted} cannot be had" in text
            assert re.search(
                rf"tiny: http://127\.0\.0\.1:{mlflow}/#/experiments/\d+/runs\?\S*viewStateShareKey=\w+\n", text
            )
            assert f"{mlflow} is taken instead" in text
            assert get(mlflow, "/health") == (200, b"OK")
            assert get(mlflow, "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny/widget")[0] == 200
            assert get(dashboard, "/") == (200, f"sqlite:///{used}/studies.db".encode())
            assert len(children) >= 2
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert list(here.iterdir()) == []


def iter_until(process: subprocess.Popen[str], words: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if words in line:
            return
    raise AssertionError(f"ended with {process.wait()}")


def test_ui_of_a_server_prints_its_address(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org:5000")
    monkeypatch.setattr(ui.importlib.util, "find_spec", lambda name: None)
    ended = study("ui")
    assert ended.code == 0
    assert ended.out.startswith("MLflow: http://mlflow.example.org:5000\n")
    assert "cannot be reached" in ended.out
    one = study("ui", "tiny")
    assert one.code == 2
    assert "cannot be reached" in one.err
    assert not home.exists()


def test_ui_goes_on_without_a_dashboard_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "optuna_dashboard.py").write_text("def run_server(storage, host, port):\n    raise OSError('no way')\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org:5000")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    ended = study("ui")
    assert ended.code == 0
    assert "Optuna Dashboard did not start: OSError: no way" in ended.out


def test_ui_where_nothing_was_run(home: Path) -> None:
    ended = study("ui")
    assert ended.code == 2
    assert f"no studies in {home} yet" in ended.error
    assert not home.exists()


def test_ui_of_a_study_that_is_not_there(used: Path) -> None:
    ended = study("ui", "tinny")
    assert ended.code == 2
    assert "no page of a study 'tinny'" in ended.err
    assert "tiny" in ended.err.partition("only of: ")[2]


def test_ui_refuses_an_address_that_is_none(used: Path) -> None:
    ended = study("ui", "--host", "300.0.0.1")
    assert ended.code == 2
    assert "--host '300.0.0.1'" in ended.err.splitlines()[-1]
