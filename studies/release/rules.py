"""The rules of the gate: each compares what was measured of a challenger with a limit or with the champion.

A line is run at a threshold, so both models are also judged at the one that is stored with them: which defects each finds and
which good parts each stops, of the same test images. The loss is refused if it is more than the study file allows, or if chance
does not explain it: the one-sided exact test of McNemar (1947) on the images on which the two models disagree, at 5 %. Few images
show little, so a rule says both, the counts and whether chance may explain them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detectors.data.painting.painted_set import PaintedSet
from detectors.runtime.latency import is_disturbed
from detectors.scoring.evaluation import IMAGE_METRICS, NO_THRESHOLD, OPERATING_METRICS, PIXEL_METRICS, SEG_F1
from detectors.scoring.metrics import PairedDifference, UndefinedMetricError, paired_bootstrap_difference
from detectors.scoring.ranked_by import RANKING_SCORE
from detectors.scoring.ranking import paired_ranking_difference
from detectors.scoring.significance import sign_test_p
from studies.file.sections import GateConfig
from studies.release.measured import Measured, share_text

Verdict = Literal["passed", "warning", "refused", "not applicable"]
"""Only ``refused`` keeps a challenger from becoming the champion."""
CHANCE = 0.05
"""A loss with a p-value of at most this is more than chance explains."""
PAINTED_FLOOR = 0.6
"""Least ranking score, where the test defects are painted: 0.5 is chance, and half of the painted defects are hard to miss."""


@dataclass(frozen=True)
class Rule:
    """One condition of the gate and its outcome."""

    name: str
    verdict: Verdict
    value: float | None
    """What was measured; None if nothing was."""
    limit: float | None
    """What the value is compared with; None if there is no limit."""
    outcome: str
    """What was measured, in words."""
    forcible: bool = True
    """Whether a person may promote a model all the same that this rule refuses; not one that cannot do its work at all."""

    def to_json(self) -> dict[str, Any]:
        """The fields under the keys of a gate report."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "value": self.value,
            "limit": self.limit,
            "told": self.outcome,
            "forcible": self.forcible,
        }


def limit_rules(config: GateConfig, measured: Measured, *, nested: Mapping[str, float] | None = None) -> list[Rule]:
    """Whether metrics, latency and size are within the absolute limits of the study file.

    Args:
        nested: the nested estimate of a study whose labelled images all took part in the choice, by which floors and ceilings
            judge then; empty where it has none. None where the test images are kept from the search.
    """
    size = config.model_size_mb
    text = f"{measured.size_mb:.1f} MB" + ("" if size is None else f", at most {size:g}")
    verdict: Verdict = "not applicable" if size is None else ("passed" if measured.size_mb <= size else "refused")
    return [
        _floor(config, measured, nested),
        *([_ceiling(config, measured, nested)] if config.ceiling else []),
        _latency(config, measured),
        Rule("size", verdict, measured.size_mb, size, text),
    ]


def threshold_rule(measured: Measured, name: str) -> Rule:
    """Whether the model has a threshold: without one it calls nothing defective. A warning where it misses most defects.

    Args:
        name: what `study threshold` is to be given: the study that the model comes from, with its product.
    """
    if measured.threshold is None:
        text = f"has no threshold, so it calls no image defective; set one: study threshold {name} --rate 0.01"
        return Rule("threshold", "refused", None, None, text, forcible=False)
    counts = measured.counts
    text = f"{measured.threshold.value:.4g}"
    verdict: Verdict = "passed"
    if counts is not None:
        missed = counts.defective - counts.caught
        text += f": misses {share_text(missed, counts.defective)} defects"
        text += f", stops {share_text(counts.alarms, counts.good)} good images"
        if missed > counts.caught:
            verdict, text = "warning", f"{text}; it misses more defects than it finds"
    return Rule("threshold", verdict, measured.threshold.value, None, text)


