"""The events of a running study as lines of JSON, one object each, for programs that watch it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from studies.file.encoding import encode
from studies.search.notices import Ended, Finished, Notice, Opened, Progressed, Remark, Retried, Started

PREPARING_SECONDS = 1.0
"""Least time between two lines on the progress of the preparations."""


class EventLines:
    """A listener like `studies.show.live.Live` that writes ``{"event": ..., "time": ..., ...}``.

    Events: ``preparing``, ``opened``, ``started``, ``stage``, ``retried``, ``finished`` of a trial, ``ended`` of
    another fit, ``said``.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        """Args:
        write: called with each line, without the line break.
        """
        self._write = write
        self._last = 0.0

    def __enter__(self) -> EventLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def say(self, text: str) -> None:
        """Write a text for people as the event ``said``."""
        self._event("said", text=text)

    def preparing(self, name: str, done: int, total: int) -> None:
        """Write the progress of the preparations before the first trial, `done` of `total` steps."""
        now = time.monotonic()
        if done == total or now - self._last >= PREPARING_SECONDS:
            self._last = now
            self._event("preparing", name=name, done=done, total=total)

    def __call__(self, notice: Notice) -> None:
        """Write one line for a notice of the driver."""
        match notice:
            case Opened():
                self._event(
                    "opened",
                    study=notice.name,
                    new=notice.new,
                    counted=notice.counted,
                    budget=notice.budget,
                    run=notice.parent_run_id,
                )
            case Started(job):
                params = {name: encode(value) for name, value in job.params.items()}
                self._event("started", trial=job.number, task=job.task, attempt=job.attempt, params=params)
            case Progressed(stage):
                self._event("stage", trial=stage.number, name=stage.name, done=stage.done, total=stage.total)
            case Retried(number, attempt, reason, how):
                self._event("retried", trial=number, attempt=attempt, reason=reason, how=how.strip())
            case Finished(trial, counted, best):
                self._event(
                    "finished",
                    trial=trial.number,
                    state=trial.state,
                    value=trial.value,
                    feasible=trial.feasible,
                    seconds=trial.seconds,
                    failure=trial.failure,
                    metrics=trial.metrics,
                    counted=counted,
                    best=best.number if best else None,
                )
            case Ended(job):
                self._event("ended", trial=job.number, task=job.task)
            case Remark(text):
                self.say(text)

    def _event(self, event: str, **content: Any) -> None:
        self._write(json.dumps({"event": event, "time": round(time.time(), 3), **content}))
