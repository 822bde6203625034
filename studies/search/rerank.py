"""Before the refit, the best settings are fitted again and ranked by the mean over their fits.

What one fit owes to chance, the start of a coreset, the seed of a training, the very images of train, is averaged by fits with
other seeds to other parts of train, each the same for all settings, and scored on validation. Painted defects are painted anew
for each. Test is never looked at, so no line of the ledger is written. What the images of validation owe to chance stays; that
is what ties are for (`studies.search.choice`).

Cost is bounded by figures of the trials, not by a clock, so that a study that is run again does the same. Each value is stored
when it is there: a driver that was killed goes on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from detectors.errors import InputError
from studies.executors.base import Executor
from studies.file.config import metric_of
from studies.search.candidates import basis, candidates
from studies.search.choice import Candidate, Choice, applies, best_first, decide
from studies.search.driver import POLL_SECONDS
from studies.search.durations import duration
from studies.search.job_factory import JobFactory
from studies.search.noise import mean_spread, spread_of
from studies.search.notices import Ended, Progressed, Remark, Started
from studies.search.opened import OpenStudy
from studies.search.view import TrialView
from studies.worker.jobs import ARTIFACTS, RETRIED, Done, Event, Job, Lost, Probe, Stage, TrialResult, read_result

TRAIN_SHARE = 0.8
"""Of train that a fresh fit sees: parts that differ in a third of their images or so, and are still as good as all."""
FITS, FITS_TRAINED = 3, 1
"""Fresh fits of each setting; where one of the best trains, which takes minutes, fewer."""
MOST_SHARE, LEAST_SECONDS = 0.25, 60.0
"""Time that fresh fits may take, as a share of what the trials took together, and what they may take in any case."""


class Reranking:
    """Ranks the best trials of one study again and stores which one is taken."""

    def __init__(
        self, opened: OpenStudy, executor: Executor, jobs: JobFactory, *, check_lease: Callable[[], None]
    ) -> None:
        """Args: `check_lease` raises where another driver has the study by now."""
        self._opened, self._executor, self._jobs, self._check_lease = opened, executor, jobs, check_lease
        self._view, self._config = opened.view, opened.config
        self._maximize = self._config.direction == "maximize"

    def run(self) -> Choice | None:
        """The choice, which is stored with the study; None where no trial is feasible. One that stands is not made again.

        Raises:
            InputError: images or weights are not what they were.
            LeaseLostError: another driver has the study.
        """
        stored = self._view.stored_choice()
        if stored is not None and stored.rerank == self._config.rerank:
            return stored
        trials = [trial for trial in self._view.trials() if trial.state == "COMPLETE"]
        frozen = [trial.frozen for trial in trials]
        found = candidates(self._config, frozen, self._view.remeasured, folder=self._view.trial_folder)
        choice = decide(found, maximize=self._maximize, ties=applies(self._config))
        if choice is None:
            return None
        best = [one for one in best_first(found, choice, maximize=self._maximize) if one.spread is not None]
        by_number = {trial.number: trial for trial in trials}
        count, fits = self._affordable([by_number[one.number] for one in best[: self._config.rerank]])
        if count > 1 and fits:
            self._tell([by_number[one.number] for one in best[:count]], fits)
            again = self._fit_again([by_number[one.number] for one in best[:count]], fits)
            fresh = [one for candidate in best[:count] if (one := self._with_fits(candidate, again, fits)) is not None]
            final = decide(fresh, maximize=self._maximize)
            if final is not None and len(fresh) > 1:
                ranked = sorted(fresh, key=lambda one: one.value, reverse=self._maximize)
                values = {one.number: one.value for one in ranked}
                choice = final.model_copy(
                    update={"values": values, "fresh_fits": fits, "tied_before": len(choice.tied)}
                )
        made_of = {"basis": basis(self._config, frozen, self._view.remeasured), "rerank": self._config.rerank}
        choice = choice.model_copy(update=made_of)
        self._opened.keep_choice(choice)
        return choice

    def _affordable(self, best: Sequence[TrialView]) -> tuple[int, int]:
        """How many of these may be fitted again, and how often each; 0 and 0 where there are not two."""
        if len(best) < 2:
            return 0, 0
        spent = sum(trial.seconds or 0.0 for trial in self._view.trials())
        limit, costs = max(LEAST_SECONDS, MOST_SHARE * spent), self._costs(best)
        trained = any(self._config.head_class(trial.detector_name).trained for trial in best)
        for fits in range(FITS_TRAINED if trained else FITS, 0, -1):
            if fits * sum(costs) <= limit:
                return len(best), fits
        count = max(count for count in range(len(best) + 1) if sum(costs[:count]) <= limit)
        if count < 2:
            self._opened.notify(
                Remark(
                    f"the best settings were not fitted again, because two of them would take about {sum(costs[:2]):.0f} s, "
                    f"more than the {limit:.0f} s that are spent on it"
                )
            )
            return 0, 0
        return count, 1

    def _tell(self, best: Sequence[TrialView], fits: int) -> None:
        """Say what is done now and how long it takes; nothing where an earlier run did it."""
        missing = sum(resample not in self._view.probed(one.number) for one in best for resample in range(1, fits + 1))
        if missing:
            seconds = sum(self._costs(best)) * missing / len(best) / max(1, self._executor.slots)
            times = "once" if fits == 1 else f"{fits} times each"
            self._opened.notify(
                Remark(
                    f"the best {len(best)} settings are fitted again on other parts of train, {times}, to tell the better from "
                    f"the luckier: about {duration(seconds)}"
                )
            )

    def _costs(self, best: Sequence[TrialView]) -> list[float]:
        """Seconds that another fit of each takes."""
        costs = [trial.seconds_of_fit for trial in best]
        if self._opened.plan.images.protocol == "synthetic":
            costs[0] += self._seconds_of_features()
        return costs

    def _seconds_of_features(self) -> float:
        """What the features of other paintings take: as long as those of validation took the trial that computed them."""
        stages = [stage for trial in self._view.trials() for stage in trial.outcome.seconds.items()]
        return max((value for name, value in stages if name.endswith("features (validation)")), default=0.0)

    def _fit_again(self, best: Sequence[TrialView], fits: int) -> dict[int, list[float]]:
        """{trial: first objective of each fresh fit}; a setting that could not be fitted again is left out, aloud."""
        left = {trial.number: trial for trial in best}
        values: dict[int, list[float]] = {number: [] for number in left}
        for resample in range(1, fits + 1):
            missing = [number for number in left if resample not in self._view.probed(number)]
            for number, failure in self._run([self._job(left[number], resample) for number in missing]):
                self._opened.notify(Remark(f"trial {number} could not be fitted again and is passed over: {failure}"))
                del left[number]
            for number in left:
                values[number].append(self._view.probed(number)[resample])
        return {number: values[number] for number in left}

    def _with_fits(self, candidate: Candidate, again: dict[int, list[float]], fits: int) -> Candidate | None:
        """The candidate with its fresh fits; None where they failed or their scores are gone."""
        objective, seed = next(iter(self._config.objectives)), self._config.sampler.seed
        folders = [self._view.probe_folder(candidate.number, resample) for resample in range(1, fits + 1)]
        spreads = [spread_of(folder / ARTIFACTS, objective, seed=seed) for folder in folders]
        known = [spread for spread in (candidate.spread, *spreads) if spread is not None]
        if candidate.number not in again or len(known) < fits + 1:
            return None
        return replace(candidate, values=(*candidate.values, *again[candidate.number]), spread=mean_spread(known))

    def _job(self, trial: TrialView, resample: int) -> Job:
        halvings = trial.submission.memory_halvings
        probe = Probe(resample, TRAIN_SHARE, repaint=True)
        return self._jobs.make("probe", trial.number, trial.params, attempt=1, memory_halvings=halvings, probe=probe)

    def _run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, str]]:
        """Do jobs of different trials, as many at a time as there is room for; yields number and failure of those that failed."""
        waiting, running, failed = deque(self._unless_done(jobs)), dict[int, Job](), list[tuple[int, str]]()

        def handle(event: Event) -> None:
            job = running.get(event.number)
            if job is None or event.attempt != job.attempt:
                return
            if isinstance(event, Stage):
                self._opened.notify(Progressed(event))
            elif isinstance(event, Done | Lost):
                self._check_lease()
                del running[event.number]
                self._opened.notify(Ended(job))
                result = event.result if isinstance(event, Done) else read_result(job.path)
                if result is not None:
                    failed.extend(self._store(job, result))
                elif isinstance(event, Lost) and (following := self._following(job, event)) is not None:
                    waiting.append(following)
                elif isinstance(event, Lost):
                    failed.append((job.number, f"{event.kind}: {event.message}"))

        while waiting or running:
            while waiting and len(running) < self._executor.slots:
                job = waiting.popleft()
                running[job.number] = job
                self._executor.submit(job)
                self._opened.notify(Started(job))
            self._executor.poll(POLL_SECONDS, handle)
            self._check_lease()
        yield from failed

    def _unless_done(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """The jobs without a result; one that a driver left which was killed is stored."""
        for job in jobs:
            result = read_result(job.path)
            if result is None or list(self._store(job, result)):
                yield job

    def _store(self, job: Job, result: TrialResult) -> Iterator[tuple[int, str]]:
        """Store the value of a fit; yields number and failure where it has none."""
        value = result.metrics.get(metric_of(self._config, next(iter(self._config.objectives))), math.nan)
        if job.probe is not None and math.isfinite(value):
            self._opened.store_probed(job.number, job.probe.resample, value)
        else:
            yield job.number, "its objective is undefined"

    def _following(self, job: Job, lost: Lost) -> Job | None:
        """Another attempt at a job that was lost, where one may help. Raises `InputError` for bad input."""
        if lost.kind == "bad_input":
            raise InputError(lost.message)
        if lost.kind not in RETRIED or job.attempt >= self._config.execution.attempts:
            return None
        return replace(
            job, attempt=job.attempt + 1, memory_halvings=job.memory_halvings + (lost.kind == "out_of_memory")
        )
