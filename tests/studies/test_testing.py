"""The contract suite of executors as a plug-in's author uses it."""

from __future__ import annotations

import pytest

from studies.executors.base import Executor
from studies.executors.local import LocalExecutor
from studies.executors.process import Runner
from studies.testing.contract import ExecutorContract


@pytest.mark.slow
class TestLocal(ExecutorContract):
    @classmethod
    def make_executor(cls, *, run: Runner | None = None, trial_timeout: float = float("inf")) -> Executor:
        return LocalExecutor(slots=3, run=run, trial_timeout=trial_timeout)
