"""The part of a report that shows the selected detector on test: its figures, where it fails, and example images."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detectors.data.samples import GOOD
from detectors.scoring.evaluation import FALSE_ALARMS, IMAGE_METRICS, PIXEL_METRICS, RECALL, SEG_F1, operating_metrics
from detectors.scoring.metrics import (
    UndefinedMetricError,
    auroc,
    average_precision,
    pr_curve_points,
    roc_curve_points,
)
from detectors.scoring.operating_point import Counts, Threshold
from detectors.scoring.ranked_by import RANKING_SCORE, ranks_by
from studies.report import phrases
from studies.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Anchor,
    Axis,
    Chart,
    Figure,
    Key,
    Mark,
    Scale,
    Table,
    number,
)
from studies.search import threshold_words
from studies.search.operating_point import counts_from, thresholds_by_product
from studies.search.view import StudyView, TrialView
from studies.worker.jobs import ARTIFACTS, PRODUCTS, TrialResult, read_result
from studies.worker.scores import Group, ScoredImage, Scores, Shown, read_scores

POINTS = 200
"""Most points of a curve that are drawn."""
RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
"""False-alarm rates in the table below the ROC curve."""
RECALLS = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Recalls in the table below the precision-recall curve."""
MEASURES = (*IMAGE_METRICS, RECALL, FALSE_ALARMS, *PIXEL_METRICS, SEG_F1)
"""Figures in the table, in its order."""
PLOT_X, PLOT_Y = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)


@dataclass(frozen=True)
class Confusion:
    """Test images by label and verdict at the threshold."""

    detected: int
    """Defective images that raise an alarm."""
    missed: int
    """Defective images that raise none."""
    false_alarms: int
    """Good images that raise an alarm."""
    passed: int
    """Good images that raise none."""

    @property
    def defective(self) -> int:
        """Number of images with a defect."""
        return self.detected + self.missed

    @property
    def good(self) -> int:
        """Number of images without a defect."""
        return self.false_alarms + self.passed


@dataclass(frozen=True)
class DefectType:
    """How well one type of defect is distinguished from good images."""

    name: str
    images: int
    """Number of test images with this type of defect."""
    detected: int | None
    """How many of them raise an alarm; None if the score of each image was not kept, or there is no threshold."""
    auroc: float | None
    """Image AUROC of this type against all good images."""


@dataclass(frozen=True)
class GalleryImage:
    """One test image of the gallery, beside its heat map and overlay."""

    name: str
    tag: str
    """``miss``, ``false alarm``, ``hit``, ``good`` or ``defective``; the text of its tag and, with hyphens, its CSS class."""
    caption: str
    alt: str
    panels: str
    """What is shown side by side, as ``image | heat map``."""
    source: str
    """``data:`` address of the JPEG; empty if its file is gone."""


@dataclass(frozen=True)
class GalleryGroup:
    """Images of the gallery under one heading."""

    title: str
    images: tuple[GalleryImage, ...]


@dataclass(frozen=True)
class ProductOnTest:
    """The selected detector on the test images of one product."""

    id: str
    product: str
    """Name of the product; empty in a study of a single product."""
    metrics: dict[str, float]
    """Names as in `TrialResult.metrics`."""
    counts: Counts | None
    """What it catches and stops at its threshold; None without one."""
    threshold: str
    """The value of the threshold and what it rests on, in words; empty if there is none."""
    remarks: tuple[str, ...]
    """What the threshold cannot promise, and the image that decides it."""
    looser: float | None
    """The false-alarm rate (0 to 1) that gives the next lower threshold; None if the threshold follows another rule."""
    confusion: Confusion | None
    measures: Table | None
    """Figures with their intervals; None if none were measured."""
    defects: tuple[DefectType, ...]
    figures: tuple[Figure, ...]
    gallery: tuple[GalleryGroup, ...]
    missing: str
    """What cannot be shown and how to get it; empty if nothing is missing."""

    @property
    def auroc(self) -> float | None:
        """Image AUROC on test, of painted defects the ranking score; None if it was not measured."""
        return self.metrics.get(self.ranks_by)

    @property
    def ranks_by(self) -> str:
        """The metric that `auroc` is."""
        return ranks_by(self.metrics, "test")

    @property
    def painted(self) -> bool:
        """Whether the defects are painted."""
        return self.ranks_by.endswith(RANKING_SCORE)

    @property
    def weakest(self) -> DefectType | None:
        """The type of defect with the lowest AUROC; None if there are fewer than two types."""
        known = [defect for defect in self.defects if defect.auroc is not None]
        return min(known, key=lambda defect: defect.auroc or 0.0) if len(known) > 1 else None


