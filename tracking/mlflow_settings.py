"""How MLflow runs while this package calls it, without changing the process for anybody else."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own retries wait silently for minutes and repeat a request whose answer was lost, so that a run would be made
    # twice. `Patience` waits instead, reports it, and looks for the run first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # Otherwise MLflow prints a line for every run that ends to standard output, which may be JSON.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's progress bar would be drawn across ours.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment variables, which MLflow reads at each call; one that is set already keeps its value."""
NOISY_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.models.signature")
"""They log each of the eighty steps in which a new database is migrated, and what is tried while a model is saved."""


class _Blocks:
    """The blocks that are running, in all threads: the first one to begin changes the process, the last one restores it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.added: list[str] = []
        self.levels: dict[str, int] = {}

    def begin(self) -> None:
        with self.lock:
            self.running += 1
            if self.running > 1:
                return
            self.added = [name for name in SETTINGS if name not in os.environ]
            os.environ.update({name: SETTINGS[name] for name in self.added})
            self.levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
            for name in NOISY_LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)

    def end(self) -> None:
        with self.lock:
            self.running -= 1
            if self.running:
                return
            for name in self.added:
                os.environ.pop(name, None)
            for name, level in self.levels.items():
                logging.getLogger(name).setLevel(level)


_blocks = _Blocks()


@contextmanager
def mlflow_settings() -> Iterator[None]:
    """Within the block, MLflow runs with `SETTINGS`; afterwards the environment and the loggers are as they were.

    Blocks may be nested and may run in several threads.
    """
    _blocks.begin()
    try:
        yield
    finally:
        _blocks.end()
