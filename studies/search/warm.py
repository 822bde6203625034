"""Warm starts: the winners of earlier studies, and what another study can take of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectors import catalog
from studies.file.config import StudyConfig
from studies.file.encoding import Setting, canonical, encode
from studies.file.keys import DETECTOR_KEY, SHARED_PARAMETERS
from studies.file.sections import Baseline
from studies.search.space import SearchSpace

WINNERS = 3
"""Settings that are taken of each earlier study: the selected one and the next two, for it is often noise that decided between
these; more of them would take trials from the search, which has some tens."""


@dataclass(frozen=True)
class Winner:
    """The setting of a finished trial of an earlier study that met its constraints."""

    study: str
    """``NAME``, or ``NAME#2``."""
    trial: int
    setting: Setting
    """The full setting, with its ``detector``."""

    @property
    def source(self) -> str:
        """``padim_screw trial 7``"""
        return f"{self.study} trial {self.trial}"


@dataclass(frozen=True)
class Earlier:
    """An earlier study with all that it found, the selected setting first, then by its own first objective."""

    study: str
    winners: tuple[Winner, ...]
    """Of different settings."""


@dataclass(frozen=True)
class WarmSetting:
    """A winner as another study tries it, or why it cannot."""

    source: str
    """``padim_screw trial 7``, or where nothing of a study can be taken its name."""
    setting: Baseline
    """What is searched or set here; empty where nothing can be taken."""
    skipped: str = ""
    """Why it cannot be tried, in words; empty where it can."""
    remark: str = ""
    """What is different from the winner."""


def warm_settings(
    earlier: Sequence[Earlier], config: StudyConfig, space: SearchSpace, *, networks: Mapping[str, Any]
) -> list[WarmSetting]:
    """The best `WINNERS` settings of each earlier study that are of a detector of this one, each setting once.

    Args:
        space: over the backbones of this study.
        networks: those that were found for this study, by name.
    """
    settings: list[WarmSetting] = []
    known: set[str] = set()
    for study in earlier:
        for one in _of_study(study, config, space, networks):
            if one.skipped or canonical(one.setting) not in known:
                settings.append(one)
            if not one.skipped:
                known.add(canonical(one.setting))
    return settings


def _of_study(
    earlier: Earlier, config: StudyConfig, space: SearchSpace, networks: Mapping[str, Any]
) -> list[WarmSetting]:
    if not earlier.winners:
        return [WarmSetting(earlier.study, {}, "no trial finished there and met the constraints")]
    of_here = [one for one in earlier.winners if one.setting[DETECTOR_KEY] in config.detectors]
    others = list(dict.fromkeys(str(one.setting[DETECTOR_KEY]) for one in earlier.winners if one not in of_here))
    over = f"this study is over {config.detector_label}"
    if not of_here:
        return [WarmSetting(earlier.study, {}, f"its detector is {', '.join(others)}, and {over}")]
    taken = [_fitted(one, config, space, networks) for one in of_here[:WINNERS]]
    first = earlier.winners[0]
    if first not in of_here:
        reason = f"its detector is {first.setting[DETECTOR_KEY]}, and {over}; the best of the others are taken"
        taken.insert(0, WarmSetting(first.source, {}, reason))
    return taken


def _fitted(winner: Winner, config: StudyConfig, space: SearchSpace, networks: Mapping[str, Any]) -> WarmSetting:
    """A winner of one of this study's detectors.

    With another backbone or other layers, which may be fixed here, it would be another setting; of the other parameters the
    study's fixed values hold.
    """
    values = {name: value for name, value in winner.setting.items() if name != DETECTOR_KEY}
    detector = str(winner.setting[DETECTOR_KEY])
    part = config.for_detector(detector)
    changed = {name: value for name, value in part.fixed.items() if name in values and values[name] != value}
    for name in SHARED_PARAMETERS:
        if name in changed:
            told = f"{name} is {encode(values[name])}, and this study fixes {encode(changed[name])}"
            return WarmSetting(winner.source, {}, told)
    setting: Baseline = {name: value for name, value in values.items() if name not in part.fixed}
    if len(config.detectors) > 1:
        setting = {DETECTOR_KEY: detector, **setting}
    reason = config.misfit(setting) or _missing(setting, config, detector, space, networks)
    fixed = ", ".join(f"{name} {encode(value)}" for name, value in changed.items())
    return WarmSetting(
        winner.source, {} if reason else setting, reason, f"{fixed}, as this study fixes it" if fixed else ""
    )


def _missing(
    setting: Baseline, config: StudyConfig, detector: str, space: SearchSpace, networks: Mapping[str, Any]
) -> str:
    """Which weights of a setting are not there, in words."""
    backbone = setting.get("backbone")
    if backbone is not None and backbone not in space.backbones:
        return f"no weights for {backbone} in this study"
    whole = {**config.for_detector(detector).fixed, **setting}
    absent = [name for name in catalog.networks(config.head_class(detector), whole) if name not in networks]
    return f"weights of {', '.join(absent)} are not looked for in this study" if absent else ""
