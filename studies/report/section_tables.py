"""The tables of a study's part of a report: products, setting, trials, failures, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from detectors.scoring.evaluation import METRICS, OPERATING_METRICS
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file.encoding import encode
from studies.file.sections import COST_METRICS
from studies.report import phrases
from studies.report.charts import Table, shortened
from studies.report.on_test import ProductOnTest
from studies.report.search import STATES, Search
from studies.search.attributes import INTERRUPTED
from studies.search.space import describe_dimension
from studies.search.view import TrialView
from studies.show import tables
from studies.show.study_tables import METRIC_COLUMNS

FAILURE_LENGTH = 160
"""Most letters of a failure in the table of trials."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table of trials."""

    text: str
    key: float | str
    """What the table is sorted by; empty cells go last."""


@dataclass(frozen=True)
class TrialRow:
    """A row of the table of trials."""

    id: str
    """Id of the row in the page, to which the charts link."""
    state: str
    """In words, as in `STATES`."""
    css: str
    selected: bool
    pareto: bool
    """Whether the trial is on the Pareto front of the study's objectives."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class TrialsTable:
    """The table of all trials."""

    heads: tuple[str, ...]
    rows: tuple[TrialRow, ...]
    states: tuple[str, ...]
    """The states that occur, which the filter offers."""
    same: str
    """The parameters that have the same value in all trials, as text."""


def products_table(tests: Sequence[ProductOnTest]) -> Table | None:
    """Figures on test of each product; None in a study of a single product."""
    if len(tests) < 2:
        return None
    rows = []
    for test in tests:
        confusion = test.confusion
        rows.append(
            (
                test.product,
                test.auroc,
                phrases.interval(test.metrics, test.ranks_by) or None,
                test.metrics.get("test/pixel_aupro"),
                phrases.share(confusion.detected, confusion.defective) if confusion else None,
                phrases.share(confusion.false_alarms, confusion.good) if confusion else None,
            )
        )
    rank = "ranking score" if tests[0].painted else "image AUROC"
    heads = ("product", rank, "95 % interval", "AUPRO", "defects found", "false alarms")
    return Table(heads, tuple(rows), tuple(test.id for test in tests))


def setting_table(search: Search, selected: TrialView) -> Table:
    """The selected value of each parameter, and what was searched."""
    rows = []
    searched = search.config.for_detector(selected.detector_name).search
    for name, value in selected.params.items():
        dimension = searched.get(name)
        rows.append((name, value, describe_dimension(dimension) if dimension is not None else "fixed"))
    return Table(("parameter", "selected", "searched"), tuple(rows))


def trials_table(search: Search) -> TrialsTable:
    """All trials with their metrics and the parameters in which they differ."""
    config = search.config
    prefix = "test" if config.protocol == "paper" else "val"
    objectives = [name for name in config.objectives if name in METRICS]
    others = [name for name in config.objectives if name in COST_METRICS and name != "fps"]
    rank = (RANKING_SCORE, "image_auroc") if RANKING_SCORE in config.objectives else (RANKING_SCORE,)
    # Trials of versions before 0.3 were not judged at a threshold.
    columns = [
        name
        for name in METRIC_COLUMNS
        if name not in (*OPERATING_METRICS, *rank)
        or any(f"{prefix}/{name}" in trial.metrics for trial in search.trials)
    ]
    metrics = [f"{prefix}/{name}" for name in dict.fromkeys((*objectives, *columns))] + [*others, "fps"]
    failed = any(trial.failure for trial in search.trials)
    is_warm = any(trial.attributes.warm_from for trial in search.trials)
    came = ["from"] if is_warm else []
    heads = ["trial", "state", *(phrases.metric(name) for name in metrics), "seconds", *came, *search.varied]
    rows = []
    for trial in search.trials:
        values: list[Any] = [trial.number, STATES[search.state(trial)], *(trial.metrics.get(name) for name in metrics)]
        values += [trial.seconds, *([_came_from(trial)] if is_warm else [])]
        values += [trial.params.get(name) for name in search.varied]
        values += [shortened(trial.failure, FAILURE_LENGTH)] if failed else []
        css = "chosen" if trial.selected else search.state(trial).lower()
        row = TrialRow(
            search.target(trial), values[1], css, trial.selected, trial.pareto, tuple(_cell(value) for value in values)
        )
        rows.append(row)
    states = {row.state for row in rows}
    same = {
        name: value
        for name, value in (search.trials[0].params if search.trials else {}).items()
        if name not in search.varied
    }
    return TrialsTable(
        (*heads, *(["failure"] if failed else [])),
        tuple(rows),
        tuple(text for text in STATES.values() if text in states),
        phrases.setting(same),
    )


def _came_from(trial: TrialView) -> str:
    """Where a trial's setting comes from: ``baseline``, ``search``, ``warm start: padim_screw trial 7``."""
    attributes = trial.attributes
    return f"warm start: {attributes.warm_from}" if attributes.warm_from else attributes.origin


