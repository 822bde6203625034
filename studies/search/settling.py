"""What is left over: of an earlier driver when a run begins, of this one when it ends."""

from __future__ import annotations

import time

from optuna.trial import Trial, TrialState

from studies.search.attributes import DISCARDED, INTERRUPTED, TrialAttributes, TrialOutcome
from studies.search.opened import OpenStudy
from studies.search.queue import Attempt, Queue
from studies.search.telling import Telling


def take_up(opened: OpenStudy, queue: Queue, telling: Telling) -> None:
    """Tell results that were left untold, queue running trials for another attempt, write runs that MLflow lacks."""
    attempts = opened.config.execution.attempts
    for frozen in opened.all_trials(TrialState.RUNNING):
        attributes = TrialAttributes.of(frozen)
        if attributes.discarded is not None:
            opened.study.tell(frozen.number, state=TrialState.FAIL)
            continue
        trial = Trial(opened.study, frozen._trial_id)
        last = attributes.job
        if telling.tell_stored_result(trial, last.attempt):
            continue
        if attributes.outcome.failure:
            telling.fail(trial, attributes.outcome.failure)
        elif last.attempt >= attempts:
            telling.fail(trial, f"crashed: the driver ended {last.attempt} times while this trial was running")
        else:
            queue.retry(Attempt(trial, last.attempt + 1, last.memory_halvings))
    telling.forget_failures()
    opened.write_finished_trials()


def put_back(opened: OpenStudy, queue: Queue, telling: Telling) -> None:
    """Close every trial that still runs as interrupted and queue its setting, so that the next run tries it first."""
    interrupted = []
    for frozen in opened.all_trials(TrialState.RUNNING):
        trial, attributes = Trial(opened.study, frozen._trial_id), TrialAttributes.of(frozen)
        if attributes.discarded is None:
            was_submitted = attributes.job.attempt > 0
            if was_submitted and telling.tell_stored_result(trial, attributes.job.attempt):
                continue
            queue.requeue(frozen.number)
            if was_submitted:
                TrialOutcome(finished=time.time(), failure=INTERRUPTED).write(trial)
                interrupted.append(frozen.number)
            else:
                trial.set_user_attr(DISCARDED, "interrupted while it was asked for")
        opened.study.tell(trial, state=TrialState.FAIL)
    for number in interrupted:
        opened.write_trial(opened.trial(number))
    queue.drop_retries()
