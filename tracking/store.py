"""An MLflow store: opening it, and telling what went wrong with it in one line."""

from __future__ import annotations

import getpass
import logging
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own retries say nothing for minutes, and repeat a request whose answer was lost: a run would be made twice.
# `Patience` does the waiting, aloud, and looks for the run first.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
# Else every run that ends is a line on standard output, which may be JSON.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A bar of MLflow's own would run through ours.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from detectors.errors import InputError
from detectors.files import file_lock, sync_folder, told_plainly
from tracking.addresses import without_password
from tracking.moved import follow_home
from tracking.patience import is_lasting

for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.models.signature"):
    # A new database is migrated through some eighty steps, each with a line; every model saved says what it tries.
    logging.getLogger(noisy).setLevel(logging.WARNING)

AWAY = (
    "API request to",
    "Max retries exceeded",
    "Connection refused",
    "OperationalError",
    "server closed the connection",
)
"""In messages of MLflow that come of a server which is away, or whose own database is."""

SQLITE = "sqlite:///"
ANSWER_SECONDS = 10
CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {"postgresql": {"connect_timeout": 10}, "mysql": {}, "mssql": {}}
"""How to open a connection to a database that may be on another machine."""
BUSY = (408, 429)
"""Status codes below 500 that waiting helps against."""


def open_client(uri: str, *, lock_folder: Path | None = None, artifacts: Path | None = None) -> MlflowClient:
    """A client of a store that answers.

    Args:
        lock_folder: where a local store's first migration is guarded against other processes.
        artifacts: where the artifacts of a local store are now; see `tracking.moved`.

    Raises:
        InputError: the store cannot be reached or opened.
    """
    with errors_told_plainly(uri):
        _check_reachable(uri)
        with file_lock(lock_folder / "mlflow-migration.lock") if lock_folder else nullcontext():
            _make_sqlite(uri)
            if artifacts is not None and uri.startswith(SQLITE):
                follow_home(Path(uri.removeprefix(SQLITE)), artifacts)
            return _connect(uri)


def is_away(error: BaseException) -> bool:
    """Whether an error of MLflow's client comes of a server or database that cannot be reached now."""
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return True
    if isinstance(error, MlflowException):
        text = str(error)
        refused = re.search(r"failed with error code (\d+)", text)
        if is_lasting(text) or (refused and int(refused[1]) < 500 and int(refused[1]) not in BUSY):
            return False
        return any(word in text for word in AWAY) or error.get_http_status_code() in (502, 503, 504)
    return isinstance(error, OperationalError) and not is_lasting(str(error))


def _connect(uri: str) -> MlflowClient:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _make_sqlite(uri: str) -> None:
    """Make a SQLite store that is not there yet, and let it appear by rename.

    A new one is migrated through some eighty steps, for seconds; killed among these, MLflow could never open it again.
    """
    target = Path(uri.removeprefix(SQLITE))
    # Elsewhere than on POSIX an open database, which MLflow keeps, cannot be renamed.
    if not uri.startswith(SQLITE) or "?" in uri or target.exists() or os.name != "posix":
        return
    with told_plainly(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        # What lies here was left by a killed process.
        temporary.unlink(missing_ok=True)
        _connect(f"{SQLITE}{temporary}")
        temporary.replace(target)
        sync_folder(target.parent)


@lru_cache(maxsize=1)
def origin_tags() -> dict[str, str]:
    """Who and what made a run: the client sets none of these itself."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "study",
        "mlflow.source.type": "LOCAL",
        "host": platform.node(),
    }
    checkout = Path(__file__).parents[1]
    if (checkout / ".git").exists():
        commit = _git(checkout, "rev-parse", "HEAD")
        if commit:
            tags["mlflow.source.git.commit"] = commit
            tags["git.dirty"] = str(bool(_git(checkout, "status", "--porcelain"))).lower()
    return tags


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _check_reachable(uri: str) -> None:
    """Ask a server or database at once: MLflow itself would try again for minutes before it said anything."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in CONNECT_ARGUMENTS:
        try:
            create_engine(uri, poolclass=NullPool, connect_args=CONNECT_ARGUMENTS[kind]).connect().close()
        except ImportError as error:
            raise InputError(
                f"MLflow store {without_password(uri)}: no driver for this database ({error}); "
                "pip install 'anomaly-studies[postgres]' brings the one of postgresql+psycopg://"
            ) from error
    if kind not in ("http", "https"):
        return
    try:
        port = parts.port or (443 if kind == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
        with suppress(requests.ConnectionError):
            # Whatever it answers, it does; what hinders MLflow's requests, MLflow tells.
            requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS, stream=True).close()
    except (OSError, ValueError) as error:
        reason = f"no answer within {ANSWER_SECONDS} s" if isinstance(error, requests.Timeout) else error
        raise InputError(
            f"MLflow server {without_password(uri)} cannot be reached ({reason}); start it, "
            "or unset MLFLOW_TRACKING_URI to use the local store"
        ) from error


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Within the block MLflow's functions that name no store use this one; else they make one in the working folder."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]


@contextmanager
def errors_told_plainly(uri: str) -> Iterator[None]:
    """Turn the errors of MLflow and its database into one `InputError` line."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        first = without_password(str(error)).strip().splitlines()[0]
        raise InputError(f"MLflow store {without_password(uri)}: {first}; check MLFLOW_TRACKING_URI") from error
