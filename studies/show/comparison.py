"""Studies side by side: their selected trials, and what others published, as table, Markdown, CSV, JSON and image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from pydantic import BaseModel, ConfigDict
from rich.console import RenderableType
from rich.text import Text

from detectors.errors import InputError
from detectors.files import told_plainly, write_text
from studies.file.encoding import encode
from studies.search.view import StudyView, TrialView
from studies.show import tables
from studies.show.published import MEAN, Catalogue, Difference, Figures, Published, catalogue, differing_params

Format = Literal["markdown", "csv", "json"]
STEM = "comparison"
"""Files of a comparison are ``comparison.md``, ``.csv``, ``.json`` and ``.png``."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of the Okabe-Ito palette, which colour-blind people can tell apart; one per detector."""


DISAGREEMENT = 0.1
"""Difference between two published image AUROCs of one setting from which on a person is told."""


class Row(BaseModel):
    """One trial of a study. Figures that were not measured are None; nothing is rounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    trial: int
    selected: bool
    """The trial that the study would deploy; under protocol paper every finished one is listed."""
    detector: str
    experiment: str
    """``<dataset>/<category>``"""
    protocol: str
    backbone: str
    layers: list[int]
    """Strides."""
    weights: str
    """timm's tag of the backbone's weights."""
    image_size: list[int]
    """Height and width in pixels."""
    params: dict[str, Any]
    """The full setting."""
    scored: bool
    """Whether the trial was scored on test: after a search the selected one is, under protocol paper every one."""
    image_auroc: float | None
    """On test, as the figures below: half of the labelled images under protocol holdout, all under protocol paper."""
    image_auroc_low: float | None
    """Lower end of the 95 % bootstrap interval."""
    image_auroc_high: float | None
    seeds: int | None
    """Fits with different seeds that the next two are over; None where there was one fit."""
    image_auroc_seeds_mean: float | None
    image_auroc_seeds_std: float | None
    val_image_auroc: float | None
    """On validation, which chose the trial."""
    pixel_auroc: float | None
    pixel_aupro: float | None
    train_seconds: float | None
    """The fit on stored features, their extraction not included."""
    fps: float | None
    """Images per second at batch 1."""
    throughput: float | None
    """Images per second at batch 32."""
    model_size_mb: float | None
    """Tensors of the stored detector, 10^6 bytes."""
    device: str
    """Where speed was measured: device, its name, CPU threads."""
    test_images: int
    test_digest: str
    """sha256 of the test images: rows with different ones do not compare."""
    test_scorings: int
    """How often this study was scored on test so far."""

    @property
    def label(self) -> str:
        """The row's name where one line must do."""
        return self.study if self.protocol != "paper" else f"{self.study} trial {self.trial}"

    @property
    def setting(self) -> str:
        """Backbone and strides in short."""
        return f"{self.backbone} {encode(self.layers)}"


class PublishedRow(BaseModel):
    """What others published of a detector on a category, and how far the rows are comparable to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: str
    dataset: str
    category: str
    source: str
    reference: str
    """arXiv number or address."""
    setting: str
    params: dict[str, Any]
    image_auroc: float | None
    """On the whole test set, as the next two; None where only the mean was published."""
    pixel_auroc: float | None
    pixel_aupro: float | None
    mean: Figures | None
    """Mean over all categories of the data set."""
    differs: dict[str, list[Difference]]
    """{label of a row of this detector: what keeps it from being compared}; nothing does where the list is empty."""

    @property
    def comparable(self) -> list[str]:
        """Labels of the rows with the same setting and the same images."""
        return [label for label, found in self.differs.items() if not found]


class Comparison(BaseModel):
    """Studies side by side; `model_dump` is what ``--json`` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: str
    """UTC, ISO 8601."""
    rows: list[Row]
    published: list[PublishedRow]
    remarks: list[str]
    """What stands between these figures and a fair comparison."""


