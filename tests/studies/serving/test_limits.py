"""What the service does when there is too much, too slow or too broken; and that company never changes a score."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.command_line import study
from tests.helpers.small_models import random_images, save_detector

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import uvicorn

from detectors.errors import NumericalError
from detectors.runtime.verdicts import Verdict, judge
from studies.serving import app, protocol, scoring
from studies.serving.models import FolderSource, Keeper
from studies.serving.scoring import BusyError, Scorer
from studies.serving.settings import Settings
from tests.helpers.in_process import running, started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("limits") / "detector")


@pytest.fixture(scope="module")
def keeper(folder: Path) -> Keeper:
    return started(folder)


def rgb(count: int, seed: int = 7) -> list[NDArray[np.uint8]]:
    return [image.permute(1, 2, 0).numpy() for image in random_images(count, seed)]


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


ONE = png(rgb(1)[0])


def ask(address: str, file: bytes = ONE, **fields: str) -> requests.Response:
    return requests.post(f"{address}/predict", files={"file": file}, data=fields, timeout=60)


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Gate:
    """The detector, which judges nothing until it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.begun = threading.Event(), 0
        monkeypatch.setattr(scoring, "judge", self)

    def __call__(self, model: Any, random_images: list[NDArray[np.uint8]]) -> list[Verdict]:
        self.begun += 1
        assert self.opened.wait(60)
        return judge(model, random_images)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


# --- batches


def scored(work: Callable[[Scorer], Any], *, max_batch: int = 8, sizes: list[int] | None = None) -> Any:
    """What `work` gets from a scorer that runs."""

    async def run() -> Any:
        scorer = Scorer(max_waiting=64, max_batch=max_batch, batched=(sizes if sizes is not None else []).append)
        scorer.start()
        try:
            return await work(scorer)
        finally:
            await scorer.close()

    return asyncio.run(run())


def test_company_changes_no_score(keeper: Keeper) -> None:
    model, images, sizes = keeper.current, rgb(11), []

    async def together(scorer: Scorer) -> list[Verdict]:
        return await scorer.score(model, images)

    async def alone(scorer: Scorer) -> list[Verdict]:
        return [verdict for image in images for verdict in await scorer.score(model, [image])]

    crowd = [verdict.score for verdict in scored(together, sizes=sizes)]
    assert sizes == [8, 3]
    by_itself = [verdict.score for verdict in scored(alone)]
    in_memory = [verdict.score for image in images for verdict in judge(model.artifact, [image])]
    assert crowd == pytest.approx(in_memory, rel=1e-6)
    assert by_itself == pytest.approx(in_memory, rel=1e-6)


def test_what_waits_for_two_models_is_judged_by_the_right_one(keeper: Keeper, tmp_path: Path) -> None:
    first, images, sizes = keeper.current, rgb(6), []
    second = started(save_detector(tmp_path / "other", features=12)).current

    async def mixed(scorer: Scorer) -> list[list[Verdict]]:
        return await asyncio.gather(
            scorer.score(first, images[:2]), scorer.score(second, images[2:5]), scorer.score(first, images[5:])
        )

    found = [verdict.score for verdicts in scored(mixed, sizes=sizes) for verdict in verdicts]
    assert sizes == [2, 3, 1]
    wanted = [first, first, second, second, second, first]
    assert found == pytest.approx(
        [judge(model.artifact, [image])[0].score for model, image in zip(wanted, images, strict=True)], rel=1e-6
    )


