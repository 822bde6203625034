"""``study weights``: which backbones are on this machine, and getting those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from detectors.backbones.weights import BackboneSpec

MISSING = "not here"

app = typer.Typer(name="weights", help="Backbone weights: list, fetch.", no_args_is_help=True)


@app.command("list")
def list_weights(
    weights_dir: Annotated[Path | None, typer.Option(help="Folder with <timm name>.safetensors or .pth.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Backbones with weights on this machine, and those that studies name and that are not here."""
    from detectors.backbones.weights import available_backbones
    from studies.show import tables

    here = available_backbones(weights_dir=weights_dir)
    rows = [_row(name, weights_dir) for name in here]
    rows += [_row(name, weights_dir) for name in _named_in_configs() if name not in here]
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    console = tables.console()
    shown = [
        (
            row["backbone"],
            row["origin"] or MISSING,
            row["tag"],
            row["sha256"] and row["sha256"][:12],
            ", ".join(f"{stride}: {channels}" for stride, channels in row["channels"].items()) or None,
        )
        for row in rows
    ]
    console.print(tables.table(("backbone", "weights from", "tag", "sha256", "channels by stride"), shown))
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
    from detectors.backbones.weights import BackboneSpec, download, find_weights
    from studies.show import tables

    console = tables.console(stderr=json_output)
    specs = [_fetchable(BackboneSpec.parse(name)) for name in names]
    rows = []
    for spec in specs:
        present = find_weights(spec)
        if present is None:
            with console.status(f"fetching {spec}"):
                download(spec)
        row = _row(str(spec), None) | {"fetched": present is None}
        rows.append(row)
        what = "fetched" if present is None else f"already here ({row['origin']})"
        console.print(f"{spec}: {what}, {row['path']}", markup=False, highlight=False, soft_wrap=True)
    if json_output:
        typer.echo(json.dumps(rows, indent=1))


def _fetchable(spec: BackboneSpec) -> BackboneSpec:
    from detectors.backbones.weights import PIXELS
    from detectors.errors import InputError

    if spec.random_seed is not None:
        raise InputError(f"{spec}: random weights are drawn from a seed; there is nothing to fetch")
    if spec.name == PIXELS:
        raise InputError(f"{spec}: passes images on as they are; there is nothing to fetch")
    return spec


def _row(name: str, weights_dir: Path | None) -> dict[str, Any]:
    """One backbone as both outputs show it; `origin` is None where it has no weights on this machine."""
    from detectors.backbones.pyramid import channels_by_stride, weights_identity
    from detectors.backbones.weights import BackboneSpec, find_weights, pretrained_cfg
    from detectors.errors import InputError

    row: dict[str, Any] = {"backbone": name, "origin": None, "path": None, "tag": None, "sha256": None}
    row |= {"channels": {}, "problem": None}
    try:
        spec = BackboneSpec.parse(name)
        row["tag"] = pretrained_cfg(spec).get("tag") or None
        source = find_weights(spec, weights_dir=weights_dir)
        if source is not None:
            row |= {"origin": source.origin, "path": str(source.path)}
            row["sha256"] = weights_identity(name, weights_dir=weights_dir).sha256
        row["channels"] = channels_by_stride(name)
    except InputError as error:
        # A file of somebody's own name, or a backbone that is no pyramid: told in its row, the others are shown.
        row["problem"] = str(error)
    return row


def _named_in_configs() -> list[str]:
    """Pretrained backbones that the study files name, in alphabetical order."""
    from detectors.backbones.weights import PIXELS, BackboneSpec
    from studies.file import library

    files = sorted(library.packaged_configs().glob("*.yaml"))
    named = {name for file in files for name in library.load(str(file)).backbones}
    return sorted(name for name in named - {PIXELS} if BackboneSpec.parse(name).random_seed is None)
