"""The real service in a process of its own, asked over HTTP by honest and by hostile clients."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from detectors.runtime.artifact import load_artifact
from tests.helpers.command_line import set_home, study
from tests.helpers.small_models import SIZE, make_run, random_images, save_detector, source
from tests.helpers.widgets import copy_stores
from tracking.registry import Registry

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
START_SECONDS = 120.0


@dataclass
class Service:
    """A running ``study serve``."""

    process: subprocess.Popen[str]
    address: str = ""
    lines: list[str] = field(default_factory=list)
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.address + path, timeout=60, **options)

    def post(self, path: str = "/predict", **options: Any) -> requests.Response:
        return self.session.post(self.address + path, timeout=60, **options)

    def said(self, words: str) -> None:
        """Wait for a line with these words."""
        deadline = time.monotonic() + START_SECONDS
        while not any(words in line for line in self.lines):
            assert time.monotonic() < deadline, f"never said {words!r}; only {self.lines}"
            assert self.process.poll() is None or any(words in line for line in self.lines), self.lines
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("served") / "detector")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Start services; they end with the module."""
    running: list[Service] = []

    def build(model: object, *options: object, **environment: str) -> Service:
        command = [sys.executable, "-m", "studies.cli", "serve", str(model), "--port", "0", "--poll", "0.2"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("STUDY_", "MLFLOW_"))}
        clean |= {"STUDY_HOME": str(tmp_path_factory.mktemp("home")), **environment}
        process = subprocess.Popen(
            [*command, *map(str, options)], env=clean, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        service = Service(process)
        threading.Thread(target=_listen, args=(process, service.lines), daemon=True).start()
        running.append(service)
        service.said(" at http://")
        service.address = next(line for line in service.lines if " at http://" in line).split(" at ")[1].split()[0]
        return service

    yield build
    for service in running:
        service.process.kill()
        service.process.wait()


def _listen(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.rstrip())


@pytest.fixture(scope="module")
def service(start: Callable[..., Service], detector: Path) -> Service:
    return start(detector, "--max-body", "0.5", "--max-images", "8", "--max-megapixels", "1", "--max-waiting", "64")


def png(number: int, seed: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_images(number + 1, seed)[number].permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


def expected(detector: Path, count: int, seed: int = 7) -> list[float]:
    return load_artifact(detector).detector(random_images(count, seed)).scores.tolist()


# --- answers


def test_files_and_json_get_the_scores_of_the_detector_in_memory(service: Service, detector: Path) -> None:
    wanted = expected(detector, 3)
    files = [("file", (f"part {n}.png", png(n))) for n in range(3)]
    answer = service.post(files=files, data={"heatmap": "true"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [one["name"] for one in found["predictions"]] == ["part 0.png", "part 1.png", "part 2.png"]
    assert [one["score"] for one in found["predictions"]] == pytest.approx(wanted, rel=1e-5)
    threshold = load_artifact(detector).detector.threshold
    assert threshold is not None
    for one in found["predictions"]:
        assert one["threshold"] == threshold.value
        assert one["verdict"] == ("defective" if one["score"] >= threshold.value else "good")
        assert 0 <= one["normals_below"] <= 1
        assert Image.open(io.BytesIO(base64.b64decode(one["heatmap"]))).size == SIZE
    assert found["model"]["name"] == "detector"
    body = {"images": [base64.b64encode(png(n)).decode() for n in range(3)]}
    same = service.post(json=body).json()["predictions"]
    assert [one["score"] for one in same] == pytest.approx(wanted, rel=1e-5)
    assert [one["heatmap"] for one in same] == [None] * 3


def test_what_is_served_and_how_it_is(service: Service) -> None:
    assert service.get("/healthz").json() == {"status": "alive"}
    assert service.get("/readyz").json()["status"] == "ready"
    model = service.get("/model").json()
    assert (model["detector"], model["layers"], model["image_size"]) == ("padim", [8, 16], [64, 64])
    before = service.metric("study_images_total")
    service.post(files={"file": png(0)})
    assert service.metric("study_images_total") == before + 1
    assert service.metric('study_requests_total{code="200",path="/predict"}') > 0
    assert 'study_model_info{name="detector"' in service.get("/metrics").text
    service.get("/no/such/place")
    assert 'path="other"' in service.get("/metrics").text


def test_many_clients_get_their_own_answers_together(service: Service, detector: Path) -> None:
    wanted = expected(detector, 8)

    def ask(number: int) -> tuple[int, float]:
        answer = requests.post(f"{service.address}/predict", files={"file": png(number % 8)}, timeout=60)
        assert answer.status_code == 200, answer.text
        return number % 8, answer.json()["predictions"][0]["score"]

    with ThreadPoolExecutor(8) as clients:
        for number, score in clients.map(ask, range(48)):
            assert score == pytest.approx(wanted[number], rel=1e-5)
    sizes = re.findall(r'study_batch_size_bucket\{le="1.0"\} (\S+)', service.get("/metrics").text)
    assert float(sizes[0]) < service.metric("study_batch_size_count")  # some were scored together


def test_the_page_is_whole_in_itself(service: Service) -> None:
    answer = service.get("/")
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]+"', answer.text)


# --- hostile requests


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


HOSTILE: dict[str, tuple[dict[str, Any], int, str]] = {
    "no image": ({"files": {"file": b"hello"}}, 422, "not a readable image"),
    "an empty file": ({"files": {"file": b""}}, 422, "not a readable image"),
    "a truncated image": ({"files": {"file": png(0)[:200]}}, 422, "not a readable image"),
    "a hundred megapixels": ({"files": {"file": bomb(10_000, 10_000)}}, 422, "more than the limit of 1 megapixels"),
    "one pixel": ({"files": {"file": bomb(1, 1)}}, 422, "too small"),
    "a path for a name": ({"files": {"file": ("../../etc/passwd", b"x")}}, 422, "passwd: not a readable image"),
    "nothing": ({}, 415, "multipart/form-data"),
    "no files in the form": ({"files": {"a": (None, "text")}}, 422, "no image"),
    "too many images": ({"files": [("f", (f"{n}.png", png(0))) for n in range(9)]}, 413, "at most 8"),
    "a field as large as a body": ({"files": {"a": (None, "x" * 100_000)}}, 400, "exceeded"),
    "plain text": ({"data": "hello", "headers": {"Content-Type": "text/plain"}}, 415, "application/json"),
    "no JSON": ({"data": "{", "headers": {"Content-Type": "application/json"}}, 422, "JSON"),
    "deep JSON": ({"data": "[" * 90_000, "headers": {"Content-Type": "application/json"}}, 422, "nothing nested"),
    "long JSON": (
        {"data": '{"images": [' + "0," * 200_000 + "0]}", "headers": {"Content-Type": "application/json"}},
        422,
        "at most 8",
    ),
    "other JSON": ({"json": {"images": "x"}}, 422, "images"),
    "no images": ({"json": {"images": []}}, 422, "images"),
    "an unknown key": ({"json": {"images": ["eA=="], "path": "/etc/passwd"}}, 422, "path"),
    "no base64": ({"json": {"images": ["no base64!"]}}, 422, "images.0: not base64"),
    "not a number": ({"data": '{"images": [NaN]}', "headers": {"Content-Type": "application/json"}}, 422, "images.0"),
    "too large": ({"data": bytes(600_000), "headers": {"Content-Type": "application/json"}}, 413, "more than"),
    "a form without a boundary": ({"data": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_gets_a_clear_answer_and_costs_nothing_else(service: Service, name: str) -> None:
    options, code, words = HOSTILE[name]
    answer = service.post(**options)
    assert answer.status_code == code, answer.text
    told = answer.json()["error"]
    assert words in told
    assert "Traceback" not in told
    assert "/etc" not in told
    assert service.get("/readyz").status_code == 200


def stream(megabytes: float) -> Iterator[bytes]:
    for _ in range(int(megabytes * 10)):
        yield bytes(100_000)


def test_a_body_without_a_length_is_cut_off(service: Service) -> None:
    try:
        answer = service.post(data=stream(20), headers={"Content-Type": "application/json"})
    except requests.ConnectionError:
        pass  # the service had hung up before all was sent
    else:
        assert answer.status_code == 413
    assert service.get("/readyz").status_code == 200


def test_a_lying_length_is_not_believed(service: Service) -> None:
    host, port = service.address.removeprefix("http://").split(":")
    for length in ("99999999999999999999", "-5", "many"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = ["POST /predict HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}"]
            connection.sendall("\r\n".join([*head, "", ""]).encode())
            told = connection.recv(4096).decode()
        assert told.split()[1] in ("400", "413"), told
    assert service.get("/readyz").status_code == 200


def test_hostile_requests_leave_memory_bounded(service: Service) -> None:
    process = psutil.Process(service.process.pid)
    for _ in range(2):
        for options, _, _ in HOSTILE.values():
            service.post(**options)
    before = process.memory_info().rss
    for _ in range(5):
        for options, _, _ in HOSTILE.values():
            assert 400 <= service.post(**options).status_code < 500
    assert process.memory_info().rss < before + 50e6
    assert service.post(files={"file": png(0)}).status_code == 200


# --- a token, a queue, another address


def test_a_token_is_asked_for_where_it_matters(start: Callable[..., Service], detector: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    service = start(detector, "--token-file", token, "--max-waiting", "2", "--max-images", "2")
    for path in ("/healthz", "/readyz", "/"):
        assert service.get(path).status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        answer = service.post(files={"file": png(0)}, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert service.get("/metrics", headers=headers).status_code == 401
    mine = {"Authorization": "Bearer s3cret"}
    assert service.post(files={"file": png(0)}, headers=mine).status_code == 200

    def ask(number: int) -> int:
        answer = requests.post(f"{service.address}/predict", files={"file": png(0)}, headers=mine, timeout=60)
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert "wait already" in answer.json()["error"]
        return answer.status_code

    with ThreadPoolExecutor(24) as clients:
        codes = list(clients.map(ask, range(96)))
    assert set(codes) <= {200, 503}
    assert codes.count(200) > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such_study"], "no stud"),
        (["models:/x"], "models:/NAME@champion"),
        (["{detector}", "--token-file", "{empty}"], "holds no token"),
        (["{detector}", "--port", "{taken}"], "choose another --port"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    set_home(monkeypatch, tmp_path)
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"detector": detector, "empty": tmp_path / "empty", "taken": taken.getsockname()[1]}
        ended = study("serve", *(word.format(**places) for word in words))
    assert ended.code == 2, ended
    assert told in ended.error


# --- another model


@pytest.mark.slow
def test_a_new_model_is_swapped_in_under_load_and_a_broken_one_is_not(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    folder = save_detector(tmp_path / "detector", features=8)
    wanted = {8: expected(folder, 1)[0]}
    service = start(folder)
    stop = threading.Event()
    seen: list[float] = []
    codes: list[int] = []

    def ask() -> None:
        session = requests.Session()
        while not stop.is_set():
            answer = session.post(f"{service.address}/predict", files={"file": png(0)}, timeout=60)
            codes.append(answer.status_code)
            seen.append(answer.json()["predictions"][0]["score"])

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        save_detector(folder, features=12)
        wanted[12] = expected(folder, 1)[0]
        service.said("now serving")
        (folder / "detector.json").write_text("{}")
        service.said("is not served")
        count = len(seen)
        while len(seen) < count + 8:
            time.sleep(0.02)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert set(codes) == {200}
    assert all(any(score == pytest.approx(value, rel=1e-5) for value in wanted.values()) for score in seen)
    assert seen[-1] == pytest.approx(wanted[12], rel=1e-5)
    assert service.metric('study_model_swaps_total{outcome="swapped"}') == 1
    assert service.metric('study_model_swaps_total{outcome="failed"}') == 1
    assert sum("is not served" in line for line in service.lines) == 1


@pytest.mark.slow
def test_the_champion_is_followed_there_and_back(
    start: Callable[..., Service], empty_stores: Path, tmp_path: Path
) -> None:
    home = copy_stores(empty_stores, tmp_path / "home")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run = make_run(uri, tmp_path / "artifacts")
    registry = Registry(uri, audit=home / "registry.jsonl", cache=home / "models")
    folders = [save_detector(tmp_path / str(number) / "detector", features=8 + 4 * number) for number in range(2)]
    versions = [registry.register("widgets", source(folder, run, key=str(n))) for n, folder in enumerate(folders)]
    registry.promote(versions[0], details={})
    service = start("models:/widgets@champion", STUDY_HOME=str(home))
    assert service.get("/readyz").json() == {"status": "ready", "model": "widgets", "version": "1"}
    registry.promote(versions[1], details={})
    service.said("now serving widgets version 2")
    found = service.post(files={"file": png(0)}).json()
    assert found["model"] == {"name": "widgets", "version": "2"}
    assert found["predictions"][0]["score"] == pytest.approx(expected(folders[1], 1)[0], rel=1e-5)
    registry.roll_back("widgets")
    service.said("now serving widgets version 1")


@pytest.mark.kill
def test_sigterm_answers_what_was_accepted_and_ends_with_0(start: Callable[..., Service], detector: Path) -> None:
    service = start(detector)
    large = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (1500, 1500, 3), dtype=np.uint8)).save(large, format="PNG", compress_level=0)
    files = [("file", (f"{n}.png", large.getvalue())) for n in range(4)]

    def ask(_: int) -> int:
        return requests.post(f"{service.address}/predict", files=files, timeout=60).status_code

    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(ask, number) for number in range(3)]
        deadline = time.monotonic() + 60
        while not service.metric("study_batch_size_count") and time.monotonic() < deadline:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [200] * 3
    assert service.process.wait(60) == 0
    assert any("every accepted request was answered" in line for line in service.lines)