def test_an_image_that_fails_costs_its_neighbours_nothing(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    images = rgb(5)
    images[2] = np.zeros_like(images[2])

    def choosy(model: Any, given: list[NDArray[np.uint8]]) -> list[Verdict]:
        if any(not image.any() for image in given):
            raise NumericalError("a score is not finite")
        return judge(model, given)

    monkeypatch.setattr(scoring, "judge", choosy)

    async def each_for_itself(scorer: Scorer) -> list[Any]:
        asked = [scorer.score(keeper.current, [image]) for image in images]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = scored(each_for_itself)
    assert isinstance(found[2], NumericalError)
    assert all(isinstance(found[number][0], Verdict) for number in (0, 1, 3, 4))


def test_what_nobody_waits_for_any_more_is_not_scored(keeper: Keeper, gate: Gate) -> None:
    sizes: list[int] = []

    async def given_up(scorer: Scorer) -> int:
        first = asyncio.create_task(scorer.score(keeper.current, rgb(1)))
        while not gate.begun:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await scorer.score(keeper.current, rgb(4))
        gate.opened.set()
        await first
        await scorer.score(keeper.current, rgb(2))
        return scorer.waiting

    assert scored(given_up, sizes=sizes) == 0
    assert sizes == [1, 2]


def test_there_is_room_for_so_many_and_no_more() -> None:
    scorer = Scorer(max_waiting=5, max_batch=8)
    with scorer.room(3):
        with pytest.raises(BusyError, match="3 images wait already"), scorer.room(3):
            pass
        with scorer.room(2):
            pass
    with scorer.room(5):
        pass


# --- too much, too slow


def test_the_one_too_many_is_turned_away_before_it_is_decoded(
    keeper: Keeper, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def read_image(*given: Any, **options: Any) -> NDArray[np.uint8]:
        decoded.append(options["name"])
        return rgb(1)[0]

    monkeypatch.setattr(app, "read_image", read_image)
    with running(keeper, Settings(max_waiting=2)) as address, ThreadPoolExecutor(2) as clients:
        accepted = [clients.submit(ask, address) for _ in range(2)]
        wait_for(lambda: len(decoded) == 2)
        refused = ask(address)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "2 images wait already" in refused.json()["error"]
        assert len(decoded) == 2
        gate.opened.set()
        assert [answer.result().status_code for answer in accepted] == [200, 200]
        assert ask(address).status_code == 200


def test_a_request_that_takes_too_long_is_given_up_and_makes_room(keeper: Keeper, gate: Gate) -> None:
    with running(keeper, Settings(max_waiting=1, request_seconds=0.2)) as address:
        answer = ask(address)
        assert answer.status_code == 504
        assert answer.json() == {"error": "not done within 0.2 s; send fewer images"}
        gate.opened.set()
        wait_for(lambda: ask(address).status_code == 200)


@contextmanager
def connection(address: str, *lines: str) -> Iterator[socket.socket]:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as made:
        made.sendall("".join(f"{line}\r\n" for line in lines).encode())
        yield made


HEAD = ("POST /predict HTTP/1.1", "Host: x", "Content-Type: application/json")


def test_a_body_that_does_not_come_is_not_waited_for(keeper: Keeper) -> None:
    with running(keeper, Settings(body_seconds=0.2)) as address:
        with connection(address, *HEAD, "Content-Length: 100", "", "{") as slow:
            assert slow.recv(4096).split()[1] == b"408"
        assert ask(address).status_code == 200


def test_connections_that_never_end_their_head_are_hung_up_on(
    keeper: Keeper, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with running(keeper) as address, ThreadPoolExecutor(1) as clients:
        patient = clients.submit(ask, address)
        wait_for(lambda: gate.begun)
        with connection(address) as silent, connection(address, *HEAD) as half:
            assert silent.recv(1) == b""
            assert half.recv(1) == b""
        with connection(address, "GET /healthz HTTP/1.1", "Host: x", "") as kept:
            received = b""
            while b"alive" not in received:
                received += kept.recv(4096)
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            assert kept.recv(1) == b""
        # Longer than the limit under way, but with its head complete.
        gate.opened.set()
        assert patient.result().status_code == 200


def test_all_requests_together_may_hold_only_so_much(keeper: Keeper) -> None:
    with running(keeper, Settings(max_body_bytes=100_000, max_held_bytes=150_000)) as address:
        head = (*HEAD, "Content-Length: 99999", "")
        with connection(address, *head) as first, connection(address, *head) as second:
            for held in (first, second):
                held.sendall(b" " * 90_000)
            refused = second.recv(4096)
            assert refused.split()[1] == b"503"
            assert b"retry-after: 1" in refused.lower()
        wait_for(lambda: ask(address).status_code == 200)


def test_a_large_image_is_kept_small(keeper: Keeper) -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 255, (900, 1500, 3), dtype=np.uint8)
    with running(keeper) as address:
        (found,) = ask(address, png(large), heatmap="true").json()["predictions"]
    assert keeper.current is not None
    (verdict,) = judge(keeper.current.artifact, [large])
    assert found["score"] == pytest.approx(verdict.score, rel=1e-6)
    assert Image.open(io.BytesIO(base64.b64decode(found["heatmap"]))).size == (1024, 614)


# --- too broken


def test_without_a_model_the_service_lives_and_is_not_ready(folder: Path) -> None:
    keeper = Keeper(FolderSource(folder, "widgets"), device=torch.device("cpu"))
    with running(keeper) as address:
        assert requests.get(f"{address}/healthz", timeout=60).status_code == 200
        for answer in (requests.get(f"{address}/readyz", timeout=60), ask(address)):
            assert (answer.status_code, answer.json()) == (503, {"error": "no model is loaded yet"})


def test_a_failure_of_ours_is_told_without_its_traceback(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: Any, given: Any) -> list[Verdict]:
        raise RuntimeError("CUDA error: secret of the house")

    with running(keeper) as address, caplog.at_level(logging.ERROR):
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "judge", broken)
            answer = ask(address)
        assert answer.status_code == 500
        assert answer.json() == {"error": "the service failed at this request; its log shows why"}
        wait_for(lambda: "secret of the house" in caplog.text)
        assert ask(address).status_code == 200


def test_a_client_that_hangs_up_leaves_no_traceback(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    def bad_requests(address: str) -> bool:
        return 'code="400",path="/predict"' in requests.get(f"{address}/metrics", timeout=60).text

    with running(keeper) as address, caplog.at_level(logging.ERROR):
        with connection(address, *HEAD, "Content-Length: 1000", "", "{"):
            pass
        wait_for(lambda: bad_requests(address))
        assert caplog.text == ""
        assert ask(address).status_code == 200


def test_the_interface_is_described_for_those_who_generate_clients(keeper: Keeper) -> None:
    with running(keeper) as address:
        described = requests.get(f"{address}/openapi.json", timeout=60).json()
    predict = described["paths"]["/predict"]["post"]
    kinds = predict["requestBody"]["content"]
    assert kinds["application/json"]["schema"]["required"] == ["images"]
    assert "file" in kinds["multipart/form-data"]["schema"]["properties"]
    assert predict["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Answer")


# --- the command


def test_without_the_extra_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("server", "protocol"):  # which an earlier test may have imported
        monkeypatch.delitem(sys.modules, f"studies.serving.{name}", raising=False)
    ended = study("serve", folder)
    assert ended.code == 2
    assert "pip install 'anomaly-studies[serve]'" in ended.error


@pytest.mark.parametrize(
    ("host", "token", "warned"),
    [("127.0.0.1", "", False), ("localhost", "", False), ("0.0.0.0", "s3cret", False), ("0.0.0.0", "", True)],
)
def test_an_open_door_is_warned_of_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, token: str, warned: bool
) -> None:
    monkeypatch.setenv("STUDY_SERVE_TOKEN", token)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    ended = study("serve", folder, "--host", host, "--port", 0)
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert [line for line in lines if line.startswith("warning: ")] == lines[: 1 if warned else 0]
    assert f"at http://{host}:" in ended.err
    assert "s3cret" not in ended.err


def test_an_address_of_another_machine_is_told(folder: Path) -> None:
    ended = study("serve", folder, "--host", "192.0.2.1", "--port", 0)
    assert ended.code == 2
    assert "--host takes an address of this machine" in ended.error