def champion_rules(
    config: GateConfig,
    new: Measured,
    old: Measured,
    labels: NDArray[np.integer[Any]],
    *,
    painted: PaintedSet | None = None,
    seed: int,
) -> tuple[list[Rule], tuple[float, float, float] | None]:
    """Whether the challenger is worse than the champion on the same images.

    Args:
        labels: [N], 0 good, 1 defective.
        painted: of test images with painted defects; they are compared by the ranking score instead of the image AUROC.
        seed: of the bootstrap.

    Returns:
        The rules, and the difference of the image AUROC or ranking score with the ends of its 95 % interval; None where it is
        undefined.
    """
    rule, difference = _not_worse(config, new, old, labels, painted, seed)
    rules = [rule, _per_defect(config, new, old), _recall(config, new, old, labels)]
    return [*rules, _false_alarms(config, new, old, labels)], difference


def warning_rules(measured: Measured) -> list[Rule]:
    """What the fit of the challenger left to the person who decides, such as a threshold that jumped; it refuses nothing."""
    return [Rule("fit", "warning", None, None, text) for text in measured.warnings]


def product_rule(objection: str) -> Rule:
    """That the challenger's images are of another product than the model's: for a promotion that is forced nevertheless."""
    return Rule("same product", "refused", None, None, objection)


def nested_rule(nested: Mapping[str, float], study: str, images: int) -> Rule:
    """That the images on which models are compared took part in the choice: a warning, for that flatters the challenger.

    Args:
        nested: the nested estimate; empty where there is none.
        study: name of the study.
        images: how many.
    """
    text = f"the study keeps no images for test: all {images} labelled images took part in the choice, so what is measured on "
    text += "them is too good; floors use the nested estimate"
    value = nested.get("nested/image_auroc")
    if value is None:
        text += f", and there is none: `study run {study}` makes it when the search ends"
    return Rule("choice", "warning", value, None, text)


def in_sample_rule() -> Rule:
    """That nothing was held out of so few good images: nobody knows what the model is worth."""
    text = "the good images are too few to hold any out: what is measured here is on images the model was fitted to; add some"
    return Rule("held-out images", "refused", None, None, text)


def _floor(config: GateConfig, measured: Measured, nested: Mapping[str, float] | None) -> Rule:
    """Whether the metrics are at least the floors of the study file."""
    missed, limits = [], _floors(config, measured)
    for name, floor in limits.items():
        shown, value = _judged(name, measured, nested)
        if value is None:
            missed.append(_unknown(name, measured, nested))
        elif value < floor:
            missed.append(f"{shown} {value:.4f} is below {floor:g}")
    floors = ", ".join(f"{_judged(name, measured, nested)[0]} {floor:g}" for name, floor in limits.items())
    limit = limits.get("test/image_auroc", limits.get(f"test/{RANKING_SCORE}"))
    if not floors:
        return Rule("floor", "not applicable", measured.ranks, limit, "none is set")
    verdict: Verdict = "refused" if missed else "passed"
    text = "; ".join(missed) or f"at least {floors}"
    if nested is not None:
        return Rule("floor", verdict, nested.get("nested/image_auroc"), limit, text)
    if RANKING_SCORE in measured.evaluation.metrics:
        text += "; the defects are painted, so nothing shows yet how many real ones it finds"
    return Rule("floor", verdict, measured.ranks, limit, text)


def _floors(config: GateConfig, measured: Measured) -> dict[str, float]:
    """The floors of the study file; for painted defects one for the ranking score stands for those on labelled images."""
    if RANKING_SCORE not in measured.evaluation.metrics or not config.floor:
        return config.floor
    labelled = {f"test/{name}" for name in IMAGE_METRICS}
    kept = {name: floor for name, floor in config.floor.items() if name not in labelled}
    return {f"test/{RANKING_SCORE}": PAINTED_FLOOR} | kept if len(kept) < len(config.floor) else kept


def _judged(name: str, measured: Measured, nested: Mapping[str, float] | None) -> tuple[str, float | None]:
    """How a metric ``test/...`` is named where it is judged, and its value; None where that is not known.

    A nested estimate has whole images alone: pixels are judged as they were measured, on images that took part in the choice.
    """
    plain = name.removeprefix("test/")
    if nested is None or (plain in PIXEL_METRICS or plain == SEG_F1):
        return name, measured.evaluation.metrics.get(plain)
    return f"nested/{plain}", nested.get(f"nested/{plain}")


