"""``study doctor``: is everything here that a study needs?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from studies.home import Home
from studies.show import tables
from studies.upkeep.checks import Check, check_all

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Look at everything a study needs and say what to do where it is missing; exit code 1 where a study would fail."""
    console = tables.console(stderr=json_output)
    with console.status("looking around"):
        checks = check_all(Home.from_environment())
    failed = any(check.status == "fail" for check in checks)
    if json_output:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print(checks)
    if failed:
        raise typer.Exit(1)


def _print(checks: Sequence[Check]) -> None:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "check", "found", "what to do"):
        drawn.add_column(column, overflow="fold")
    for check in checks:
        drawn.add_row(Text(check.status, STYLES[check.status]), *map(Text, (check.name, check.found, check.hint)))
    tables.console().print(drawn)
