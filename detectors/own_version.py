"""The version of this package, wherever it runs from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Of the installed package; ``0+unknown`` in a checkout that was not installed."""
    try:
        return version("anomaly-studies")
    except PackageNotFoundError:
        return "0+unknown"
