"""How MLflow runs while this package calls it, without changing the process for anybody else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from detectors.while_inside import WhileInside

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
NOISY_LOGGERS = (
    "alembic.runtime.migration",
    "alembic.runtime.plugins",
    "mlflow.store.db.utils",
    "mlflow.models.signature",
)
"""They log each of the eighty steps in which a new database is migrated, and what is tried while a model is saved."""


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@contextmanager
def _changed() -> Iterator[None]:
    added = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    os.environ.update(added)
    # Setting a level would empty what every logger of the process has remembered, which costs a millisecond a call.
    for logger in loggers:
        logger.addFilter(_is_warning)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        for logger in loggers:
            logger.removeFilter(_is_warning)


mlflow_settings = WhileInside(_changed)
"""``with mlflow_settings():`` MLflow runs with `SETTINGS`; afterwards the environment and the loggers are as they were.

Blocks may be nested and may run in several threads.
"""
