"""The display of a running study: a row for each running trial and one for the study, or plain lines if it is not a terminal."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from studies.file.encoding import encode
from studies.file.keys import DETECTOR_KEY, ParameterKey
from studies.search.durations import duration
from studies.search.notices import Ended, Finished, Notice, Opened, Progressed, Remark, Retried, Started

if TYPE_CHECKING:  # `study run --help` imports this module and waits for neither torch nor Optuna
    from studies.search.view import TrialView
    from studies.worker.jobs import Job

PLAIN_SECONDS = 5.0
"""Least time between two lines of progress of the same work if the output is not a terminal."""
BAR_WIDTH = 110
"""Width of a terminal, in columns, from which on bars are drawn."""
_TASKS = {
    "trial": "",
    "final": "final refit of ",
    "replicate": "another seed of ",
    "speed": "speed of ",
    "probe": "another fit of ",
}
"""What the row of a job begins with."""
FAILURES = 3
"""Number of the last failures that stay visible."""


class _TimeLeft(ProgressColumn):
    """The time that is left of the ``expected`` seconds; empty if they are not known."""

    def render(self, task: Task) -> Text:
        expected = task.fields.get("expected")
        if expected is None or task.elapsed is None:
            return Text()
        left = expected - task.elapsed
        return Text(f"about {duration(left)} left" if left >= 1 else "almost there", style="dim")


class _Display(Progress):
    """A row for each running trial and for the study; below them the figures of the study and the last failures."""

    def __init__(self, console: Console, *, disable: bool) -> None:
        self.failures: deque[str] = deque(maxlen=FAILURES)
        self.figures = ""
        bar = [BarColumn(bar_width=24)] if console.width >= BAR_WIDTH else []
        # In a narrow terminal the name of a trial is cut, not what changes.
        name = Column(no_wrap=True, overflow="ellipsis", max_width=max(20, console.width - 50))
        super().__init__(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False, table_column=name),
            *bar,
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            _TimeLeft(table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            disable=disable,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(f"  {self.figures}")
        for failure in self.failures:
            yield Text(f"  {failure}", style="red", no_wrap=True, overflow="ellipsis")


class _Running(NamedTuple):
    task: TaskID
    kind: tuple[str, str]
    """Task and detector: jobs of the same kind take about the same time."""
    begin: float


class Live:
    """A listener that draws the events of a study. As a context manager it ends the display at the end of the block."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        """Args:
        quiet: draw and print nothing.
        """
        self._console, self._quiet = console, quiet
        self._progress = _Display(console, disable=quiet or not console.is_terminal)
        self._running: dict[int, _Running] = {}
        self._seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._study: TaskID | None = None
        self._preparing: TaskID | None = None
        self._last_plain = ("", 0.0)
        self._begin = time.monotonic()
        self._counted_before = self._budget = self._feasible = 0
        self._constrained = False

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def display(self) -> list[RenderableType]:
        """What is drawn at the moment."""
        return list(self._progress.get_renderables())

    def close(self) -> None:
        """End the display."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the display. In a file it is never wrapped."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def preparing(self, name: str, done: int, total: int) -> None:
        """Show the progress of the preparations before the first trial, `done` of `total` steps."""
        if self._preparing is None:
            self._preparing = self._progress.add_task(name, note="")
        self._advance(self._preparing, "", done, total)
        self._progress.update(self._preparing, description=name)
        self._plain(name, done, total)

    def __call__(self, notice: Notice) -> None:
        """Show a notice of the driver."""
        match notice:
            case Opened():
                self._opened(notice)
            case Started(job):
                self._started(job)
            case Progressed(stage):
                if running := self._running.get(stage.number):
                    self._advance(running.task, stage.name, stage.done, stage.total)
                self._plain(f"trial {stage.number}: {stage.name}", stage.done, stage.total)
            case Retried(number, attempt, reason, how):
                self._remove(number)
                self.say(f"trial {number}: {reason}; attempt {attempt}{how} follows")
            case Finished(trial, counted, best):
                self._finished(trial, counted, best)
            case Ended(job):
                self._remove(job.number)
            case Remark(text):
                self.say(text)

    def _opened(self, notice: Opened) -> None:
        if self._preparing is not None:
            self._progress.remove_task(self._preparing)
        how = "new study" if notice.new else f"continues after {notice.counted} trials"
        self.say(f"study {notice.name}: {how}, up to {notice.budget} trials")
        self._begin, self._counted_before = time.monotonic(), notice.counted
        self._budget, self._feasible, self._constrained = notice.budget, notice.feasible, notice.constrained
        self._study = self._progress.add_task(
            notice.name, total=notice.budget, completed=notice.counted, note=f"{notice.counted}/{notice.budget} trials"
        )

    def _started(self, job: Job) -> None:
        self._remove(job.number)
        detector = str(job.params.get("detector") or job.config["detector"])
        what = _TASKS[job.task]
        again = f" (attempt {job.attempt})" if job.attempt > 1 else ""
        parts = [detector, *(str(encode(job.params[name])) for name in ("backbone", "layers") if name in job.params)]
        label = f"{what}trial {job.number}{again} · {' · '.join(parts)}"
        kind = (job.task, detector)
        expected = statistics.median(seconds) if (seconds := self._seconds.get(kind)) else None
        task = self._progress.add_task(label, note="", expected=expected)
        self._running[job.number] = _Running(task, kind, time.monotonic())

    def _finished(self, trial: TrialView, counted: int, best: TrialView | None) -> None:
        running = self._running.get(trial.number)
        if running is not None and trial.state == "COMPLETE":
            self._seconds[running.kind].append(time.monotonic() - running.begin)
        self._remove(trial.number)
        self._feasible += trial.feasible is True
        if trial.state == "FAIL":
            self._progress.failures.append(f"failed: trial {trial.number}: {trial.failure}")
        if self._study is not None:
            elapsed = time.monotonic() - self._begin
            rate = (counted - self._counted_before) / elapsed if elapsed > 0 else 0.0
            has_value = best is not None and best.value is not None
            figures = [f"best {best.value:.4f} (trial {best.number})" if best and has_value else "no result yet"]
            if self._constrained:
                figures.append(f"{self._feasible} feasible")
            self._progress.figures = ", ".join([*figures, f"{60 * rate:.1f} trials/min"])
            # The column counts from the beginning as well.
            expected = elapsed + max(0, self._budget - counted) / rate if rate else None
            self._progress.update(
                self._study, completed=counted, note=f"{counted}/{self._budget} trials", expected=expected
            )
        self.say(describe(trial, best))

    def _advance(self, task: TaskID, name: str, done: int, total: int) -> None:
        """Update a row. A stage that does not count gets an empty bar, because rich cannot remove a total."""
        note = f"{name} {done}/{total}".strip() if total else name
        self._progress.update(task, completed=done if total else 0, total=total or 1, note=note)

    def _remove(self, number: int) -> None:
        running = self._running.pop(number, None)
        if running is not None:
            self._progress.remove_task(running.task)

    def _plain(self, name: str, done: int, total: int) -> None:
        """If the output is not a terminal, print a line now and then for work that takes long."""
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
    """One line on a trial that has ended, with the parameters that differ between trials; an asterisk marks the best one."""
    shown = {DETECTOR_KEY, *trial.attributes.overrides, *(ParameterKey.parse(key).name for key in trial.config.search)}
    shown = shown if trial.config.search else set(trial.params)
    params = ", ".join(f"{name} {_short(encode(value))}" for name, value in trial.params.items() if name in shown)
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
