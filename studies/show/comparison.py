"""Studies side by side: the figures of their selected trials, and what others published of the same detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from detectors.errors import InputError
from studies.file.encoding import encode
from studies.search.view import StudyView, TrialView
from studies.show.published import MEAN, Catalogue, Difference, Figures, Published, catalogue, differing_params


class Row(BaseModel):
    """One trial of a study. A figure that was not measured is None; nothing is rounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    trial: int
    selected: bool
    """Whether the study would deploy this trial; under protocol paper every finished trial has a row."""
    detector: str
    experiment: str
    """``<dataset>/<category>``"""
    protocol: str
    backbone: str
    layers: list[int]
    """Strides of the backbone's layers."""
    weights: str
    """timm's tag of the backbone's weights."""
    image_size: list[int]
    """Height and width in pixels."""
    params: dict[str, Any]
    """The values of all parameters."""
    scored: bool
    """Whether the trial was scored on test: the selected one at the end of a search, every one under protocol paper."""
    image_auroc: float | None
    """On test, as all figures without ``val``: half of the labelled images under protocol holdout, all under protocol paper."""
    image_auroc_low: float | None
    """Lower end of the 95 % bootstrap interval."""
    image_auroc_high: float | None
    """Its upper end."""
    seeds: int | None
    """Number of fits with different seeds behind the next two figures; None after a single fit."""
    image_auroc_seeds_mean: float | None
    image_auroc_seeds_std: float | None
    val_image_auroc: float | None
    """On validation, which chose the trial."""
    pixel_auroc: float | None
    pixel_aupro: float | None
    train_seconds: float | None
    """Seconds of the fit on stored features, without their extraction; stored work of other trials included."""
    fps: float | None
    """Images per second at batch 1."""
    throughput: float | None
    """Images per second at batch 32."""
    model_size_mb: float | None
    """Size of the stored detector's tensors in units of 10^6 bytes."""
    device: str
    """Where the speed was measured: device, its name, CPU threads."""
    test_images: int = Field(
        serialization_alias="test_pictures", validation_alias=AliasChoices("test_images", "test_pictures")
    )
    """Number of test images."""
    test_digest: str
    """sha256 of the test images. Rows with different digests cannot be compared."""
    test_scorings: int
    """How many times this study was scored on test so far."""

    @property
    def label(self) -> str:
        """A short name of the row: the study, and the trial under protocol paper."""
        return self.study if self.protocol != "paper" else f"{self.study} trial {self.trial}"

    @property
    def setting(self) -> str:
        """Backbone and strides: ``resnet18 8+16``."""
        return f"{self.backbone} {encode(self.layers)}"


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
    )


def study_rows(view: StudyView) -> list[Row]:
    """The row of the selected trial of a study, or under protocol paper, which selects none, of every finished trial.

    Raises:
        InputError: the study has no finished trial, or none that meets its constraints.
    """
    name, trials = view.study.study_name, [trial for trial in view.trials() if trial.state == "COMPLETE"]
    if not trials:
        raise InputError(f"study {name!r} has no finished trial to compare; `study show {name}` shows its state")
    if view.config.protocol != "paper":
        trials = [trial for trial in trials if trial.selected]
    if not trials:
        limits = ", ".join(f"{metric} {condition}" for metric, condition in view.config.constraints.items())
        raise InputError(f"study {name!r} has no finished trial that meets its constraints ({limits}); relax them")
    return [_row(view, trial) for trial in trials]


def _row(view: StudyView, trial: TrialView) -> Row:
    metrics = trial.metrics | trial.test_metrics
    params, environment = trial.params, trial.outcome.environment
    seeds = metrics.get("seeds")
    device = " ".join(str(environment[name]) for name in ("device", "device_name") if environment.get(name))
    return Row(
        study=view.study.study_name,
        trial=trial.number,
        selected=trial.selected,
        detector=trial.detector_name,
        experiment=view.header.experiment,
        protocol=view.config.protocol,
        backbone=str(params.get("backbone", "")),
        layers=list(params.get("layers", [])),
        weights=view.header.backbones.get(str(params.get("backbone")), {}).get("tag", ""),
        image_size=list(view.config.data.size),
        params=params,
        scored=view.config.protocol == "paper" or trial.final is not None,
        image_auroc=metrics.get("test/image_auroc"),
        image_auroc_low=metrics.get("test/image_auroc_low"),
        image_auroc_high=metrics.get("test/image_auroc_high"),
        seeds=int(seeds) if seeds else None,
        image_auroc_seeds_mean=metrics.get("test/image_auroc_seeds_mean"),
        image_auroc_seeds_std=metrics.get("test/image_auroc_seeds_std"),
        val_image_auroc=metrics.get("val/image_auroc"),
        pixel_auroc=metrics.get("test/pixel_auroc"),
        pixel_aupro=metrics.get("test/pixel_aupro"),
        train_seconds=metrics.get("train_seconds"),
        fps=metrics.get("fps"),
        throughput=metrics.get("throughput"),
        model_size_mb=metrics.get("model_size_mb"),
        device=f"{device}, {metrics['latency_threads']:.0f} threads" if "latency_threads" in metrics else device,
        test_images=sum(view.header.counts.get("test", {}).values()),
        test_digest=view.header.identity["data"].get("test", ""),
        test_scorings=len(view.ledger()),
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
    counts, official = view.header.counts, published.datasets.get(dataset, {}).get(category)
    train, test = sum(counts.get("train", {}).values()), row.test_images
    labelled = test + sum(counts.get("validation", {}).values())
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
        sets = dict.fromkeys(f"{row.study}: {row.test_images} of {row.experiment}" for row in rows)
        yield f"these studies were measured on different test images ({'; '.join(sets)}): their figures cannot be compared"
    for row in rows:
        if not row.scored:
            yield (
                f"{row.study}: the selected trial {row.trial} was not scored on test yet; "
                f"`study run {row.study.partition('#')[0]}` refits and scores it"
            )
    if len({row.device for row in rows if row.fps is not None}) > 1:
        devices = dict.fromkeys(f"{row.study}: {row.device}" for row in rows if row.fps is not None)
        yield f"speed was measured in different places ({'; '.join(devices)}): fps and throughput cannot be compared"
    if any(row.experiment.startswith("rendered/") for row in rows):
        yield "the images of rendered/ were drawn by a program: this is a demonstration, not a result"
