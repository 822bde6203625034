"""From an exception in a job to the event that tells of it."""

from __future__ import annotations

import traceback

import torch

from detectors.errors import InputError
from detectors.files import append_line
from studies.jobs import LOG_FILE, Job, Lost, LostKind


def lost(job: Job, error: BaseException) -> Lost:
    """Classify a job's exception; the traceback goes to the job's log."""
    append_line(job.path / LOG_FILE, "".join(traceback.format_exception(error)))
    return Lost(job.number, job.attempt, kind_of(error), describe(error))


def kind_of(error: BaseException) -> LostKind:
    """Bad input ends the study, a lack of memory is tried again, any other exception is the configuration's own."""
    if isinstance(error, InputError):
        return "bad_input"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out_of_memory"
    # The CPU allocator raises a plain RuntimeError, in words that depend on the platform.
    if isinstance(error, RuntimeError) and "CPUAllocator" in str(error):
        return "out_of_memory"
    return "exception"


def describe(error: BaseException) -> str:
    """One line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, InputError | ArithmeticError) else f"{type(error).__name__}: {text}"