def products_on_test(view: StudyView, trial: TrialView, *, id: str) -> list[ProductOnTest]:
    """The selected trial on the test images of each product; empty if it was not scored on test, or the study keeps none for it.

    Args:
        id: id of the study's element in the page, from which those of the products follow.
    """
    is_paper = view.config.protocol == "paper"
    folder = trial.folder if is_paper else trial.final_folder
    result = read_result(folder)
    if result is None or not view.keeps_test:
        return []
    products = sorted(path.name for path in (folder / PRODUCTS).glob("*") if read_result(path) is not None)
    if not products:
        return [_product_on_test(view, trial, "", result, folder / ARTIFACTS, id=f"{id}-test")]
    return [
        _product_on_test(view, trial, product, part, folder / ARTIFACTS / product, id=f"{id}-test{index}")
        for index, product in enumerate(products)
        if (part := read_result(folder / PRODUCTS / product)) is not None
    ]


def _product_on_test(
    view: StudyView, trial: TrialView, product: str, result: TrialResult, artifacts: Path, *, id: str
) -> ProductOnTest:
    counts = view.header.counts.get(f"{product}/test" if product else "test", {})
    scores = read_scores(artifacts)
    judged, threshold = counts_from(result.metrics, counts), _threshold(result)
    # Versions before 0.3 wrote neither the recall nor the intervals of the two rates.
    operating = operating_metrics(judged)[0] if judged is not None else {}
    counted = {f"test/{name}": value for name, value in operating.items()}
    figures, gallery, missing = [], [], ""
    if scores is None:
        missing = _missing_scores(view, trial)
    else:
        figures = list(_figures(scores))
        gallery = list(_gallery(scores, artifacts))
    return ProductOnTest(
        id=id,
        product=product,
        metrics=result.metrics,
        counts=judged,
        threshold=_threshold_text(threshold) if threshold is not None else "",
        remarks=tuple(threshold_words.remarks(threshold)) if threshold is not None else (),
        looser=_looser(result),
        confusion=_confusion(judged),
        measures=_measures(counted | result.metrics),
        defects=tuple(_defects(result, counts, scores, judged)),
        figures=tuple(figures),
        gallery=tuple(gallery),
        missing=missing,
    )


def _missing_scores(view: StudyView, trial: TrialView) -> str:
    """Says that the score of each image was not kept, and what brings it back."""
    name = view.address
    text = "The score of each test image was not kept, so curves, histogram and images cannot be shown."
    if view.config.protocol == "paper":
        return f"{text} `study run {name} --fresh` fits and scores everything anew."
    return (
        f"{text} To get them, delete the folder {trial.final_folder} and enter `study run {name}` again. It fits the selected "
        "setting again and scores it on test again, and the ledger lists that."
    )


def _threshold(result: TrialResult) -> Threshold | None:
    return thresholds_by_product(result.threshold).get("")


def _threshold_text(threshold: Threshold) -> str:
    """The value of the threshold, what it was chosen for and what it rests on, in words."""
    aimed = f", {threshold_words.aim(threshold)}" if threshold.rule == "false_alarm_rate" else ""
    text = f"{number(threshold.value)}{aimed.rstrip(', ')}: {threshold_words.basis(threshold)}"
    return text if threshold.source in text else f"{text} ({threshold.source})"


def _measures(metrics: Mapping[str, float]) -> Table | None:
    """The figures on test with their intervals; None where there are none."""
    rows = [
        (phrases.metric(name), value, phrases.interval(metrics, f"test/{name}") or None)
        for name in MEASURES
        if (value := metrics.get(f"test/{name}")) is not None
    ]
    return Table(("figure", "on test", "95 % interval"), tuple(rows)) if rows else None


def _looser(result: TrialResult) -> float | None:
    """The lowest false-alarm rate, in whole percents, at which one more of the good images raises an alarm."""
    threshold = _threshold(result)
    if threshold is None:
        return None
    if threshold.rate is None or threshold.alarms is None:
        return None
    return math.ceil(100 * (threshold.alarms + 2) / (threshold.normals + 1) - 1e-9) / 100


def _confusion(counts: Counts | None) -> Confusion | None:
    if counts is None:
        return None
    return Confusion(
        detected=counts.caught,
        missed=counts.defective - counts.caught,
        false_alarms=counts.alarms,
        passed=counts.good - counts.alarms,
    )


def _defects(
    result: TrialResult, counts: dict[str, int], scores: Scores | None, judged: Counts | None
) -> Iterator[DefectType]:
    """Each type of defect, the one with the lowest AUROC first."""
    kinds = [kind for kind in counts if kind != GOOD]
    caught = judged.per_defect if judged is not None else {}
    for kind in sorted(kinds, key=lambda kind: result.per_defect.get(kind, 0.0)):
        detected = caught[kind][0] if kind in caught else None
        if scores is not None and scores.threshold is not None:
            detected = sum(image.verdict == "defective" for image in scores.images if image.defect_type == kind)
        yield DefectType(kind, counts[kind], detected, result.per_defect.get(kind))


