"""The commands of ``study``, one module each. Heavy libraries are imported when a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """The flat command table."""
    from studies.commands import compare, predict, run, show

    app.command("run")(run.run)
    app.command("list")(show.list_studies)
    app.command("show")(show.show)
    app.command("compare")(compare.compare)
    app.command("predict")(predict.predict)
