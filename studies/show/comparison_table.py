"""The tables of a comparison and the sentences that explain them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from studies.file.encoding import encode
from studies.search import threshold_words
from studies.show import tables
from studies.show.comparison import Comparison, PublishedRow
from studies.show.published import MEAN
from studies.show.rows import Row

DISAGREEMENT = 0.1
"""Smallest difference between two published image AUROCs of the same setting that is reported as a disagreement."""


Columns = tuple[tuple[str, Callable[[Any], Any]], ...]
"""(head, value of a row) of each column."""


def _interval(row: Row) -> str | None:
    if row.image_auroc_low is None or row.image_auroc_high is None:
        return None
    return f"{row.image_auroc_low:.3f} to {row.image_auroc_high:.3f}"


def _nested(row: Row) -> str | None:
    """``0.912 (0.840 to 0.970)``: a nested estimate of the image AUROC with its 95 % interval."""
    value, low, high = row.nested_image_auroc, row.nested_image_auroc_low, row.nested_image_auroc_high
    if value is None:
        return None
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if low is not None and high is not None else f"{value:.3f}"


def _seeds(row: Row) -> str | None:
    if row.image_auroc_seeds_mean is None or row.image_auroc_seeds_std is None:
        return None
    return f"{row.image_auroc_seeds_mean:.3f} ± {row.image_auroc_seeds_std:.3f} ({row.seeds})"


def _rate(row: Row, name: str) -> str | None:
    """``72 % (60 to 82)``: a share of images with its 95 % interval, where that is known."""
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return None
    interval = f" ({100 * low:.0f} to {100 * high:.0f})" if low is not None and high is not None else ""
    return f"{threshold_words.percent(value)}{interval}"


def row_columns(comparison: Comparison) -> Columns:
    """Columns of the table of studies. Those that few comparisons need are left out if no row has a value for them."""
    columns: list[tuple[str, Callable[[Row], Any]]] = [
        ("study", lambda row: row.study),
        ("trial", lambda row: row.trial),
        ("detector", lambda row: row.detector),
        ("setting", lambda row: row.setting),
    ]
    if len({tuple(row.image_size) for row in comparison.rows}) > 1:
        columns.append(("pixels", lambda row: "x".join(map(str, row.image_size))))
    painted = any(row.ranking_score is not None or row.val_ranking_score is not None for row in comparison.rows)
    if painted:
        columns += [
            ("ranking score", lambda row: row.ranking_score),
            ("ranking score on validation", lambda row: row.val_ranking_score),
        ]
    if not painted or any(row.image_auroc is not None for row in comparison.rows):
        columns += [("image AUROC", lambda row: row.image_auroc), ("95 % interval", _interval)]
    if any(row.nested_image_auroc is not None for row in comparison.rows):
        columns.append(("nested estimate", _nested))
    if any(row.image_auroc_seeds_mean is not None for row in comparison.rows):
        columns.append(("over seeds", _seeds))
    if any(row.val_image_auroc is not None for row in comparison.rows):
        columns.append(("on validation", lambda row: row.val_image_auroc))
    if any(row.image_recall is not None or row.false_alarm_rate is not None for row in comparison.rows):
        columns += [("recall", lambda row: _rate(row, RECALL)), ("false alarms", lambda row: _rate(row, FALSE_ALARMS))]
    columns += [
        ("pixel AUROC", lambda row: row.pixel_auroc),
        ("AUPRO", lambda row: row.pixel_aupro),
    ]
    if any(row.pixel_aupro_05 is not None for row in comparison.rows):
        columns.append(("AUPRO to 5 %", lambda row: row.pixel_aupro_05))
    if any(row.seg_f1 is not None for row in comparison.rows):
        columns.append(("pixel F1", lambda row: row.seg_f1))
    columns += [
        ("train s", lambda row: row.train_seconds),
        ("FPS", lambda row: row.fps),
        ("throughput", lambda row: row.throughput),
        ("model MB", lambda row: row.model_size_mb),
    ]
    if any(entry.comparable and entry.image_auroc is not None for entry in comparison.published):
        columns.append(("published image AUROC", lambda row: _comparable_figures(comparison, row)))
    return tuple(columns)


def _comparable_figures(comparison: Comparison, row: Row) -> str | None:
    figures = [
        f"{entry.image_auroc:.3f} {entry.source}"
        for entry in comparison.published
        if row.label in entry.comparable and entry.image_auroc is not None and entry.detector == row.detector
    ]
    return ", ".join(figures) or None


PUBLISHED_COLUMNS: Columns = (
    ("detector", lambda entry: entry.detector),
    ("published by", lambda entry: entry.source),
    ("backbone and layers", lambda entry: _published_setting(entry)),
    ("setting", lambda entry: entry.setting),
    ("category", lambda entry: entry.category),
    ("image AUROC", lambda entry: entry.image_auroc),
    ("pixel AUROC", lambda entry: entry.pixel_auroc),
    ("AUPRO", lambda entry: entry.pixel_aupro),
    ("their means", lambda entry: _means(entry)),
    ("differs in", lambda entry: differs_in_short(entry)),
)


def _published_setting(entry: PublishedRow) -> str:
    parts = [entry.params.get("backbone"), entry.params.get("layers")]
    return " ".join(str(encode(part)) for part in parts if part is not None) or "not stated"


def _means(entry: PublishedRow) -> str | None:
    """Image AUROC, pixel AUROC and AUPRO as means over all categories."""
    if entry.mean is None:
        return None
    means = (entry.mean.image_auroc, entry.mean.pixel_auroc, entry.mean.pixel_aupro)
    return " ".join(tables.shown(value) for value in means)


def differs_in_short(entry: PublishedRow) -> str:
    """The names of what differs from a published setting, or ``nothing``.

    What differs for all rows comes first, then what differs for single ones, after their labels.
    """
    names = {label: [one.what for one in differences] for label, differences in entry.differs.items()}
    in_all = [name for name in next(iter(names.values()), []) if all(name in others for others in names.values())]
    parts = [", ".join(in_all)] if in_all else []
    for label, differing in names.items():
        more = [name for name in differing if name not in in_all]
        if more or not differing:
            parts.append(f"{label}: {', '.join(more) or 'nothing'}")
    return "; ".join(parts) if any(names.values()) else "nothing"


def explanations(comparison: Comparison) -> list[str]:
    """Sentences on what the words of the tables mean, and on what cannot be compared."""
    lines = [
        "AUROC and AUPRO are on test. train s: seconds of the fit on stored features, as from scratch. FPS: images per second "
        "at batch 1, throughput: at batch 32."
    ]
    if any(row.image_recall is not None for row in comparison.rows):
        lines.append(
            "recall: share of the defective test images that raise an alarm at the threshold; false alarms: that of the good "
            "ones; in brackets their 95 % intervals. Each study is judged at its own threshold."
        )
    if any(row.seg_f1 is not None for row in comparison.rows):
        lines.append(
            "AUPRO to 5 %: up to a false-positive rate of 0.05 in the place of 0.3. Pixel F1: at the threshold for pixels, which "
            "good images gave."
        )
    if any(row.image_auroc_seeds_mean is not None for row in comparison.rows):
        lines.append(
            "over seeds: mean and standard deviation of the image AUROC on test, in brackets the number of fits."
        )
    lines += dict.fromkeys(_test_set(row) for row in comparison.rows)
    known = {(entry.detector, f"{entry.dataset}/{entry.category}") for entry in comparison.published}
    unknown = [row for row in comparison.rows if (row.detector, row.experiment) not in known]
    if unknown:
        names = dict.fromkeys(f"{row.detector} on {row.experiment}" for row in unknown)
        lines.append(f"No published figures are known of {', '.join(names)}.")
    if comparison.published:
        lines.append(
            "Published figures are of the whole test set; their means (image AUROC, pixel AUROC, AUPRO) are over all categories. "
            "They can be compared only where nothing differs. Even then the weights of a backbone, the size and the crop of the "
            "input may differ; see the column setting."
        )
        sources = dict.fromkeys(f"{entry.source} ({entry.reference})" for entry in comparison.published)
        lines.append(f"Sources: {', '.join(sources)}.")
    lines += _disagreements(comparison.published)
    lines += filter(None, (_obstacles(comparison, row) for row in comparison.rows))
    return lines


def _disagreements(published: Sequence[PublishedRow]) -> Iterator[str]:
    """Sentences on settings for which sources published quite different figures: a single figure is then worth less."""
    settings: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for entry in published:
        mean = entry.mean.image_auroc if entry.mean else None
        for category, value in ((entry.category, entry.image_auroc), (MEAN, mean)):
            if value is not None:
                setting = json.dumps(entry.params, sort_keys=True)
                settings.setdefault((entry.detector, category, setting), []).append((value, entry.source))
    for (detector, category, _), figures in settings.items():
        (low, lowest), (high, highest) = min(figures), max(figures)
        if high - low >= DISAGREEMENT:
            where = "as the mean of all categories" if category == MEAN else f"on {category}"
            yield (
                f"Published figures of {detector} {where} disagree: image AUROC {low:.3f} ({lowest}) to {high:.3f} ({highest}) "
                "for the same setting."
            )


def _test_set(row: Row) -> str:
    """Which images the study was tested on."""
    if row.protocol == "holdout":
        return (
            f"{row.study}: test is the half of the labelled images, {row.test_images_text}, that the search never saw."
        )
    if row.protocol == "synthetic":
        return f"{row.study}: test is images that the search never saw, {row.test_images_text}, half with synthetic defects."
    return f"{row.study}: test is the whole test set, {row.test_images_text} images, as in the papers."


def _obstacles(comparison: Comparison, row: Row) -> str:
    """Why no published figure can be compared with a row; empty if one can, or there are none."""
    entries = [entry for entry in comparison.published if row.label in entry.differs]
    if not entries or any(row.label in entry.comparable for entry in entries):
        return ""
    by_name = [{one.what: one for one in entry.differs[row.label]} for entry in entries]
    in_all = [what for what in by_name[0] if all(what in differences for differences in by_name)]
    if not in_all:
        return f"{row.label}: every published figure differs from this setting in something, see the table."
    reasons = []
    for what in in_all:
        theirs = dict.fromkeys(differences[what].theirs for differences in by_name)
        reasons.append(f"{what} ({' or '.join(theirs)}; here {by_name[0][what].here})")
    return f"{row.label}: no published figure can be compared, because all differ in {', '.join(reasons)}."
