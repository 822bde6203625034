"""Tables for the terminal, and the same content as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from studies.file.encoding import encode
from studies.file.keys import ParameterKey
from tracking.addresses import without_password

if TYPE_CHECKING:  # every command prints tables; only some wait seconds for torch and scikit-learn
    from studies.search.outcome import Outcome
    from studies.search.plan import Plan
    from studies.search.view import StudyView, TrialView
    from studies.show.insight import Savings

METRIC_COLUMNS = ("image_auroc", "pixel_auroc", "pixel_aupro")


def console(*, stderr: bool = False) -> Console:
    """A console that does not break tables into pieces where the output is a file or a pipe."""
    drawn = Console(stderr=stderr)
    return drawn if drawn.is_terminal else Console(stderr=stderr, width=200)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """Numbers to the right, words to the left, everything shown whole."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(shown(value)) for value in row))
    return drawn


@dataclass(frozen=True)
class Fitted:
    """A table that leaves out columns, and says so, where the terminal is too narrow for all of them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str
    spare: Sequence[str]
    """Columns that may go, the first to go first."""
    elsewhere: str
    """Where a person finds what was left out."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        gone: list[str] = []
        while (drawn := self._without(gone)) and len(gone) < len(self.spare):
            if Measurement.get(console, options.update_width(10_000), drawn).maximum <= options.max_width:
                break
            gone.append(self.spare[len(gone)])
        yield drawn
        if gone:
            names = ", ".join(name.replace("\n", "_") for name in gone)
            yield Text(f"no room for {names}: {self.elsewhere}", style="dim")

    def _without(self, gone: Sequence[str]) -> Table:
        kept = [index for index, column in enumerate(self.columns) if column not in gone]
        rows = [[row[index] for index in kept] for row in self.rows]
        return table([self.columns[index] for index in kept], rows, title=self.title)


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.1f}" if 10 <= abs(value) < 100 else f"{value:.4g}"
        )
    return str(encode(value))


def plan_tables(plan: Plan) -> Iterator[Table]:
    """What ``--dry-run`` shows."""
    config = plan.config
    budget = ", ".join(f"{name} {value:g}" for name, value in config.budget.model_dump(exclude_none=True).items())
    yield table(
        ("study", config.name),
        [
            ("detector", config.detector_label),
            ("experiment", plan.experiment),
            ("images", plan.images.source),
            ("image size", "x".join(map(str, config.data.size))),
            ("protocol", plan.images.protocol),
            ("objectives", ", ".join(f"{way} {name}" for name, way in config.objectives.items())),
            ("constraints", ", ".join(f"{name} {limit}" for name, limit in config.constraints.items()) or "none"),
            ("budget", budget),
            ("pruner", config.pruner.name),
            ("sampler", f"{config.sampler.name}, seed {config.sampler.seed}"),
            ("device", str(plan.device)),
            ("baselines", str(len(config.baselines))),
        ],
    )
    yield table(("parameter", "values"), plan.space.describe(), title="search space")
    yield table(
        ("backbone", "weights from", "tag", "sha256"),
        [(name, found.origin, found.tag, found.sha256[:12]) for name, found in plan.backbones.items()],
        title="backbones",
    )
    kinds = list(dict.fromkeys(kind for types in plan.images.counts.values() for kind in types))
    rows = [
        (name, *(types.get(kind, 0) for kind in kinds), sum(types.values()))
        for name, types in plan.images.counts.items()
    ]
    yield table(("set", *kinds, "all"), rows, title="images")


