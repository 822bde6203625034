"""The detectors that exist, by name. A detector's module is imported when it is asked for, not before.

Every detector is an entry point of the group `GROUP`, whose name is the detector's and which leads to its `Head`: those of this
project are listed in its pyproject.toml, other packages add theirs in the same way. A head that a person named as FILE.py:CLASS
has its place here too, under its own name, in the process that was given it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

from detectors import entry_points, head_files
from detectors.base import SMOOTHING_SIGMA, Head, Parameter
from detectors.entry_points import DISTRIBUTION, distribution_of, offered, only_one
from detectors.errors import InputError
from detectors.head_files import problem_of

GROUP = "anomaly_studies.detectors"
HOW_TO_ADD = (
    "a detector of your own comes as FILE.py:CLASS or from a package with an entry point of the group "
    f"{GROUP} (docs/adding-a-detector.md)"
)


def names() -> list[str]:
    """All detectors: this project's own in alphabetical order, then those that other packages add. Imports none of them."""
    return list(offered(GROUP))


def built_in_names() -> list[str]:
    """This project's own detectors, in alphabetical order. Imports none of them."""
    return [name for name, points in offered(GROUP).items() if distribution_of(points[0]) == DISTRIBUTION]


def head_class(name: str) -> type[Head]:
    """The head of a detector: the package's that offers the name, else that of the file that was named last.

    A study or a saved detector whose head is of a file finds it by its record, with `detectors.head_files.find_head`.

    Raises:
        InputError: there is no such detector (the message lists the known ones and says how to add one), two packages offer
            it, or the package that adds it is broken.
    """
    known_names = names()
    if name in known_names:
        return _load(only_one(offered(GROUP)[name], "detector"))
    if (named := head_files.named(name)) is not None:
        return named
    near = difflib.get_close_matches(name, known_names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"unknown detector {name!r}; {hint}known: {', '.join(sorted(known_names))}; {HOW_TO_ADD}")


def parameters(name: str) -> dict[str, Parameter]:
    """Settings of a detector by name, those shared by all detectors included. Raises `InputError` as `head_class` does."""
    return parameters_of(head_class(name))


def parameters_of(head: type[Head]) -> dict[str, Parameter]:
    """Settings of a head by name, those shared by all detectors included."""
    return {parameter.name: parameter for parameter in (*head.searchable, SMOOTHING_SIGMA)}


def networks(head: type[Head], setting: Mapping[str, Any]) -> list[str]:
    """The networks of timm whose pretrained weights a head starts from with this setting; what it leaves out is the default."""
    values = {parameter: setting.get(parameter.name, parameter.default) for parameter in parameters_of(head).values()}
    return [str(value) for parameter, value in values.items() if value in parameter.networks]


def load_head_file(reference: str, *, base: Path | None = None) -> type[Head]:
    """The head of ``FILE.py:CLASS``, which a person named; from now on `head_class` knows it by its name.

    Args:
        base: folder that a relative path starts from; None for the working folder.

    Raises:
        InputError: as `detectors.head_files.load_head` does; also where an installed package has a detector of this name.
    """
    owners = {name: distribution_of(points[0]) or points[0].value for name, points in offered(GROUP).items()}
    return head_files.load_head(reference, base=base, taken=owners)


@cache
def _load(point: EntryPoint) -> type[Head]:
    head = entry_points.load(point, "detector")
    if (problem := problem_of(head)) is None and head.name != point.name:
        problem = f".name is {head.name!r}, which is not the name of its entry point"
    if problem is not None:
        raise InputError(
            f"detector {point.name!r} ({point.value}) cannot be used: {point.attr}{problem}; mend or uninstall it"
        )
    return cast(type[Head], head)
