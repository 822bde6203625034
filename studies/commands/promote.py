"""``study promote``, ``rollback`` and ``models``: the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from studies.home import Home
    from studies.release.promotion import Promoter, Promotion
    from studies.search.patient_storage import PatientStorage
    from studies.search.view import StudyView, TrialView
    from tracking.registry import Registry, Version

REFUSED = 3
"""Exit code."""


def promote(
    name: Annotated[str, typer.Argument(help="A study, STUDY/product, or with --version a registered model.")],
    trial: Annotated[int | None, typer.Option(help="Another trial than the selected one.", min=0)] = None,
    version: Annotated[
        str | None, typer.Option(metavar="N|ALIAS", help="A version that is there, e.g. one of `study retrain`.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="MODEL", help="Copy it to another registered model.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the gate's report, and change nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N: where the models are measured.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="Print the gate's report as JSON.")] = False,
) -> None:
    """Register a study's model and make it the champion, if it passes the gate (exit 3 where it does not)."""
    from detectors.errors import InputError
    from studies.show import tables

    if version is not None and trial is not None:
        raise InputError("--version and --trial contradict each other; give one of them")
    console = tables.console(stderr=json_output)
    with promoter_for(console, device) as promoter:
        if version is not None:
            chosen = promoter.registry.version(name, version)
            outcome = promoter.promote_version(chosen, to=to, dry_run=dry_run)
        else:
            outcome = _promote_trial(promoter, name, trial, to=to, dry_run=dry_run)
    if json_output:
        typer.echo(json.dumps(_outcome_json(outcome), indent=1))
    else:
        _print(outcome, console, dry_run=dry_run)
    if outcome.refused:
        raise typer.Exit(REFUSED)


