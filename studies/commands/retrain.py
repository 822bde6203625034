"""``study retrain``: a challenger from newer images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from studies import api
from studies.commands.progress import remarks_to, steps_on
from studies.show import tables


def retrain(
    model: Annotated[str, typer.Argument(help="A registered model that has a champion.")],
    images: Annotated[Path | None, typer.Option(help="Folder of new good images.")] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Fit on the new images alone, not also on the study's own.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder with the weights of a network that the detector starts from.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Fit the champion's configuration on new good images; the outcome is the model's challenger."""
    console = tables.console(stderr=json_output)
    with steps_on(console) as step:
        outcome = api.retrain(
            model,
            images=images,
            only_new=only_new,
            device=device,
            weights_dir=weights_dir,
            progress=step,
            remark=remarks_to(console),
        )
    version, champion, fitted = outcome.version, outcome.champion, outcome.fitted
    if json_output:
        data = {
            "model": model,
            "version": version.version,
            "from": champion.version,
            "new_pictures": fitted.new,
            "held_out": fitted.held_out,
            "warnings": list(fitted.warnings),
        }
        typer.echo(json.dumps(data, indent=1))
        return
    console.print(
        f"model {model}: version {version.version} ({', '.join(version.aliases)}), fitted like version {champion.version} "
        f"with {fitted.new} new images" + (f"; its threshold rests on {fitted.held_out} of them" if fitted.new else ""),
        markup=False,
    )
    for warning in fitted.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(
        f"take it through the gate: study promote {model} --version {version.version}", style="dim", markup=False
    )