def compare(views: Sequence[StudyView], published: Catalogue | None = None) -> Comparison:
    """Put studies side by side.

    Raises:
        InputError: one of them has no finished trial, or none that meets its constraints.
    """
    published = published or catalogue()
    rows, beside = [], []
    for view in views:
        for row in study_rows(view):
            rows.append(row)
            beside.append((row, view))
    return Comparison(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=rows,
        published=list(_published_rows(beside, published)),
        remarks=list(_remarks(rows)),
    )


def study_rows(view: StudyView) -> list[Row]:
    """The selected trial of a study; under protocol paper, which chooses none, every finished one. Raises as `compare` does."""
    name, trials = view.study.study_name, [trial for trial in view.trials() if trial.state == "COMPLETE"]
    if not trials:
        raise InputError(f"study {name!r} has no finished trial to compare; `study show {name}` says how it stands")
    if view.config.protocol != "paper":
        trials = [trial for trial in trials if trial.selected]
    if not trials:
        limits = ", ".join(f"{metric} {condition}" for metric, condition in view.config.constraints.items())
        raise InputError(f"study {name!r} has no finished trial that meets its constraints ({limits}); relax them")
    return [_row(view, trial) for trial in trials]


def _row(view: StudyView, trial: TrialView) -> Row:
    metrics = trial.metrics | trial.test_metrics
    params, where = trial.params, trial.outcome.get("environment", {})
    seeds = metrics.get("seeds")
    device = " ".join(str(where[name]) for name in ("device", "device_name") if where.get(name))
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


def _published_rows(beside: Sequence[tuple[Row, StudyView]], published: Catalogue) -> Iterator[PublishedRow]:
    """For each detector and category among the rows what is known of it, the comparable figures first."""
    wanted = dict.fromkeys((row.detector, *row.experiment.partition("/")[::2]) for row, _ in beside)
    for detector, dataset, category in wanted:
        mine = [
            (row, view) for row, view in beside if (row.detector, row.experiment) == (detector, f"{dataset}/{category}")
        ]
        found = []
        for entry in published.of(detector, dataset, category):
            source, figures = published.sources[entry.source], entry.figures.get(category)
            found.append(
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
                    differs={row.label: _differences(entry, row, view, published) for row, view in mine},
                )
            )
        yield from sorted(found, key=lambda row: not row.comparable)


def _differences(entry: Published, row: Row, view: StudyView, published: Catalogue) -> list[Difference]:
    """What keeps a row from being compared to a published setting."""
    dataset, _, category = row.experiment.partition("/")
    found = differing_params(entry, row.params | {"image_size": row.image_size})
    if category not in entry.figures:
        found.append(Difference(what="category", theirs="the mean alone was published", here=category))
    counts, official = view.header.counts, published.datasets.get(dataset, {}).get(category)
    train, test = sum(counts.get("train", {}).values()), row.test_images
    labelled = test + sum(counts.get("validation", {}).values())
    if row.protocol == "synthetic":
        found.append(Difference(what="images", theirs="the whole test set", here=f"{test} with synthetic defects"))
    elif official is not None and (official.train, official.test) != (train, labelled):
        theirs = f"the official {official.train} to train and {official.test} to test"
        found.append(Difference(what="images", theirs=theirs, here=f"{train} and {labelled}"))
    elif row.protocol != "paper":
        found.append(Difference(what="split", theirs=f"the whole test set of {labelled}", here=f"{test} of these"))
    if entry.selection:
        found.append(Difference(what="selection", theirs=entry.selection, here="the test set chose nothing"))
    return found


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    if len({(row.experiment, row.test_digest) for row in rows}) > 1:
        sets = dict.fromkeys(f"{row.study}: {row.test_images} of {row.experiment}" for row in rows)
        yield f"these studies were measured on different test images ({'; '.join(sets)}): their figures do not compare"
    for row in rows:
        if not row.scored:
            yield (
                f"{row.study}: the selected trial {row.trial} was not scored on test yet; "
                f"`study run {row.study.partition('#')[0]}` refits and scores it"
            )
    if len({row.device for row in rows if row.fps is not None}) > 1:
        devices = dict.fromkeys(f"{row.study}: {row.device}" for row in rows if row.fps is not None)
        yield f"speed was measured in different places ({'; '.join(devices)}): fps and throughput do not compare"
    if any(row.experiment.startswith("rendered/") for row in rows):
        yield "the images of rendered/ were drawn: a demonstration, not a result"