def rollback(
    model: Annotated[str, typer.Argument(help="A registered model.")],
    reason: Annotated[str, typer.Option(help="Goes on record.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Make the champion before this one the champion again; the same command undoes it."""
    from studies.show import tables

    console = tables.console(stderr=json_output)
    with promoter_for(console, "cpu") as promoter:
        champion, before = promoter.roll_back(model, reason=reason)
    if json_output:
        typer.echo(json.dumps({"model": model, "champion": champion.version, "previous": before.version}, indent=1))
        return
    console.print(f"model {model}: version {champion.version} is champion again, version {before.version} is previous")


def models(
    name: Annotated[str | None, typer.Argument(help="A registered model; all without it.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Versions, aliases, metrics, gate results; of one model also who did what when."""
    from studies.show import tables

    console = tables.console(stderr=json_output)
    with _registry(console) as (_, _, registry):
        names = [name] if name else registry.names()
        if name:
            registry.version(name, registry.versions(name)[0].version if registry.versions(name) else "1")
        versions = {model: registry.versions(model) for model in names}
        faults = {model: registry.faults(model) for model in names}
        record = registry.audit.lines(name) if name else []
    if json_output:
        data = {
            model: {"versions": [_version_json(version) for version in found], "faults": faults[model]}
            for model, found in versions.items()
        }
        if name:
            data[name]["record"] = [line.model_dump(mode="json") for line in record]
        typer.echo(json.dumps(data, indent=1))
        return
    if not names:
        console.print("no registered models yet; `study promote NAME` makes the first")
    rows = [row for found in versions.values() for row in map(_version_row, found)]
    if rows:
        console.print(tables.table(list(rows[0]), [list(row.values()) for row in rows]))
    if record:
        told = [
            (line.time, line.user, line.host, line.action, line.version, line.before, _details(line.details))
            for line in record
        ]
        console.print(
            tables.table(("when", "who", "where", "what", "version", "champion before", ""), told, title="record")
        )
    for model, found_faults in faults.items():
        for fault in found_faults:
            console.print(f"warning: record of {model}: {fault}", style="yellow", markup=False)


@contextmanager
def _registry(console: Console) -> Iterator[tuple[Home, PatientStorage, Registry]]:
    from studies.release.locate import open_home
    from studies.release.promotion import open_registry
    from tracking.patience import Patience

    home, storage = open_home()
    yield (
        home,
        storage,
        open_registry(home, patience=Patience(tell=lambda text: console.print(text, style="yellow", markup=False))),
    )


@contextmanager
def promoter_for(console: Console, device: str) -> Iterator[Promoter]:
    """For a command that changes the registry, with its progress on the console."""
    from studies.release.promotion import Promoter

    with _registry(console) as (home, storage, registry), console.status("opening") as status:

        def tell(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text, markup=False, highlight=False)

        yield Promoter(home, storage, registry, device=device, tell=tell)


def _promote_trial(promoter: Promoter, name: str, number: int | None, *, to: str | None, dry_run: bool) -> Promotion:
    from detectors.errors import InputError
    from studies.release.locate import open_view

    study, _, product = name.partition("/")
    view = open_view(study)
    trial = view.selected() if number is None else _trial(view, number, promoter)
    if trial is None or not trial.detectors:
        raise InputError(f"study {study!r} has no saved detector yet; run it to its end first")
    if product not in trial.detectors:
        known = ", ".join(f"{study}/{category}" if category else study for category in trial.detectors)
        raise InputError(f"{name!r} is no detector; there are: {known}")
    return promoter.promote_trial(view, trial, product=product, to=to, dry_run=dry_run)


def _trial(view: StudyView, number: int, promoter: Promoter) -> TrialView:
    """A trial with its detector: one that was not selected is fitted once more, scored on test, and saved."""
    found = next((trial for trial in view.trials() if trial.number == number), None)
    if found is not None and found.detectors:
        return found
    from studies.executors.inline import InlineExecutor
    from studies.search.plan import Options, make_plan
    from studies.search.run import refit_trial
    from studies.search.stores import Stores

    promoter.tell(f"fitting trial {number} of {view.study.study_name} once more, and scoring it on test")
    plan = make_plan(view.config, view.home, Options(device=str(promoter.device), offline=True))
    return refit_trial(plan, InlineExecutor(), Stores.open(view.home), number)


def _print(outcome: Promotion, console: Console, *, dry_run: bool) -> None:
    from studies.show import tables

    report, model = outcome.report, outcome.model
    if report is None:
        console.print(f"model {model}: {_called(outcome)} is the champion already; nothing to do", markup=False)
        return
    rules = [(rule.name, rule.verdict, rule.outcome) for rule in report.rules]
    console.print(tables.table(("rule", "verdict", ""), rows=rules, title=f"gate of {model}"))
    if not report.passed:
        console.print(f"refused: {'; '.join(report.reasons)}", style="bold red", markup=False)
        before = f"version {outcome.before.version} stays champion" if outcome.before else "there is no champion"
        console.print(f"model {model}: {before}", markup=False)
    elif dry_run:
        console.print("the gate would pass it; nothing was changed", style="bold green")
    else:
        before = f"; version {outcome.before.version} is previous" if outcome.before else ""
        console.print(f"model {model}: {_called(outcome)} is the champion{before}", style="bold green", markup=False)
        console.print(f"serve it: study serve models:/{model}@champion", style="dim", markup=False)


def _called(outcome: Promotion) -> str:
    return f"version {outcome.version.version}" if outcome.version else "this trial"


def _outcome_json(outcome: Promotion) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "version": outcome.version.version if outcome.version else None,
        "promoted": outcome.promoted,
        "champion_before": outcome.before.version if outcome.before else None,
        "gate": outcome.report.to_json() if outcome.report else None,
    }


def _version_json(version: Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "created": version.created_ms / 1000,
        "description": version.description,
        "run_id": version.run_id,
        "tags": dict(version.tags),
    }


def _version_row(version: Version) -> dict[str, Any]:
    from datetime import UTC, datetime

    tags = version.tags
    auroc = tags.get("gate.image_auroc")
    return {
        "model": version.name,
        "version": int(version.version),
        "alias": ", ".join(version.aliases) or None,
        "gate": tags.get("gate.verdict"),
        "AUROC on test": float(auroc) if auroc else None,
        "p95 ms": float(tags["gate.latency_ms_p95"]) if "gate.latency_ms_p95" in tags else None,
        "MB": float(tags["gate.size_mb"]) if "gate.size_mb" in tags else None,
        "made": datetime.fromtimestamp(version.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        "by": tags.get("mlflow.user"),
        "from": version.description.partition(". ")[0],
    }


def _details(details: dict[str, Any]) -> str:
    reasons = details.get("reasons") or ([details["reason"]] if details.get("reason") else [])
    return "; ".join(map(str, reasons))[:200]
