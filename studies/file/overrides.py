"""What a person sets on the command line: ``--set`` changes keys of a study file, ``--enqueue`` adds a setting to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from detectors.errors import InputError
from studies.file import yaml_file
from studies.file.config import StudyConfig
from studies.file.encoding import decode_layers
from studies.file.sections import Baseline

_BASELINE = TypeAdapter(Baseline)


def override(raw: Any, settings: Sequence[str]) -> Any:
    """Apply ``KEY=VALUE`` overrides, dotted keys and YAML values, to a study's plain form, in place.

    Raises:
        InputError: an override without ``=``, or a key that leads through a value.
    """
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: give KEY=VALUE, e.g. --set data.image_size=320")
        *sections, last = key.split(".")
        target = raw
        for section in sections:
            if not isinstance(target.setdefault(section, {}), dict):
                raise InputError(f"--set {setting}: {section!r} is a value, not a section")
            target = target[section]
        target[last] = yaml_file.parse(value, name=f"--set {key}")
    return raw


def parse_idea(text: str, config: StudyConfig) -> Baseline:
    """A person's setting, ``backbone=resnet18,layers=8+16,n_features=100``, as a baseline of the study.

    Raises:
        InputError: not of that form, an unknown parameter, or a value outside the search.
    """
    idea: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise InputError(f"--enqueue {text}: give KEY=VALUE,..., e.g. n_features=100,layers=8+16")
        if name in idea:
            raise InputError(f"--enqueue {text}: {name} is given twice")
        idea[name] = _idea_value(name, value)
    try:
        baseline = _BASELINE.validate_python(idea)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(f"--enqueue {text}: {wrong['loc'][0]} {wrong['input']!r} is not valid") from None
    try:
        config.check_baselines([baseline])
    except ValueError as error:
        raise InputError(f"--enqueue {text}: {error}") from None
    return baseline


def _idea_value(name: str, text: str) -> Any:
    if name == "layers":
        return decode_layers(text) if all(map(str.isdigit, text.split("+"))) else text
    return yaml_file.parse(text, name=f"--enqueue {name}")
