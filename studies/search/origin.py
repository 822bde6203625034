"""Where a study's settings come from, and which of them stay when it is run again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from detectors.scoring.evaluation import IMAGE_METRICS
from detectors.scoring.ranked_by import RANKING_SCORE

Kind = Literal["file", "images", "demo"]
TRIALS, SAMPLER, AUTO = "budget.trials", "sampler.name", "auto"
OF_ONE_RUN = ("budget.timeout",)
"""Keys that a command line sets for the run that it starts alone."""
OF_ONE_RULE = tuple(f"threshold.{name}" for name in ("value", "cost_miss", "cost_alarm", "share_defective"))
"""Keys that belong to one rule of the threshold."""
SETTLED = frozenset({"threshold", "gate", "execution", "seeds", "select", "rerank", "advice"})
"""Sections that say what becomes of a search's outcome or how jobs are run: a change of them is no reason to search on."""


@dataclass(frozen=True)
class Origin:
    """What a study's settings were made of at its last run."""

    kind: Kind
    """A study ``file``; a detector's file with a folder of ``images``; a file changed into a ``demo``."""
    source: str
    """The file's path, or what else was given for it."""
    base: dict[str, Any]
    """The study without what command lines set, as `StudyConfig.to_json` writes it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What command lines set, by dotted key, over all runs."""
    root: str = ""
    """Absolute folder of the images; empty where each product has its own, or they are drawn."""
    weights_dir: str = ""
    """Absolute folder that was searched for weights first; empty for none."""

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """What a store holds; what a later version adds is passed over."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in raw.items() if name in known})

    def kept(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of earlier command lines that still hold; an edit of the same key in the file is the later wish.

        Args:
            base: the study without what command lines set, as it is now.
        """
        return {key: value for key, value in self.settings.items() if value_at(self.base, key) == value_at(base, key)}


def lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are for one run alone."""
    result = {key: value for key, value in settings.items() if key not in OF_ONE_RUN}
    if isinstance(budget := result.get("budget"), Mapping):
        result["budget"] = {key: value for key, value in budget.items() if f"budget.{key}" not in OF_ONE_RUN}
    return result


def merged(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of earlier command lines, then those of this one; a whole section that is given anew replaces its keys.

    A threshold's rule that is given anew takes no values of another rule along.
    """
    stays = {key: value for key, value in kept.items() if not any(f"{key}.".startswith(f"{one}.") for one in given)}
    if "threshold.rule" in given:
        stays = {key: value for key, value in stays.items() if key not in OF_ONE_RULE}
    return stays | dict(given)


def value_at(plain: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none. Keys that hold dots themselves (``padim.n_features``) are found."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        name, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if isinstance(plain, Mapping) and name in plain:
            return value_at(plain[name], rest) if rest else plain[name]
    return None


def differing_sections(config: Mapping[str, Any], last: Mapping[str, Any]) -> frozenset[str]:
    """The sections in which a study differs from what it was at its last run.

    Where the images lie, what ``auto`` stands for as a protocol or a sampler, and limits of one run are no differences.

    Args:
        config: as `StudyConfig.to_json` writes it.
        last: the same of the last run, with protocol and sampler resolved.
    """
    now, before = _comparable(config), _comparable(last)
    if now.get("protocol") == AUTO:
        now["protocol"] = before.get("protocol")
    if RANKING_SCORE in before.get("objectives", {}):
        # What the metrics of whole images became, for want of labelled defects.
        aims = now.get("objectives", {})
        now["objectives"] = {RANKING_SCORE if name in IMAGE_METRICS else name: way for name, way in aims.items()}
    if value_at(now, SAMPLER) == AUTO and value_at(before, SAMPLER) is not None:
        now["sampler"] = {**now["sampler"], "name": value_at(before, SAMPLER)}
    return frozenset(name for name in {*now, *before} if now.get(name) != before.get(name))


def is_same_study(config: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether two studies search the same on the same images, as far as can be told without reading these."""
    differ = differing_sections(config, last) & {"detector", "protocol", "search", "fixed", "objectives", "heads"}
    return not differ and all(value_at(config, key) == value_at(last, key) for key in ("data", "sampler.seed"))


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {"data": "root", "budget": OF_ONE_RUN[0].partition(".")[2]}
    return {
        name: {key: inner for key, inner in value.items() if key != left_out[name]} if name in left_out else value
        for name, value in config.items()
    }


def sections(keys: Iterable[str]) -> frozenset[str]:
    """The sections that dotted keys belong to; the folder of the images is no change of them."""
    return frozenset(key.partition(".")[0] for key in keys if key != "data.root")


def written(key: str, value: Any) -> str:
    """A setting as a command line gives it: ``--trials 6``, ``--set threshold.rate=0.17``."""
    return f"--trials {value}" if key == TRIALS else f"--set {key}={shown(value)}"


def shown(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
