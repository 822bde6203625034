"""An MLflow store: opening it, calling it, and its errors as one line."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from detectors.errors import InputError
from detectors.files import file_lock, os_errors_as_input_errors, sync_folder
from tracking.addresses import without_password
from tracking.mlflow_settings import mlflow_settings
from tracking.moved import follow_home
from tracking.patience import is_lasting

AWAY = (
    "API request to",
    "Max retries exceeded",
    "Connection refused",
    "OperationalError",
    "server closed the connection",
)
"""Parts of MLflow's messages about a server, or the database of a server, that cannot be reached."""

SQLITE = "sqlite:///"
ANSWER_SECONDS = 10
"""How long a server may take to answer when a client is opened."""
CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {"postgresql": {"connect_timeout": 10}, "mysql": {}, "mssql": {}}
"""Arguments with which a connection to a database on another machine is opened, by the kind of database."""
BUSY = (408, 429)
"""Status codes below 500 after which another try may succeed."""


def open_client(uri: str, *, lock_folder: Path | None = None, artifacts: Path | None = None) -> MlflowClient:
    """A client of a store, after checking that the store answers.

    Args:
        uri: address of the store: a server, a database, or ``sqlite:///FILE``, which is created.
        lock_folder: folder of a lock that keeps processes from creating a local store at the same time.
        artifacts: where the artifacts of a local store are now; see `tracking.moved`.

    Raises:
        InputError: the store cannot be reached or opened.
    """
    with store_calls(uri):
        _check_reachable(uri)
        with file_lock(lock_folder / "mlflow-migration.lock") if lock_folder else nullcontext():
            _make_sqlite(uri)
            if artifacts is not None and uri.startswith(SQLITE):
                follow_home(Path(uri.removeprefix(SQLITE)), artifacts)
            return _connect(uri)


def is_away(error: BaseException) -> bool:
    """Whether an error of MLflow's client means that a server or database cannot be reached at the moment."""
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
    """Create a SQLite store that does not exist yet under another name, then rename it.

    A new store is migrated in some eighty steps, which takes seconds. If the process were killed meanwhile, MLflow could never
    open the file again.
    """
    target = Path(uri.removeprefix(SQLITE))
    # MLflow keeps the database open, and only POSIX systems can rename an open file.
    if not uri.startswith(SQLITE) or "?" in uri or target.exists() or os.name != "posix":
        return
    with os_errors_as_input_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        # A file of this name was left by a process that was killed.
        temporary.unlink(missing_ok=True)
        _connect(f"{SQLITE}{temporary}")
        temporary.replace(target)
        sync_folder(target.parent)


@lru_cache(maxsize=1)
def origin_tags() -> dict[str, str]:
    """Tags of the user, machine and code that make a run, which MLflow's client does not set itself."""
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
    """Connect to a server or database once.

    MLflow would try again for minutes before it raises an error.

    Raises:
        InputError: it cannot be reached.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in CONNECT_ARGUMENTS:
        try:
            create_engine(uri, poolclass=NullPool, connect_args=CONNECT_ARGUMENTS[kind]).connect().close()
        except ImportError as error:
            raise InputError(
                f"MLflow store {without_password(uri)}: no driver for this database ({error}); "
                "pip install 'anomaly-studies[postgres]' installs the one for postgresql+psycopg://"
            ) from error
    if kind not in ("http", "https"):
        return
    try:
        port = parts.port or (443 if kind == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
        with suppress(requests.ConnectionError):
            # Any answer will do; if MLflow's own requests fail, MLflow raises the error.
            requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS, stream=True).close()
    except (OSError, ValueError) as error:
        reason = f"no answer within {ANSWER_SECONDS} s" if isinstance(error, requests.Timeout) else error
        raise InputError(
            f"MLflow server {without_password(uri)} cannot be reached ({reason}); start it, "
            "or unset MLFLOW_TRACKING_URI to use the local store"
        ) from error


_default_store_lock = threading.RLock()


TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Within the block, those functions of MLflow that take no store use this one instead of the working folder.

    MLflow keeps this for the whole process; one block at a time therefore, other threads wait.
    """
    with _default_store_lock:
        variable = os.environ.get(TRACKING_VARIABLE)
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            # MLflow remembers the address and writes it into the environment; what the environment alone said is not
            # remembered for later, when it may say something else.
            mlflow.set_tracking_uri(before if before != variable else None)  # type: ignore[arg-type]
            if variable is None:
                os.environ.pop(TRACKING_VARIABLE, None)
            else:
                os.environ[TRACKING_VARIABLE] = variable


@contextmanager
def store_calls(uri: str) -> Iterator[None]:
    """A block of calls to an MLflow store: with our settings of MLflow, and its errors as `InputError` of one line."""
    try:
        with mlflow_settings():
            yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        first = without_password(str(error)).strip().splitlines()[0]
        raise InputError(f"MLflow store {without_password(uri)}: {first}; check MLFLOW_TRACKING_URI") from error