def _cell(value: Any) -> Cell:
    """A value as the table shows and sorts it."""
    if value is None or value == "":
        return Cell("", "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(tables.shown(value), value)
    return Cell(tables.shown(value), str(encode(value)))


def failures_table(search: Search) -> Table | None:
    """Each failure once, with the trials that ended with it; None if no trial failed."""
    failures: dict[str, list[TrialView]] = {}
    for trial in search.trials:
        if trial.state == "FAIL":
            failures.setdefault(trial.failure or "unknown", []).append(trial)
    if not failures:
        return None
    rows = [
        (
            ", ".join(str(trial.number) for trial in trials),
            f"{failure}; the next run repeats it" if failure == INTERRUPTED else failure,
            str(trials[-1].folder),
        )
        for failure, trials in failures.items()
    ]
    return Table(("trials", "failure", "log in"), tuple(rows))


def measurement_tables(search: Search) -> Iterator[tuple[str, Table]]:
    """Tables with their titles of how the study was measured: images, protocol, weights, machines and versions, ledger."""
    view, config = search.view, search.config
    header = view.header
    kinds = list(dict.fromkeys(kind for counts in header.counts.values() for kind in counts))
    digests: dict[str, str] = header.identity.get("data", {})
    yield (
        "Images",
        Table(
            ("set", *kinds, "all", "sha256"),
            tuple(
                (name, *(counts.get(kind, 0) for kind in kinds), sum(counts.values()), digests.get(name, "")[:16])
                for name, counts in header.counts.items()
            ),
        ),
    )
    rows: list[tuple[Any, ...]] = [
        ("from", header.dataset),
        ("size", f"{config.data.size[0]} x {config.data.size[1]} pixels"),
        ("split", phrases.PROTOCOLS.get(config.protocol, config.protocol)),
        ("objectives", phrases.listed([f"{way} {phrases.metric(name)}" for name, way in config.objectives.items()])),
        ("constraints", phrases.listed([f"{name} {limit}" for name, limit in config.constraints.items()]) or "none"),
        ("threshold", f"{config.threshold.rule}, wanted rate {config.threshold.rate:g}"),
        ("sampler", f"{config.sampler.name}, seed {config.sampler.seed}"),
        ("pruner", config.pruner.name),
        (
            "seeds",
            f"derived from {config.sampler.seed} and the number of the trial; fits of the selected setting: {config.seeds}",
        ),
        ("study", f"{header.uid}, MLflow experiment {header.experiment}"),
    ]
    yield "How it was measured", Table(("what", "value"), tuple(rows))
    if header.backbones:
        yield (
            "Backbones and their weights",
            Table(
                ("backbone", "weights", "from", "sha256"),
                tuple(
                    (name, weights.get("tag", ""), weights.get("origin", ""), weights.get("sha256", "")[:16])
                    for name, weights in header.backbones.items()
                ),
            ),
        )
    places = {str(sorted(place.items())): place for trial in search.trials if (place := trial.outcome.environment)}
    if places:
        names = dict.fromkeys(name for place in places.values() for name in place)
        heads = ("what", *([f"place {index}" for index in range(1, len(places) + 1)] if len(places) > 1 else ["value"]))
        yield (
            "Machine and versions",
            Table(heads, tuple((name, *(place.get(name, "") for place in places.values())) for name in names)),
        )
    ledger = view.ledger()
    if ledger:
        yield (
            "Ledger: each look at the nested estimate, and each time the gate scored the labelled images"
            if view.is_nested
            else "Ledger: each time the test images were scored",
            Table(
                ("time", "trial", "purpose", "image AUROC", "host"),
                tuple((line.time, line.trial, line.purpose, line.image_auroc, line.host) for line in ledger),
            ),
        )
