"""The detectors that exist, by name."""

from __future__ import annotations

import difflib

from detectors.base import SMOOTHING_SIGMA, Head, Parameter
from detectors.cflow import Cflow
from detectors.errors import InputError
from detectors.padim import Padim
from detectors.patchcore import Patchcore

HEADS: dict[str, type[Head]] = {head.name: head for head in (Padim, Patchcore, Cflow)}


def head_class(name: str) -> type[Head]:
    """The head of a detector. Raises `InputError` that lists the known ones."""
    if name in HEADS:
        return HEADS[name]
    near = difflib.get_close_matches(name, HEADS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"unknown detector {name!r}; {hint}known: {', '.join(sorted(HEADS))}")


def parameters(name: str) -> dict[str, Parameter]:
    """Settings of a detector by name, those shared by all detectors included. Raises `InputError` as `head_class` does."""
    return {parameter.name: parameter for parameter in (*head_class(name).searchable, SMOOTHING_SIGMA)}
