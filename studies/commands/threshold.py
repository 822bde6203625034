"""``study threshold``: what thresholds would catch and stop, and setting one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from studies import api
from studies.commands.gate_lines import REFUSED, print_outcome
from studies.commands.progress import steps_on
from studies.search import threshold_words as words
from studies.show import tables

if TYPE_CHECKING:
    from detectors.scoring.operating_point import Counts, RateRow, Threshold
    from studies.release.threshold import ProductThreshold, ThresholdChange


def threshold(
    name: Annotated[str, typer.Argument(help="A study, STUDY/product, or models:/NAME@alias.")],
    rate: Annotated[float | None, typer.Option(help="Share of good parts that may raise a false alarm.")] = None,
    value: Annotated[float | None, typer.Option(help="The threshold itself.")] = None,
    cost_miss: Annotated[float | None, typer.Option(help="What a missed defect costs, in any unit.")] = None,
    cost_alarm: Annotated[float | None, typer.Option(help="What a false alarm costs, in the same unit.")] = None,
    share_defective: Annotated[
        float | None, typer.Option(help="Share of defective parts on the line, between 0 and 1.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of good images that it is to rest on, such as another day's.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show what thresholds would catch and stop, and set one: seconds, without a search or a look at test.

    Of a registered model it makes a new version, which goes through the gate (exit 3 where that refuses it).
    """
    console = tables.console(stderr=json_output)
    with steps_on(console) as step:
        found = api.threshold(
            name,
            rate=rate,
            value=value,
            cost_miss=cost_miss,
            cost_alarm=cost_alarm,
            share_defective=share_defective,
            images=images,
            device=device,
            progress=step,
        )
    if json_output:
        typer.echo(json.dumps(_as_json(found), indent=1))
    else:
        for product in found.products:
            _print_product(product, console)
        for change in found.changes:
            _print_change(change, console)
        if found.provisional:
            console.print(
                "provisional: the search has not ended; the refit after it gets a threshold of its own, by the same rule",
                style="yellow",
            )
        elif found.promotion is not None:
            print_outcome(found.promotion, console, dry_run=False)
        elif found.changes:
            console.print(
                f"a registered model keeps its own; for a version with this one: study promote {name}",
                style="dim",
                markup=False,
            )
    if found.promotion is not None and found.promotion.refused:
        raise typer.Exit(REFUSED)


def _print_product(found: ProductThreshold, console: Console) -> None:
    title = f"{found.product}: " if found.product else ""
    rows = [_row(row) for row in found.rows]
    columns = ("false alarms allowed", "threshold", "defects caught", "good stopped", "to expect", "")
    if rows:
        console.print(tables.table(columns, rows, title=f"{title}thresholds, counted on validation and on good images"))
    else:
        console.print(f"{title}no good image was kept apart, so no threshold can be chosen by a rate", markup=False)
    if found.threshold is None:
        way = (
            "set one with --rate" if rows else "set one with --value, or give good images of another day: --images DIR"
        )
        console.print(f"{title}there is no threshold yet; {way}", style="yellow", markup=False)
        return
    for line in words.lines(found.threshold, found.product):
        console.print(line, markup=False)
    if found.counts is not None and found.counts.defective:
        console.print(f"{title}on validation it {words.found(found.counts)}", markup=False)


def _row(row: RateRow) -> tuple[str, ...]:
    limit, interval = row.threshold, row.threshold.rate_interval
    to_expect = ""
    if limit.expected_rate is not None and interval is not None:
        low, high = (words.percent(end).removesuffix(" %") for end in interval)
        to_expect = f"{words.percent(limit.expected_rate)} ({low} to {high} %)"
    note = ""
    if not limit.supports_rate:
        note = f"needs {limit.normals_needed} good images" if limit.normals_needed else "cannot be promised"
    return (
        words.percent(limit.rate or 0.0),
        words.number(limit.value),
        f"{row.counts.caught} of {row.counts.defective}" if row.counts.defective else "-",
        f"{row.stopped} of {limit.normals}",
        to_expect,
        note,
    )


def _print_change(change: ThresholdChange, console: Console) -> None:
    of_product = f" of {change.product}" if change.product else ""
    before = "none" if change.before is None else words.number(change.before.value)
    console.print(
        f"threshold{of_product} set: {words.number(change.after.value)} (before: {before})", style="bold green"
    )


def _as_json(found: api.Thresholds) -> dict[str, Any]:
    promotion = found.promotion
    data: dict[str, Any] = {
        "name": found.name,
        "provisional": found.provisional,
        "products": [
            {
                "product": product.product,
                "threshold": _threshold_json(product.threshold),
                "validation": _counts_json(product.counts),
                "rates": [
                    {
                        **(_threshold_json(row.threshold) or {}),
                        "stopped": row.stopped,
                        "validation": _counts_json(row.counts),
                    }
                    for row in product.rows
                ],
            }
            for product in found.products
        ],
        "changes": [
            {
                "product": change.product,
                "before": _threshold_json(change.before),
                "after": _threshold_json(change.after),
                "validation": _counts_json(change.counts),
            }
            for change in found.changes
        ],
    }
    if promotion is not None:
        data["version"] = promotion.version.version if promotion.version else None
        data["promoted"] = promotion.promoted
        data["gate"] = promotion.report.to_json() if promotion.report else None
    return data


def _threshold_json(threshold: Threshold | None) -> dict[str, Any] | None:
    if threshold is None:
        return None
    return threshold.to_json() | {
        "supports_rate": threshold.supports_rate,
        "normals_needed": threshold.normals_needed,
        "rate_interval": threshold.rate_interval,
    }


def _counts_json(counts: Counts | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    return {
        "caught": counts.caught,
        "defective": counts.defective,
        "alarms": counts.alarms,
        "good": counts.good,
        "per_defect": {kind: list(pair) for kind, pair in counts.per_defect.items()},
    }
