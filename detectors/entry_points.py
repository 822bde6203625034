"""What installed packages offer by entry points, this package's own detectors and executors included.

Own entry points come from the metadata of the installed distribution. A checkout on PYTHONPATH has none; there they are read
from its pyproject.toml. A packed MLflow model carries a small ``dist-info`` folder beside the code.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from detectors.errors import InputError

DISTRIBUTION = "anomaly-studies"
"""Name under which this project is installed."""
PROJECT_FILE = Path(__file__).parents[1] / "pyproject.toml"
"""Beside the packages in a checkout; absent from an installation."""


@cache
def offered(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points of a group by name, loaded by nobody yet: this project's own first, then the others in alphabetical order.

    A name that several packages offer has several entry points; `only_one` says whose they are.
    """
    points = list(entry_points(group=group))
    if not any(distribution_of(point) == DISTRIBUTION for point in points):
        points = [*_of_checkout(group), *points]
    points.sort(key=lambda point: (distribution_of(point) != DISTRIBUTION, point.name))
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in points:
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def only_one(points: tuple[EntryPoint, ...], kind: str) -> EntryPoint:
    """The entry point of a name.

    Args:
        kind: what it names, for the message: ``detector``, ``executor``.

    Raises:
        InputError: several packages offer the name.
    """
    first, *others = points
    if others:
        owners = " and ".join(distribution_of(point) or point.value for point in points)
        raise InputError(f"{kind} {first.name!r} is offered by {owners}; uninstall all but one of them")
    return first


def load(point: EntryPoint, kind: str) -> Any:
    """What an entry point leads to. Raises `InputError` where its package is broken."""
    try:
        return point.load()
    except Exception as error:
        raise InputError(
            f"{kind} {point.name!r} ({point.value}) cannot be loaded: {error}; mend or uninstall it"
        ) from error


def distribution_of(point: EntryPoint) -> str:
    """Name of the package that offers an entry point, in lower case with hyphens; empty where that is unknown."""
    # An entry point of a checkout has no distribution; it is ours.
    if point.dist is None:
        return DISTRIBUTION if point in _of_checkout(point.group) else ""
    return re.sub(r"[-_.]+", "-", str(point.dist.name)).lower()


@cache
def _of_checkout(group: str) -> tuple[EntryPoint, ...]:
    """Own entry points of a group, from pyproject.toml; none in an installation."""
    try:
        project = tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8")).get("project", {})
    except (OSError, tomllib.TOMLDecodeError):
        return ()
    if project.get("name") != DISTRIBUTION:  # of whatever folder this one was installed into
        return ()
    listed: dict[str, str] = project.get("entry-points", {}).get(group, {})
    return tuple(EntryPoint(name, value, group) for name, value in listed.items())
