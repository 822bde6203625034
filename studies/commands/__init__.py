"""The commands of ``study``, one module each. Heavy libraries are imported when a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """The flat command table, and the groups ``data`` and ``weights``."""
    from studies.commands import (
        clean,
        compare,
        data,
        doctor,
        export,
        predict,
        promote,
        report,
        retrain,
        run,
        serve,
        show,
        ui,
        weights,
    )

    app.command("run")(run.run)
    app.command("list")(show.list_studies)
    app.command("show")(show.show)
    app.command("compare")(compare.compare)
    app.command("report")(report.report)
    app.command("predict")(predict.predict)
    app.command("promote")(promote.promote)
    app.command("rollback")(promote.rollback)
    app.command("models")(promote.models)
    app.command("retrain")(retrain.retrain)
    app.command("serve")(serve.serve)
    app.command("export")(export.export)
    app.add_typer(data.app)
    app.add_typer(weights.app)
    app.command("ui")(ui.ui)
    app.command("doctor")(doctor.doctor)
    app.command("clean")(clean.clean)
