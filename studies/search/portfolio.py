"""The prior: settings of detectors in the order of how they ranked in stored studies of public products.

It says which settings to try first, and which to take where the images of a study do not tell two apart. It is no evidence about
these images and never enters a figure: mixed into the evidence it made the choice worse.

``portfolio.json`` beside this file is what ``benchmarks/portfolio.py`` made of the stored studies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from detectors import catalog
from detectors.errors import InputError
from studies.file.encoding import Setting

PORTFOLIO_FILE = "portfolio.json"
FACTOR = 4.0
"""Two numbers that differ by this factor or more are as unlike as two choices."""
FAR = 0.5
"""A setting that is unlike the nearest stored one in more than this share of its parameters has no rank."""


class Entry(BaseModel):
    """One setting of the portfolio."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: str
    setting: Setting
    """Parameters that are missing have the detector's defaults."""
    mean_rank: float
    """Mean over the products of its rank among all settings there, from 0 (the best) to 1."""
    products: int
    """Products that it was tried on."""


class Portfolio(BaseModel):
    """The content of ``portfolio.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    products: list[str]
    """What the stored studies are of."""
    entries: list[Entry]
    """The best first."""


@lru_cache(maxsize=1)
def stored() -> Portfolio:
    """The portfolio that is part of this package."""
    return Portfolio.model_validate_json((resources.files("studies.search") / PORTFOLIO_FILE).read_bytes())


def order(detector: str, setting: Mapping[str, Any], portfolio: Portfolio | None = None) -> int | None:
    """The place of a setting among all stored ones, 1 for the first: its own, or that of the stored setting nearest to it.

    None where nothing like it is stored: a detector that is not among them, or a distance above `FAR`.
    """
    near = nearest(detector, setting, portfolio)
    return None if near is None or near.distance > FAR else near.place


def first(detector: str, n: int, portfolio: Portfolio | None = None) -> list[dict[str, Any]]:
    """The first `n` stored settings of a detector, the best first; fewer where fewer are stored."""
    entries = (portfolio or stored()).entries
    return [dict(entry.setting) for entry in entries if entry.detector == detector][:n]


@dataclass(frozen=True)
class Near:
    """A stored setting near another one."""

    place: int
    """From 1 on."""
    distance: float
    """From 0 to 1."""


def nearest(detector: str, setting: Mapping[str, Any], portfolio: Portfolio | None = None) -> Near | None:
    """The stored setting of a detector that is nearest to a setting, of equally near ones the first; None without any."""
    defaults = _defaults(detector)
    found = [
        Near(place, distance(defaults | dict(setting), defaults | dict(entry.setting)))
        for place, entry in enumerate((portfolio or stored()).entries, start=1)
        if entry.detector == detector
    ]
    return min(found, key=lambda near: near.distance, default=None)


def distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """How unlike two settings of one detector are: the mean over their parameters, from 0 to 1 (Gower 1971).

    Two choices are alike or not. Numbers count by the logarithm of their ratio, for it is factors that matter in ranges that
    are searched, up to `FACTOR`; none is like 0, which switches something off. Of the layers counts the share of strides
    that only one of the two has. A parameter that only one of the two names is left out.
    """
    shared = [name for name in a if name in b and name != "detector"]
    return math.fsum(_unlike(a[name], b[name]) for name in shared) / len(shared) if shared else 1.0


def _unlike(a: Any, b: Any) -> float:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        union = {*a} | {*b}
        return len({*a} ^ {*b}) / len(union) if union else 0.0
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    if not numbers or a == b:
        return float(a != b)
    if a * b <= 0:
        return 1.0
    return min(1.0, abs(math.log(a / b)) / math.log(FACTOR))


@lru_cache(maxsize=32)
def _defaults(detector: str) -> dict[str, Any]:
    """Default of each parameter of a detector; empty for one that is not known here."""
    try:
        return {name: parameter.default for name, parameter in catalog.parameters(detector).items()}
    except InputError:
        return {}
