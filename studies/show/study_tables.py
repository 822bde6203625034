"""What the terminal shows of a study: its plan, its trials, what was selected, and what each parameter did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detectors.backbones.weights import digits
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file.keys import ParameterKey
from studies.search import advice_words, nested, threshold_words
from studies.search.choice import sentences
from studies.search.gain import gain
from studies.search.operating_point import metrics_on_test, points_on_test, pooled
from studies.search.outcome import Outcome
from studies.search.plan import Plan
from studies.search.summary import IN_SAMPLE, headline
from studies.search.tried_first import tried_first
from studies.search.usable_words import usable_now
from studies.search.view import StudyView, TrialView
from studies.show import insight
from studies.show.insight import Savings
from studies.show.tables import Fitted, shown, table
from tracking.addresses import without_password

METRIC_COLUMNS = (RANKING_SCORE, "image_auroc", RECALL, FALSE_ALARMS, "pixel_auroc", "pixel_aupro")
"""Metrics that the table of trials shows."""


def plan_tables(plan: Plan) -> Iterator[Table]:
    """The tables that ``study run --dry-run`` prints."""
    config = plan.config
    firsts = tried_first(plan)
    budget = ", ".join(
        f"{name} {value:g}" for name, value in config.budget.model_dump(exclude_none=True).items() if value
    )
    yield table(
        ("study", config.name),
        [
            ("state", plan.standing),
            ("detector", config.detector_label),
            ("experiment", plan.experiment),
            ("images", plan.images.source),
            ("image size", "x".join(map(str, config.data.size))),
            ("protocol", plan.images.protocol),
            ("objectives", ", ".join(f"{way} {name}" for name, way in config.objectives.items())),
            ("constraints", ", ".join(f"{name} {limit}" for name, limit in config.constraints.items()) or "none"),
            ("budget", budget),
            ("pruner", config.pruner.name),
            ("sampler", _sampler_text(plan)),
            ("device", str(plan.device)),
            ("baselines", str(sum(one.kind == "baseline" and not one.skipped for one in firsts))),
        ],
    )
    yield table(("parameter", "values"), plan.space.describe(), title="search space")
    if firsts:
        yield table(
            ("tried first", "setting", "note"),
            [
                (one.name, _setting(one.setting), f"skipped: {one.skipped}" if one.skipped else one.remark)
                for one in firsts
            ],
            title="tried before the search draws, each once",
        )
    yield table(
        ("backbone", "weights from", "tag", "sha256"),
        [(name, weights.origin, weights.tag, digits(weights.sha256)) for name, weights in plan.backbones.items()],
        title="backbones",
    )
    kinds = list(dict.fromkeys(kind for types in plan.images.counts.values() for kind in types))
    rows = [
        (name, *(types.get(kind, 0) for kind in kinds), sum(types.values()))
        for name, types in plan.images.counts.items()
    ]
    yield table(("set", *kinds, "all"), rows, title="images")


def _setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def _sampler_text(plan: Plan) -> str:
    """``gp, seed 0 (auto: every searched parameter is a number, and 40 trials are few)``"""
    chosen = plan.sampler
    reason = f" (auto: {chosen.reason})" if chosen.reason else ""
    return f"{chosen.name}, seed {plan.config.sampler.seed}{reason}"


def trial_table(view: StudyView, trials: Sequence[TrialView] | None = None) -> Fitted:
    """A table of trials, with an asterisk at the selected one and a P at those on the Pareto front.

    Parameters that have the same value in all trials are in the title.

    Args:
        trials: which to show; default all trials of the study.
    """
    trials = view.trials() if trials is None else trials
    prefix = "test" if view.config.protocol == "paper" else "val"
    known = [trial.params for trial in trials if trial.params]
    every = list(dict.fromkeys(name for params in known for name in params))
    # A parameter that only some detectors have would be a column of gaps, and those of nine detectors fit no terminal.
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
    if RECALL in measured and prefix == "val":
        prefix += "; its good images are among those that each threshold rests on"
    if any(trial.pareto for trial in trials):
        prefix += "; P: on the Pareto front"
    title = f"trials, metrics on {prefix}" + (f"; all with {', '.join(same)}" if same else "")
    if len(names) < len(every):
        title += "; parameters of single detectors are in the report"
    return Fitted(
        ("trial", "state", *heads, "fps", "seconds", *short),
        rows,
        title,
        spare=[*reversed(heads[1:]), "seconds", *reversed(short), "fps"],
        elsewhere=f"in a wider terminal, `study report {view.address}` or `study show {view.address} --json`",
    )


def study_parts(view: StudyView, *, all_figures: bool = True) -> Iterator[RenderableType]:
    """What ``study show`` prints before the figures on parameters.

    Args:
        all_figures: with the table of every figure on test.
    """
    header = view.header
    sets = ", ".join(f"{name} {sum(types.values())}" for name, types in header.counts.items())
    yield Text.assemble(
        (view.study.study_name, "bold"),
        f": {view.config.detector_label} on {header.experiment}, protocol {view.config.protocol} ({sets})",
    )
    if header.dropped:
        yield Text(
            f"left out, because the weights were missing when the study began: {', '.join(header.dropped)}",
            "yellow",
        )
    yield trial_table(view)
    if warm := ", ".join(f"{one.number} ({source})" for one in view.trials() if (source := one.attributes.warm_from)):
        yield Text(f"trials from a warm start: {warm}")
    failed = [trial for trial in view.trials() if trial.state == "FAIL"]
    for trial in failed[-3:]:
        yield Text(f"trial {trial.number} failed: {trial.failure}", "red")
    if (saved := insight.savings(view)) is not None:
        yield Text(savings_text(saved))
    yield from selected_parts(view, all_figures=all_figures)


def selected_parts(view: StudyView, *, all_figures: bool = True) -> Iterator[RenderableType]:
    """The selected trial with its figures on validation and on test; arguments as of `study_parts`."""
    for fault in view.ledger_faults():
        yield Text(f"the ledger of the test images is at fault: {fault}", "bold red")
    selected = view.selected()
    if selected is None:
        yield Text("no trial is selected yet")
        if (usable := view.usable()) is not None:
            yield Text(f"  {usable_now(view, usable)}", "yellow")
        return
    yield Text(f"selected: trial {selected.number}: {_setting(selected.params)}")
    if (choice := view.choice()) is not None:
        yield from (Text(f"  {text}") for text in sentences(choice, view.config))
    prefix = "test" if view.config.protocol == "paper" else "val"
    metrics = metrics_on_test(view, selected) if selected.final and prefix == "val" else selected.metrics
    if view.is_in_sample:
        yield Text(f"  {IN_SAMPLE}", "yellow")
        return
    if not selected.detectors and (usable := view.usable()) is not None:
        yield Text(f"  {usable_now(view, usable)}", "yellow")
    if view.is_nested:
        yield from _nested(view)
    yield from _on_test(view, selected, metrics)
    if prefix == "val" and (validation := headline(selected.metrics, "val")):
        where = "all labelled images" if view.is_nested else "validation"
        yield Text(f"  on {where}, which chose it: {validation}")
    if (found := gain(view)) is not None:
        yield Text(f"  {found.line}")
    rows = [(name.removeprefix("test/"), value) for name, value in metrics.items() if name.startswith("test/")]
    if rows and all_figures:
        yield Padding(table(("metric on test", "value"), rows), (0, 0, 0, 2), expand=False)
    if "rendered/" in view.header.experiment:
        yield Text("  the images were drawn by a program: this is a demonstration, not a result", "yellow")
    if view.keeps_test:
        yield Text(f"  times the test images were scored so far: {len(view.ledger())}")
    if help_most := advice_words.lines(view, selected):
        yield Text("what would help most:")
        yield from (Text(f"  {line}") for line in help_most)


def _nested(view: StudyView) -> Iterator[Text]:
    """What the choice of a study without test images is worth."""
    if (found := view.nested()) is None:
        yield Text("  no image is kept for test; a nested estimate is made when the search ends", "yellow")
        return
    yield Text(f"  {nested.CALLED}: {nested.headline(found)}", "bold green")
    yield from (Text(f"  {sentence}") for sentence in nested.sentences(found))


def _on_test(view: StudyView, selected: TrialView, metrics: Mapping[str, float]) -> Iterator[Text]:
    """What the selected trial catches and stops on test, its AUROC there, and what its threshold rests on."""
    points = points_on_test(view, selected)
    counts = pooled(points)
    if test := headline(metrics, "test", counts):
        is_paper = view.config.protocol == "paper"
        where = "on the whole test set (protocol paper)" if is_paper else "on test, which the search never saw"
        yield Text(f"  {where}: {test}", "bold green")
    if counts is not None and len(counts.per_defect) > 1:
        yield Text(f"  {threshold_words.each_type(counts)}")
    for point in points:
        if point.threshold is not None:
            basis, *remarks = threshold_words.lines(point.threshold, point.product)
            yield Text(f"  {basis}")
            yield from (Text(f"  {remark}", "yellow") for remark in remarks)


def savings_text(saved: Savings) -> str:
    """One line on the time that pruning saved."""
    share = saved.seconds / (saved.seconds + saved.spent)
    return (
        f"pruning ended {saved.trials} trainings early and saved about {saved.seconds:.0f} s "
        f"({share:.0%} of what all trainings would have taken; {saved.epochs} epochs)"
    )


def insight_parts(view: StudyView) -> Iterator[RenderableType]:
    """Tables of the importance of each parameter, and of how the trials with each value did; empty if that is not known."""
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


def outcome_parts(outcome: Outcome) -> Iterator[RenderableType]:
    """What ``study run`` prints at the end: the study, and where its heat maps, detectors and report are."""
    view = outcome.view
    yield from study_parts(view, all_figures=False)
    selected = outcome.selected
    if selected is None:
        return
    images = sorted((selected.final_folder / "artifacts" / "heatmaps").glob("*.png"))
    images = images or sorted((selected.folder / "artifacts" / "heatmaps").glob("*.png"))
    if images:
        yield Text.assemble("heat map: ", (str(images[0]), "cyan"), f" (and {len(images) - 1} more beside it)")
    for category, folder in selected.detectors.items():
        yield Text.assemble(f"detector{f' of {category}' if category else ''}: ", (str(folder), "cyan"))
    yield Text.assemble("all figures: ", (f"study show {view.address}", "cyan"))
    yield Text.assemble("report: ", (f"study report {view.address} --open", "cyan"))
    yield Text.assemble("trials in MLflow: ", ("study ui", "cyan"), f"  ({without_password(view.home.tracking_uri)})")
    yield Text.assemble("try it: ", (f"study predict {view.address} IMAGE...", "cyan"))