def trial_table(view: StudyView, trials: Sequence[TrialView] | None = None) -> Fitted:
    """All trials of a study, the selected one marked; parameters that never vary stand in the title."""
    trials = view.trials() if trials is None else trials
    prefix = "test" if view.config.protocol == "paper" else "val"
    known = [trial.params for trial in trials if trial.params]
    every = list(dict.fromkeys(name for params in known for name in params))
    # What only one detector has would be a column of gaps, and those of nine are wider than any terminal.
    names = [name for name in every if all(name in params for params in known)]
    varied = [name for name in names if len({str(params[name]) for params in known}) > 1]
    same = [f"{name} {shown(known[0][name])}" for name in names if name not in varied]
    # Without masks there are no pixel metrics.
    measured = [name for name in METRIC_COLUMNS if any(f"{prefix}/{name}" in trial.metrics for trial in trials)]
    rows = [
        (
            f"{'*' if trial.selected else ' '}{trial.number}{' P' if trial.pareto else ''}",
            "infeasible" if trial.feasible is False else trial.state.lower(),
            *(trial.metrics.get(f"{prefix}/{metric}") for metric in measured),
            trial.metrics.get("fps"),
            trial.seconds,
            *(trial.params.get(name) for name in varied),
        )
        for trial in trials
    ]
    heads = [metric.replace("_", "\n") for metric in measured]
    short = [name.replace("_", "\n", 1) for name in varied]
    if any(trial.pareto for trial in trials):
        prefix += "; P: on the Pareto front"
    title = f"trials, metrics on {prefix}" + (f"; all with {', '.join(same)}" if same else "")
    if len(names) < len(every):
        title += "; settings of single detectors are in the report"
    return Fitted(
        ("trial", "state", *heads, "fps", "seconds", *short),
        rows,
        title,
        spare=[*reversed(heads[1:]), "seconds", *reversed(short), "fps"],
        elsewhere=f"in a wider terminal, `study report {view.study.study_name}` or `study show {view.study.study_name} --json`",
    )


def trial_json(trial: TrialView) -> dict[str, Any]:
    """A trial for scripts."""
    return {
        "number": trial.number,
        "state": trial.state,
        "selected": trial.selected,
        "pareto": trial.pareto,
        "feasible": trial.feasible,
        "params": trial.params,
        "values": list(trial.frozen.values or []),
        "metrics": trial.metrics,
        "test_metrics": trial.test_metrics,
        "failure": trial.failure,
        "seconds": trial.seconds,
        "stages": trial.outcome.get("seconds", {}),
        "asked": _timestamp(trial.frozen.datetime_start),
        "told": _timestamp(trial.frozen.datetime_complete),
        "folder": str(trial.folder),
        "detector": str(trial.detector) if trial.detector else None,
        "detectors": {name: str(folder) for name, folder in trial.detectors.items()},
    }


def _timestamp(moment: datetime | None) -> float | None:
    """Seconds since the epoch."""
    return moment.timestamp() if moment else None


def study_json(view: StudyView) -> dict[str, Any]:
    """A study for scripts."""
    from studies.show import insight

    header = view.header
    return {
        "name": view.study.study_name,
        "uid": header.uid,
        "experiment": header.experiment,
        "identity": header.identity,
        "counts": header.counts,
        "backbones": header.backbones,
        "dropped": header.dropped,
        "config": view.config.to_json(),
        "trials": [trial_json(trial) for trial in view.trials()],
        "savings": asdict(saved) if (saved := insight.savings(view)) else None,
        "importances": insight.importances(view),
        "effects": [asdict(effect) for effect in insight.effects(view)],
        "ledger": [line.model_dump() for line in view.ledger()],
    }


def outcome_json(outcome: Outcome) -> str:
    """What ``study run --json`` prints."""
    data = study_json(outcome.view) | {
        "reason": outcome.reason,
        "selected": outcome.selected.number if outcome.selected else None,
        "parent_run_id": outcome.parent_run_id,
    }
    return json.dumps(data, indent=1)


