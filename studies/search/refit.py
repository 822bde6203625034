"""After the search: the selected trial is fitted once more, scored on test and saved; where asked for, with more seeds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from detectors.errors import InputError
from studies.executors.base import Executor
from studies.file.encoding import Setting
from studies.search import provisional, thresholds
from studies.search.driver import POLL_SECONDS
from studies.search.job_factory import JobFactory
from studies.search.notices import Progressed, Remark, Started
from studies.search.opened import OpenStudy
from studies.search.outcome import StudyFailedError
from studies.search.view import TrialView
from studies.worker.jobs import RESULT_FILE, RETRIED, Done, Event, Job, Lost, Probe, Stage, Task, read_result


class Refit:
    """Refits of one study. Each is a job, and a line in the ledger of test."""

    def __init__(
        self, opened: OpenStudy, executor: Executor, jobs: JobFactory, *, check_lease: Callable[[], None]
    ) -> None:
        """Args: `check_lease` raises where another driver has the study by now."""
        self._opened, self._executor, self._jobs, self._check_lease = opened, executor, jobs, check_lease

    def finish_selected(self) -> TrialView | None:
        """Refit the selected trial with all its seeds, unless that was done before, and mark it in MLflow.

        Raises:
            StudyFailedError: no trial can be selected, or a refit failed.
            InputError: images or weights are not what they were.
        """
        selected = self._opened.view.selected()
        if selected is None:
            raise StudyFailedError(self._why_none_is_selected())
        # A refit that was cut off has no result, whatever else it left.
        unfinished = not selected.detectors or selected.final is None
        if unfinished or thresholds.must_be_refitted(self._opened.view, selected):
            self.run(selected, "final")
        provisional.delete(self._opened.view.with_own_detector())
        if not thresholds.follow_section(self._opened.view, selected):
            self._choose_threshold_anew(selected)
        # Where no image is kept for test, another seed has none to be scored on.
        for replicate in range(1, self._opened.config.seeds if self._opened.plan.images.keeps_test else 1):
            if read_result(selected.replicate_folder(replicate)) is None:
                self.run(selected, "replicate", replicate)
        # The mark of the selected trial may have moved.
        self._opened.write_finished_trials()
        return self._opened.view.selected()

    def run(self, trial: TrialView, task: Task, replicate: int = 0) -> None:
        """Fit a trial's setting once more and score it on test, or with task ``speed`` measure its speed alone.

        What is tried again for a trial is tried again here.

        Raises:
            InputError, StudyFailedError: there is no result.
        """
        self._do(
            trial,
            lambda attempt, halvings: self._jobs.make(
                task, trial.number, trial.params, attempt=attempt, memory_halvings=halvings, replicate=replicate
            ),
            what=f"the refit of trial {trial.number}",
        )

    def probe(self, trial: TrialView, params: Setting, probe: Probe) -> None:
        """Fit a setting under another condition and score it on validation. Raises as `run` does.

        Args:
            trial: the one whose number the job bears.
        """
        self._do(
            trial,
            lambda attempt, halvings: self._jobs.make(
                "probe", trial.number, params, attempt=attempt, memory_halvings=halvings, probe=probe
            ),
            what=f"the fit {probe.name}",
        )

    def _do(self, trial: TrialView, make: Callable[[int, int], Job], *, what: str) -> None:
        """Do a job, again where that may help.

        Args:
            make: makes it for the so-manyeth attempt, with so many halvings of the memory.
            what: it is, for a message.
        """
        halvings, attempts = trial.submission.memory_halvings, self._opened.config.execution.attempts
        for attempt in range(1, attempts + 1):
            job = make(attempt, halvings)
            if attempt == 1:
                (job.path / RESULT_FILE).unlink(missing_ok=True)
            self._executor.submit(job)
            self._opened.notify(Started(job))
            end = self._wait_for_end()
            self._opened.count_ledger()
            if isinstance(end, Done) or read_result(job.path) is not None:
                return
            if end.kind == "bad_input":
                raise InputError(end.message)
            if end.kind not in RETRIED or attempt == attempts:
                raise StudyFailedError(f"{what} failed: {end.kind}: {end.message}")
            halvings += end.kind == "out_of_memory"

    def _wait_for_end(self) -> Done | Lost:
        """The end of the only job under way."""
        ends: list[Done | Lost] = []

        def handle(event: Event) -> None:
            if isinstance(event, Stage):
                self._opened.notify(Progressed(event))
            elif isinstance(event, Done | Lost):
                ends.append(event)

        while not ends:
            self._executor.poll(POLL_SECONDS, handle)
            self._check_lease()
        return ends[0]

    def _why_none_is_selected(self) -> str:
        config = self._opened.config
        if not self._opened.count_finished():
            return f"no trial finished; `study show {self._opened.view.address}` lists the failures"
        constraints = ", ".join(f"{name} {condition}" for name, condition in config.constraints.items())
        return f"no finished trial meets the constraints ({constraints}); relax them"

    def _choose_threshold_anew(self, selected: TrialView) -> None:
        """The study file gives another threshold: it follows from the scores that the refit kept, without a look at test."""
        view, device = self._opened.view, torch.device(self._opened.plan.device)
        wanted = thresholds.sections(view, selected)
        points = thresholds.operating(view, selected, wanted, device=device)
        chosen = thresholds.choose(points, wanted)
        thresholds.write(selected, points, chosen)
        for product, threshold in chosen.items():
            self._opened.notify(
                Remark(f"threshold{f' of {product}' if product else ''}: {threshold.value:.6g} by the study file")
            )
