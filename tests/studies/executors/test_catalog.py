"""Executors as entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from detectors.errors import InputError
from studies.executors import catalog
from studies.executors.base import ExecutorOptions, ExecutorPlugin
from studies.executors.inline import InlineExecutor
from studies.executors.local import LocalExecutor
from tests.helpers import ROOT

MINE = ExecutorPlugin(lambda options: InlineExecutor(), remote=True, takes_address=True)


def offer(monkeypatch: pytest.MonkeyPatch, name: str, *values: str) -> None:
    real = catalog.offered
    points = tuple(EntryPoint(name, value, catalog.GROUP) for value in values)
    monkeypatch.setattr(catalog, "offered", lambda group: {**real(group), name: points})


def test_names_are_listed_without_importing_an_executor() -> None:
    code = (
        "import sys; from studies.executors import catalog; print(*catalog.names());"
        "print(*{'torch', 'ray', 'studies.executors.local', 'studies.executors.ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["inline local ray", ""]


def test_executors_of_this_machine_are_made_as_asked() -> None:
    assert isinstance(catalog.make_executor("inline", ExecutorOptions(jobs="auto")), InlineExecutor)
    local = catalog.make_executor("local", ExecutorOptions(jobs=2, device="cpu", trial_timeout=7.0))
    assert isinstance(local, LocalExecutor)
    assert local.slots == 2
    assert local._reuse
    local.close()
    assert [catalog.executor_plugin(name).remote for name in ("inline", "local", "ray")] == [False, False, True]


def test_an_installed_package_adds_an_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "queue", f"{__name__}:MINE")
    assert catalog.executor_plugin("queue") is MINE
    assert catalog.make_executor("queue", ExecutorOptions(address="here")).slots == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lokal", {}, r"unknown executor 'lokal'; did you mean local\? known: inline, local, ray; .*entry point"),
        ("inline", {"jobs": 2}, "one trial at a time"),
        ("local", {"jobs": 0}, "jobs: 0 is too few"),
        ("local", {"address": "auto"}, "executor local takes no address; leave it out, or take the executor ray"),
    ],
)
def test_what_cannot_be_is_told(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalog.make_executor(name, ExecutorOptions(**options))


def test_a_broken_package_has_no_say_about_another_executors_address(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "broken", "no_such_module:PLUGIN")
    with pytest.raises(InputError, match=r"executor local takes no address; leave it out, or take the executor ray$"):
        catalog.make_executor("local", ExecutorOptions(address="auto"))


def test_a_broken_addition_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("no_such_module:PLUGIN", "json:loads", "studies.executors.inline:InlineExecutor"):
        offer(monkeypatch, "mine", value)
        with pytest.raises(InputError, match=rf"executor 'mine' \({value}\) .*uninstall it"):
            catalog.executor_plugin("mine")
    offer(monkeypatch, "mine", "one:A", "two:B")
    with pytest.raises(InputError, match="executor 'mine' is offered by one:A and two:B"):
        catalog.executor_plugin("mine")
