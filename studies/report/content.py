"""What a report says of one study, as plain data for the template. Everything is read from storage and the trials' folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from detectors.data.samples import GOOD
from detectors.scoring.evaluation import METRICS
from studies.file.encoding import encode
from studies.file.sections import COST_METRICS
from studies.report import wording as words
from studies.report.charts import Figure, Table, shortened
from studies.report.detector import OnTest, on_test
from studies.report.search import STATES, Search, figures
from studies.search.space import describe_dimension
from studies.search.summary import headline
from studies.search.view import INTERRUPTED, StudyView, TrialView
from studies.show import tables

WIDE_INTERVAL = 0.1
"""From this width on, a figure is said to be unsure."""
MANY_MISSES = 0.2
"""From this share on, the choice of the threshold is spoken of."""
FAILURE_LENGTH = 160


@dataclass(frozen=True)
class Tile:
    """One of the figures that a reader sees first."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Cell:
    """Of the table of trials."""

    text: str
    key: float | str
    """What it is sorted by; empty goes last."""


@dataclass(frozen=True)
class Row:
    """A trial."""

    id: str
    state: str
    css: str
    selected: bool
    pareto: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Trials:
    """The table of all trials."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    states: tuple[str, ...]
    """Those that occur, for the filter."""
    same: str
    """Parameters that no trial differs in."""


@dataclass(frozen=True)
class Study:
    """Everything about one study."""

    id: str
    name: str
    about: str
    says: tuple[str, ...]
    """The summary, the most important sentence first."""
    cautions: tuple[str, ...]
    tiles: tuple[Tile, ...]
    products: Table | None
    setting: Table | None
    tests: tuple[OnTest, ...]
    figures: tuple[Figure, ...]
    tried: str
    """Heading of the charts."""
    silence: str
    """Why charts of the search are missing, where they are."""
    trials: Trials
    failures: Table | None
    facts: tuple[tuple[str, Table], ...]
    commands: tuple[tuple[str, str], ...]
    study_file: str


def study_part(view: StudyView, id: str) -> Study:
    """One study, with `id` for its links."""
    search = Search(view, id)
    selected = next((trial for trial in search.trials if trial.selected), None)
    tests = on_test(view, selected, id=id) if selected is not None else []
    drawn = figures(search)
    return Study(
        id=id,
        name=view.study.study_name,
        about=_about(view, search),
        says=tuple(_says(search, selected, tests)),
        cautions=tuple(_cautions(search, selected, tests)),
        tiles=tuple(_tiles(search, selected, tests)),
        products=_products(tests),
        setting=_setting(search, selected) if selected is not None else None,
        tests=tuple(tests),
        figures=tuple(drawn),
        tried="The search" if view.config.search else "What was tried",
        silence=_silence(search),
        trials=_trials(search),
        failures=_failures(search),
        facts=tuple(_facts(search)),
        commands=tuple(_commands(view)),
        study_file=yaml.safe_dump(view.config.to_json(), sort_keys=False, allow_unicode=True),
    )


def _about(view: StudyView, search: Search) -> str:
    ends = [end for trial in search.trials if (end := trial.outcome.get("finished")) is not None]
    told = f", last result {words.moment(max(ends))}" if ends else ""
    names = words.listed([words.detector(name) for name in view.config.detectors])
    return f"{names} on {view.header.experiment}, begun {words.moment(view.header.created)}{told}"


# The summary


def _says(search: Search, selected: TrialView | None, tests: Sequence[OnTest]) -> Iterator[str]:
    if selected is None:
        yield _nothing_selected(search)
        return
    scored = [test for test in tests if test.auroc is not None]
    yield _headline(search, selected, scored)
    yield _choice(search)
    if not scored:
        told = headline(selected.metrics, "val")
        name = search.view.study.study_name.partition("#")[0]
        yield f"`study run {name}` scores it on test when the search is over."
        if told:
            yield f"On validation, which chose it: {told}; that figure is too good, for the search looked at it."
    elif len(scored) == 1:
        yield from _one_product(search, selected, scored[0])
    else:
        yield from _several_products(scored)
    if (fps := selected.metrics.get("fps")) is not None:
        where = _where(selected)
        yield f"It judges {words.speed(fps)}{f' on {where}' if where else ''}, measured alone and one image at a time."
    yield _scorings(search)


def _nothing_selected(search: Search) -> str:
    config, trials = search.config, search.trials
    name = search.view.study.study_name.partition("#")[0]
    running = sum(trial.state == "RUNNING" for trial in trials)
    if search.finished:
        limits = words.listed([f"{metric} {condition}" for metric, condition in config.constraints.items()])
        return (
            f"None of the {len(search.finished)} finished trials meets the constraints ({limits}): nothing is selected. "
            "The charts below show how far they are from it."
        )
    if not trials:
        return f"No trial has begun yet. `study run {name}` starts the search."
    if running:
        return f"No trial is finished yet; {words.several(running, 'trial')} running."
    return "No trial is finished: see below what failed."


def _headline(search: Search, selected: TrialView, tests: Sequence[OnTest]) -> str:
    """What was selected, and the figure that counts."""
    what = f"{words.detector(selected.detector_name)} with {selected.params.get('backbone', 'its backbone')}"
    begin = f"{what} (trial {selected.number})"
    begin = f"Best here: {begin}" if search.config.protocol == "paper" else f"Selected: {begin}"
    value = selected.test_metrics.get("test/image_auroc", selected.metrics.get("test/image_auroc"))
    if not tests or value is None:
        return f"{begin}, not yet scored on test."
    if len(tests) > 1:
        return f"{begin}, image AUROC {value:.3f} on test, on average over {len(tests)} products."
    said = words.interval(tests[0].metrics, "test/image_auroc")
    return f"{begin}, image AUROC {value:.3f} on test{f' (95 % interval {said})' if said else ''}."


def _choice(search: Search) -> str:
    """Why this one."""
    config = search.config
    sound = words.several(sum(trial.feasible is True for trial in search.finished), "finished trial")
    limits = words.listed([f"{metric} {condition}" for metric, condition in config.constraints.items()])
    meets = f" that meet {limits}" if limits else ""
    if config.protocol == "paper":
        return f"Settings were given, not searched, and each was scored on the whole test set; {sound}{meets}."
    best, objective = "highest" if config.direction == "maximize" else "lowest", words.metric(search.objective)
    return f"It has the {best} {objective} on validation among the {sound}{meets}."


def _one_product(search: Search, selected: TrialView, test: OnTest) -> Iterator[str]:
    counts = search.view.header.counts.get("test", {})
    good = counts.get(GOOD, 0)
    unseen = " that the search never saw" if search.config.protocol != "paper" else ""
    yield (
        f"Test is {words.several(sum(counts.values()), 'image')}{unseen}, {good} good and {sum(counts.values()) - good} "
        f"defective. Shown one of each, the detector gives the defective one the higher score in about "
        f"{100 * (test.auroc or 0.0):.0f} of 100 cases."
    )
    seeds = selected.test_metrics
    if "test/image_auroc_seeds_std" in seeds:
        yield (
            f"Fitted with {seeds['seeds']:g} seeds the AUROC is {seeds['test/image_auroc_seeds_mean']:.3f} ± "
            f"{seeds['test/image_auroc_seeds_std']:.3f} on average."
        )
    if (confusion := test.confusion) is not None:
        yield (
            f"At its threshold it finds {words.share(confusion.found, confusion.defective, 'defects')} and raises a false "
            f"alarm on {words.share(confusion.alarms, confusion.good, 'good parts')}."
        )
    if (weakest := test.weakest) is not None and weakest.auroc is not None:
        found = f", {weakest.found} of {weakest.images} found" if weakest.found is not None else ""
        yield f"It is weakest on {weakest.name} (AUROC {weakest.auroc:.3f}{found})."


def _several_products(scored: Sequence[OnTest]) -> Iterator[str]:
    best, worst = (choose(scored, key=lambda test: test.auroc or 0.0) for choose in (max, min))
    yield f"It does best on {best.product} ({best.auroc:.3f}) and worst on {worst.product} ({worst.auroc:.3f})."


def _scorings(search: Search) -> str:
    ledger = search.view.ledger()
    if not ledger:
        return "The test images were not scored yet."
    times = {1: "once", 2: "twice"}.get(len(ledger), f"{len(ledger)} times")
    return f"The test images were scored {times} in this study; the ledger below lists it."


def _cautions(search: Search, selected: TrialView | None, tests: Sequence[OnTest]) -> Iterator[str]:
    view, config = search.view, search.config
    name = view.study.study_name.partition("#")[0]
    if view.header.experiment.startswith("rendered/"):
        yield "The images were drawn by a program: a demonstration, not a result."
    if config.protocol == "synthetic":
        yield (
            "No labelled defects were there: all figures are on defects painted into good images. They say how well such "
            "defects are found; real ones may be harder or easier."
        )
    running = [trial for trial in search.trials if trial.state == "RUNNING"]
    if running:
        yield (
            f"{words.several(len(running), 'trial')} still running, or cut off by a run that died: this is not the last word. "
            f"`study run {name}` goes on."
        )
    if selected is not None:
        yield from _unsure(search, selected, tests)
    if "@random" in "".join(view.header.backbones):
        yield "A backbone has random weights, which is good for tests only."
    if view.header.dropped:
        yield f"Left out, for their weights were not on the machine: {words.listed(view.header.dropped)}."
    failed = sum(trial.state == "FAIL" for trial in search.trials)
    if failed and search.finished:
        yield f"{words.several(failed, 'trial')} failed; see What failed."


def _unsure(search: Search, selected: TrialView, tests: Sequence[OnTest]) -> Iterator[str]:
    """What a reader could think surer than it is."""
    config, name = search.config, search.view.study.study_name.partition("#")[0]
    if config.protocol == "paper" and len(search.finished) > 1:
        yield "The best of several was picked by the same test figure, which makes that figure a little too good."
    for test in tests:
        the, this = (f"{test.product}: the", f"{test.product}: at this") if test.product else ("The", "At this")
        low, high = test.metrics.get("test/image_auroc_low"), test.metrics.get("test/image_auroc_high")
        if low is not None and high is not None and high - low > WIDE_INTERVAL:
            yield (
                f"{the} interval of the AUROC is wide ({low:.2f} to {high:.2f}), for there are few test images; "
                "more labelled ones would say more."
            )
        if (confusion := test.confusion) is not None and confusion.missed > MANY_MISSES * confusion.defective:
            said = f"{this} threshold {words.share(confusion.missed, confusion.defective, 'defects')} are missed."
            if test.looser is not None and test.looser < 1:
                said += (
                    f" The threshold is a choice: `study run {name} --set threshold.rate={test.looser:g}` allows more false "
                    "alarms and misses fewer; the ROC curve shows what that brings."
                )
            yield said
    before, after = selected.metrics.get("val/image_auroc"), selected.test_metrics.get("test/image_auroc")
    if before is not None and after is not None and before > after:
        yield (
            f"On validation, which chose it, the image AUROC was {before:.3f}; a search always makes that figure too good, "
            f"the {after:.3f} on test counts."
        )


def _tiles(search: Search, selected: TrialView | None, tests: Sequence[OnTest]) -> Iterator[Tile]:
    if selected is None:
        counts = {text: sum(search.state(trial) == state for trial in search.trials) for state, text in STATES.items()}
        yield from (Tile(f"trials {text}", str(count)) for text, count in counts.items() if count)
        return
    scored = [test for test in tests if test.auroc is not None]
    value = selected.test_metrics.get("test/image_auroc", selected.metrics.get("test/image_auroc"))
    if scored and value is not None:
        said = words.interval(scored[0].metrics, "test/image_auroc") if len(scored) == 1 else ""
        detail = f"95 % interval {said}" if said else f"mean of {len(scored)} products" if len(scored) > 1 else ""
        yield Tile("image AUROC on test", f"{value:.3f}", detail)
    elif (value := selected.metrics.get("val/image_auroc")) is not None:
        yield Tile("image AUROC on validation", f"{value:.3f}", "not scored on test yet")
    known = [test.confusion for test in scored if test.confusion is not None]
    if known:
        missed, defective = sum(c.missed for c in known), sum(c.defective for c in known)
        alarms, good = sum(c.alarms for c in known), sum(c.good for c in known)
        yield _rate_tile("defects missed", missed, defective)
        yield _rate_tile("false alarms", alarms, good)
    metrics = selected.metrics
    if "fps" in metrics:
        yield Tile("speed", f"{metrics['fps']:.3g} / s", _where(selected))
    if "train_seconds" in metrics:
        size = f"model of {metrics['model_size_mb']:.3g} MB" if "model_size_mb" in metrics else ""
        yield Tile("time to fit", words.duration(metrics["train_seconds"]), size)
    finished = sum(trial.state in ("COMPLETE", "PRUNED") for trial in search.trials)
    yield Tile("trials", str(finished), f"of {search.config.budget.trials} in the budget")


def _rate_tile(label: str, count: int, of: int) -> Tile:
    _, _, detail = words.share_with_interval(count, of).partition(" (")
    return Tile(label, f"{count} of {of}", detail.rstrip(")"))


def _where(trial: TrialView) -> str:
    place = trial.outcome.get("environment", {})
    threads = trial.metrics.get("latency_threads")
    parts = [str(place[name]) for name in ("device", "device_name") if place.get(name)]
    return " ".join(parts) + (f" with {words.several(int(threads), 'thread')}" if threads and parts else "")


# Tables


def _products(tests: Sequence[OnTest]) -> Table | None:
    if len(tests) < 2:
        return None
    rows = []
    for test in tests:
        confusion = test.confusion
        rows.append(
            (
                test.product,
                test.auroc,
                words.interval(test.metrics, "test/image_auroc") or None,
                test.metrics.get("test/pixel_aupro"),
                words.share(confusion.missed, confusion.defective) if confusion else None,
                words.share(confusion.alarms, confusion.good) if confusion else None,
            )
        )
    heads = ("product", "image AUROC", "95 % interval", "AUPRO", "defects missed", "false alarms")
    return Table(heads, tuple(rows), tuple(test.id for test in tests))


def _setting(search: Search, selected: TrialView) -> Table:
    rows = []
    searched = search.config.for_detector(selected.detector_name).search
    for name, value in selected.params.items():
        dimension = searched.get(name)
        rows.append((name, value, describe_dimension(dimension) if dimension is not None else "fixed"))
    return Table(("parameter", "selected", "searched"), tuple(rows))


def _silence(search: Search) -> str:
    if not search.importances and len(search.finished) > 1 and search.config.search:
        return "What each parameter mattered is not shown: too few trials are finished, or none differ."
    return ""


def _trials(search: Search) -> Trials:
    config = search.config
    prefix = "test" if config.protocol == "paper" else "val"
    objectives = [name for name in config.objectives if name in METRICS]
    others = [name for name in config.objectives if name in COST_METRICS and name != "fps"]
    metrics = [f"{prefix}/{name}" for name in dict.fromkeys((*objectives, *tables.METRIC_COLUMNS))] + [*others, "fps"]
    failed = any(trial.failure for trial in search.trials)
    heads = ["trial", "state", *(words.metric(name) for name in metrics), "seconds", *search.varied]
    rows = []
    for trial in search.trials:
        values: list[Any] = [trial.number, STATES[search.state(trial)], *(trial.metrics.get(name) for name in metrics)]
        values += [trial.seconds, *(trial.params.get(name) for name in search.varied)]
        values += [shortened(trial.failure, FAILURE_LENGTH)] if failed else []
        css = "chosen" if trial.selected else search.state(trial).lower()
        row = Row(
            search.target(trial), values[1], css, trial.selected, trial.pareto, tuple(_cell(value) for value in values)
        )
        rows.append(row)
    states = {row.state for row in rows}
    same = {
        name: value
        for name, value in (search.trials[0].params if search.trials else {}).items()
        if name not in search.varied
    }
    return Trials(
        (*heads, *(["failure"] if failed else [])),
        tuple(rows),
        tuple(text for text in STATES.values() if text in states),
        words.setting(same),
    )


def _cell(value: Any) -> Cell:
    if value is None or value == "":
        return Cell("", "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(tables.shown(value), value)
    return Cell(tables.shown(value), str(encode(value)))


def _failures(search: Search) -> Table | None:
    """Each failure once, with the trials that met it."""
    found: dict[str, list[TrialView]] = {}
    for trial in search.trials:
        if trial.state == "FAIL":
            found.setdefault(trial.failure or "unknown", []).append(trial)
    if not found:
        return None
    rows = [
        (
            ", ".join(str(trial.number) for trial in trials),
            f"{failure}: put back, and tried again by the next run" if failure == INTERRUPTED else failure,
            str(trials[-1].folder),
        )
        for failure, trials in found.items()
    ]
    return Table(("trials", "failure", "log in"), tuple(rows))


def _facts(search: Search) -> Iterator[tuple[str, Table]]:
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
        ("split", words.PROTOCOLS.get(config.protocol, config.protocol)),
        ("objectives", words.listed([f"{way} {words.metric(name)}" for name, way in config.objectives.items()])),
        ("constraints", words.listed([f"{name} {limit}" for name, limit in config.constraints.items()]) or "none"),
        ("threshold", f"{config.threshold.rule}, rate {config.threshold.rate:g}"),
        ("sampler", f"{config.sampler.name}, seed {config.sampler.seed}"),
        ("pruner", config.pruner.name),
        (
            "seeds",
            f"all follow from {config.sampler.seed} and a trial's number; fits of the selected setting: {config.seeds}",
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
                    (name, found.get("tag", ""), found.get("origin", ""), found.get("sha256", "")[:16])
                    for name, found in header.backbones.items()
                ),
            ),
        )
    places = {
        str(sorted(place.items())): place for trial in search.trials if (place := trial.outcome.get("environment"))
    }
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
            "Ledger: every scoring on test",
            Table(
                ("time", "trial", "purpose", "image AUROC", "host"),
                tuple((line.time, line.trial, line.purpose, line.image_auroc, line.host) for line in ledger),
            ),
        )


def _commands(view: StudyView) -> Iterator[tuple[str, str]]:
    name = shlex.quote(view.study.study_name)
    file = f"{view.study.study_name.partition('#')[0]}.yaml"
    yield f"study run {shlex.quote(file)} --fresh", f"the same study anew, with the study file below as {file}"
    yield f"study show {name}", "trials and figures in the terminal"
    yield f"study predict {name} IMAGE...", "score, verdict and heat map of new images"
    yield f"study compare {name}", "beside the figures that others published"
