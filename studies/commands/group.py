"""The group of all commands: it prints their names and help from a table, and imports a command's module when it is called."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """One command of ``study``."""

    module: str
    """In this package."""
    function: str
    """The command's function, or the `typer.Typer` of a group of commands."""
    help: str
    """First line of the function's docstring, or the group's help."""


COMMANDS = {
    "run": Entry("run", "run", "Search for the best configuration; the same command goes on where it was stopped."),
    "list": Entry("show", "list_studies", "All studies that were run here."),
    "show": Entry("show", "show", "Trials, selected configuration and the honest figure of one study."),
    "compare": Entry(
        "compare",
        "compare",
        "Accuracy, training time, speed and size of several studies, and the papers' figures, in one table.",
    ),
    "report": Entry(
        "report",
        "report",
        "What was found, how sure it is, where it fails and what it costs: one HTML file that needs no network.",
    ),
    "predict": Entry(
        "predict",
        "predict",
        "Score images with a study's selected detector; writes heat maps, sheets of them, and scores.csv.",
    ),
    "promote": Entry(
        "promote",
        "promote",
        "Register a study's model and make it the champion, if it passes the gate (exit 3 where it does not).",
    ),
    "rollback": Entry(
        "promote",
        "rollback",
        "Make the champion before this one the champion again; the same command undoes it.",
    ),
    "models": Entry(
        "promote", "models", "Versions, aliases, metrics, gate results; of one model also who did what when."
    ),
    "retrain": Entry(
        "retrain",
        "retrain",
        "Fit the champion's configuration on new good images; the outcome is the model's challenger.",
    ),
    "threshold": Entry(
        "threshold",
        "threshold",
        "Show what thresholds would catch and stop, and set one: seconds, without a search or a look at test.",
    ),
    "serve": Entry(
        "serve", "serve", "Judge images over HTTP with a model that may change under way; a page for people is at /."
    ),
    "export": Entry(
        "export",
        "export",
        "Write a detector as one file, from uint8 RGB to score and map; it counts when it scores as the detector does.",
    ),
    "data": Entry("data", "app", "Data sets: check, render, fetch."),
    "weights": Entry("weights", "app", "Backbone weights: list, fetch."),
    "ui": Entry("ui", "ui", "Look at studies in the browser; Ctrl-C ends it."),
    "doctor": Entry(
        "doctor",
        "doctor",
        "Look at everything a study needs and say what to do where it is missing; exit code 1 where a study would fail.",
    ),
    "clean": Entry("clean", "clean", "Show what takes space in STUDY_HOME and delete what is asked for."),
}
"""In the order in which ``study --help`` lists them. A test holds the help equal to the docstrings."""


class LazyCommands(MutableMapping[str, Any]):
    """{name: command}, each made from its module when it is looked up for the first time."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _make_command(name, COMMANDS[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS or name in self._made

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*COMMANDS, *self._made])

    def __len__(self) -> int:
        return len({*COMMANDS, *self._made})


class StudyGroup(TyperGroup):
    """The group of `COMMANDS`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return self._listing().shell_complete(ctx, incomplete)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def _listing(self) -> TyperGroup:
        """A group that looks like this one, whose commands have a name and a help and do nothing."""
        return TyperGroup(
            name=self.name,
            help=self.help,
            epilog=self.epilog,
            params=self.params,
            rich_markup_mode=self.rich_markup_mode,
            commands={name: TyperCommand(name, help=entry.help) for name, entry in COMMANDS.items()},
        )


def _make_command(name: str, entry: Entry) -> Any:
    module = import_module(f"{__package__}.{entry.module}")
    target = getattr(module, entry.function)
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(name, cls=getattr(module, "Command", TyperCommand))(target)
    return typer.main.get_command(single)