# Tables

Columns = tuple[tuple[str, Callable[[Any], Any]], ...]


def _interval(row: Row) -> str | None:
    if row.image_auroc_low is None or row.image_auroc_high is None:
        return None
    return f"{row.image_auroc_low:.3f} to {row.image_auroc_high:.3f}"


def _seeds(row: Row) -> str | None:
    if row.image_auroc_seeds_mean is None or row.image_auroc_seeds_std is None:
        return None
    return f"{row.image_auroc_seeds_mean:.3f} ± {row.image_auroc_seeds_std:.3f} ({row.seeds})"


def row_columns(comparison: Comparison) -> Columns:
    """Heads and values of the table of studies; columns that nothing stands in are left out where they are the exception."""
    columns: list[tuple[str, Callable[[Row], Any]]] = [
        ("study", lambda row: row.study),
        ("trial", lambda row: row.trial),
        ("detector", lambda row: row.detector),
        ("setting", lambda row: row.setting),
    ]
    if len({tuple(row.image_size) for row in comparison.rows}) > 1:
        columns.append(("pixels", lambda row: "x".join(map(str, row.image_size))))
    columns += [
        ("image AUROC", lambda row: row.image_auroc),
        ("95 % interval", _interval),
    ]
    if any(row.image_auroc_seeds_mean is not None for row in comparison.rows):
        columns.append(("over seeds", _seeds))
    if any(row.val_image_auroc is not None for row in comparison.rows):
        columns.append(("on validation", lambda row: row.val_image_auroc))
    columns += [
        ("pixel AUROC", lambda row: row.pixel_auroc),
        ("AUPRO", lambda row: row.pixel_aupro),
        ("train s", lambda row: row.train_seconds),
        ("FPS", lambda row: row.fps),
        ("throughput", lambda row: row.throughput),
        ("model MB", lambda row: row.model_size_mb),
    ]
    if any(entry.comparable and entry.image_auroc is not None for entry in comparison.published):
        columns.append(("published image AUROC", lambda row: _comparable_figures(comparison, row)))
    return tuple(columns)


def _comparable_figures(comparison: Comparison, row: Row) -> str | None:
    found = [
        f"{entry.image_auroc:.3f} {entry.source}"
        for entry in comparison.published
        if row.label in entry.comparable and entry.image_auroc is not None and entry.detector == row.detector
    ]
    return ", ".join(found) or None


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
    return " ".join(str(encode(part)) for part in parts if part is not None) or "not said"


def _means(entry: PublishedRow) -> str | None:
    """The three figures as means over all categories."""
    if entry.mean is None:
        return None
    means = (entry.mean.image_auroc, entry.mean.pixel_auroc, entry.mean.pixel_aupro)
    return " ".join(tables.shown(value) for value in means)


def differs_in_short(entry: PublishedRow) -> str:
    """``nothing`` or the names of what differs: first for all rows, then for single ones behind their labels."""
    names = {label: [one.what for one in found] for label, found in entry.differs.items()}
    in_all = [name for name in next(iter(names.values()), []) if all(name in found for found in names.values())]
    parts = [", ".join(in_all)] if in_all else []
    for label, found in names.items():
        more = [name for name in found if name not in in_all]
        if more or not found:
            parts.append(f"{label}: {', '.join(more) or 'nothing'}")
    return "; ".join(parts) if any(names.values()) else "nothing"


