"""The command ``study``.

Exit codes: 0 done, 1 failure, 2 bad input, 3 refused by the gate, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import studies
from detectors.errors import InputError
from studies.commands.group import StudyGroup
from studies.search.outcome import StudyFailedError
from tracking.interrupts import handle_interrupts

app = typer.Typer(
    name="study",
    cls=StudyGroup,
    help="Find the best anomaly detector for a product, honestly measured, and bring it into production.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
DEBUG = "STUDY_DEBUG"
INTERRUPTED = 130
WAIT_POLICY = "OMP_WAIT_POLICY"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"anomaly-studies {studies.__version__}")
        raise typer.Exit


@dataclass
class CommonOptions:
    """What stands before the command's name."""

    debug: bool = False
    """Show the traceback of an error."""


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.obj.debug |= debug


def main() -> None:
    """Entry point: run a command, turn errors into one line and an exit code."""
    # Read when torch is imported. Its threads otherwise spin while they wait, and with anything else running on the
    # machine one image took 650 ms instead of 25. On a quiet machine it makes no difference.
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
    # Read when MLflow is imported, which would otherwise write the id of this installation into the home folder.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # SIGTERM is Ctrl-C: what is running is put back before the process ends.
    handle_interrupts()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    common = CommonOptions(debug=bool(os.environ.get(DEBUG)))
    try:
        app(obj=common)
    except SystemExit as end:  # how typer ends every command, wrong usage (2) and Ctrl-C (130) included
        if end.code == INTERRUPTED:
            errors.print("interrupted; the same command goes on from here", style="yellow")
        raise
    except InputError as error:
        _print_error(errors, error, debug=common.debug)
        sys.exit(2)
    except Exception as error:
        _print_error(errors, error, debug=common.debug)
        sys.exit(1)


def _print_error(errors: Console, error: Exception, *, debug: bool) -> None:
    if debug:
        errors.print_exception()
        return
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, InputError | StudyFailedError | ArithmeticError)
    hint = "" if known else f" ({type(error).__name__}; --debug before the command shows the traceback)"
    errors.print(f"[bold red]error:[/] {escape(text)}{hint}")


if __name__ == "__main__":
    main()
