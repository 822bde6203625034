"""What the gate decided about a promotion, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from studies.show import tables

if TYPE_CHECKING:  # `study promote --help` waits for neither torch nor MLflow
    from studies.release.promotion import Promotion

REFUSED = 3
"""Exit code where the gate refuses a model."""


def print_outcome(outcome: Promotion, console: Console, *, dry_run: bool, force: bool = False) -> None:
    """Print what the gate decided, and who is champion now."""
    report, model = outcome.report, outcome.model
    if report is None:
        console.print(f"model {model}: {_called(outcome)} is the champion already; nothing to do", markup=False)
        return
    rules = [(rule.name, rule.verdict, rule.outcome) for rule in report.rules]
    console.print(tables.table(("rule", "verdict", ""), rows=rules, title=f"gate of {model}"))
    figures = [(name, *cells) for name, cells in report.figures()]
    labels = ("", *(measured.label for measured in report.models))
    console.print(tables.table(labels, rows=figures, title=f"on the {report.images} of {report.data}"))
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if not report.passed:
        reasons = "; ".join(report.reasons)
        console.print(f"refused: {reasons}", style="bold red", markup=False, soft_wrap=True)
    if outcome.refused:
        if force and not report.forcible:
            console.print("--force does not help here: the model cannot do its work as it is", style="bold red")
        before = f"version {outcome.before.version} stays champion" if outcome.before else "there is no champion"
        console.print(f"model {model}: {before}", markup=False)
    elif dry_run:
        does = (
            f"--force would promote it all the same ({outcome.forced})" if outcome.forced else "the gate would pass it"
        )
        console.print(f"{does}; nothing was changed", style="bold green", markup=False)
    else:
        if outcome.forced:
            console.print(f"promoted all the same, on record: {outcome.forced}", style="bold yellow", markup=False)
        before = f"; version {outcome.before.version} is previous" if outcome.before else ""
        console.print(f"model {model}: {_called(outcome)} is the champion{before}", style="bold green", markup=False)
        console.print(f"serve it: study serve models:/{model}@champion", style="dim", markup=False)


def _called(outcome: Promotion) -> str:
    return f"version {outcome.version.version}" if outcome.version else "this trial"
