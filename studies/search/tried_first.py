"""What a study tries before anything is drawn: a person's ideas, the winners of earlier studies, the file's baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studies.file.encoding import encode
from studies.file.keys import DETECTOR_KEY
from studies.file.sections import Baseline
from studies.search.plan import Plan
from studies.search.warm import warm_settings

Kind = Literal["idea", "warm", "baseline"]
ORIGINS: dict[Kind, str] = {"idea": "person", "warm": "warm", "baseline": "baseline"}
"""{attribute of the trial that holds such a setting: the trial's origin}"""


@dataclass(frozen=True)
class First:
    """A setting that is tried before others, or why it is not."""

    kind: Kind
    setting: Baseline
    """As it was given, of a warm start as this study can take it."""
    name: str
    """``--enqueue``, ``baseline`` or ``warm start from padim_screw trial 7``."""
    source: str = ""
    """Of a warm start: ``padim_screw trial 7``."""
    skipped: str = ""
    """Why it is not tried; empty where it is."""
    remark: str = ""
    """What is tried otherwise than given, as far as that is known before the trial."""


def tried_first(plan: Plan) -> list[First]:
    """All such settings in the order in which they are tried; each is tried once over all runs of the study."""
    ideas = [First("idea", dict(idea), "--enqueue", remark=_cut(plan, idea)) for idea in plan.options.ideas]
    warm = [
        First(
            "warm",
            one.setting,
            f"warm start from {one.source}",
            source=one.source,
            skipped=one.skipped,
            remark="; ".join(filter(None, (one.remark, "" if one.skipped else _cut(plan, one.setting)))),
        )
        for one in warm_settings(plan.options.earlier, plan.config, plan.space, networks=plan.networks)
    ]
    return [*ideas, *warm, *(_baseline(plan, one) for one in plan.config.baselines)]


def _baseline(plan: Plan, baseline: Baseline) -> First:
    fixed = plan.config.for_detector(str(baseline.get(DETECTOR_KEY, plan.config.detectors[0]))).fixed
    backbone = str(baseline.get("backbone", fixed.get("backbone", "")))
    if backbone and backbone not in plan.backbones:
        return First("baseline", baseline, "baseline", skipped=f"no weights for {backbone} when the study was created")
    return First("baseline", baseline, "baseline", remark=_cut(plan, baseline))


def _cut(plan: Plan, setting: Baseline) -> str:
    """``n_features 300 is cut to 152``: what backbone and layers do not allow of a setting."""
    return "; ".join(
        f"{name} {encode(setting[name])} is cut to {bound}" for name, bound in plan.space.bounded(setting).items()
    )
