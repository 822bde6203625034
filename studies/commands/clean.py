"""``study clean``: give disk space back, and nothing that cannot be made again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from studies import api
from studies.commands import questions
from studies.home import Home
from studies.show import tables

if TYPE_CHECKING:
    from studies.upkeep.inventory import Inventory


def clean(
    features: Annotated[bool, typer.Option("--features", help="Stored features.")] = False,
    trials: Annotated[
        bool, typer.Option("--trials", help="Checkpoints of finished trials, detectors that are no longer selected.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Both, rendered images, and notes on checked images.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without being asked.")] = False,
    keep: Annotated[int, typer.Option(help="Checkpoints stay for so many of each study's best trials.", min=0)] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show what takes space in STUDY_HOME and delete what is asked for.

    Databases, ledgers, results, images, selected detectors and whatever a running study works with always stay.
    """
    home = Home.from_environment()
    console = tables.console(stderr=json_output)
    inventory = api.take_inventory(home, keep=keep)
    kinds = api.chosen_kinds(features=features, trials=trials, everything=everything)
    chosen = [item for item in inventory.items if item.kind in kinds]
    if not json_output:
        _print_inventory(inventory, kinds, home, console)
    total = sum(item.size_bytes for item in chosen)
    if chosen and not yes and not json_output and questions.somebody_is_there():
        yes = questions.confirm(f"Delete {len(chosen)} of these, {_size(total)}?")
    deleted = api.delete(chosen, home) if yes else []
    freed = sum(item.size_bytes for item in deleted)
    if json_output:
        data = inventory.to_json(kinds, home) | {"deleted": len(deleted), "freed_bytes": freed}
        typer.echo(json.dumps(data, indent=1))
    elif yes:
        console.print(f"freed {_size(freed)}", highlight=False)
        if len(deleted) < len(chosen):
            console.print(f"{len(chosen) - len(deleted)} came into use meanwhile and were left", style="yellow")
    elif not chosen:
        console.print("nothing is chosen that could go", highlight=False)
    else:
        console.print(f"nothing was deleted; --yes deletes the chosen {_size(total)}", highlight=False)


def _print_inventory(inventory: Inventory, chosen: set[str], home: Home, console: Console) -> None:
    console.print(f"in {home.root}", markup=False, highlight=False)
    rows = [
        (
            "*" if kind in chosen else "",
            kind,
            total["items"],
            _size(total["bytes"]),
            total["in_use"],
            api.KINDS[kind][1],
            api.KINDS[kind][0],
        )
        for kind, total in inventory.totals.items()
    ]
    console.print(tables.table(("", "what", "number", "size", "in use", "with", ""), rows))
    if inventory.running:
        console.print(f"being run, and left alone: {', '.join(inventory.running)}", style="yellow", markup=False)
    for remark in inventory.remarks:
        console.print(remark, style="yellow", markup=False)
    console.print("* is chosen; what is in use stays in any case", style="dim")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
