"""``study predict``: score, verdict and heat map of images; sheets to look at, a CSV for spreadsheets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import track
from rich.text import Text

from detectors.errors import InputError
from studies import api
from studies.search import threshold_words
from studies.show import tables

if TYPE_CHECKING:
    from detectors.scoring.operating_point import Threshold

SHOWN = 20
"""Images in the table; of more, those with the highest scores."""
NAMED = 10
"""Images without a score that are named; the CSV names all."""


def predict(
    model: Annotated[
        str, typer.Argument(help="A study, models:/NAME@alias, the folder of a saved detector, or an exported file.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Where heat maps, sheets/ and scores.csv go.")] = Path("predictions"),
    threshold: Annotated[
        float | None, typer.Option(help="Score from which on an image is defective, for this run alone.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Score images with a study's selected detector; writes heat maps, sheets of them, and scores.csv.

    An image that cannot be read keeps no other from its score: it is named at the end, and the exit code is 2.
    """
    files = api.image_files(images)
    predictor = api.load_detector(model, threshold=threshold, device=device)
    console = tables.console(stderr=json_output)
    watched = partial(track, description="scoring", console=console, transient=True, disable=not console.is_terminal)
    predictions = api.write_predictions(predictor, files, out, track=watched)
    scored, failed = predictions.scored, predictions.failed
    if predictor.provisional:
        console.print(Text(predictor.provisional, style="yellow"))
    if scored and json_output:
        typer.echo(json.dumps(predictions.rows, indent=1))
    elif scored:
        for part in _parts(predictions, predictor.threshold):
            console.print(part)
    if len(failed) == 1:
        raise InputError(failed[0]["error"])
    if failed:
        _print_failures(failed, tables.console(stderr=True))
        where = f"the others, and why these could not, are in {predictions.table}" if scored else "nothing was written"
        raise InputError(f"{len(failed)} of {len(files)} images could not be scored; {where}")


def _parts(predictions: api.Predictions, threshold: Threshold | None) -> Iterator[RenderableType]:
    """What a person sees of the results."""
    scored, sheets = predictions.scored, predictions.sheets
    columns = [column for column in scored[0] if column not in ("threshold", "error")]
    by_score = sorted(scored, key=lambda row: -row["score"])
    shown = scored if len(scored) <= SHOWN else by_score[: SHOWN // 2]
    title = None if shown is scored else f"the {len(shown)} highest scores of {len(scored)} images"
    yield tables.table(columns, [[row[column] for column in columns] for row in shown], title=title)
    counts = Counter(row["verdict"] for row in scored)
    if len(scored) > 1 and threshold is not None:
        yield Text(f"{counts['defective']} defective, {counts['good']} good", style="bold")
    if threshold is None:
        yield Text("no threshold: the detector's protocol holds out no normals, so there is no verdict", style="yellow")
    else:
        basis, *remarks = threshold_words.lines(threshold)
        yield Text(f"{basis} ({threshold.source})", style="dim")
        yield from (Text(remark, style="yellow") for remark in remarks)
    yield Text(f"all scores: {predictions.table}", style="dim")
    if sheets:
        more = f" to {sheets[-1].name}" if len(sheets) > 1 else ""
        yield Text(f"side by side, the highest scores first: {sheets[0]}{more}", style="dim")


def _print_failures(failed: list[dict[str, Any]], console: Console) -> None:
    """A line for each image without a score, up to a limit."""
    for row in failed[:NAMED]:
        console.print(row["error"], style="red", markup=False, highlight=False, soft_wrap=True)
    if len(failed) > NAMED:
        console.print(f"... and {len(failed) - NAMED} more", style="red")
