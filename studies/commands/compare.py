"""``study compare``: several studies side by side, by their selected trials."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def compare(
    names: Annotated[list[str], typer.Argument(help="Two or more studies.")],
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """The selected trials of several studies in one table."""
    from studies import tables
    from studies.commands.open import open_view

    rows = [_row(open_view(name)) for name in names]
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
        return
    console = tables.console()
    console.print(tables.table(list(rows[0]), [list(row.values()) for row in rows]))
    if len({(row["experiment"], row["test pictures"]) for row in rows}) > 1:
        console.print("these studies were measured on different pictures: their figures do not compare", style="yellow")


def _row(view: Any) -> dict[str, Any]:
    selected = view.selected()
    metrics = dict(selected.metrics) if selected else {}
    if selected and selected.final:
        metrics |= selected.final.metrics
    low, high = metrics.get("test/image_auroc_low"), metrics.get("test/image_auroc_high")
    return {
        "study": view.study.study_name,
        "detector": view.config.detector,
        "experiment": view.header.experiment,
        "protocol": view.config.protocol,
        "trial": selected.number if selected else None,
        "val image_auroc": metrics.get("val/image_auroc"),
        "test image_auroc": metrics.get("test/image_auroc"),
        "95 % interval": f"{low:.3f} .. {high:.3f}" if low is not None and high is not None else None,
        "test pixel_auroc": metrics.get("test/pixel_auroc"),
        "test pixel_aupro": metrics.get("test/pixel_aupro"),
        "train seconds": metrics.get("train_seconds"),
        "fps": metrics.get("fps"),
        "throughput": metrics.get("throughput"),
        "size MB": metrics.get("model_size_mb"),
        "test pictures": view.header.identity["data"].get("test", "")[:8],
    }
