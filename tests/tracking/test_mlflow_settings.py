"""MLflow runs with our settings within the blocks that call it; outside, the process is as it was."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from tracking.mlflow_settings import NOISY_LOGGERS, SETTINGS, mlflow_settings

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def quiet() -> list[bool]:
    """Of each noisy logger, whether it keeps what is less than a warning to itself; a warning it always tells."""
    told = []
    for name in NOISY_LOGGERS:
        note, warning = (
            logging.LogRecord(name, level, "", 0, "", (), None) for level in (logging.INFO, logging.WARNING)
        )
        assert logging.getLogger(name).filter(warning)
        told.append(not logging.getLogger(name).filter(note))
    return told


def test_the_process_is_as_it_was_after_the_block() -> None:
    before = dict(os.environ), quiet()
    assert not any(quiet())
    with pytest.raises(KeyError), mlflow_settings():  # noqa: PT012
        assert {name: os.environ[name] for name in SETTINGS} == SETTINGS
        assert all(quiet())
        with mlflow_settings():
            pass
        assert os.environ[RETRIES] == "0"
        raise KeyError
    assert (dict(os.environ), quiet()) == before


def test_a_value_that_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "3")
    with mlflow_settings():
        assert os.environ[RETRIES] == "3"
    assert os.environ[RETRIES] == "3"


def test_a_block_of_one_thread_does_not_end_that_of_another() -> None:
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with mlflow_settings():
            begun.set()
            ended.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(30)
    with mlflow_settings():
        pass
    assert os.environ[RETRIES] == "0"
    ended.set()
    thread.join(30)
    assert RETRIES not in os.environ


def test_importing_the_package_changes_no_environment_variable() -> None:
    script = (
        "import os, mlflow; before = dict(os.environ)\n"
        "import tracking.registry, tracking.projection; print(before == os.environ)"
    )
    # What MLflow itself sets when it is imported is not ours.
    clean = {name: value for name, value in os.environ.items() if "MLFLOW_" not in name}
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
