"""The detector of ``docs/adding-a-detector.md``, and packages that add detectors without being installed."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from detectors import catalog
from detectors.base import Head

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "diagonal.py"


def load_example() -> type[Head]:
    """Its head, from the file itself."""
    spec = importlib.util.spec_from_file_location("diagonal", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Diagonal


def offer(monkeypatch: pytest.MonkeyPatch, name: str, *values: str) -> None:
    """Let the catalog see an entry point for each value, as if packages that offer them were installed."""
    real = catalog.offered
    points = tuple(EntryPoint(name, value, catalog.GROUP) for value in values)
    monkeypatch.setattr(catalog, "offered", lambda group: {**real(group), name: points})


def offer_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the catalog see the worked example as if a package with it were installed."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    offer(monkeypatch, "diagonal", "diagonal:Diagonal")
