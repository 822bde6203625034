"""The contract suite of executors as a plug-in's author uses it."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest

from studies.executors.base import Executor
from studies.executors.inline import InlineExecutor
from studies.executors.local import LocalExecutor
from studies.executors.process import Runner
from studies.testing.contract import ExecutorContract
from studies.worker.jobs import Event


@pytest.mark.slow
class TestLocal(ExecutorContract):
    @classmethod
    def make_executor(cls, *, run: Runner | None = None, trial_timeout: float = float("inf")) -> Executor:
        return LocalExecutor(slots=3, run=run, trial_timeout=trial_timeout)


class Scripted(InlineExecutor):
    """Runs something else than trials."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self._scripted = run

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        with mock.patch("studies.executors.inline.run_job", self._scripted):
            super().poll(timeout, handle)


class TestInline(ExecutorContract):
    """Without processes, which makes it quick."""

    in_processes = False

    @classmethod
    def make_executor(cls, *, run: Runner | None = None, trial_timeout: float = float("inf")) -> Executor:
        return InlineExecutor() if run is None else Scripted(run)
