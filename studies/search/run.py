"""Running a study: hold it, open it, settle what was left, search, refit the selected trial.

The driver is the single writer of both stores; a lease in the database and a lock on this machine keep a second one away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from detectors.errors import InputError
from studies.executors.base import Executor
from studies.search.advice import Advising
from studies.search.driver import Driver
from studies.search.holding import held_study
from studies.search.job_factory import JobFactory
from studies.search.lease import Lease
from studies.search.nested_run import judge_nested
from studies.search.notices import Listener, Opened, Remark
from studies.search.opened import OpenStudy
from studies.search.outcome import LeaseLostError, Outcome
from studies.search.plan import Plan
from studies.search.queue import Queue
from studies.search.quiet import quiet_optuna
from studies.search.refit import Refit
from studies.search.remeasure import Remeasurement
from studies.search.rerank import Reranking
from studies.search.samplers import make_pruner
from studies.search.settling import put_back, take_up
from studies.search.stopping import Stopping
from studies.search.storage import ENDED, create_or_resume, ended
from studies.search.stores import Stores
from studies.search.telling import Telling
from studies.search.usable_words import usable_now
from studies.search.view import TrialView
from tracking.patience import Patience

LAST_WAIT_SECONDS = 2.0
"""For a store that is away when the run is to end."""


def run_study(
    plan: Plan,
    executor: Executor,
    stores: Stores,
    *,
    fresh: bool = False,
    listener: Listener = lambda notice: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run one study to the end of its budget, refit the selected trial and score it on test.

    Call it again, in this or another process, to go on where it was stopped.

    Args:
        executor: closed in any case.
        fresh: start a new generation beside the study of this name.
        clock: seconds that never go back, for the time limit.

    Raises:
        InputError: the study cannot be resumed, another driver runs it, images or stores fail.
        StudyFailedError: too many failures in a row, or no trial to select.
        KeyboardInterrupt: after the running trials were put back.
    """
    with _open(plan, executor, stores, listener, fresh=fresh) as session:
        opened, queue, telling = session.opened, session.queue, session.telling
        opened.open_parent()
        listener(
            Opened(
                opened.study.study_name,
                session.is_new,
                counted=opened.count_finished(),
                feasible=sum(trial.feasible is True for trial in opened.view.trials()),
                budget=opened.config.budget.trials,
                constrained=bool(opened.config.constraints),
                parent_run_id=opened.projection.parent_run_id,
            )
        )
        take_up(opened, queue, telling)
        jobs = JobFactory(opened, executor)
        reason = ended(opened.study) if plan.settles else ""
        if reason:
            listener(
                Remark("no trial is started: what was changed concerns the outcome of the search, which had ended")
            )
        else:
            opened.study.set_user_attr(ENDED, "")
            queue.fill()
            stopping = Stopping(opened, queue, clock=clock)
            check_lease = session.check_lease
            driver = Driver(
                opened, executor, queue=queue, jobs=jobs, telling=telling, stopping=stopping, check_lease=check_lease
            )
            reason = driver.search()
        put_back(opened, queue, telling)
        opened.study.set_user_attr(ENDED, reason)
        refit = Refit(opened, executor, jobs, check_lease=session.check_lease)
        remeasured = Remeasurement(opened, refit).run()
        Reranking(opened, executor, jobs, check_lease=session.check_lease).run()
        judge_nested(opened)
        selected = refit.finish_selected()
        Advising(opened, refit).run(selected)
        listener(Remark(f"search ended: {reason}"))
        opened.close_parent("FINISHED", reason)
        return Outcome(opened.view, reason, selected, opened.projection.parent_run_id, remeasured)


def refit_trial(
    plan: Plan,
    executor: Executor,
    stores: Stores,
    number: int,
    *,
    listener: Listener = lambda notice: None,
) -> TrialView:
    """Fit a finished trial once more, score it on test (a ledger line) and save its detector, unless that was done before.

    Raises:
        InputError: no such trial, or one that did not finish; as `run_study` does.
        StudyFailedError: the refit failed.
    """
    with _open(plan, executor, stores, listener) as session:
        opened = session.opened
        chosen = next((trial for trial in opened.view.trials() if trial.number == number), None)
        if chosen is None or chosen.state != "COMPLETE":
            state = "does not exist" if chosen is None else f"is {chosen.state}"
            raise InputError(f"trial {number} of study {opened.study.study_name!r} {state}; choose a finished one")
        if not chosen.detectors or chosen.final is None:
            opened.open_parent()
            Refit(opened, executor, JobFactory(opened, executor), check_lease=session.check_lease).run(chosen, "final")
            chosen = opened.trial(number)
            opened.write_trial(chosen)
            opened.close_parent("FINISHED", f"trial {number} was refitted")
        return chosen


@dataclass(frozen=True)
class _Session:
    """A study that is held and open."""

    opened: OpenStudy
    is_new: bool
    queue: Queue
    telling: Telling
    check_lease: Callable[[], None]


@contextmanager
def _open(
    plan: Plan, executor: Executor, stores: Stores, listener: Listener, *, fresh: bool = False
) -> Iterator[_Session]:
    hold = held_study(plan.config.name, plan.home, stores.storage, tell=lambda text: listener(Remark(text)))
    with quiet_optuna(), closing(executor), hold as lease:

        def check_lease() -> None:
            _check(lease, plan.config.name)
            stores.storage.invalidate()

        with stores.patience.guarded(check_lease), stores.storage.reads_cached():
            study, header, is_new = create_or_resume(stores.storage, plan, fresh=fresh)
            study.pruner = make_pruner(plan.config)
            opened = OpenStudy.create(plan, study, header, projection=stores.projection, notify=listener)
            opened.count_ledger()
            session = _Session(opened, is_new, Queue(opened), Telling(opened), check_lease)
            try:
                yield session
            except BaseException as error:
                executor.close()
                if not isinstance(error, LeaseLostError) and not lease.is_lost():
                    wind_up(session, stores.patience, error)
                raise


def _check(lease: Lease, name: str) -> None:
    """Raise `LeaseLostError` where another driver has the study by now."""
    if lease.is_lost():
        raise LeaseLostError(
            f"study {name!r} was taken over by another driver while this one stood still; it goes on there"
        )


def wind_up(session: _Session, patience: Patience, error: BaseException) -> None:
    """End a run that cannot go on. What fails here too (a full disk, a store that is gone) is left to the next run."""
    # Who ends a run does not want to wait, and what was waited for in vain does not come back now.
    with suppress(Exception), patience.shortened(LAST_WAIT_SECONDS):
        put_back(session.opened, session.queue, session.telling)
        usable = session.opened.view.usable()
        if usable is not None and usable.provisional:
            session.opened.notify(Remark(usable_now(session.opened.view, usable)))
        if isinstance(error, KeyboardInterrupt):
            session.opened.close_parent("KILLED", "interrupted; the same command goes on")
        else:
            session.opened.close_parent("FAILED", str(error))
