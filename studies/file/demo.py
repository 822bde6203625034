"""``study run NAME --demo``: a study file turned into one that runs anywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detectors import catalog
from detectors.backbones.weights import BUNDLED, PIXELS
from studies.file.config import StudyConfig, validate
from studies.file.keys import ParameterKey
from studies.file.library import read
from studies.file.overrides import override

DEMO_TRIALS = 8


def load_demo(name: str, settings: Sequence[str] = ()) -> StudyConfig:
    """A study's own search on rendered screws, with the bundled backbone and few trials: needs no data and no network.

    It is another study (``NAME-demo``) in another experiment, so that nobody takes it for the real one.

    Raises:
        InputError: as `studies.file.library.load` does.
    """
    raw, source = read(name)
    file = validate(raw, source=source)
    raw["name"] = f"{file.name}-demo"
    raw["data"] = {"dataset": "rendered", "category": "screw"}
    raw["budget"] = {"trials": DEMO_TRIALS}
    raw["protocol"] = "holdout"
    parameters = [one for detector in file.detectors for one in catalog.parameters(detector).values()]
    fetched = {one.name: {*one.networks} - {BUNDLED} for one in parameters if one.networks}
    raw["search"] = _with_bundled_weights(raw.get("search", {}), fetched, searched=True)
    raw["fixed"] = _with_bundled_weights(raw.get("fixed", {}), fetched, searched=False)
    here = (BUNDLED, PIXELS)
    if raw["search"] and "backbone" not in raw["fixed"]:
        raw["search"].setdefault("backbone", {"choices": [BUNDLED]})
    elif not raw["search"]:
        raw["fixed"].setdefault("backbone", BUNDLED)
    raw["baselines"] = [
        base
        for base in raw.get("baselines", [])
        if base.get("backbone", BUNDLED) in here and not any(base.get(name) in fetched[name] for name in fetched)
    ]
    return validate(override(raw, settings), source=f"{source} with --demo")


def _with_bundled_weights(
    section: dict[str, Any], fetched: Mapping[str, Collection[Any]], *, searched: bool
) -> dict[str, Any]:
    """A search, or what is fixed, that needs no weights but the bundled backbone's, also under a detector's name.

    Pixels, which need none, stay.

    Args:
        fetched: {parameter: its values that are networks with other weights}.
    """
    made: dict[str, Any] = {}
    for key, value in section.items():
        name = ParameterKey.parse(key).name
        if name == "backbone":
            made[key] = _bundled_choice(value, searched=searched)
        elif name in fetched:
            choices = [choice for choice in _choices(value) if choice not in fetched[name]] or [BUNDLED]
            made[key] = {"choices": choices} if searched else choices[0]
        elif isinstance(value, dict):
            made[key] = _with_bundled_weights(value, fetched, searched=searched)
        else:
            made[key] = value
    return made


def _bundled_choice(value: Any, *, searched: bool) -> Any:
    one = PIXELS if set(_choices(value)) == {PIXELS} else BUNDLED
    return {"choices": [one]} if searched else one


def _choices(value: Any) -> list[Any]:
    return value.get("choices", []) if isinstance(value, dict) else [value]
