"""The sentences, cautions and tiles that a study's part of a report begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detectors.data.samples import GOOD
from detectors.scoring.operating_point import Counts
from detectors.scoring.ranked_by import ranks_by
from studies.report import phrases
from studies.report.on_test import ProductOnTest
from studies.report.search import STATES, Search
from studies.search import nested, threshold_words
from studies.search.choice import sentences
from studies.search.gain import gain
from studies.search.nested import Estimate
from studies.search.operating_point import OperatingPoint, points_on_test, pooled
from studies.search.summary import IN_SAMPLE, headline
from studies.search.view import TrialView

WIDE_INTERVAL = 0.1
"""From this width of its confidence interval on, the summary warns that a figure is uncertain."""


MANY_MISSES = 0.2
"""From this share of missed defects on, the summary mentions that the threshold is a choice."""


@dataclass(frozen=True)
class Tile:
    """One of the figures that stand large at the top of a study's part."""

    label: str
    value: str
    detail: str = ""
    """Small print below the value."""


def summary_sentences(search: Search, selected: TrialView | None, tests: Sequence[ProductOnTest]) -> Iterator[str]:
    """The summary of a study, the most important sentence first.

    Args:
        selected: the trial that the study would deploy; None if there is none yet.
        tests: the selected trial on test, one entry for each product; empty before it was scored there.
    """
    if selected is None:
        yield _nothing_selected(search)
        return
    scored = [test for test in tests if test.auroc is not None]
    yield _headline(search, selected, scored)
    yield _choice(search)
    if (found := gain(search.view)) is not None:
        yield f"{found.line[0].upper()}{found.line[1:]}."
    if search.view.is_in_sample:
        yield f"{IN_SAMPLE[0].upper()}{IN_SAMPLE[1:]}."
    elif search.view.is_nested:
        yield from _by_nested(search, selected)
    elif not scored:
        figures = headline(selected.metrics, "val")
        name = search.view.address
        yield f"`study run {name}` scores it on test when the search is over."
        if figures:
            yield f"On validation, which chose it: {figures}; that figure is too good, because the search looked at it."
    elif len(scored) == 1:
        yield from _one_product(search, selected, scored[0])
    else:
        yield from _several_products(scored)
    if (fps := selected.metrics.get("fps")) is not None:
        machine = _machine(selected)
        place = f" on {machine}" if machine else ""
        yield f"Its speed is {phrases.speed(fps)}{place}, measured one image at a time with nothing else running."
    if search.view.keeps_test:
        yield _scorings(search)


def _by_nested(search: Search, selected: TrialView) -> Iterator[str]:
    """How a study without test images is judged, and what its threshold rests on."""
    found = search.view.nested()
    if found is None:
        yield f"No image is kept for test; `study run {search.view.address}` makes a nested estimate when the search is over."
    else:
        yield from (f"{text[0].upper()}{text[1:]}." for text in nested.sentences(found))
    for point in points_on_test(search.view, selected):
        if point.threshold is not None:
            yield from (f"{text[0].upper()}{text[1:]}." for text in threshold_words.lines(point.threshold))


def _nothing_selected(search: Search) -> str:
    config, trials = search.config, search.trials
    name = search.view.address
    running = sum(trial.state == "RUNNING" for trial in trials)
    if search.finished:
        limits = phrases.listed([f"{metric} {condition}" for metric, condition in config.constraints.items()])
        return (
            f"None of the {len(search.finished)} finished trials meets the constraints ({limits}), so nothing is selected. "
            "The charts below show how far each trial is from them."
        )
    if not trials:
        return f"No trial has begun yet. `study run {name}` starts the search."
    if running:
        return f"No trial is finished yet; {phrases.several(running, 'trial')} running."
    return "No trial is finished; what failed is listed below."


