"""``study list`` and ``study show``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from detectors.scoring.ranked_by import RANKING_SCORE
from studies import api
from studies.home import Home
from studies.show import tables
from tracking.addresses import without_password


def list_studies(json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """All studies that were run here."""
    rows = [_row(study) for study in api.list_studies()]
    if json_output:
        typer.echo(json.dumps(rows, indent=1))
    elif not rows:
        typer.echo(f"no studies in {Home.from_environment().root} yet; try `study run --demo`")
    else:
        tables.console().print(tables.table(list(rows[0]), [list(row.values()) for row in rows]))


def show(
    name: Annotated[str, typer.Argument(help="A study; NAME#2 is the one that --fresh started beside NAME.")],
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Trials, selected configuration and the honest figure of one study."""
    view = api.open_study(name).view
    if json_output:
        typer.echo(json.dumps(api.study_json(view), indent=1))
        return
    console = tables.console()
    for part in (*api.study_parts(view), *api.insight_parts(view)):
        console.print(part)
    where = without_password(view.home.tracking_uri)
    console.print(f"trials in MLflow: study ui  ({where})", style="dim", markup=False)


def _row(study: api.Study) -> dict[str, Any]:
    view = study.view
    trials = view.trials()
    selected = next((trial for trial in trials if trial.selected), None)
    final = selected.final.metrics if selected and selected.final else {}
    return {
        "study": study.name,
        "detector": view.config.detector_label,
        "experiment": view.header.experiment,
        "protocol": view.config.protocol,
        "trials": sum(trial.state in ("COMPLETE", "PRUNED") for trial in trials),
        "failed": sum(trial.state == "FAIL" for trial in trials),
        "best": selected.value if selected else None,
        "test image_auroc": final.get("test/image_auroc"),
        "test ranking_score": final.get(f"test/{RANKING_SCORE}"),
        "nested image_auroc": estimate.metrics["nested/image_auroc"] if (estimate := view.nested()) else None,
    }
