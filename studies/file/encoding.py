"""A trial's setting, and how it is written: choices as Optuna stores them, a whole setting as one text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Setting = dict[str, Any]
"""The full setting of one trial by the parameters' plain names: ``backbone``, ``layers`` (a list of strides), every parameter
of the detector, and in a study over several detectors ``detector``. Its values can be written as JSON."""


def encode(choice: Any) -> Any:
    """A choice as Optuna stores it: lists of strides become ``8+16``."""
    return "+".join(str(stride) for stride in choice) if isinstance(choice, list) else choice


def decode_layers(text: str) -> list[int]:
    """``8+16`` -> [8, 16]."""
    return [int(stride) for stride in text.split("+")]


def canonical(params: Mapping[str, Any]) -> str:
    """One text for one setting, whatever the order of its keys."""
    return json.dumps(params, sort_keys=True)
