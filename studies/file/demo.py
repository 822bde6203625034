"""``study run NAME --demo``: a study file changed into one that needs no data and no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from detectors.backbones.bundled import SMALLEST
from detectors.backbones.weights import PIXELS
from studies.file.config import StudyConfig, validate
from studies.file.keys import ParameterKey
from studies.file.library import read
from studies.file.overrides import Overrides, override

DEMO_TRIALS = 8
"""Finished trials of a demonstration: a few minutes on a CPU."""


def load_demo(name: str, overrides: Overrides = ()) -> StudyConfig:
    """The search of a study file on rendered screws, with the bundled backbone and few trials.

    It needs no data and no network. It is another study (``NAME-demo``) in another experiment, so that nobody takes it for the
    real one.

    Raises:
        InputError: as `studies.file.library.load` does.
    """
    raw, source = read_demo(name)
    return validate(override(raw, overrides), source=source)


def read_demo(name: str) -> tuple[dict[str, Any], str]:
    """The plain form of the demonstration of a study file, and where it comes from. Raises `InputError` as `load_demo` does."""
    raw, source = read(name)
    file = validate(raw, source=source)
    raw["name"] = f"{file.name}-demo"
    raw["data"] = {"dataset": "rendered", "category": "screw"}
    raw["budget"] = {"trials": DEMO_TRIALS}
    raw["protocol"] = "holdout"
    parameters = [parameter for part in file.parts.values() for parameter in part.parameters.values()]
    fetched = {one.name: {*one.networks} - {SMALLEST} for one in parameters if one.networks}
    raw["search"] = _with_bundled_weights(raw.get("search", {}), fetched, searched=True)
    raw["fixed"] = _with_bundled_weights(raw.get("fixed", {}), fetched, searched=False)
    here = (SMALLEST, PIXELS)
    if raw["search"] and "backbone" not in raw["fixed"]:
        raw["search"].setdefault("backbone", {"choices": [SMALLEST]})
    elif not raw["search"]:
        raw["fixed"].setdefault("backbone", SMALLEST)
    # The papers' settings stand last in a file: a demonstration begins with them, so that one sees what a search gains.
    raw["baselines"] = [
        base
        for base in reversed(raw.get("baselines", []))
        if base.get("backbone", SMALLEST) in here and not any(base.get(name) in fetched[name] for name in fetched)
    ]
    return raw, f"{source} with --demo"


def _with_bundled_weights(
    section: dict[str, Any], fetched: Mapping[str, Collection[Any]], *, searched: bool
) -> dict[str, Any]:
    """A search, or what is fixed, that needs no weights but the bundled backbone's, also under a detector's name.

    Pixels, which need none, stay.

    Args:
        fetched: {parameter: its values that are networks with other weights}.
    """
    result: dict[str, Any] = {}
    for key, value in section.items():
        name = ParameterKey.parse(key).name
        if name == "backbone":
            result[key] = _bundled_choice(value, searched=searched)
        elif name in fetched:
            choices = [choice for choice in _choices(value) if choice not in fetched[name]] or [SMALLEST]
            result[key] = {"choices": choices} if searched else choices[0]
        elif isinstance(value, dict):
            result[key] = _with_bundled_weights(value, fetched, searched=searched)
        else:
            result[key] = value
    return result


def _bundled_choice(value: Any, *, searched: bool) -> Any:
    backbone = PIXELS if set(_choices(value)) == {PIXELS} else SMALLEST
    return {"choices": [backbone]} if searched else backbone


def _choices(value: Any) -> list[Any]:
    return value.get("choices", []) if isinstance(value, dict) else [value]
