"""Questions to the person at the terminal."""

from __future__ import annotations

import sys

import typer


def somebody_is_there() -> bool:
    """Whether a question can be answered: a script or a pipe has nobody to ask."""
    return sys.stdin.isatty()


def confirm(question: str) -> bool:
    """Ask on the error stream, so that what a command prints stays clean; Enter means no."""
    return typer.confirm(question, default=False, err=True)
