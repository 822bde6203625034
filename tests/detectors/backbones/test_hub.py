"""Whether the hub can be reached is known soon, whatever is wrong."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from detectors.backbones import hub


class Answering(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(monkeypatch, server.server_port)
        yield server
        server.shutdown()


def point_to(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (302, True), (404, True), (403, False), (502, False)])
def test_an_answer_counts_unless_something_between_refuses(server: HTTPServer, status: int, reachable: bool) -> None:
    server.status = status  # type: ignore[attr-defined]
    assert hub.is_reachable() is reachable
    assert hub.hub_name() == "127.0.0.1"


def test_whoever_is_offline_asks_nobody(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 200  # type: ignore[attr-defined]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.is_reachable()


def test_nobody_there_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        point_to(monkeypatch, taken.getsockname()[1])
        begin = time.monotonic()
        assert not hub.is_reachable()
    assert time.monotonic() - begin < hub.KNOCK_SECONDS


def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_to(monkeypatch, silent.getsockname()[1])
        assert not hub.is_reachable(seconds=0.2)
