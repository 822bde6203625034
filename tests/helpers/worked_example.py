"""The detector of ``docs/adding-a-detector.md``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
