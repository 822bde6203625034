"""What a plan is run with: an executor by its name; and fitting one trial once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from studies.api.offline import offline_hub
from studies.executors import catalog as executors
from studies.executors.base import Executor, ExecutorOptions
from studies.executors.inline import InlineExecutor
from studies.search.plan import Options, Plan, make_plan
from studies.search.run import refit_trial
from studies.search.stores import Stores
from studies.search.view import StudyView, TrialView


def refit(view: StudyView, number: int, *, device: str) -> TrialView:
    """Fit a trial that was not selected once more, score it on test, and save its detector, in this process.

    Raises:
        InputError: no such trial, or one that did not finish; images or weights that are not here any more.
        StudyFailedError: the refit failed.
    """
    with offline_hub(True):
        plan = make_plan(view.config, view.home, Options(device=device, offline=True))
        plan = replace(plan, generation=view.study.study_name)
        return refit_trial(plan, InlineExecutor(), Stores.open(view.home), number)


def make_executor(name: str, plan: Plan, *, address: str | None, say: Callable[[str], None]) -> Executor:
    """The executor of a name, set up as a plan wants it. Raises `InputError` for one that cannot be had."""
    execution, options = plan.config.execution, plan.options
    return executors.make_executor(
        name,
        ExecutorOptions(
            jobs=options.jobs,
            device=options.device,
            gpus_per_trial=execution.gpus_per_trial,
            trial_timeout=execution.trial_timeout,
            address=address,
            say=say,
        ),
    )
