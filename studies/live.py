"""What a person sees while a study runs: a line per running trial and a study bar; plain lines when not a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from studies.notices import Finished, Notice, Opened, Progressed, Retried, Said, Started
from studies.space import encode
from studies.view import TrialView

PLAIN_SECONDS = 5.0
"""At most one line of progress in this time where the output is not a terminal."""


class Live:
    """A listener that draws. A context manager: the display ends with the block, however that ends."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        """Args: `quiet`: draw and say nothing; the outcome and errors are others' business."""
        self._console, self._quiet = console, quiet
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._trials: dict[int, TaskID] = {}
        self._labels: dict[int, str] = {}
        self._study: TaskID | None = None
        self._preparing: TaskID | None = None
        self._last_plain = ("", 0.0)
        self._begin = time.monotonic()
        self._counted_before = 0

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the display."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line above the display."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)

    def preparing(self, name: str, done: int, total: int) -> None:
        """Progress before the first trial."""
        if self._preparing is None:
            self._preparing = self._progress.add_task(name, note="")
        self._advance(self._preparing, "", done, total)
        self._progress.update(self._preparing, description=name)
        self._plain(name, done, total)

    def __call__(self, notice: Notice) -> None:
        """Draw what the driver tells."""
        match notice:
            case Opened():
                self._opened(notice)
            case Started(job):
                what = "final refit of" if job.task == "final" else ""
                params = ", ".join(str(encode(value)) for value in list(job.params.values())[:3])
                again = f" (attempt {job.attempt})" if job.attempt > 1 else ""
                self._labels[job.number] = f"{what} trial {job.number}{again}: {params}".strip()
                self._trials[job.number] = self._progress.add_task(self._labels[job.number], note="")
            case Progressed(stage):
                task = self._trials.get(stage.number)
                if task is not None:
                    self._advance(task, stage.name, stage.done, stage.total)
                self._plain(f"trial {stage.number}: {stage.name}", stage.done, stage.total)
            case Retried(number, attempt, reason, how):
                self._remove(number)
                self.say(f"trial {number}: {reason}; attempt {attempt}{how} follows")
            case Finished(trial, counted, best):
                self._finished(trial, counted, best)
            case Said(text):
                self.say(text)

    def _opened(self, notice: Opened) -> None:
        if self._preparing is not None:
            self._progress.remove_task(self._preparing)
        how = "new study" if notice.new else f"going on after {notice.counted} trials"
        self.say(f"study {notice.name}: {how}, up to {notice.budget} trials")
        self._begin, self._counted_before = time.monotonic(), notice.counted
        self._study = self._progress.add_task(
            notice.name, total=notice.budget, completed=notice.counted, note=f"{notice.counted} trials"
        )

    def _finished(self, trial: TrialView, counted: int, best: TrialView | None) -> None:
        self._remove(trial.number)
        if self._study is not None:
            note = (
                f"best {best.value:.4f} (trial {best.number})" if best and best.value is not None else "no result yet"
            )
            minutes = (time.monotonic() - self._begin) / 60
            rate = (counted - self._counted_before) / minutes if minutes > 0 else 0.0
            self._progress.update(
                self._study, completed=counted, note=f"{counted} trials, {note}, {rate:.1f} trials/min"
            )
        self.say(describe(trial, best))

    def _advance(self, task: TaskID, name: str, done: int, total: int) -> None:
        """A stage that counts nothing has an empty bar: rich cannot take a total back."""
        note = f"{name} {done}/{total}".strip() if total else name
        self._progress.update(task, completed=done if total else 0, total=total or 1, note=note)

    def _remove(self, number: int) -> None:
        task = self._trials.pop(number, None)
        if task is not None:
            self._progress.remove_task(task)

    def _plain(self, name: str, done: int, total: int) -> None:
        """Where there is no terminal: now and then a line for work that takes long."""
        if self._console.is_terminal or not total:
            return
        last_name, last_time = self._last_plain
        now = time.monotonic()
        if name != last_name:
            self._last_plain = (name, now)
        elif now - last_time > PLAIN_SECONDS:
            self.say(f"{name}: {done} of {total}")
            self._last_plain = (name, now)


def describe(trial: TrialView, best: TrialView | None) -> str:
    """One line on a finished trial."""
    params = ", ".join(f"{name} {_short(encode(value))}" for name, value in trial.params.items())
    if trial.state != "COMPLETE":
        return f"trial {trial.number:>3} {trial.state.lower()}: {trial.failure or 'pruned'} ({params})"
    mark = " *" if best is not None and best.number == trial.number else ""
    infeasible = "" if trial.feasible else ", misses a constraint"
    fps = trial.metrics.get("fps")
    speed = f", {fps:.1f} fps" if fps is not None else ""
    seconds = f", {trial.seconds:.1f} s" if trial.seconds is not None else ""
    objective = next(iter(trial.config.objectives))
    return f"trial {trial.number:>3}  {objective} {trial.value:.4f}{mark}{speed}{seconds}{infeasible}  ({params})"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
