"""``study weights``: which backbones are on this machine, and getting those that are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from studies import api
from studies.show import tables

MISSING = "not here"

app = typer.Typer(name="weights", help="Backbone weights: list, fetch.", no_args_is_help=True, add_completion=False)


def _layers(channels: Mapping[int, int]) -> str:
    """``4: 24, 8: 40``; of a vision transformer ``14: 384, blocks -12 to -1``."""
    blocks = [layer for layer in channels if layer < 0]
    strides = [f"{layer}: {count}" for layer, count in channels.items() if layer > 0]
    return ", ".join([*strides, *([f"blocks {min(blocks)} to -1"] if blocks else [])])


@app.command("list")
def list_weights(
    weights_dir: Annotated[Path | None, typer.Option(help="Folder with <timm name>.safetensors or .pth.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Backbones with weights on this machine, and those that studies name and that are not here."""
    rows = api.list_weights(weights_dir)
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    console = tables.console()
    shown = [
        (
            row["backbone"],
            row["origin"] or MISSING,
            row["tag"],
            row["license"],
            row["sha256"] and row["sha256"][:12],
            _layers(row["channels"]) or None,
        )
        for row in rows
    ]
    console.print(tables.table(("backbone", "weights from", "tag", "licence", "sha256", "channels by stride"), shown))
    for row in rows:
        # Below the table: a path would leave its other columns no room.
        if row["problem"] or row["path"]:
            style = "yellow" if row["problem"] else "dim"
            line = f"{row['backbone']}: {row['problem'] or row['path']}"
            console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    missing = [row["backbone"] for row in rows if row["origin"] is None and not row["problem"]]
    if missing:
        console.print(f"get them with: study weights fetch {' '.join(missing)}", style="dim", markup=False)


@app.command("fetch")
def fetch(
    names: Annotated[list[str], typer.Argument(help="Backbones, by timm's names, e.g. resnet18.")],
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Download weights from the hub into its cache; those that are here already are left alone."""
    console = tables.console(stderr=json_output)
    rows = []
    for spec in api.parse_names(names):
        console.print(f"{spec}: licence of the weights: {api.weights_licence(spec)}", markup=False, highlight=False)
        with console.status(f"fetching {spec}"):
            row = api.fetch_weights(spec)
        rows.append(row)
        what = "fetched" if row["fetched"] else f"already here ({row['origin']})"
        console.print(f"{spec}: {what}, {row['path']}", markup=False, highlight=False, soft_wrap=True)
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
