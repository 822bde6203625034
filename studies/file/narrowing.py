"""What the settings of a command line leave of a study file: they may drop detectors, and choices that a baseline rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from detectors.errors import InputError
from studies.file.config import StudyConfig
from studies.file.keys import DETECTOR_KEY, ParameterKey
from studies.file.messages import first_problem

NARROWING = frozenset({"detector", "fixed", "search"})
"""Sections that say which settings a study allows."""


def narrowed(
    raw: dict[str, Any], file: Mapping[str, Any], settings: Mapping[str, Any], *, source: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A study's plain form without what its settings leave no place for, and a line on each baseline that is left out.

    A detector that is dropped takes along what stands under its name. A baseline is left out where the file allows it and the
    settings do not: one that is wrong in the file itself stays, and so does one that is among the settings.

    Args:
        raw: the file with its settings.
        file: without them.
        settings: by dotted key.
        source: of the file, for the lines.
    """
    sections = {key.partition(".")[0] for key in settings}
    if not sections & NARROWING:
        return raw, ()
    raw = without_dropped_detectors(raw, file.get("detector"))
    baselines = raw.get("baselines")
    if "baselines" in sections or not isinstance(baselines, list):
        return raw, ()
    reasons = [_problem(raw, one) if not _problem(file, one) else "" for one in baselines]
    left = [one for one, reason in zip(baselines, reasons, strict=True) if not reason]
    if not left and not raw.get("search"):
        return raw, ()  # There would be nothing to try: the validation says why.
    lines = tuple(
        f"baseline {number} of {source} is left out, because --set leaves no place for it: {reason}"
        for number, reason in enumerate(reasons, start=1)
        if reason
    )
    return raw | {"baselines": left}, lines


def without_dropped_detectors(raw: dict[str, Any], before: Any) -> dict[str, Any]:
    """A study's plain form in which nothing is said of detectors that it is not over any more.

    Where a single one is left, what stands under its name goes up to where a study over one detector has it.

    Args:
        before: the detectors of the file; anything but a list leaves all as it is.
    """
    now = raw.get("detector")
    kept = [str(name) for name in now] if isinstance(now, list) else [str(now)]
    if not isinstance(before, list) or not {*map(str, before)} - {*kept}:
        return raw
    known = [*map(str, before), *kept]
    parts = {name: _by_detector(raw[name], known) for name in ("search", "fixed") if isinstance(raw.get(name), dict)}
    result = dict(raw)
    own = {parameter for part in parts.values() for parameter in part.get(kept[0], {})} if len(kept) == 1 else set()
    for section, part in parts.items():
        common = {name: value for name, value in part[""].items() if name not in own}
        if len(kept) == 1:
            result[section] = common | part.get(kept[0], {})
        else:
            result[section] = common | {name: part[name] for name in kept if name in part}
    return result


def _by_detector(section: Mapping[str, Any], detectors: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{detector: its entries of ``search`` or ``fixed``}, with those for all detectors under an empty name."""
    parts: dict[str, dict[str, Any]] = {"": {}}
    for name, value in section.items():
        key = None
        with suppress(InputError):
            key = ParameterKey.parse(str(name))
        if name in detectors and isinstance(value, dict):
            parts.setdefault(name, {}).update(value)
        elif key is not None and key.detector is not None and key.detector in detectors and key.backbone is None:
            parts.setdefault(key.detector, {})[key.name] = value
        else:
            parts[""][name] = value
    return parts


def _problem(raw: Mapping[str, Any], baseline: Any) -> str:
    """Why a study has no place for a baseline, in words; empty where it has."""
    detectors = raw.get("detector")
    if isinstance(baseline, dict) and isinstance(detectors, list | str):
        name = baseline.get(DETECTOR_KEY)
        known = [detectors] if isinstance(detectors, str) else detectors
        if name is not None and name not in known:
            return f"its detector is {name}"
    try:
        config = StudyConfig.model_validate({**raw, "baselines": [baseline]})
    except ValidationError as error:
        return first_problem(error, StudyConfig).replace("baselines.0: ", "")
    return config.misfit(config.baselines[0])
