"""Studies: search space, driver, trials, executors, feature store and the command ``study``. Knows Optuna."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("studies.version").VERSION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