def explanations(comparison: Comparison) -> list[str]:
    """What the tables' words mean, and what is not comparable, in full sentences."""
    lines = [
        "AUROC and AUPRO on test; train s: the fit on stored features; FPS at batch 1, throughput (images a second) at 32."
    ]
    if any(row.image_auroc_seeds_mean is not None for row in comparison.rows):
        lines.append("over seeds: mean and standard deviation of the image AUROC on test over so many fits.")
    lines += dict.fromkeys(_test_set(row) for row in comparison.rows)
    known = {(entry.detector, f"{entry.dataset}/{entry.category}") for entry in comparison.published}
    unknown = [row for row in comparison.rows if (row.detector, row.experiment) not in known]
    if unknown:
        names = dict.fromkeys(f"{row.detector} on {row.experiment}" for row in unknown)
        lines.append(f"No published figures are known here of {', '.join(names)}.")
    if comparison.published:
        lines.append(
            "Published figures are of the whole test set; their means (image AUROC, pixel AUROC, AUPRO) are over all categories. "
            "They compare only where nothing differs; the weights of a backbone, size and crop of the input may differ even "
            "then, see setting."
        )
        sources = dict.fromkeys(f"{entry.source} ({entry.reference})" for entry in comparison.published)
        lines.append(f"Sources: {', '.join(sources)}.")
    lines += _disagreements(comparison.published)
    lines += filter(None, (_obstacles(comparison, row) for row in comparison.rows))
    return lines


def _disagreements(published: Sequence[PublishedRow]) -> Iterator[str]:
    """Where sources say quite different things of one setting: a person then knows what a figure alone is worth."""
    settings: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for entry in published:
        mean = entry.mean.image_auroc if entry.mean else None
        for category, value in ((entry.category, entry.image_auroc), (MEAN, mean)):
            if value is not None:
                setting = json.dumps(entry.params, sort_keys=True)
                settings.setdefault((entry.detector, category, setting), []).append((value, entry.source))
    for (detector, category, _), found in settings.items():
        (low, lowest), (high, highest) = min(found), max(found)
        if high - low >= DISAGREEMENT:
            where = "as the mean of all categories" if category == MEAN else f"on {category}"
            yield (
                f"Published figures of {detector} {where} disagree: image AUROC {low:.3f} ({lowest}) to {high:.3f} ({highest}) "
                "in the same setting."
            )


def _test_set(row: Row) -> str:
    if row.protocol == "holdout":
        return f"{row.study}: test is the half of the labelled images ({row.test_images}) that the search never saw."
    if row.protocol == "synthetic":
        return f"{row.study}: test is {row.test_images} images that the search never saw, half with synthetic defects."
    return f"{row.study}: test is the whole test set ({row.test_images} images), as in the papers."


def _obstacles(comparison: Comparison, row: Row) -> str:
    """Why none of the published figures compares to a row; empty where one does, or there are none."""
    entries = [entry for entry in comparison.published if row.label in entry.differs]
    if not entries or any(row.label in entry.comparable for entry in entries):
        return ""
    found = [{one.what: one for one in entry.differs[row.label]} for entry in entries]
    in_all = [what for what in found[0] if all(what in differences for differences in found)]
    if not in_all:
        return f"{row.label}: every published figure differs in something from this setting, see the table."
    reasons = []
    for what in in_all:
        theirs = dict.fromkeys(differences[what].theirs for differences in found)
        reasons.append(f"{what} ({' or '.join(theirs)}; here {found[0][what].here})")
    return f"{row.label}: no published figure is comparable, all differ in {', '.join(reasons)}."


