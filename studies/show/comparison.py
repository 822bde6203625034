"""Studies side by side: the figures of their selected trials, and what others published of the same detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from studies.search.view import StudyView
from studies.show.differences import Group, tested_groups
from studies.show.published import MEAN, Catalogue, Difference, Figures, Published, catalogue, differing_params
from studies.show.rows import Row, count_images, study_rows


class PublishedRow(BaseModel):
    """What others published of a detector on a category, and what keeps each row from being compared with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: str
    dataset: str
    category: str
    source: str
    reference: str
    """arXiv number or web address."""
    setting: str
    params: dict[str, Any]
    image_auroc: float | None
    """On the whole test set, as the next two; None if only the mean was published."""
    pixel_auroc: float | None
    pixel_aupro: float | None
    mean: Figures | None
    """Mean over all categories of the data set."""
    differs: dict[str, list[Difference]]
    """{label of a row with this detector: what keeps it from being compared}; an empty list means it is comparable."""

    @property
    def comparable(self) -> list[str]:
        """Labels of the rows with the same setting and the same images."""
        return [label for label, differences in self.differs.items() if not differences]


class Comparison(BaseModel):
    """Studies side by side. `model_dump` by alias is what ``study compare --json`` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: str
    """When the comparison was made: UTC, ISO 8601."""
    rows: list[Row]
    published: list[PublishedRow]
    remarks: list[str]
    """Sentences on what keeps these figures from being a fair comparison."""
    same_images: list[Group] = []
    """Rows of several studies that were scored on the same test images, and which of them these images tell apart."""


def compare(views: Sequence[StudyView], published: Catalogue | None = None) -> Comparison:
    """Put studies side by side.

    Args:
        published: figures of others; default those that come with this package.

    Raises:
        InputError: a study has no finished trial, or none that meets its constraints.
    """
    published = published or catalogue()
    rows, rows_with_views = [], []
    for view in views:
        for row in study_rows(view):
            rows.append(row)
            rows_with_views.append((row, view))
    return Comparison(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=rows,
        published=list(_published_rows(rows_with_views, published)),
        remarks=list(_remarks(rows)),
        same_images=tested_groups(rows, views),
    )


def _published_rows(rows_with_views: Sequence[tuple[Row, StudyView]], published: Catalogue) -> Iterator[PublishedRow]:
    """What is published of each detector and category among the rows, the comparable figures first."""
    wanted = dict.fromkeys((row.detector, *row.experiment.partition("/")[::2]) for row, _ in rows_with_views)
    for detector, dataset, category in wanted:
        same = [
            (row, view)
            for row, view in rows_with_views
            if (row.detector, row.experiment) == (detector, f"{dataset}/{category}")
        ]
        entries = []
        for entry in published.of(detector, dataset, category):
            source, figures = published.sources[entry.source], entry.figures.get(category)
            entries.append(
                PublishedRow(
                    detector=detector,
                    dataset=dataset,
                    category=category,
                    source=source.name,
                    reference=source.reference,
                    setting=entry.setting,
                    params=entry.params,
                    image_auroc=figures.image_auroc if figures else None,
                    pixel_auroc=figures.pixel_auroc if figures else None,
                    pixel_aupro=figures.pixel_aupro if figures else None,
                    mean=entry.figures.get(MEAN),
                    differs={row.label: _differences(entry, row, view, published) for row, view in same},
                )
            )
        yield from sorted(entries, key=lambda row: not row.comparable)


def _differences(entry: Published, row: Row, view: StudyView, published: Catalogue) -> list[Difference]:
    """What keeps a row from being compared with a published setting."""
    dataset, _, category = row.experiment.partition("/")
    differences = differing_params(entry, row.params | {"image_size": row.image_size})
    if category not in entry.figures:
        differences.append(Difference(what="category", theirs="the mean alone was published", here=category))
    official = published.datasets.get(dataset, {}).get(category)
    train, test = sum(count_images(view, "train").values()), row.test_images
    labelled = test + sum(count_images(view, "validation").values())
    if row.protocol == "synthetic":
        differences.append(
            Difference(what="images", theirs="the whole test set", here=f"{test} with synthetic defects")
        )
    elif official is not None and (official.train, official.test) != (train, labelled):
        theirs = f"the official {official.train} to train and {official.test} to test"
        differences.append(Difference(what="images", theirs=theirs, here=f"{train} and {labelled}"))
    elif row.protocol != "paper":
        differences.append(
            Difference(what="split", theirs=f"the whole test set of {labelled}", here=f"{test} of these")
        )
    if entry.selection:
        differences.append(Difference(what="selection", theirs=entry.selection, here="the test set chose nothing"))
    return differences


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    """What keeps the rows from being compared with one another, in sentences."""
    if len({(row.experiment, row.test_digest) for row in rows}) > 1:
        sets = dict.fromkeys(f"{row.study}: {row.test_images_text} of {row.experiment}" for row in rows)
        yield f"these studies were measured on different test images ({'; '.join(sets)}): their figures cannot be compared"
    for row in rows:
        if not row.scored:
            yield (
                f"{row.study}: the selected trial {row.trial} was not scored on test yet; "
                f"`study run {row.study}` refits and scores it"
            )
    if len({row.device for row in rows if row.fps is not None}) > 1:
        devices = dict.fromkeys(f"{row.study}: {row.device}" for row in rows if row.fps is not None)
        yield f"speed was measured in different places ({'; '.join(devices)}): fps and throughput cannot be compared"
    if any(row.experiment.startswith("rendered/") for row in rows):
        yield "the images of rendered/ were drawn by a program: this is a demonstration, not a result"