def _headline(search: Search, selected: TrialView, tests: Sequence[ProductOnTest]) -> str:
    """What was selected, what it finds and stops on test, and its image AUROC there."""
    what = f"{phrases.detector(selected.detector_name)} with {selected.params.get('backbone', 'its backbone')}"
    begin = f"{what} (trial {selected.number})"
    begin = f"Best here: {begin}" if search.config.protocol == "paper" else f"Selected: {begin}"
    if search.view.is_in_sample:
        return f"{begin}, the first setting, of which nothing is known."
    if search.view.is_nested:
        estimate = search.view.nested()
        judged = "not yet judged" if estimate is None else f"by a {nested.CALLED} {nested.headline(estimate)}"
        return f"{begin}, {judged}."
    tested = {**selected.metrics, **selected.test_metrics}
    value, what = tested.get(ranks_by(tested, "test")), phrases.metric(ranks_by(tested, "test"))
    if not tests or value is None:
        return f"{begin}, not yet scored on test."
    counts = _all_counts(tests)
    found = threshold_words.found(counts) if counts is not None else ""
    begin = f"{begin} {found} on test; " if found else f"{begin}, "
    on_test = "" if counts is not None else " on test"
    if len(tests) > 1:
        return f"{begin}{what} {value:.3f}{on_test}, on average over {len(tests)} products."
    interval = phrases.interval(tests[0].metrics, tests[0].ranks_by)
    return f"{begin}{what} {value:.3f}{on_test}{f' (95 % interval {interval})' if interval else ''}."


def _all_counts(tests: Sequence[ProductOnTest]) -> Counts | None:
    return pooled(OperatingPoint(test.product, test.counts, None) for test in tests)


def _choice(search: Search) -> str:
    """Why this trial was selected."""
    config = search.config
    feasible = phrases.several(sum(trial.feasible is True for trial in search.finished), "finished trial")
    limits = phrases.listed([f"{metric} {condition}" for metric, condition in config.constraints.items()])
    meets = f" that meet {limits}" if limits else ""
    if config.protocol == "paper":
        return f"The study file lists all settings, and each was scored on the whole test set ({feasible}{meets})."
    best, objective = "highest" if config.direction == "maximize" else "lowest", phrases.metric(search.objective)
    choice = search.view.choice()
    has = f"has the {best} {objective} on validation among the {feasible}{meets}"
    if choice is None or not (said := sentences(choice, config)):
        return f"It {has}."
    which = f"Trial {choice.leader}" if choice.leader != choice.trial else "It"
    ranked = "" if choice.fresh_fits else f"{which} {has}. "
    return ranked + " ".join(f"{text[0].upper()}{text[1:]}." for text in said)


def _one_product(search: Search, selected: TrialView, test: ProductOnTest) -> Iterator[str]:
    counts = search.view.header.counts.get("test", {})
    good = counts.get(GOOD, 0)
    unseen = " that the search never saw" if search.config.protocol != "paper" else ""
    defective = sum(counts.values()) - good
    if test.painted:
        yield (
            f"There are no labelled defects: the test set has {phrases.several(good, 'good image')}{unseen}, and {defective} "
            "that a defect was painted into, from tiny and faint to large and clear. The ranking score orders settings by them; "
            "how many real defects are found is not known."
        )
    else:
        yield (
            f"The test set has {phrases.several(sum(counts.values()), 'image')}{unseen}, {good} good and "
            f"{defective} defective. Shown one of each, the detector gives the defective one the higher score "
            f"in about {100 * (test.auroc or 0.0):.0f} of 100 cases."
        )
    seeds = selected.test_metrics
    if "test/image_auroc_seeds_std" in seeds:
        yield (
            f"Fitted with {seeds['seeds']:g} seeds the AUROC is {seeds['test/image_auroc_seeds_mean']:.3f} ± "
            f"{seeds['test/image_auroc_seeds_std']:.3f} on average."
        )
    if test.threshold:
        yield f"Threshold {test.threshold}."
    if (weakest := test.weakest) is not None and weakest.auroc is not None:
        detected = f", {weakest.detected} of {weakest.images} found" if weakest.detected is not None else ""
        what = "ranking score" if test.painted else "AUROC"
        yield f"It is weakest on {weakest.name} ({what} {weakest.auroc:.3f}{detected})."