def _cells(columns: Columns, items: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
    return [name for name, _ in columns], [[value(item) for _, value in columns] for item in items]


def terminal_parts(comparison: Comparison) -> Iterator[RenderableType]:
    """What ``study compare`` prints."""
    yield tables.table(*_cells(row_columns(comparison), comparison.rows))
    if comparison.published:
        yield tables.table(*_cells(PUBLISHED_COLUMNS, comparison.published), title="published")
    for line in explanations(comparison):
        yield Text(line, "dim")
    for line in comparison.remarks:
        yield Text(line, "yellow")


def to_markdown(comparison: Comparison) -> str:
    """The same for a README or a wiki."""
    experiments = ", ".join(dict.fromkeys(row.experiment for row in comparison.rows))
    parts = [f"# Comparison on {experiments}", _markdown_table(*_cells(row_columns(comparison), comparison.rows))]
    if comparison.remarks:
        parts.append("\n".join(f"> **{line}**" for line in comparison.remarks))
    if comparison.published:
        parts += ["## Published", _markdown_table(*_cells(PUBLISHED_COLUMNS, comparison.published))]
    parts.append("\n".join(f"- {line}" for line in explanations(comparison)))
    parts.append(
        f"Made {comparison.made} by `study compare {' '.join(dict.fromkeys(row.study for row in comparison.rows))}`."
    )
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [any(isinstance(row[index], int | float) for row in rows) for index in range(len(columns))]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[tables.shown(value).replace("|", "\\|") for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(comparison: Comparison) -> str:
    """Studies and published figures in one table of raw numbers; ``kind`` is ``study`` or ``published``."""
    rows: list[dict[str, Any]] = []
    for row in comparison.rows:
        plain = row.model_dump(exclude={"params"})
        rows.append(
            {"kind": "study", **plain, "layers": encode(row.layers), "image_size": "x".join(map(str, row.image_size))}
        )
    for entry in comparison.published:
        plain = entry.model_dump(
            include={"detector", "source", "reference", "setting", "image_auroc", "pixel_auroc", "pixel_aupro"}
        )
        rows.append(
            {
                "kind": "published",
                **plain,
                "experiment": f"{entry.dataset}/{entry.category}",
                "protocol": "paper",
                "backbone": entry.params.get("backbone"),
                "layers": encode(entry.params["layers"]) if "layers" in entry.params else None,
                "mean_image_auroc": entry.mean.image_auroc if entry.mean else None,
                "comparable": "; ".join(entry.comparable),
                "differs": "; ".join(
                    f"{label}: {reason}" for label, reasons in entry.differs.items() for reason in reasons
                ),
            }
        )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(comparison: Comparison) -> str:
    """All of it, as the models' fields say."""
    return comparison.model_dump_json(indent=1) + "\n"


WRITERS: dict[Format, Callable[[Comparison], str]] = {"markdown": to_markdown, "csv": to_csv, "json": to_json}
SUFFIXES: dict[str, Format] = {".md": "markdown", ".csv": "csv", ".json": "json"}


def write_files(comparison: Comparison, folder: Path) -> None:
    """``comparison.md``, ``.csv``, ``.json``, and ``.png`` where there is something to draw."""
    for suffix, name in SUFFIXES.items():
        write_text(folder / f"{STEM}{suffix}", WRITERS[name](comparison))
    write_image(comparison, folder / f"{STEM}.png")


def save_image(comparison: Comparison, path: Path) -> None:
    """`write_image` where a person asked for it. Raises `InputError` where there is nothing to draw, or no such folder."""
    with told_plainly(path):
        if not write_image(comparison, path):
            raise InputError(f"{path}: nothing to draw yet: no study has both an image AUROC on test and a speed")


def write_image(comparison: Comparison, path: Path) -> bool:
    """Image AUROC with its interval against speed, a colour per detector. False where no row has both, and nothing is written."""
    drawn = [row for row in comparison.rows if row.image_auroc is not None and row.fps]
    if not drawn:
        return False
    detectors = list(dict.fromkeys(row.detector for row in drawn))
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in drawn:
        value, fps = row.image_auroc or 0.0, row.fps or 0.0
        low = value if row.image_auroc_low is None else row.image_auroc_low
        high = value if row.image_auroc_high is None else row.image_auroc_high
        axes.errorbar(
            [fps],
            [value],
            # A bootstrap interval need not hold the value itself.
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o",
            capsize=4,
            color=COLOURS[detectors.index(row.detector) % len(COLOURS)],
        )
        axes.annotate(row.label, (fps, value), textcoords="offset points", xytext=(6, 5), fontsize=8)
    for index, detector in enumerate(detectors):
        axes.plot([], [], "o", color=COLOURS[index % len(COLOURS)], label=detector)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        # Powers of ten would be set as formulas, with fonts that are not everywhere.
        axis(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.35)
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1] + 0.02))
    axes.set(xlabel="images per second at batch 1", ylabel="image AUROC on test, 95 % interval")
    axes.set_title(", ".join(dict.fromkeys(row.experiment for row in drawn)), fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(detectors))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True
