"""The section that a report of several studies begins with: which one is best, how certain that is, and what others published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from detectors.errors import InputError
from studies.report import phrases
from studies.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Figure,
    Key,
    Labels,
    Mark,
    Table,
    scale,
    shortened,
)
from studies.search.view import StudyView
from studies.show import comparison, comparison_table, differences
from studies.show.comparison import Comparison
from studies.show.rows import Row, study_rows

COLOURS = 7
"""Number of CSS classes ``c0`` to ``c6`` that colour the detectors; with more detectors they repeat."""


@dataclass(frozen=True)
class ComparisonSection:
    """The section as plain data for the template."""

    summary: tuple[str, ...]
    """Sentences, the most important one first."""
    cautions: tuple[str, ...]
    table: Table
    """One row for each trial that is compared."""
    figures: tuple[Figure, ...]
    published: Table | None
    """Figures of others for the same detectors; None if none are known."""
    explanations: tuple[str, ...]
    """What the words of the tables mean."""


def comparison_section(views: Sequence[StudyView], ids: Sequence[str]) -> ComparisonSection:
    """Compare studies; one that has no trial to compare is named among the cautions.

    Args:
        ids: ids of the studies' elements in the page, in the order of `views`.
    """
    comparable: list[StudyView] = []
    cautions: list[str] = []
    for view in views:
        try:
            study_rows(view)
            comparable.append(view)
        except InputError as error:
            cautions.append(f"{str(error)[0].upper()}{str(error)[1:]}.")
    compared = comparison.compare(comparable)
    id_of_study = dict(zip((view.study.study_name for view in views), ids, strict=True))
    columns = comparison_table.row_columns(compared)
    figures = [figure for make in (_intervals, _against_speed) if (figure := make(compared, id_of_study)) is not None]
    sentences = [
        text
        for group, tested in zip(differences.same_images(compared.rows), compared.same_images, strict=True)
        for text in (*_ahead(group, all_rows=len(group) == len(compared.rows)), *differences.sentences(tested))
    ]
    return ComparisonSection(
        summary=tuple(sentences),
        cautions=(*cautions, *(f"{line[0].upper()}{line[1:]}." for line in compared.remarks)),
        table=Table(
            tuple(name for name, _ in columns),
            tuple(tuple(value(row) for _, value in columns) for row in compared.rows),
            tuple(id_of_study[row.study] for row in compared.rows),
        ),
        figures=tuple(figures),
        published=Table(
            tuple(name for name, _ in comparison_table.PUBLISHED_COLUMNS),
            tuple(
                tuple(value(entry) for _, value in comparison_table.PUBLISHED_COLUMNS) for entry in compared.published
            ),
        )
        if compared.published
        else None,
        explanations=tuple(comparison_table.explanations(compared)) if compared.rows else (),
    )


def _ahead(scored: Sequence[Row], *, all_rows: bool) -> list[str]:
    """Sentences on which study has the best figure, which one validation would choose, and which one is fastest.

    Args:
        scored: trials that were scored on the same images, best first.
        all_rows: whether these are all trials of the report; if not, the sentences name the studies.
    """
    best = scored[0]
    among = "" if all_rows else f" among {phrases.listed(list(dict.fromkeys(row.study for row in scored)))}"
    ends = (
        f" (95 % interval {best.image_auroc_low:.3f} to {best.image_auroc_high:.3f})"
        if best.image_auroc_low is not None and best.image_auroc_high is not None
        else ""
    )
    sentences = [f"{best.label} has the highest image AUROC on test{among}, {best.image_auroc:.3f}{ends}."]
    judged = [row for row in scored if row.val_image_auroc is not None]
    if len(judged) == len(scored):
        chosen = max(judged, key=lambda row: row.val_image_auroc or 0.0)
        sentences.append(
            f"On validation, which is for choosing, {chosen.label} is best as well ({chosen.val_image_auroc:.3f})."
            if chosen is best
            else f"On validation, which is for choosing, {chosen.label} is best ({chosen.val_image_auroc:.3f}). "
            "Choosing by the figures on test would make the chosen one a little too good."
        )
    timed = [row for row in scored if row.fps]
    if len(timed) > 1:
        fastest = max(timed, key=lambda row: row.fps or 0.0)
        sentences.append(f"{fastest.label} is the fastest with {phrases.speed(fastest.fps or 0.0)}.")
    return sentences


def _intervals(compared: Comparison, ids: dict[str, str]) -> Figure | None:
    """Image AUROC of each trial with its confidence interval, one trial below the other; None if no trial has one."""
    rows = [row for row in compared.rows if row.image_auroc is not None]
    if not rows:
        return None
    left = min(230.0, 24 + LETTER * max(len(row.label) for row in rows))
    ends = [value for row in rows for value in (row.image_auroc, row.image_auroc_low, row.image_auroc_high)]
    across = scale([value for value in ends if value is not None], (left, WIDTH - RIGHT), within=(0.0, 1.0))
    names = list(dict.fromkeys(row.detector for row in rows))
    marks: list[Mark] = []
    for index, row in enumerate(rows):
        y, value = TOP + 16 + 30 * index, row.image_auroc or 0.0
        css = f"c{names.index(row.detector) % COLOURS}"
        title = f"{row.label}: {value:.3f}"
        if row.image_auroc_low is not None and row.image_auroc_high is not None:
            low, high = across(row.image_auroc_low), across(row.image_auroc_high)
            title += f", 95 % interval {row.image_auroc_low:.3f} to {row.image_auroc_high:.3f}"
            marks.append(Mark("line", f"interval {css}", ((low, y), (high, y)), title=title))
            marks += [Mark("line", f"interval {css}", ((x, y - 5), (x, y + 5))) for x in (low, high)]
        text = shortened(row.label, 30)
        marks += [
            Mark(
                "label", "tick", ((left - 10, y + 4),), text=text, title=row.label, anchor="end", target=ids[row.study]
            ),
            Mark("dot", css, ((across(value), y),), title=title, target=ids[row.study]),
        ]
    return Figure(
        "How certain each figure is",
        "Where intervals overlap widely, these test images alone do not settle which is better.",
        Chart(
            "image AUROC on test with its 95 % interval",
            tuple(marks),
            Axis("image AUROC on test", across.ticks(5)),
            legend=_legend(names),
            height=TOP + 16 + 30 * len(rows) + BOTTOM,
            left=left,
        ),
        Table(
            ("study", "image AUROC", "from", "to"),
            tuple((row.label, row.image_auroc, row.image_auroc_low, row.image_auroc_high) for row in rows),
            tuple(ids[row.study] for row in rows),
        ),
    )


def _against_speed(compared: Comparison, ids: dict[str, str]) -> Figure | None:
    """Image AUROC against speed; None if no trial has both."""
    rows = [row for row in compared.rows if row.image_auroc is not None and row.fps]
    if not rows:
        return None
    speeds = [row.fps or 0.0 for row in rows]
    pixels_x, pixels_y = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)
    across = scale(speeds, pixels_x, log=max(speeds) > 5 * min(speeds), margin=0.25)
    up = scale([row.image_auroc or 0.0 for row in rows], pixels_y, margin=0.15)
    names = list(dict.fromkeys(row.detector for row in rows))
    labels = Labels(*pixels_x, TOP - 10, pixels_y[0])
    marks: list[Mark] = []
    points = [(across(row.fps or 0.0), up(row.image_auroc or 0.0)) for row in rows]
    for row, point in zip(rows, points, strict=True):
        title = f"{row.label}: image AUROC {row.image_auroc:.3f}, {phrases.speed(row.fps or 0.0)}"
        css = f"c{names.index(row.detector) % COLOURS}"
        marks.append(Mark("dot", css, (point,), title=title, target=ids[row.study]))
        labels.avoid(point)
    for row, point in zip(rows, points, strict=True):
        marks += labels.place(point, shortened(row.label, 24), target=ids[row.study])
    return Figure(
        "Image AUROC against speed",
        _speed_caption(rows),
        Chart(
            "image AUROC on test against images per second",
            tuple(marks),
            Axis("images per second", across.ticks(7)),
            Axis("image AUROC on test", up.ticks()),
            legend=_legend(names),
        ),
        Table(
            ("study", "image AUROC", "images per second"),
            tuple((row.label, row.image_auroc, row.fps) for row in rows),
            tuple(ids[row.study] for row in rows),
        ),
    )


def _speed_caption(rows: Sequence[Row]) -> str:
    """Whether the most accurate trial is the fastest as well."""
    ranked = sorted(rows, key=lambda row: -(row.image_auroc or 0.0))
    if len(ranked) > 1 and all((first.fps or 0.0) >= (second.fps or 0.0) for first, second in pairwise(ranked)):
        return f"{ranked[0].label} is the best in both."
    return "Up is more accurate, right is faster."


def _legend(detectors: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key("dot", f"c{index % COLOURS}", phrases.detector(name)) for index, name in enumerate(detectors))
