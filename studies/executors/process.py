"""A job within a worker process, whoever started it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from studies.executors.failure import lost
from studies.worker.jobs import LOG_FILE, Done, Event, Job, Lost, TrialResult

Runner = Callable[[Job, Callable[[Event], None], Callable[[], bool]], TrialResult]
"""`studies.worker.trial.run_job` or what stands for it: a function of a module, called with (job, emit, should_stop)."""


def perform(
    job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool], run: Runner | None
) -> Done | Lost:
    """Do a job; everything that libraries print during it goes to its log.

    Args:
        run: None for `studies.worker.trial.run_job`, which a worker imports only here: torch takes seconds.
    """
    log_to(job)
    if run is None:
        from studies.worker.trial import run_job

        run = run_job
    try:
        return Done(job.number, job.attempt, run(job, emit, should_stop))
    except Exception as error:
        return lost(job, error)
    finally:
        sys.stdout.flush()


def log_to(job: Job) -> None:
    """Send this process's output to a job's log."""
    job.path.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(job.path / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # In their order with what other processes and libraries write.
        sys.stdout.reconfigure(line_buffering=True)
