"""What installed packages offer by entry points, this package's own detectors and executors included.

Own entry points are those that lie beside the code that runs: the metadata of an installed distribution, the pyproject.toml of a
checkout, the small ``dist-info`` folder that a packed MLflow model carries. Another version that is installed as well has no say.
"""

from __future__ import annotations

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from detectors.errors import InputError

DISTRIBUTION = "anomaly-studies"
"""Name under which this project is installed."""
BESIDE = Path(__file__).parents[1]
"""Where the packages of this project lie."""


def offered(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points of a group by name, loaded by nobody yet: this project's own first, then the others in alphabetical order.

    A name that several packages offer has several entry points; `only_one` says whose they are.
    """
    # MLflow puts the code of each model that it loads on the path, and a package that comes with one is to be seen.
    return _offered(group, tuple(sys.path))


@cache
def _offered(group: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    installed = list(entry_points(group=group))
    ours = _own(group) or [point for point in installed if distribution_of(point) == DISTRIBUTION]
    points = [*ours, *(point for point in installed if distribution_of(point) != DISTRIBUTION)]
    points.sort(key=lambda point: (distribution_of(point) != DISTRIBUTION, point.name))
    by_name: dict[str, tuple[EntryPoint, ...]] = {}
    for point in points:
        by_name[point.name] = (*by_name.get(point.name, ()), point)
    return by_name


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
    if point.dist is None:  # read from the pyproject.toml of a checkout, which is ours
        return DISTRIBUTION if point in _own(point.group) else ""
    return re.sub(r"[-_.]+", "-", str(point.dist.name)).lower()


@cache
def _own(group: str) -> tuple[EntryPoint, ...]:
    """Own entry points of a group that lie beside the code; none where its metadata lie elsewhere."""
    for distribution in distributions(name=DISTRIBUTION, path=[str(BESIDE)]):
        return tuple(point for point in distribution.entry_points if point.group == group)
    try:
        project = tomllib.loads((BESIDE / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, tomllib.TOMLDecodeError):
        return ()
    if project.get("name") != DISTRIBUTION:  # of whatever folder this one was installed into
        return ()
    listed: dict[str, str] = project.get("entry-points", {}).get(group, {})
    return tuple(EntryPoint(name, value, group) for name, value in listed.items())