def _ceiling(config: GateConfig, measured: Measured, nested: Mapping[str, float] | None) -> Rule:
    """Whether the rates are at most the ceilings of the study file."""
    missed = []
    for name, ceiling in config.ceiling.items():
        shown, value = _judged(name, measured, nested)
        if value is None:
            missed.append(_unknown(name, measured, nested))
        elif value > ceiling:
            missed.append(f"{shown} {value:.4f} is above {ceiling:g}")
    ceilings = ", ".join(
        f"{_judged(name, measured, nested)[0]} {ceiling:g}" for name, ceiling in config.ceiling.items()
    )
    name = next(iter(config.ceiling))
    value, limit = _judged(name, measured, nested)[1], config.ceiling[name]
    return Rule("ceiling", "refused" if missed else "passed", value, limit, "; ".join(missed) or f"at most {ceilings}")


def _unknown(name: str, measured: Measured, nested: Mapping[str, float] | None) -> str:
    """That a metric has no value, and why."""
    plain = name.removeprefix("test/")
    shown = _judged(name, measured, nested)[0]
    if shown != name:
        return f"{shown} is unknown ({'the nested estimate has none' if nested else 'there is no nested estimate'})"
    without = measured.threshold is None and plain in OPERATING_METRICS
    why = NO_THRESHOLD if without else measured.evaluation.undefined.get(plain, "the test images do not define it")
    return f"{name} is unknown ({why})"


def _latency(config: GateConfig, measured: Measured) -> Rule:
    value, limit = measured.latency.latency_ms_p95, config.latency_ms_p95
    text = f"{value:.1f} ms (p95, one image)" + ("" if limit is None else f", at most {limit:g}")
    if measured.timed > 1:
        text += f", the quietest of {measured.timed} measurements"
    if is_disturbed(measured.latency.to_metrics()):
        load = measured.latency.latency_load
        text += f"; other programs were busy meanwhile{'' if load is None else f' ({100 * load:.0f} % of the cores)'}"
    verdict: Verdict = "not applicable" if limit is None else ("passed" if value <= limit else "refused")
    return Rule("latency", verdict, value, limit, text)


def _not_worse(
    config: GateConfig,
    new: Measured,
    old: Measured,
    labels: NDArray[np.integer[Any]],
    painted: PaintedSet | None,
    seed: int,
) -> tuple[Rule, tuple[float, float, float] | None]:
    """Whether AUROC or ranking score is not worse than the champion's; and the difference with its interval, if defined."""
    epsilon, what = config.epsilon, "AUROC" if painted is None else "ranking score"
    try:
        bootstrap: PairedDifference
        if painted is None:
            bootstrap = paired_bootstrap_difference(old.scores, new.scores, labels, seed=seed)
        else:
            bootstrap = paired_ranking_difference(old.scores, new.scores, painted, seed=seed)
    except UndefinedMetricError as error:
        return Rule("not worse", "refused", None, -epsilon, f"cannot be compared with the champion: {error}"), None
    value, (low, high) = bootstrap.difference, bootstrap.interval
    text = f"{what} {value:+.4f} against the champion (95 % interval {low:+.4f} to {high:+.4f})"
    worse = value < -epsilon or bootstrap.upper < 0
    if value < -epsilon:
        text += f", more than {epsilon:g} below it"
    elif bootstrap.upper < 0:
        text += f", below it by more than chance would explain (one-sided upper bound {bootstrap.upper:+.4f})"
    return Rule("not worse", "refused" if worse else "passed", value, -epsilon, text), (value, low, high)


def _per_defect(config: GateConfig, new: Measured, old: Measured) -> Rule:
    """Whether no type of defect loses more AUROC, or ranking score, than the study file allows."""
    limit = config.per_defect_drop
    drops = {
        kind: value - new.evaluation.per_defect[kind]
        for kind, value in old.evaluation.per_defect.items()
        if kind in new.evaluation.per_defect
    }
    if not drops:
        text = "there are no types of defects to compare"
        return Rule("no defect type collapses", "not applicable", None, limit, text)
    worst = max(drops, key=lambda kind: drops[kind])
    what = "ranking score" if RANKING_SCORE in new.evaluation.metrics else "AUROC"
    text = f"largest loss: {worst}, {drops[worst]:+.4f} of {what}, at most {limit:g}"
    verdict: Verdict = "refused" if drops[worst] > limit else "passed"
    return Rule("no defect type collapses", verdict, drops[worst], limit, text)


