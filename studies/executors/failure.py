"""From an exception or a worker's death to the event that tells of it."""

from __future__ import annotations

import errno
import signal
import traceback
from pathlib import Path

from detectors.errors import InputError
from detectors.files import append_line
from studies.worker.jobs import LOG_FILE, Job, Lost, LostKind

OUT_OF_MEMORY = ("CPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What a RuntimeError says where memory was short: torch on either device, faiss, cuBLAS, cuDNN."""
MOST_WORDS = 1000
"""Characters of a message."""


def lost(job: Job, error: BaseException) -> Lost:
    """Classify a job's exception; the traceback goes to the job's log."""
    append_line(job.path / LOG_FILE, "".join(traceback.format_exception(error)))
    return Lost(job.number, job.attempt, kind_of(error), describe(error))


def kind_of(error: BaseException) -> LostKind:
    """Bad input ends the study, a lack of memory is tried again, any other exception is the configuration's own."""
    if isinstance(error, InputError):
        return "bad_input"
    cause: BaseException | None = error
    while cause is not None:
        if _is_lack_of_memory(cause):
            return "out_of_memory"
        cause = cause.__cause__
    return "exception"


def _is_lack_of_memory(error: BaseException) -> bool:
    # By its name: a driver reads this too, and torch takes seconds to import.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # Allocators other than CUDA's raise a plain RuntimeError, in words that depend on the platform.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def describe(error: BaseException) -> str:
    """One line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:MOST_WORDS]
    return text if isinstance(error, InputError | ArithmeticError) else f"{type(error).__name__}: {text}"


def death(exitcode: int | None, *, kills_before: int | None) -> tuple[LostKind, str]:
    """What ended a worker: memory, where the kernel has killed for it since, else a crash.

    Args:
        exitcode: as `multiprocessing` gives it; minus the signal's number where one ended the worker.
        kills_before: `memory_kills` when the job began.
    """
    if exitcode is None or exitcode >= 0:
        return "crashed", f"worker ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # a real-time signal
        name = f"signal {-exitcode}"
    if exitcode != -signal.SIGKILL:
        return "crashed", f"worker ended by {name}"
    kills = memory_kills()
    if kills is None or kills_before is None:
        return "crashed", f"worker ended by {name} (often the system ran out of memory)"
    if kills > kills_before:
        return "out_of_memory", f"worker ended by {name}: the system ran out of memory"
    return "crashed", f"worker ended by {name}"


def memory_kills(counters: Path = Path("/proc/vmstat")) -> int | None:
    """How often the kernel has killed a process for lack of memory since it started; None where it does not say."""
    try:
        words = dict(line.split() for line in counters.read_text().splitlines())
        return int(words["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
