"""A machine without weights, and a folder for some."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest


@pytest.fixture
def bare_machine(monkeypatch, tmp_path_factory):
    """No weights folder and empty hub caches, whatever this machine has."""
    empty = tmp_path_factory.mktemp("caches")
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(empty / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(empty / "hub"))
    return empty


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "weights"
    place.mkdir()
    return place