def _figures(scores: Scores) -> Iterator[Figure]:
    try:
        yield _roc(scores)
        yield _pr(scores)
    except UndefinedMetricError:
        pass  # All images have the same label, so there is no curve; the histogram can be drawn.
    yield _histogram(scores)


def _roc(scores: Scores) -> Figure:
    values, labels = scores.values, scores.labels
    rates, recalls = roc_curve_points(values, labels, limit=POINTS)
    marks = [
        Mark("line", "chance", _on(((0.0, 0.0), (1.0, 1.0)))),
        Mark("line", "curve", _on(list(zip(rates, recalls, strict=True)))),
    ]
    text = f"The area under it is the AUROC, {auroc(values, labels):.3f}; by chance it would be 0.5."
    keys = [Key("line", "curve", "this detector"), Key("line", "chance", "by chance")]
    if scores.threshold is not None:
        alarms = values >= scores.threshold
        alarm, hit = float(alarms[labels == 0].mean()), float(alarms[labels == 1].mean())
        marks.append(Mark("diamond", "chosen", _on([(alarm, hit)]), title=f"threshold {number(scores.threshold)}"))
        keys.append(Key("diamond", "chosen", "at the threshold"))
        text += (
            f" At the threshold it finds {phrases.percent(hit)} of the defects with {phrases.percent(alarm)} false alarms; "
            "a lower threshold goes to the right along the curve."
        )
    corners = list(zip(*roc_curve_points(values, labels), strict=True))
    best = [max((hit for alarm, hit in corners if alarm <= rate), default=0.0) for rate in RATES]
    return Figure(
        "Defects found against false alarms (ROC)",
        text,
        _unit_chart("ROC curve", marks, "share of good parts that raise an alarm", "share of defects found", keys),
        Table(
            ("false alarms at most", "defects found"),
            tuple((phrases.percent(rate), phrases.percent(hit)) for rate, hit in zip(RATES, best, strict=True)),
        ),
    )


def _pr(scores: Scores) -> Figure:
    values, labels = scores.values, scores.labels
    recall, precision = pr_curve_points(values, labels, limit=POINTS)
    part = float(labels.mean())
    marks = [
        Mark("line", "chance", _on(((0.0, part), (1.0, part)))),
        Mark("line", "curve", _on(list(zip(recall, precision, strict=True)))),
    ]
    keys = [Key("line", "curve", "this detector"), Key("line", "chance", "by chance")]
    if scores.threshold is not None and (alarms := values >= scores.threshold).any():
        at = (float(alarms[labels == 1].mean()), float(labels[alarms].mean()))
        marks.append(Mark("diamond", "chosen", _on([at]), title=f"threshold {number(scores.threshold)}"))
        keys.append(Key("diamond", "chosen", "at the threshold"))
    corners = list(zip(*pr_curve_points(values, labels), strict=True))
    best = [max((right for reached, right in corners if reached >= least - 1e-9), default=0.0) for least in RECALLS]
    return Figure(
        "How many alarms are right (precision and recall)",
        f"Average precision {average_precision(values, labels):.3f}. {phrases.percent(part)} of these test images are defective; "
        "on a line where fewer are, fewer alarms are right than here.",
        _unit_chart("precision-recall curve", marks, "share of defects found", "share of alarms that are right", keys),
        Table(
            ("defects found at least", "alarms that are right"),
            tuple((phrases.percent(least), phrases.percent(right)) for least, right in zip(RECALLS, best, strict=True)),
        ),
    )


