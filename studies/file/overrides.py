"""What a person sets for one run: overrides of a study file (``--set``) and settings to try first (``--enqueue``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from detectors.errors import InputError
from studies.file import yaml_file
from studies.file.config import StudyConfig
from studies.file.encoding import decode_layers, encode
from studies.file.sections import Baseline

Overrides = Mapping[str, Any] | Sequence[str]
"""Values by dotted key, ``{"data.image_size": 320}``, or texts ``data.image_size=320`` whose values are YAML."""
_BASELINE = TypeAdapter(Baseline)


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """The values by dotted key; of a key that is given twice, the last value.

    Raises:
        InputError: a text without ``=``, or a value that is no YAML.
    """
    if isinstance(overrides, Mapping):
        return {key: _plain(value) for key, value in overrides.items()}
    if isinstance(overrides, str):
        raise InputError(f"settings: a mapping or a list of KEY=VALUE, not the text {overrides!r}")
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--set {text}: give KEY=VALUE, e.g. --set data.image_size=320")
        values.pop(key, None)  # the last one is also applied last
        values[key] = yaml_file.parse(value, name=f"--set {key}")
    return values


def override(raw: Any, overrides: Overrides) -> Any:
    """Set values in a study's plain form, in place, and return it.

    Raises:
        InputError: as `parse_overrides` does, or a key leads through a value.
    """
    for key, value in parse_overrides(overrides).items():
        *sections, last = key.split(".")
        target = raw
        for section in sections:
            if not isinstance(target.setdefault(section, {}), dict):
                raise InputError(f"--set {key}: {section!r} is a value, not a section")
            target = target[section]
        target[last] = value
    return raw


def parse_idea(idea: str | Mapping[str, Any], config: StudyConfig) -> Baseline:
    """A person's setting as a baseline of the study.

    Args:
        idea: ``{"n_features": 100, "layers": [8, 16]}``, or the text ``n_features=100,layers=8+16``.

    Raises:
        InputError: not of that form, an unknown parameter, or a value outside the search.
    """
    if isinstance(idea, str):
        text, values = idea, _idea_values(idea)
    else:
        values = {name: _plain(value) for name, value in idea.items()}
        text = ",".join(f"{name}={encode(value)}" for name, value in values.items())
    if "layers" in values:
        values["layers"] = _layers(values["layers"])
    try:
        baseline = _BASELINE.validate_python(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(f"--enqueue {text}: {wrong['loc'][0]} {wrong['input']!r} is not valid") from None
    try:
        config.check_baselines([baseline])
    except ValueError as error:
        raise InputError(f"--enqueue {text}: {error}") from None
    return baseline


def _idea_values(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise InputError(f"--enqueue {text}: give KEY=VALUE,..., e.g. n_features=100,layers=8+16")
        if name in values:
            raise InputError(f"--enqueue {text}: {name} is given twice")
        # Layers are given as Optuna shows them: 8 is [8].
        values[name] = value if name == "layers" else yaml_file.parse(value, name=f"--enqueue {name}")
    return values


def _layers(value: Any) -> Any:
    """``8+16`` as strides, ``-4+-1`` as blocks; anything else is left to the checks."""
    written = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}(\+-?[0-9]{1,9})*", value, flags=re.ASCII)
    return decode_layers(value) if written else value


def _plain(value: Any) -> Any:
    """A value as YAML would give it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
