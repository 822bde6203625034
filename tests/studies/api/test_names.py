"""What `studies` offers: its names, what importing it costs, and the examples in the documentation of each name."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import studies
from studies import api

FUNCTIONS = [name for name in studies.__all__ if inspect.isfunction(getattr(studies, name))]
CLASSES = [name for name in studies.__all__ if inspect.isclass(getattr(studies, name))]
WITH_EXAMPLES = [*FUNCTIONS, "Study", "Result", "Predictor"]


def test_importing_it_costs_nothing() -> None:
    script = "import sys, studies, studies.api; dir(studies); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"torch", "numpy", "optuna", "mlflow", "pandas", "pydantic", "typer", "rich", "PIL"} & loaded


@pytest.mark.parametrize("package", [studies, api], ids=lambda package: package.__name__)
def test_names_are_the_same_for_people_and_for_type_checkers(package: object) -> None:
    tree = ast.parse(Path(inspect.getsourcefile(package)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    declared = {name: module for module, names in package._MODULES.items() for name in names}
    assert imported == declared
    assert sorted(package.__all__) == sorted(declared)
    for name in declared:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_the_commands_call_what_programs_call() -> None:
    for name in set(studies.__all__) & set(api.__all__):
        assert getattr(studies, name) is getattr(api, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'studies' has no attribute 'rum'"):
        _ = studies.rum


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_every_name_says_what_it_is(name: str) -> None:
    target = getattr(studies, name)
    assert len(inspect.getdoc(target) or "") > 20
    if inspect.isclass(target):
        own = {method: member for method, member in vars(target).items() if not method.startswith("_")}
        silent = [
            method
            for method, member in own.items()
            if (inspect.isfunction(member) or isinstance(member, property)) and not inspect.getdoc(member)
        ]
        assert silent == []


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_do_what_they_say(name: str, here: Path, request: pytest.FixtureRequest) -> None:
    if name == "run":
        request.getfixturevalue("new_home")
    found = doctest.DocTestFinder(recurse=False).find(getattr(studies, name), name, module=False, globs={})
    (examples,) = found
    assert examples.examples, f"{name} has no example"
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    outcome = runner.run(examples, out=lines.append)
    assert outcome.failed == 0, "".join(lines)