def _on(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Convert points of the unit square to pixels of the plot."""
    across, up = Scale(0.0, 1.0, *PLOT_X), Scale(0.0, 1.0, *PLOT_Y)
    return tuple((across(float(x)), up(float(y))) for x, y in points)


def _unit_chart(name: str, marks: Sequence[Mark], x: str, y: str, legend: Sequence[Key]) -> Chart:
    """A chart whose axes go from 0 to 1; `x` and `y` are the names of the axes."""
    across, up = Scale(0.0, 1.0, *PLOT_X), Scale(0.0, 1.0, *PLOT_Y)
    return Chart(name, tuple(marks), Axis(x, across.ticks()), Axis(y, up.ticks()), legend=tuple(legend))


def _histogram(scores: Scores) -> Figure:
    """Good images upwards and defective ones downwards, so that no colour is needed to distinguish them."""
    values, labels = scores.values, scores.labels
    edges = np.histogram_bin_edges(values, bins=min(32, max(8, len(values) // 3)))
    good, bad = (np.histogram(values[labels == label], bins=edges)[0] for label in (0, 1))
    low, high = float(edges[0]), float(edges[-1])
    if scores.threshold is not None:
        low, high = min(low, scores.threshold), max(high, scores.threshold)
    air = 0.02 * (high - low) or 1.0
    across = Scale(low - air, high + air, *PLOT_X)
    most = max(int(good.max()), int(bad.max()), 1)
    up = Scale(-float(most), float(most), PLOT_Y[0], PLOT_Y[1] + 16)
    marks = []
    for counts, way, css, name in ((good, 1, "class-good", "good"), (bad, -1, "class-bad", "defective")):
        for index, count in enumerate(counts):
            if count:
                scored = f"scores {number(edges[index])} to {number(edges[index + 1])}"
                title = f"{phrases.several(int(count), 'image')}, {name}, {scored}"
                x0, x1 = across(float(edges[index])), across(float(edges[index + 1]))
                marks.append(
                    Mark(
                        "bar", css, ((x0 + 0.5, up(0.0)), (max(x1 - 0.5, x0 + 1), up(float(way * count)))), title=title
                    )
                )
    marks.append(Mark("line", "axis", ((PLOT_X[0], up(0.0)), (PLOT_X[1], up(0.0)))))
    keys = [Key("bar", "class-good", "good, upwards"), Key("bar", "class-bad", "defective, downwards")]
    text = "A detector that makes no mistake would leave a gap between the two."
    if scores.threshold is not None:
        x = across(scores.threshold)
        marks.append(Mark("line", "limit", ((x, PLOT_Y[0]), (x, TOP))))
        anchor: Anchor = "end" if x > (PLOT_X[0] + PLOT_X[1]) / 2 else "start"
        shift = -6 if anchor == "end" else 6
        marks.append(
            Mark(
                "label",
                "limit-name",
                ((x + shift, TOP + 8),),
                text=f"threshold {number(scores.threshold)}",
                anchor=anchor,
            )
        )
        keys.append(Key("line", "limit", "threshold: an alarm from here on"))
        text += " Defective parts left of the threshold are missed, good ones right of it are false alarms."
    ticks = {abs(float(tick.text)): tick for tick in up.ticks(6, whole=True)}
    both = tuple(
        type(tick)(up(way * count), number(count))
        for count, tick in ticks.items()
        for way in ((1, -1) if count else (1,))
    )
    chart = Chart(
        "histogram of the scores of good and defective test images",
        tuple(marks),
        Axis("score of the image", across.ticks(7)),
        Axis("images", both),
        legend=tuple(keys),
    )
    return Figure(
        "Scores of good and defective parts",
        text,
        chart,
        Table(
            ("scores from", "to", "good", "defective"),
            tuple(
                (number(float(edges[index])), number(float(edges[index + 1])), int(good[index]), int(bad[index]))
                for index in range(len(good))
            ),
        ),
    )


def _gallery(scores: Scores, artifacts: Path) -> Iterator[GalleryGroup]:
    for group in ("defective", "good", "typical"):
        shown = [entry for entry in scores.gallery if entry.group == group and entry.image < len(scores.images)]
        if shown:
            images = tuple(_gallery_image(entry, scores.images[entry.image], artifacts) for entry in shown)
            yield GalleryGroup(_gallery_title(group, images, scores.threshold), images)


def _gallery_title(group: Group, images: Sequence[GalleryImage], threshold: float | None) -> str:
    if group == "typical":
        return "Typical hits" if threshold is not None else "Typical defective parts"
    if threshold is None:
        return (
            "Defective parts with the lowest scores" if group == "defective" else "Good parts with the highest scores"
        )
    wrong = sum(image.tag in ("miss", "false alarm") for image in images)
    if group == "defective":
        if not wrong:
            return "No defect was missed; these came closest to it"
        return "Worst misses" if wrong == len(images) else "Worst misses, and the hits that came closest to one"
    if not wrong:
        return "No good part raised an alarm; these came closest to it"
    return (
        "Worst false alarms"
        if wrong == len(images)
        else "Worst false alarms, and the good parts that came closest to one"
    )


def _gallery_image(shown: Shown, image: ScoredImage, artifacts: Path) -> GalleryImage:
    tags = {(1, "good"): "miss", (1, "defective"): "hit", (0, "defective"): "false alarm", (0, "good"): "good"}
    tag = tags.get((image.label, image.verdict or ""), "defective" if image.label else "good")
    kind = image.defect_type if image.label else "good part"
    return GalleryImage(
        name=image.name,
        tag=tag,
        caption=f"{kind}, score {number(image.score)}",
        alt=f"{tag}: {image.name} ({kind}), score {number(image.score)}; side by side {phrases.listed(shown.panels)}",
        panels=" | ".join(shown.panels),
        source=_data_address(artifacts / shown.file),
    )


def _data_address(path: Path) -> str:
    """The JPEG at `path` as a ``data:`` address; empty if it cannot be read."""
    try:
        return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return ""