def _several_products(scored: Sequence[ProductOnTest]) -> Iterator[str]:
    best, worst = (choose(scored, key=lambda test: test.auroc or 0.0) for choose in (max, min))
    yield f"It does best on {best.product} ({best.auroc:.3f}) and worst on {worst.product} ({worst.auroc:.3f})."


def _scorings(search: Search) -> str:
    ledger = search.view.ledger()
    if not ledger:
        return "The test images were not scored yet."
    times = {1: "once", 2: "twice"}.get(len(ledger), f"{len(ledger)} times")
    return f"The test images were scored {times} in this study; the ledger below lists it."


def cautions(search: Search, selected: TrialView | None, tests: Sequence[ProductOnTest]) -> Iterator[str]:
    """What to know before relying on the figures; arguments as in `summary_sentences`."""
    view, config = search.view, search.config
    name = view.address
    if view.header.experiment.startswith("rendered/"):
        yield "The images were drawn by a program: a demonstration, not a result."
    if config.protocol == "synthetic":
        yield (
            "There were no labelled defects, so all figures are on defects painted into good images. They show how well such "
            "defects are found; real ones may be harder or easier."
        )
    for fault in view.ledger_faults():
        yield f"The ledger of the test images is at fault: {fault}. How often they were scored is not known for sure."
    running = [trial for trial in search.trials if trial.state == "RUNNING"]
    if running:
        yield (
            f"{phrases.several(len(running), 'trial')} still running, or cut off by a run that died: results are not final. "
            f"`study run {name}` continues the search."
        )
    if selected is not None:
        yield from _uncertainties(search, selected, tests)
    if "@random" in "".join(view.header.backbones):
        yield "A backbone has random weights, which are useful for tests only."
    if view.header.dropped:
        yield f"Left out, because their weights were not on the machine: {phrases.listed(view.header.dropped)}."
    failed = sum(trial.state == "FAIL" for trial in search.trials)
    if failed and search.finished:
        yield f'{phrases.several(failed, "trial")} failed; see "What failed" below the table of trials.'


def _uncertainties(search: Search, selected: TrialView, tests: Sequence[ProductOnTest]) -> Iterator[str]:
    """Figures that are less certain than they look."""
    config, name = search.config, search.view.address
    if config.protocol == "paper" and len(search.finished) > 1:
        yield "The best of several trials was chosen by the same test figure, which makes that figure a little too good."
    for test in tests:
        the, this = (f"{test.product}: the", f"{test.product}: at this") if test.product else ("The", "At this")
        low, high = test.metrics.get("test/image_auroc_low"), test.metrics.get("test/image_auroc_high")
        if low is not None and high is not None and high - low > WIDE_INTERVAL:
            yield (
                f"{the} interval of the AUROC is wide ({low:.2f} to {high:.2f}), because there are few test images; "
                "with more labelled images it would be narrower."
            )
        for remark in test.remarks:
            yield f"{test.product}: {remark}." if test.product else f"{remark[0].upper()}{remark[1:]}."
        if (confusion := test.confusion) is not None and confusion.missed > MANY_MISSES * confusion.defective:
            text = f"{this} threshold {phrases.share(confusion.missed, confusion.defective, 'defects')} are missed."
            if test.looser is not None and test.looser < 1:
                text += (
                    f" The threshold is a choice: `study run {name} --set threshold.rate={test.looser:g}` allows more false "
                    "alarms and misses fewer defects; the ROC curve shows what can be gained."
                )
            yield text
    before, after = selected.metrics.get("val/image_auroc"), selected.test_metrics.get("test/image_auroc")
    if before is not None and after is not None and before > after:
        yield (
            f"On validation, which chose it, the image AUROC was {before:.3f}. A search always makes that figure too good; "
            f"rely on the {after:.3f} on test."
        )


