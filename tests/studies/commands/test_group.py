"""The group of all commands: names and help come from a table, modules are imported when a command is called."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import typer

import studies
from studies import cli
from studies.commands.group import COMMANDS, LazyCommands
from tests.helpers.command_line import study


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    entry = COMMANDS[name]
    target = getattr(import_module(f"studies.commands.{entry.module}"), entry.function)
    if isinstance(target, typer.Typer):
        assert entry.help == target.info.help
    else:
        assert entry.help == (inspect.getdoc(target) or "").splitlines()[0]


def test_every_command_is_made_once_with_its_name_and_help() -> None:
    commands = LazyCommands()
    assert list(commands) == list(COMMANDS)
    for name, command in commands.items():
        assert command.name == name
        assert command.help.startswith(COMMANDS[name].help)
        assert commands[name] is command
    assert sorted(commands["data"].commands) == ["check", "fetch", "render"]


def test_help_lists_every_command() -> None:
    ended = study("--help")
    assert ended.code == 0
    lines = [line.strip("│ ").split() for line in ended.out.splitlines()]
    listed = [line[0] for line in lines if line and line[0] in COMMANDS]
    assert listed == list(COMMANDS)
    assert "--version" in ended.out


def test_the_version_is_printed() -> None:
    ended = study("--version")
    assert (ended.code, ended.out) == (0, f"anomaly-studies {studies.__version__}\n")


def test_a_command_that_is_misspelt_is_refused_with_the_nearest() -> None:
    ended = study("shwo")
    assert ended.code == 2
    assert "No such command 'shwo'" in ended.err
    assert "show" in ended.err


def modules_after(*words: str) -> set[str]:
    script = (
        "import sys\n"
        "from studies import cli\n"
        "try:\n    cli.app(sys.argv[1:], obj=cli.CommonOptions())\n"
        "except SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


SHARED = {f"studies.commands.{name}" for name in ("gate_lines", "group", "progress", "questions", "run_words")}
"""Modules that are no command."""
# Not pydantic, which typer itself imports.
HEAVY = {"torch", "numpy", "optuna", "mlflow", "pandas", "sqlalchemy"}


def test_help_imports_no_command() -> None:
    loaded = modules_after("--help")
    assert not {name for name in loaded if name.startswith("studies.commands.")} - {"studies.commands.group"}
    assert not HEAVY & loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_its_module_and_nothing_heavy(name: str) -> None:
    loaded = modules_after(name, "--help")
    commands = {module for module in loaded if module.startswith("studies.commands.")} - SHARED
    assert commands == {f"studies.commands.{COMMANDS[name].module}"}
    assert not HEAVY & loaded


def test_shell_completion_imports_no_command() -> None:
    group = typer.main.get_command(cli.app)
    items = group.shell_complete(typer.Context(group), "re")
    assert [item.value for item in items] == ["report", "retrain"]


@pytest.mark.parametrize("name", ["data", "weights"])
def test_a_group_of_commands_offers_no_completion_of_its_own(name: str) -> None:
    assert "completion" not in study(name, "--help").out
