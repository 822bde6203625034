"""``study retrain``: a challenger from newer images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def retrain(
    model: Annotated[str, typer.Argument(help="A registered model that has a champion.")],
    images: Annotated[Path | None, typer.Option(help="Folder of new good images.")] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Fit on the new images alone, not also on the study's own.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Fit the champion's configuration on new good images; the outcome is the model's challenger."""
    from studies.commands.promote import promoter_for
    from studies.release.retrain import retrain as fit
    from studies.show import tables
    from tracking.registry import CHAMPION

    console = tables.console(stderr=json_output)
    with promoter_for(console, device) as promoter:
        champion = promoter.registry.version(model, CHAMPION)
        view, product = promoter.study_of(champion)
        found = fit(
            promoter.load(champion),
            view,
            product,
            promoter.home,
            images=images.expanduser().absolute() if images else None,
            only_new=only_new,
            device=promoter.device,
            tell=promoter.tell,
        )
        version = promoter.register_retrained(champion, found)
    if json_output:
        data = {"model": model, "version": version.version, "from": champion.version, "new_images": found.new}
        typer.echo(json.dumps(data, indent=1))
        return
    console.print(
        f"model {model}: version {version.version} ({', '.join(version.aliases)}), fitted like version {champion.version} "
        f"with {found.new} new images, {found.held_out} of them kept for the threshold",
        markup=False,
    )
    console.print(
        f"take it through the gate: study promote {model} --version {version.version}", style="dim", markup=False
    )