def study_parts(view: StudyView) -> Iterator[RenderableType]:
    """What ``study show`` prints."""
    from studies.show import insight

    header = view.header
    sets = ", ".join(f"{name} {sum(types.values())}" for name, types in header.counts.items())
    yield Text.assemble(
        (view.study.study_name, "bold"),
        f": {view.config.detector_label} on {header.experiment}, protocol {view.config.protocol} ({sets})",
    )
    if header.dropped:
        yield Text(f"left out, no weights when it was created: {', '.join(header.dropped)}", "yellow")
    yield trial_table(view)
    failed = [trial for trial in view.trials() if trial.state == "FAIL"]
    for trial in failed[-3:]:
        yield Text(f"trial {trial.number} failed: {trial.failure}", "red")
    if (saved := insight.savings(view)) is not None:
        yield Text(savings_text(saved))
    yield from selected_parts(view)


def savings_text(saved: Savings) -> str:
    """One line on what pruning was good for."""
    share = saved.seconds / (saved.seconds + saved.spent)
    return (
        f"pruning ended {saved.trials} trainings early and saved about {saved.seconds:.0f} s "
        f"({share:.0%} of what all trainings would have taken; {saved.epochs} epochs)"
    )


def insight_parts(view: StudyView) -> Iterator[RenderableType]:
    """How much each parameter matters, and how the trials with each of its values did."""
    from studies.show import insight

    shares = insight.importances(view)
    if not shares:
        return
    rows = [(name, share, "█" * round(20 * share)) for name, share in shares.items()]
    yield table(("parameter", "importance", ""), rows, title=f"what matters for {next(iter(view.config.objectives))}")
    known = {ParameterKey.parse(key).name for key in shares}
    effects = [
        (effect.parameter, effect.value, effect.trials, effect.mean, effect.best)
        for effect in insight.effects(view)
        if effect.parameter in known
    ]
    yield table(("parameter", "value", "trials", "mean", "best"), effects, title="what each choice did")


def selected_parts(view: StudyView) -> Iterator[RenderableType]:
    """The selected trial and its honest figure."""
    from studies.search.summary import headline

    selected = view.selected()
    if selected is None:
        yield Text("no trial is selected yet")
        return
    setting = ", ".join(f"{name} {shown(value)}" for name, value in selected.params.items())
    yield Text(f"selected: trial {selected.number}: {setting}")
    prefix = "test" if view.config.protocol == "paper" else "val"
    if prefix == "val" and (told := headline(selected.metrics, "val")):
        yield Text(f"  on validation, which chose it: {told}")
    metrics = selected.test_metrics if selected.final and prefix == "val" else selected.metrics
    if told := headline(metrics, "test"):
        where = "on test, which the search never saw" if prefix == "val" else "on the whole test set (protocol paper)"
        yield Text(f"  {where}: {told}", "bold green")
        rows = [(name.removeprefix("test/"), value) for name, value in metrics.items() if name.startswith("test/")]
        yield Padding(table(("metric on test", "value"), rows), (0, 0, 0, 2), expand=False)
    if "rendered/" in view.header.experiment:
        yield Text("  the images were rendered: a demonstration, not a result", "yellow")
    yield Text(f"  scorings on test so far: {len(view.ledger())}")


def outcome_parts(outcome: Outcome) -> Iterator[RenderableType]:
    """What ``study run`` prints at the end."""
    view = outcome.view
    yield from study_parts(view)
    selected = outcome.selected
    if selected is None:
        return
    images = sorted((selected.final_folder / "artifacts" / "heatmaps").glob("*.png"))
    images = images or sorted((selected.folder / "artifacts" / "heatmaps").glob("*.png"))
    if images:
        yield Text.assemble("heat map: ", (str(images[0]), "cyan"), f" (and {len(images) - 1} more beside it)")
    for category, folder in selected.detectors.items():
        yield Text.assemble(f"detector{f' of {category}' if category else ''}: ", (str(folder), "cyan"))
    yield Text.assemble("report: ", (f"study report {view.study.study_name} --open", "cyan"))
    yield Text.assemble("trials in MLflow: ", ("study ui", "cyan"), f"  ({without_password(view.home.tracking_uri)})")
    yield Text.assemble("try it: ", (f"study predict {view.study.study_name} IMAGE...", "cyan"))
