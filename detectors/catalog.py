"""The detectors that exist, by name: those of this package, and those that installed packages add.

A package adds one by an entry point of the group `GROUP`, whose name is the detector's and which leads to its `Head`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from detectors.base import SMOOTHING_SIGMA, Head, Parameter
from detectors.errors import InputError
from detectors.heads.autoencoder.head import Autoencoder
from detectors.heads.cflow.head import Cflow
from detectors.heads.cutpaste.head import Cutpaste
from detectors.heads.fastflow.head import Fastflow
from detectors.heads.ganomaly.head import Ganomaly
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore.head import Patchcore
from detectors.heads.spade.head import Spade
from detectors.heads.vae.head import Vae

HEADS: dict[str, type[Head]] = {
    head.name: head for head in (Padim, Patchcore, Cflow, Spade, Cutpaste, Fastflow, Autoencoder, Vae, Ganomaly)
}
GROUP = "anomaly_studies.detectors"


def head_class(name: str) -> type[Head]:
    """The head of a detector. Raises `InputError` that lists the known ones, or says what is wrong with an added one."""
    if name in HEADS:
        return HEADS[name]
    added = _added()
    if name in added:
        return _load(added[name])
    known = [*HEADS, *added]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"unknown detector {name!r}; {hint}known: {', '.join(sorted(known))}")


def parameters(name: str) -> dict[str, Parameter]:
    """Settings of a detector by name, those shared by all detectors included. Raises `InputError` as `head_class` does."""
    return {parameter.name: parameter for parameter in (*head_class(name).searchable, SMOOTHING_SIGMA)}


def networks(name: str, setting: Mapping[str, Any]) -> list[str]:
    """The networks of timm whose pretrained weights a detector starts from with this setting; what it leaves out is the default.

    Raises:
        InputError: as `head_class` does.
    """
    values = {parameter: setting.get(parameter.name, parameter.default) for parameter in parameters(name).values()}
    return [str(value) for parameter, value in values.items() if value in parameter.networks]


@cache
def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> type[Head]:
    try:
        head = point.load()
    except Exception as error:
        raise InputError(
            f"detector {point.name!r} ({point.value}) cannot be loaded: {error}; mend or uninstall it"
        ) from error
    if not (isinstance(head, type) and issubclass(head, Head) and head.name == point.name):
        raise InputError(
            f"detector {point.name!r} ({point.value}) is no `detectors.base.Head` of this name; mend or uninstall it"
        )
    return head
