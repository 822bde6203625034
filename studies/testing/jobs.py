"""Jobs that do in a moment what real ones do on a bad day: `act` stands for `studies.worker.trial.run_job` in workers of all
kinds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectors.errors import InputError
from detectors.files import write_json, write_text
from studies.home import Home
from studies.worker.jobs import CHECKPOINTS, DETECTOR, RESULT_FILE, Event, Job, Report, Stage, TrialResult
from studies.worker.ledger import LedgerLine, append_to_ledger

SEEN_FILE = "seen.json"
"""In the job's folder: where and when it ran."""
STEPS = 5
FOREVER = 600.0


def act(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> TrialResult:
    """What ``params["act"]`` says; nothing but a result where it says nothing."""
    deed = job.params.get("act", "work")
    seen = {
        "pid": os.getpid(),
        "began": time.time(),
        "device": job.device,
        "threads": job.threads,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "torch": "torch" in sys.modules,
        "home": job.home,
    }
    write_json(job.path / SEEN_FILE, seen)
    emit(Stage(job.number, job.attempt, "fit"))
    pruned = DEEDS[deed](job, emit, should_stop)
    write_json(job.path / SEEN_FILE, seen | {"ended": time.time()})
    return _finish(job, pruned=pruned)


def _work(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    time.sleep(job.params.get("seconds", 0.0))
    return False


def linger(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> TrialResult:
    """`act`, for a second: long enough to be met at work."""
    return act(replace(job, params=job.params | {"seconds": 1.0}), emit, should_stop)


def _report(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    for step in range(1, STEPS + 1):
        emit(Report(job.number, job.attempt, step, step / 10))
    return False


def _until_stopped(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    begin, step = time.monotonic(), 0
    while not should_stop():
        step += 1
        emit(Report(job.number, job.attempt, step, step / 1000))
        time.sleep(0.02)
        assert time.monotonic() < begin + 60, "nobody stopped this"
    return True


def _print(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    print("said on the way")  # noqa: T201
    subprocess.run(["echo", "said by a child"], check=True)
    return False


def _fail(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    raise ValueError("the setting makes no sense\nin two lines")


def _bad_input(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    raise InputError("a.png: no such file")


def _no_memory(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _crash(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(FOREVER)
    return False


def _crash_once(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    checkpoint = job.path / CHECKPOINTS / "epoch.txt"
    if job.attempt == 1:
        write_text(checkpoint, "1")
        return _crash(job, emit, should_stop)
    assert checkpoint.read_text() == "1"
    return False


def _hang(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    time.sleep(FOREVER)
    return False


def _deaf(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    """Ignores what it can, and has a child."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"])
    seen = json.loads((job.path / SEEN_FILE).read_bytes())
    write_json(job.path / SEEN_FILE, seen | {"child": child.pid})
    return _hang(job, emit, should_stop)


def _frozen(job: Job, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    os.kill(os.getpid(), signal.SIGSTOP)
    return _hang(job, emit, should_stop)


DEEDS = {
    "work": _work,
    "report": _report,
    "until stopped": _until_stopped,
    "print": _print,
    "fail": _fail,
    "bad input": _bad_input,
    "no memory": _no_memory,
    "crash": _crash,
    "crash once": _crash_once,
    "hang": _hang,
    "deaf": _deaf,
    "frozen": _frozen,
}


def _scoring(job: Job) -> LedgerLine:
    return LedgerLine(
        time="2026-01-01T00:00:00+00:00",
        study_uid=job.study_uid,
        study="stand-in",
        trial=job.number,
        purpose="selected",
        protocol="holdout",
        test_digest="0" * 64,
        image_auroc=0.7,
        host="here",
    )


def _finish(job: Job, *, pruned: bool) -> TrialResult:
    if job.task == "final":
        append_to_ledger(Home(Path(job.home)), _scoring(job))
        write_text(job.path / DETECTOR / "detector.json", "{}")
    value = {} if pruned else {"val/image_auroc": 0.5 + job.params.get("shrinkage", 0.0) / 10, "fps": 50.0}
    result = TrialResult(
        task=job.task,
        study_uid=job.study_uid,
        number=job.number,
        attempt=job.attempt,
        params=job.params,
        pruned=pruned,
        metrics=value if job.task in ("trial", "probe") else {"test/image_auroc": 0.7},
        seconds={"fit": 0.1},
        backbone={"name": "resnet18"},
        threshold=_threshold(job.config["threshold"]) if job.task == "final" else None,
        started=time.time(),
        finished=time.time(),
        environment={"host": "here", "device": job.device},
    )
    write_json(job.path / RESULT_FILE, result.model_dump(mode="json"))
    return result


def _threshold(section: Mapping[str, Any]) -> dict[str, Any]:
    """A threshold by the section of a study file, as a worker writes it."""
    return {"value": 0.5, "rule": section["rule"], "source": "validation", "normals": 12, "rate": section.get("rate")}


def sound(job: Job, orders: object) -> None:
    """Stands for the check of a node, which takes seconds to import what it needs."""


def unsound(job: Job, orders: object) -> str:
    """The same, of a node that lacks something."""
    return "no data set at /nowhere"


def deadly(job: Job, orders: object) -> None:
    """The same, of a node whose PyTorch does not fit its processor."""
    os.kill(os.getpid(), signal.SIGILL)
    time.sleep(FOREVER)
