"""``study promote``, ``rollback`` and ``models``: the registry."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InputError
from studies import api
from studies.commands.gate_lines import REFUSED as REFUSED
from studies.commands.gate_lines import print_outcome
from studies.commands.progress import remarks_to, steps_on
from studies.show import tables

if TYPE_CHECKING:
    from tracking.registry import Version


def promote(
    name: Annotated[str, typer.Argument(help="A study, STUDY/product, or with --version a registered model.")],
    trial: Annotated[int | None, typer.Option(help="Another trial than the selected one.", min=0)] = None,
    version: Annotated[
        str | None, typer.Option(metavar="N|ALIAS", help="A version that is there, e.g. one of `study retrain`.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="MODEL", help="Copy it to another registered model.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the gate's report, and change nothing.")] = False,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote it even if the gate refuses it; the reason goes on record."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N: where the models are measured.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="Print the gate's report as JSON.")] = False,
) -> None:
    """Register a study's model and make it the champion, if it passes the gate (exit 3 where it does not)."""
    if version is not None and trial is not None:
        raise InputError("--version and --trial contradict each other; give one of them")
    console = tables.console(stderr=json_output)
    with steps_on(console) as step:
        outcome = api.promote(
            name,
            trial=trial,
            version=version,
            to=to,
            dry_run=dry_run,
            force=force,
            device=device,
            progress=step,
            remark=remarks_to(console),
        )
    if json_output:
        typer.echo(json.dumps(_outcome_json(outcome), indent=1))
    else:
        print_outcome(outcome, console, dry_run=dry_run, force=force is not None)
    if outcome.refused:
        raise typer.Exit(REFUSED)


def rollback(
    model: Annotated[str, typer.Argument(help="A registered model.")],
    reason: Annotated[str, typer.Option(help="Goes on record.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Make the champion before this one the champion again; the same command undoes it."""
    console = tables.console(stderr=json_output)
    with steps_on(console) as step:
        champion, before = api.rollback(model, reason=reason, progress=step, remark=remarks_to(console))
    if json_output:
        typer.echo(json.dumps({"model": model, "champion": champion.version, "previous": before.version}, indent=1))
        return
    console.print(f"model {model}: version {champion.version} is champion again, version {before.version} is previous")


def models(
    name: Annotated[str | None, typer.Argument(help="A registered model; all without it.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Versions, aliases, metrics, gate results; of one model also who did what when."""
    console = tables.console(stderr=json_output)
    listed = api.list_models(name, remark=remarks_to(console))
    if json_output:
        data: dict[str, Any] = {
            model.name: {"versions": [_version_json(version) for version in model.versions], "faults": model.faults}
            for model in listed
        }
        if name:
            data[name]["record"] = [line.model_dump(mode="json") for line in listed[0].record]
        typer.echo(json.dumps(data, indent=1))
        return
    if not listed:
        console.print("no registered models yet; `study promote NAME` makes the first")
    rows = [_version_row(version) for model in listed for version in model.versions]
    if rows:
        console.print(tables.table(list(rows[0]), [list(row.values()) for row in rows]))
    if name and listed[0].record:
        deeds = [
            (line.time, line.user, line.host, line.action, line.version, line.before, _details(line.details))
            for line in listed[0].record
        ]
        columns = ("when", "who", "where", "what", "version", "champion before", "")
        console.print(tables.table(columns, deeds, title="record"))
    for model in listed:
        for fault in model.faults:
            console.print(f"warning: record of {model.name}: {fault}", style="yellow", markup=False)


def _outcome_json(outcome: api.Promotion) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "version": outcome.version.version if outcome.version else None,
        "promoted": outcome.promoted,
        "forced": outcome.forced or None,
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
        **{name: _gate_figure(version, name) for name in ("image_auroc", "image_recall", "false_alarm_rate")},
    }


def _version_row(version: Version) -> dict[str, Any]:
    tags = version.tags
    return {
        "model": version.name,
        "version": int(version.version),
        "alias": ", ".join(version.aliases) or None,
        "gate": ", forced: ".join(filter(None, (tags.get("gate.verdict"), tags.get("gate.forced")))) or None,
        "AUROC on test": _gate_figure(version, "image_auroc"),
        "recall": _gate_figure(version, "image_recall"),
        "false alarms": _gate_figure(version, "false_alarm_rate"),
        "p95 ms": _gate_figure(version, "latency_ms_p95"),
        "MB": _gate_figure(version, "size_mb"),
        "made": datetime.fromtimestamp(version.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        "by": tags.get("mlflow.user"),
        "from": version.description.partition(". ")[0],
    }


def _gate_figure(version: Version, name: str) -> float | None:
    """What the gate measured of a version on its test images; None where it did not, or before version 0.3."""
    value = version.tags.get(f"gate.{name}")
    return float(value) if value else None


def _details(details: dict[str, Any]) -> str:
    reasons = details.get("reasons") or ([details["reason"]] if details.get("reason") else [])
    forced = [f"forced: {details['forced']}"] if details.get("forced") else []
    return "; ".join(map(str, [*forced, *reasons]))[:200]
