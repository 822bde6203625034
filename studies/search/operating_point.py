"""What a trial's detector catches and stops on the test images at its threshold, read from its stored figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from detectors.data.samples import GOOD
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL, operating_metrics
from detectors.scoring.operating_point import Counts, Threshold
from studies.search.view import StudyView, TrialView

MISSES = "miss_rate"
"""What results of versions before 0.3 have in the place of the recall."""


@dataclass(frozen=True)
class OperatingPoint:
    """The detector of one product at its threshold, on the product's test images."""

    product: str
    """Empty in a study of a single product."""
    counts: Counts | None
    """None where no test image was judged at a threshold."""
    threshold: Threshold | None
    """None where the detector has none."""


def points_on_test(view: StudyView, trial: TrialView) -> list[OperatingPoint]:
    """The operating points of a trial on test, one for each product; empty where it was not refitted. Of a study that keeps no
    images for test they have a threshold and no counts.

    Raises:
        InputError: a stored threshold is not what this version or an earlier one writes.
    """
    final = trial.final
    if final is None:
        return []
    thresholds = thresholds_by_product(final.threshold)
    points = []
    for key, images in view.header.counts.items():
        product, _, name = key.rpartition("/")
        if name == "test" or (not view.keeps_test and name == "validation"):
            before = f"product/{product}/test/" if product else "test/"
            points.append(OperatingPoint(product, counts_from(final.metrics, images, before), thresholds.get(product)))
    return points


def thresholds_by_product(stored: Mapping[str, Any] | None) -> dict[str, Threshold]:
    """{product: its threshold} of a result, under an empty product where there is a single one; empty without a threshold.

    Raises:
        InputError: an entry is not what this version or an earlier one writes.
    """
    if stored is None or not {"value", "products"} & set(stored):
        return {}
    if "products" in stored:
        return {product: Threshold.from_json(each) for product, each in stored["products"].items()}
    return {"": Threshold.from_json(stored)}


def metrics_on_test(view: StudyView, trial: TrialView) -> dict[str, float]:
    """`TrialView.test_metrics`, under protocol paper those of the trial itself; results of versions before 0.3 get what follows
    from their counts: recall, and the intervals of both rates."""
    metrics = trial.test_metrics or {name: value for name, value in trial.metrics.items() if name.startswith("test/")}
    if f"test/{RECALL}" in metrics or f"test/{MISSES}" not in metrics:
        return metrics
    older = {f"test/{RECALL}": 1.0 - metrics[f"test/{MISSES}"]}
    images = view.header.counts.get("test")
    if images is not None and (counts := counts_from(metrics, images)) is not None:
        older |= {f"test/{name}": value for name, value in operating_metrics(counts)[0].items()}
    return older | metrics


def counts_from(metrics: Mapping[str, float], images: Mapping[str, int], before: str = "test/") -> Counts | None:
    """The counts behind recall and false-alarm rate; None where they were not measured.

    Args:
        metrics: by name, as `TrialResult.metrics`.
        images: {type of defect, or `GOOD`: number of images} of the set.
        before: what the names of the set's metrics begin with.
    """
    good = images.get(GOOD, 0)
    defective = sum(images.values()) - good
    recall, alarms = _recall(metrics, before), metrics.get(f"{before}{FALSE_ALARMS}")
    if (defective and recall is None) or (good and alarms is None) or not good + defective:
        return None
    each = {kind: (metrics.get(f"{before}{RECALL}/{kind}"), of) for kind, of in images.items() if kind != GOOD}
    return Counts(
        caught=round((recall or 0.0) * defective),
        defective=defective,
        alarms=round((alarms or 0.0) * good),
        good=good,
        per_defect={kind: (round(share * of), of) for kind, (share, of) in each.items() if share is not None},
    )


def _recall(metrics: Mapping[str, float], before: str) -> float | None:
    recall, misses = metrics.get(f"{before}{RECALL}"), metrics.get(f"{before}{MISSES}")
    return 1.0 - misses if recall is None and misses is not None else recall


def pooled(points: Iterable[OperatingPoint]) -> Counts | None:
    """The counts of all products together, types of defects as ``product/type``; None where any has none."""
    known = [(point.product, point.counts) for point in points]
    if not known or any(counts is None for _, counts in known):
        return None
    each = [(product, counts) for product, counts in known if counts is not None]
    return Counts(
        caught=sum(counts.caught for _, counts in each),
        defective=sum(counts.defective for _, counts in each),
        alarms=sum(counts.alarms for _, counts in each),
        good=sum(counts.good for _, counts in each),
        per_defect={
            f"{product}/{kind}" if product else kind: pair
            for product, counts in each
            for kind, pair in counts.per_defect.items()
        },
    )