def _recall(config: GateConfig, new: Measured, old: Measured, labels: NDArray[np.integer[Any]]) -> Rule:
    """Whether the challenger finds as many defects as the champion, each at its own threshold."""
    name, limit = "recall at the threshold", config.recall_drop
    of = int(np.count_nonzero(labels))
    if why := _not_comparable(new, old, of, "defects", limit, "recall_drop"):
        return Rule(name, "not applicable", None, limit, why)
    assert new.alarms is not None
    assert old.alarms is not None
    assert limit is not None
    defective = labels != 0
    found, found_before = new.alarms[defective], old.alarms[defective]
    lost, gained = int((found_before & ~found).sum()), int((found & ~found_before).sum())
    alarms, alarms_before = int(new.alarms[~defective].sum()), int(old.alarms[~defective].sum())
    text = f"finds {int(found.sum())} of {of} defects where the champion finds {int(found_before.sum())}"
    excess = _excess(lost, gained, of, limit, "gate.recall_drop", "fewer")
    if not excess:
        return Rule(name, "passed", (gained - lost) / of, -limit, text)
    text += excess
    if alarms < alarms_before:
        text += f"; it stops {alarms} of {int((~defective).sum())} good images where the champion stops {alarms_before}"
    possible = _found_with(new.scores, labels, alarms_before)
    if possible >= int(found_before.sum()):
        text += f"; it would find {possible} with no more false alarms than the champion: its threshold is too high"
    return Rule(name, "refused", (gained - lost) / of, -limit, text)


def _false_alarms(config: GateConfig, new: Measured, old: Measured, labels: NDArray[np.integer[Any]]) -> Rule:
    """Whether the challenger stops no more good images than the champion, each at its own threshold."""
    name, limit = "false alarms at the threshold", config.false_alarm_rise
    of = int(np.count_nonzero(labels == 0))
    if why := _not_comparable(new, old, of, "good images", limit, "false_alarm_rise"):
        return Rule(name, "not applicable", None, limit, why)
    assert new.alarms is not None
    assert old.alarms is not None
    assert limit is not None
    good = labels == 0
    stopped, stopped_before = new.alarms[good], old.alarms[good]
    added, spared = int((stopped & ~stopped_before).sum()), int((stopped_before & ~stopped).sum())
    found, found_before = int(new.alarms[~good].sum()), int(old.alarms[~good].sum())
    text = f"stops {int(stopped.sum())} of {of} good images where the champion stops {int(stopped_before.sum())}"
    excess = _excess(added, spared, of, limit, "gate.false_alarm_rise", "more")
    if not excess:
        return Rule(name, "passed", (added - spared) / of, limit, text)
    text += excess
    if found > found_before:
        text += f"; it finds {found} of {int((~good).sum())} defects where the champion finds {found_before}"
    return Rule(name, "refused", (added - spared) / of, limit, text)


def _not_comparable(new: Measured, old: Measured, of: int, what: str, limit: float | None, key: str) -> str:
    """Why the two cannot or need not be compared at their thresholds; empty where they are."""
    if limit is None:
        return f"gate.{key} is null: it is not compared with the champion's"
    if new.alarms is None:
        return "it has no threshold"
    if old.alarms is None:
        return "the champion has no threshold to be compared at"
    return "" if of else f"there are no {what} among the test images"


def _excess(losses: int, gains: int, of: int, limit: float, key: str, word: str) -> str:
    """What is wrong with so many losses against so many gains, in words; empty where nothing is."""
    change, p = (losses - gains) / of, sign_test_p(losses, gains)
    if change > limit:
        chance = "" if p <= CHANCE else f"; chance may explain it, p = {p:.2f}"
        return f" ({100 * change:.0f} % {word}, {key} allows {100 * limit:g} %{chance})"
    if change > 0 and p <= CHANCE:
        return f" ({100 * change:.1f} % {word}, more than chance explains, p = {p:.3f})"
    return ""


def _found_with(scores: NDArray[np.float64], labels: NDArray[np.integer[Any]], alarms: int) -> int:
    """Most defects that any threshold finds with at most so many false alarms on these images."""
    good = np.sort(scores[labels == 0])[::-1]
    if alarms >= len(good):
        return int(np.count_nonzero(labels))
    return int(np.count_nonzero(scores[labels != 0] > good[alarms]))
