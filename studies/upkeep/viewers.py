"""MLflow's server and Optuna Dashboard's, started for a home, watched, and ended with all of their processes."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from rich.console import Console

from detectors.errors import InputError
from studies.home import Home
from studies.search.outcome import StudyFailedError

START_SECONDS = 120.0
"""How long a server may take until it answers: MLflow needs several seconds, on a busy machine many."""
GRACE_SECONDS = 10.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what it means, not a choice of ours
"""Addresses that stand for all of this machine's, and the one it is reached at from here."""
ENDING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
DASHBOARD = "import os, sys; from optuna_dashboard import run_server; \
run_server(os.environ['STUDY_DASHBOARD_STORAGE'], host=sys.argv[1], port=int(sys.argv[2]))"


@dataclass(frozen=True)
class Server:
    """One server process and where it listens."""

    name: str
    process: subprocess.Popen[bytes]
    host: str
    port: int
    log: IO[bytes]

    @property
    def address(self) -> str:
        """For a browser on this machine."""
        host = EVERYWHERE.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


# --- starting ---------------------------------------------------------------------------------------------------------


def start_mlflow(home: Home, host: str, port: int) -> Server:
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    if home.mlflow_artifacts is not None:
        # Elsewhere MLflow would make a folder for them in whatever directory this is.
        artifacts = home.mlflow_artifacts.as_uri()
        command += ["--default-artifact-root", artifacts, "--artifacts-destination", artifacts]
    environment = {
        # Not as an argument: everybody on a machine can read those, and this may hold a password.
        "MLFLOW_BACKEND_STORE_URI": home.tracking_uri,
        # Its job runners take 2 GB of memory and nothing here uses them.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return _start("MLflow", command, environment, host, port)


def start_dashboard(home: Home, host: str, port: int) -> Server:
    command = [sys.executable, "-c", DASHBOARD, host, str(port)]
    return _start("Optuna Dashboard", command, {"STUDY_DASHBOARD_STORAGE": home.storage_url}, host, port)


def _start(name: str, command: Sequence[str], environment: Mapping[str, str], host: str, port: int) -> Server:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its server runs
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A group of its own: the server's workers are ended with it, and by us alone.
        start_new_session=True,
    )
    return Server(name, process, host, port, log)


def free_port(host: str, wanted: int, console: Console | None) -> int:
    """The port, or where somebody listens on it another one; the console shows which. Raises `InputError` for a bad host."""
    try:
        family = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(f"--host {host!r}: {error.strerror or error}; 127.0.0.1 is this machine alone") from None
    for port in (wanted, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name == "posix":
                # As servers do: a port that was in use a moment ago is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            free = int(probe.getsockname()[1])
        if free != wanted and console is not None:
            console.print(f"port {wanted} cannot be had ({reason}); {free} is taken instead", highlight=False)
        return free
    raise InputError(f"--host {host!r}: no port can be opened there ({reason})")


def await_answer(server: Server, servers: list[Server], console: Console) -> None:
    """Print a server's address once it answers. One that does not start ends the command, the dashboard alone does not."""
    with console.status(f"{server.name} is starting"):
        answers = _answers_in_time(server)
    if answers:
        console.print(f"{server.name}: {server.address}", markup=False, highlight=False)
        return
    problem = f"{server.name} did not start: {_last_line(server.log)}"
    if server is servers[0] and server.name == "MLflow":
        raise StudyFailedError(problem)
    console.print(problem, style="yellow", markup=False)
    end([server])
    servers.remove(server)


def _answers_in_time(server: Server) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        # Straight to the server: `requests` would go through a proxy of the environment.
        connection = http.client.HTTPConnection(EVERYWHERE.get(server.host, server.host), server.port, timeout=10)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status < 500:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    return False


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


# --- ending -----------------------------------------------------------------------------------------------------------


def watch(servers: list[Server]) -> None:
    """Wait until Ctrl-C. Raises `StudyFailedError` where a server ends by itself."""
    while servers:
        for server in servers:
            if server.process.poll() is not None:
                raise StudyFailedError(f"{server.name} ended by itself: {_last_line(server.log)}")
        time.sleep(0.3)


def end(servers: list[Server]) -> None:
    """End every server with all of its processes."""
    for server in servers:
        _signal(server.process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(max(0.0, deadline - time.monotonic()))
        # The group may outlive its first process.
        _signal(server.process, getattr(signal, "SIGKILL", signal.SIGTERM))
        server.process.wait()
        server.log.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, number)
        else:
            process.terminate()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the servers as Ctrl-C does: no process stays behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
