"""The command ``study``.

Exit codes: 0 done, 1 failure, 2 bad input, 3 refused by the gate, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="study",
    help="Find the best anomaly detector for a product, honestly measured, and bring it into production.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
DEBUG = "STUDY_DEBUG"
INTERRUPTED = 130


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    if debug:
        os.environ[DEBUG] = "1"


def main() -> None:
    """Entry point: run a command, turn errors into one line and an exit code."""
    from detectors.errors import InputError
    from studies.commands import register
    from tracking.interrupts import handle_interrupts

    # SIGTERM is Ctrl-C: what is running is put back before the process ends.
    handle_interrupts()
    register(app)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except SystemExit as end:  # how typer ends every command, wrong usage (2) and Ctrl-C (130) included
        if end.code == INTERRUPTED:
            errors.print("interrupted; the same command goes on from here", style="yellow")
        raise
    except InputError as error:
        _tell(errors, error)
        sys.exit(2)
    except Exception as error:
        _tell(errors, error)
        sys.exit(1)


def _tell(errors: Console, error: Exception) -> None:
    if os.environ.get(DEBUG):
        errors.print_exception()
        return
    from detectors.errors import InputError
    from studies.search.outcome import StudyFailedError

    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, InputError | StudyFailedError | ArithmeticError)
    hint = "" if known else f" ({type(error).__name__}; --debug before the command shows the traceback)"
    errors.print(f"[bold red]error:[/] {escape(text)}{hint}")


if __name__ == "__main__":
    main()
