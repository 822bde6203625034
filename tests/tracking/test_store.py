"""MLflow's address of the process is changed for a block and is afterwards what it was, in MLflow and in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest

from tracking.store import TRACKING_VARIABLE, default_store


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TRACKING_VARIABLE, raising=False)
    mlflow.set_tracking_uri(None)
    yield
    mlflow.set_tracking_uri(None)


def test_what_the_environment_said_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(TRACKING_VARIABLE, "http://127.0.0.1:9")
        with default_store(f"sqlite:///{tmp_path / 'mlflow.db'}"):
            assert mlflow.get_tracking_uri().endswith("mlflow.db")
        assert os.environ[TRACKING_VARIABLE] == "http://127.0.0.1:9"
    with default_store(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        pass
    assert TRACKING_VARIABLE not in os.environ
    assert not mlflow.is_tracking_uri_set()


def test_what_a_program_set_is_restored(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'own.db'}")
    with default_store(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        pass
    assert mlflow.get_tracking_uri().endswith("own.db")