def tiles(search: Search, selected: TrialView | None, tests: Sequence[ProductOnTest]) -> Iterator[Tile]:
    """The figures at the top of the section; arguments as in `summary_sentences`."""
    if selected is None:
        states = {text: sum(search.state(trial) == state for trial in search.trials) for state, text in STATES.items()}
        yield from (Tile(f"trials {text}", str(count)) for text, count in states.items() if count)
        return
    scored = [test for test in tests if test.auroc is not None]
    if (counts := _all_counts(scored)) is not None:
        if counts.defective:
            painted = "painted " if scored[0].painted else ""
            yield _rate_tile(f"{painted}defects found on test", counts.caught, counts.defective)
        if counts.good:
            yield _rate_tile("false alarms on test", counts.alarms, counts.good)
    if (estimate := search.view.nested()) is not None:
        yield from _nested_tiles(estimate)
    tested = {**selected.metrics, **selected.test_metrics}
    value, on_validation = tested.get(ranks_by(tested, "test")), ranks_by(selected.metrics, "val")
    if scored and value is not None:
        interval = phrases.interval(scored[0].metrics, scored[0].ranks_by) if len(scored) == 1 else ""
        detail = (
            f"95 % interval {interval}" if interval else f"mean of {len(scored)} products" if len(scored) > 1 else ""
        )
        yield Tile(f"{'ranking score' if scored[0].painted else 'image AUROC'} on test", f"{value:.3f}", detail)
    elif not search.view.is_in_sample and (value := selected.metrics.get(on_validation)) is not None:
        what = "image AUROC" if on_validation == "val/image_auroc" else "ranking score"
        detail = "which chose it" if search.view.is_nested else "not scored on test yet"
        yield Tile(f"{what} on validation", f"{value:.3f}", detail)
    metrics = selected.metrics
    if "fps" in metrics:
        yield Tile("speed", f"{metrics['fps']:.3g} / s", _machine(selected))
    if "train_seconds" in metrics:
        size = f"model of {metrics['model_size_mb']:.3g} MB" if "model_size_mb" in metrics else ""
        yield Tile("time to fit", phrases.duration(metrics["train_seconds"]), size)
    finished = sum(trial.state in ("COMPLETE", "PRUNED") for trial in search.trials)
    yield Tile("trials", str(finished), f"of {search.config.budget.trials} in the budget")


def _nested_tiles(found: Estimate) -> Iterator[Tile]:
    labels = {"image_recall": "defects found", "false_alarm_rate": "false alarms"}
    metrics = found.metrics
    for name in ("image_recall", "false_alarm_rate", "image_auroc"):
        if (value := metrics.get(f"{nested.NESTED}/{name}")) is not None:
            low, high = metrics[f"{nested.NESTED}/{name}_low"], metrics[f"{nested.NESTED}/{name}_high"]
            shown = f"{value:.3f}" if name not in labels else threshold_words.percent(value)
            detail = f"95 % interval {low:.2f} to {high:.2f}"
            yield Tile(f"{labels.get(name, 'image AUROC')}, {nested.CALLED}", shown, detail)


def _rate_tile(label: str, count: int, of: int) -> Tile:
    """``16 of 58`` with the share and its interval in small print."""
    _, _, detail = phrases.share_with_interval(count, of).partition(" (")
    return Tile(label, f"{count} of {of}", detail.rstrip(")"))


def _machine(trial: TrialView) -> str:
    """Where the speed of the trial was measured: device, its name, CPU threads."""
    environment = trial.outcome.environment
    threads = trial.metrics.get("latency_threads")
    parts = [str(environment[name]) for name in ("device", "device_name") if environment.get(name)]
    return " ".join(parts) + (f" with {phrases.several(int(threads), 'thread')}" if threads and parts else "")
