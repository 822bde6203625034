"""ask -> submit -> tell. The driver owns the Optuna storage and the MLflow projection: it is the single writer of both.

What makes a crash harmless: a trial's outcome lies in its folder before it is told, Optuna is told before MLflow is written, and
MLflow can be written again at any time. A driver that starts first settles what its predecessor left: results that were not told,
trials that were running, runs that were not written.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from detectors import catalog
from detectors.errors import InputError
from detectors.files import file_lock
from studies.executors.base import Executor
from studies.executors.slots import available_cores
from studies.file.config import StudyConfig, metric_of
from studies.file.encoding import canonical
from studies.file.keys import DETECTOR_KEY
from studies.home import Home
from studies.search import storage as studies_storage
from studies.search import summary
from studies.search.lease import Lease
from studies.search.notices import Finished, Listener, Notice, Opened, Progressed, Retried, Said, Started
from studies.search.outcome import LeaseLostError, Outcome, StudyFailedError
from studies.search.patient_storage import PatientStorage
from studies.search.plan import Plan
from studies.search.space import SearchSpace
from studies.search.storage import Header
from studies.search.view import (
    DISCARDED,
    INTERRUPTED,
    JOB,
    ORIGIN,
    OUTCOME,
    OVERRIDES,
    StudyView,
    TrialView,
    violations,
)
from studies.worker.jobs import (
    RESULT_FILE,
    RETRIED,
    Done,
    Event,
    Job,
    Lost,
    Report,
    Stage,
    Task,
    TrialResult,
    read_result,
)
from tracking.patience import Patience
from tracking.projection import Projection
from tracking.records import StudyState

POLL_SECONDS = 1.0
LAST_WAIT_SECONDS = 2.0
"""For a store that is away when the run is to end."""
DUPLICATES_BEFORE_RANDOM, DUPLICATES_BEFORE_END = 10, 60
"""Repeated suggestions in a row after which the sampler is replaced by chance, and after which the space counts as exhausted."""


EPOCHS = "epochs"
"""What every detector that trains calls the length of its training."""
UNANSWERED = (INTERRUPTED, "bad_input", "crashed: the driver")
"""Beginnings of failures that say nothing of the setting: it may be tried again. Any other was met in every attempt."""


@dataclass(frozen=True)
class _Attempt:
    """A trial that is to be submitted."""

    trial: Trial
    attempt: int = 1
    memory_halvings: int = 0


class Driver:
    """Runs one study to the end of its budget. `run` may be called again, by this or another process, to go on."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        *,
        storage: RDBStorage,
        projection: Projection,
        listener: Listener = lambda notice: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.executor, self.storage = plan, executor, storage
        self.projection, self.listener, self.clock = projection, listener, clock
        self._patience = Patience(tell=lambda text: self._notify(Said(text)), may_go_on=self._check_lease)
        self.projection.patience = self._patience
        if isinstance(storage, PatientStorage):
            storage.patience = self._patience
        self._lease = Lease(storage.engine, plan.config.name)
        self.config: StudyConfig = plan.config
        self._running: dict[int, Job] = {}
        self._trials: dict[int, Trial] = {}
        self._again: deque[_Attempt] = deque()
        """Trials to be submitted (again)."""
        self._failures: list[str] = []
        """Of the trials that failed in a row, up to the last one that ended."""
        self._exhausted = False
        self._is_sole = False
        """Whether this driver took the lease."""
        self._pruned: set[int] = set()
        """Trials that were told to stop: they are pruned, even where their training ended before it heard of it."""

    def run(self, *, fresh: bool = False) -> Outcome:
        """Open or create the study, settle what was left, search, refit and score the selected trial.

        Raises:
            InputError: the study cannot be resumed, another driver runs it, images or stores fail.
            StudyFailedError: too many failures in a row, or no trial to select.
            KeyboardInterrupt: after the running trials were put back.
        """
        with self._sole_driver():
            self.study, header, new = studies_storage.create_or_resume(self.storage, self.plan, fresh=fresh)
            self.study.pruner = make_pruner(self.config)
            self._adopt_header(header)
            try:
                return self._run(new)
            except BaseException as error:
                self._wind_up(error)
                raise
            finally:
                self.executor.close()

    def _run(self, new: bool) -> Outcome:
        self.projection.open(self.view.study_record(state="RUNNING", note=summary.note(self.view)))
        counted = self._counted()
        name = self.study.study_name
        self._notify(
            Opened(
                name,
                new,
                counted=counted,
                feasible=sum(trial.feasible is True for trial in self.view.trials()),
                budget=self.config.budget.trials,
                constrained=bool(self.config.constraints),
                parent_run_id=self.projection.parent_run_id,
            )
        )
        self._settle()
        self._enqueue_baselines()
        begin = self.clock()
        while True:
            reason = self._reason_to_end(begin)
            while reason is None and len(self._running) < self.executor.slots:
                if not self._submit_next():
                    break
                reason = self._reason_to_end(begin)
            if not self._running:
                reason = reason or self._reason_to_end(begin)
                if reason is not None:
                    break
            self.executor.poll(POLL_SECONDS, self._handle)
        # A limit may end the search while a trial waits for another attempt.
        self._put_back()
        selected = self._finish_selected()
        self._notify(Said(f"search ended: {reason}"))
        self._close_parent("FINISHED", reason)
        return Outcome(self.view, reason, selected, self.projection.parent_run_id)

    def refit(self, number: int) -> TrialView:
        """Fit a finished trial once more, score it on test (a ledger line) and save its detector, unless that was done before.

        Raises:
            InputError: no such trial, or one that did not finish; as `run` does.
            StudyFailedError: the refit failed.
        """
        with self._sole_driver():
            self.study, header, _ = studies_storage.create_or_resume(self.storage, self.plan, fresh=False)
            self._adopt_header(header)
            try:
                chosen = next((trial for trial in self.view.trials() if trial.number == number), None)
                if chosen is None or chosen.state != "COMPLETE":
                    state = "does not exist" if chosen is None else f"is {chosen.state}"
                    raise InputError(
                        f"trial {number} of study {self.study.study_name!r} {state}; choose a finished one"
                    )
                if not chosen.detectors:
                    self.projection.open(self.view.study_record(state="RUNNING", note=summary.note(self.view)))
                    self._run_after_search(chosen, "final")
                    chosen = self._view(number)
                    self.projection.write_trial(self.view.trial_record(chosen))
                    self._close_parent("FINISHED", f"trial {number} was refitted")
                return chosen
            except BaseException as error:
                self._wind_up(error)
                raise
            finally:
                self.executor.close()

    # Opening

    @contextmanager
    def _sole_driver(self) -> Iterator[None]:
        """Refuse to run beside another driver of the same study."""
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(driver_lock(self.plan.home, self.config.name), wait=False))
            except BlockingIOError as error:
                holder = None
                with suppress(SQLAlchemyError):
                    holder = self._lease.holder()
                raise InputError(
                    f"study {self.config.name!r} is being run by {holder or 'another process'}; wait for it or stop it"
                ) from error
            held.enter_context(self._lease.hold(lambda text: self._notify(Said(text))))
            self._is_sole = True
            yield

    def _check_lease(self) -> None:
        """Raises `LeaseLostError` where another driver has the study by now."""
        if self._is_sole and self._lease.is_lost():
            raise LeaseLostError(
                f"study {self.config.name!r} was taken over by another driver while this one stood still; it goes on there"
            )

    def _adopt_header(self, header: Header) -> None:
        """What the study was created with wins over what this machine could offer now."""
        backbones = {name: self.plan.backbones[name] for name in header.backbones}
        self.plan = replace(self.plan, backbones=backbones)
        self.space: SearchSpace = self.plan.space
        self.view = StudyView(self.study, header, self.plan.home)
        self.view.config = self.config.model_copy(update={"protocol": self.plan.images.protocol})
        self.config = self.view.config
        summary.write_files(self.view, self.space)

    def _settle(self) -> None:
        """Tell results that were left untold, take up running trials again, write runs that are missing in MLflow."""
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if DISCARDED in frozen.user_attrs:
                self.study.tell(frozen.number, state=TrialState.FAIL)
                continue
            trial = Trial(self.study, frozen._trial_id)
            job = frozen.user_attrs.get(JOB, {})
            attempt, halvings = int(job.get("attempt", 0)), int(job.get("memory_halvings", 0))
            decided = frozen.user_attrs.get(OUTCOME, {}).get("failure")
            if self._tell_finished(trial, attempt):
                continue
            if decided:
                self._fail(trial, decided)
            elif attempt >= self.config.execution.attempts:
                self._fail(trial, f"crashed: the driver ended {attempt} times while this trial was running")
            else:
                self._again.append(_Attempt(trial, attempt + 1, halvings))
        self._failures.clear()
        for view in self.view.trials():
            if view.state != "RUNNING":
                self.projection.write_trial(self.view.trial_record(view))

    def _enqueue_baselines(self) -> None:
        """Every baseline whose backbone is there, once; those already in the storage are known by their values."""
        known = {frozen.user_attrs.get("baseline") for frozen in self.study.get_trials(deepcopy=False)}
        for idea in self.plan.options.ideas:
            self._enqueue_idea(dict(idea))
        for baseline in self.config.baselines:
            fixed = self.config.for_detector(str(baseline.get(DETECTOR_KEY, self.config.detectors[0]))).fixed
            backbone = str(baseline.get("backbone", fixed.get("backbone", "")))
            if backbone and backbone not in self.plan.backbones:
                self._notify(Said(f"baseline skipped: no weights for {backbone} when the study was created"))
                continue
            text = canonical(baseline)
            if text not in known:
                searched, overrides = self.space.optuna_params(baseline)
                self.study.enqueue_trial(
                    params=searched, user_attrs={"baseline": text, OVERRIDES: overrides, ORIGIN: "baseline"}
                )

    def _enqueue_idea(self, idea: dict[str, Any]) -> None:
        """Queue a person's setting before all else. What was tried before is told and not tried again (it is a duplicate)."""
        searched, overrides = self.space.optuna_params(idea)
        waiting = self.study.get_trials(deepcopy=False, states=[TrialState.WAITING])
        if any(frozen.user_attrs.get("idea") == canonical(idea) for frozen in waiting):
            return
        attributes = {"idea": canonical(idea), OVERRIDES: overrides, ORIGIN: "person"}
        self.study.enqueue_trial(params=searched, user_attrs=attributes)

    # Asking

    def _submit_next(self) -> bool:
        """Submit one job; False where there is nothing to try any more."""
        if self._again:
            again = self._again.popleft()
            self._reseeded(again.trial.number)
            params = self._suggest(again.trial)
            if again.attempt > 1 or not self._is_duplicate(again.trial.number, params):
                self._submit(again, params)
                return True
            self._discard(again.trial)
        for repeated in range(DUPLICATES_BEFORE_END):
            count = len(self.study.get_trials(deepcopy=False))
            if self.config.sampler.name == "grid":
                self._enqueue_next_of_grid()
            elif self.config.budget.each and not self._waiting():
                self._enqueue_next_in_turn()
            waiting = self._waiting()
            if (not self.config.search or self.config.sampler.name == "grid") and not waiting:
                break
            trial = self._reseeded(count, at_random=repeated >= DUPLICATES_BEFORE_RANDOM).ask()
            params = self._suggest(trial)
            if not self._is_duplicate(trial.number, params):
                self._submit(_Attempt(trial), params)
                return True
            self._discard(trial)
        self._exhausted = True
        return False

    def _enqueue_next_of_grid(self) -> None:
        """Queue the first setting of the grid that was not tried yet, unless another one waits already."""
        if self._waiting():
            return
        frozen = self.study.get_trials(deepcopy=False)
        tried = {trial.user_attrs["grid"] for trial in frozen if "grid" in trial.user_attrs}
        for setting in self.space.grid():
            text = canonical(setting)
            if text not in tried:
                searched, overrides = self.space.optuna_params(setting)
                attributes = {"grid": text, OVERRIDES: overrides, ORIGIN: "grid"}
                self.study.enqueue_trial(params=searched, user_attrs=attributes)
                return

    def _enqueue_next_in_turn(self) -> None:
        """Queue a trial of the detector that had the fewest, while one has not had its share; its setting is drawn as ever."""
        had = Counter(frozen.params.get(DETECTOR_KEY) for frozen in self.study.get_trials(deepcopy=False))
        name = min(self.config.detectors, key=lambda name: had[name])
        if self.space.draws_detector and had[name] < self.config.budget.each:
            self.study.enqueue_trial(params={DETECTOR_KEY: name})

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        return self.space.suggest(trial, trial.user_attrs.get(OVERRIDES))

    def _reseeded(self, number: int, *, at_random: bool = False) -> optuna.Study:
        """The study with a sampler for this trial alone: a resumed study would otherwise draw the same trials again."""
        self.study.sampler = make_sampler(
            self.config, derive_seed(self.config.sampler.seed, "sampler", number), at_random
        )
        return self.study

    def _waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]))

    def _is_duplicate(self, number: int, params: Mapping[str, Any]) -> bool:
        """Whether another trial has this setting and its outcome counts or will."""
        text = canonical(params)
        for frozen in self.study.get_trials(deepcopy=False):
            job, outcome = frozen.user_attrs.get(JOB), frozen.user_attrs.get(OUTCOME, {})
            if frozen.number == number or job is None or canonical(job["params"]) != text:
                continue
            if frozen.state != TrialState.FAIL or not str(outcome.get("failure", "")).startswith(UNANSWERED):
                return True
        return False

    def _discard(self, trial: Trial) -> None:
        trial.set_user_attr(DISCARDED, "the same setting was tried before")
        self.study.tell(trial, state=TrialState.FAIL)

    def _submit(self, attempt: _Attempt, params: dict[str, Any]) -> None:
        trial, record = attempt.trial, {"attempt": attempt.attempt, "params": params}
        if attempt.memory_halvings:
            record["memory_halvings"] = attempt.memory_halvings
        trial.set_user_attr(JOB, record)
        self._trials[trial.number] = trial
        # Another attempt reports its epochs again, and is judged by them again.
        self._pruned.discard(trial.number)
        job = self._job("trial", trial.number, params, attempt.attempt)
        job = replace(job, memory_halvings=attempt.memory_halvings)
        self.projection.write_trial(self.view.trial_record(self._view(trial.number)))
        self._running[trial.number] = job
        self.executor.submit(job)
        self._notify(Started(job))

    def _job(self, task: Task, number: int, params: dict[str, Any], attempt: int, *, replicate: int = 0) -> Job:
        """Args: `replicate`: 0 for the study's own seeds; every other number draws others for all that is random."""
        seed, options = self.config.sampler.seed, self.plan.options
        folders = {
            "trial": self.view.trial_folder(number),
            "final": self.view.final_folder(number),
            "replicate": self.view.replicate_folder(number, replicate),
        }
        return Job(
            task=task,
            study_uid=self.view.header.uid,
            number=number,
            attempt=attempt,
            config=self.config.to_json(),
            params=params,
            strides=tuple(self.space.strides(params["backbone"])),
            weights_sha256=self.plan.backbones[params["backbone"]].sha256,
            splits_digest=self.plan.images.digest,
            seed=derive_seed(seed, f"replicate {replicate}" if replicate else "trial", number),
            structural_seed=derive_seed(seed, "structure", replicate) if replicate else seed,
            home=str(self.plan.home.root),
            folder=str(folders[task]),
            device=str(self.plan.device),
            threads=max(1, available_cores() // max(1, self.executor.slots)),
            weights_dir=str(options.weights_dir) if options.weights_dir else None,
            networks=self.plan.networks_of(params),
        )

    # Telling

    def _handle(self, event: Event) -> None:
        # Another driver may have taken over meanwhile: nothing may be stored then.
        self._check_lease()
        job = self._running.get(event.number)
        if job is None or event.attempt != job.attempt or job.task != "trial":
            return
        if isinstance(event, Stage):
            self._notify(Progressed(event))
        elif isinstance(event, Report):
            self._report(event)
        elif isinstance(event, Done):
            del self._running[event.number]
            self._tell(self._trials.pop(event.number), event.result)
        else:
            self._lose(event)
        if len(self._failures) >= self.config.execution.failures_in_a_row:
            raise StudyFailedError(
                f"{len(self._failures)} trials failed in a row, the last with: {self._failures[-1]}; see {job.path}"
            )

    def _report(self, event: Report) -> None:
        """Store an intermediate value: of one objective, for Optuna takes none of several, and of a step's first attempt.

        A training that the pruner gives up is told to stop; what it still reports does not count.
        """
        trial = self._trials[event.number]
        if len(self.config.objectives) > 1 or event.number in self._pruned:
            return
        if event.step not in self._frozen(event.number).intermediate_values:
            trial.report(event.value, event.step)
        if trial.should_prune():
            self._pruned.add(event.number)
            self.executor.stop(event.number)

    def _lose(self, event: Lost) -> None:
        """A job that will not finish: bad input ends the study, a crash is tried again, the rest fails."""
        job = self._running.pop(event.number)
        trial = self._trials.pop(event.number)
        if self._tell_finished(trial, job.attempt):
            return
        if event.kind == "bad_input":
            self._enqueue_again(trial.number)
            self._fail(trial, f"bad_input: {event.message}")
            raise InputError(event.message)
        if event.kind in RETRIED and event.attempt < self.config.execution.attempts:
            short = event.kind == "out_of_memory"
            again = " with smaller batches" if short else ""
            self._notify(Retried(event.number, event.attempt + 1, f"{event.kind}: {event.message}", how=again))
            self._again.appendleft(_Attempt(trial, event.attempt + 1, job.memory_halvings + short))
        else:
            self._fail(trial, f"{event.kind}: {event.message}")

    def _tell_finished(self, trial: Trial, attempt: int) -> bool:
        """Tell the result that an attempt left before its worker or its driver died; False where there is none."""
        result = read_result(self.view.trial_folder(trial.number))
        if result is None or result.attempt != attempt:
            return False
        self._tell(trial, result)
        return True

    def _tell(self, trial: Trial, result: TrialResult) -> None:
        """Complete or prune a trial; where an objective is missing or not finite, it fails."""
        if result.pruned or trial.number in self._pruned:
            trial.set_user_attr(OUTCOME, _outcome(result) | {"metrics": {}} | {"pruned": True})
            self.study.tell(trial, state=TrialState.PRUNED)
            self._failures.clear()
            self._ended(trial.number)
            return
        values = [
            result.metrics.get(metric_of(self.config, objective), math.nan) for objective in self.config.objectives
        ]
        if not all(map(math.isfinite, values)):
            missing = [
                name for name, value in zip(self.config.objectives, values, strict=True) if not math.isfinite(value)
            ]
            reasons = "; ".join(dict.fromkeys(result.undefined.values()))
            self._fail(
                trial, f"exception: objective {', '.join(missing)} is undefined ({reasons or 'not finite'})", result
            )
            return
        told = self._frozen(
            trial.number
        ).constraints  # by a driver that was killed at this place; the first write stays
        for name, missed in violations(self.config, result.metrics).items():
            if name not in told:
                trial.set_constraint(name, missed)
        trial.set_user_attr(OUTCOME, _outcome(result))
        self.study.tell(trial, values)
        self._failures.clear()
        self._ended(trial.number)

    def _fail(self, trial: Trial, failure: str, result: TrialResult | None = None) -> None:
        outcome = _outcome(result) if result else {"finished": time.time()}
        trial.set_user_attr(OUTCOME, outcome | {"failure": failure[:1000]})
        self.study.tell(trial, state=TrialState.FAIL)
        self._failures.append(failure)
        self._ended(trial.number)

    def _ended(self, number: int) -> None:
        view = self._view(number)
        self.projection.write_trial(self.view.trial_record(view))
        self._notify(Finished(view, self._counted(), self.view.selected()))

    def _put_back(self) -> None:
        """Close every trial that still runs as interrupted and queue its setting, so that the next run tries it first."""
        interrupted = []
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            trial = Trial(self.study, frozen._trial_id)
            if DISCARDED not in frozen.user_attrs:
                job = frozen.user_attrs.get(JOB)
                if job is not None and self._tell_finished(trial, job["attempt"]):
                    continue
                self._enqueue_again(frozen.number)
                if job is None:
                    trial.set_user_attr(DISCARDED, "interrupted while it was asked for")
                else:
                    trial.set_user_attr(OUTCOME, {"finished": time.time(), "failure": INTERRUPTED})
                    interrupted.append(frozen.number)
            self.study.tell(trial, state=TrialState.FAIL)
        for number in interrupted:
            self.projection.write_trial(self.view.trial_record(self._view(number)))
        self._running.clear()
        self._trials.clear()
        self._again.clear()

    def _enqueue_again(self, number: int) -> None:
        """Queue a trial's setting. Before its end is told: killed in between, the second one is found a duplicate."""
        frozen = self._frozen(number)
        given = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}
        attributes = {ORIGIN: INTERRUPTED, OVERRIDES: frozen.user_attrs.get(OVERRIDES, {})}
        attributes |= {name: frozen.user_attrs[name] for name in ("grid",) if name in frozen.user_attrs}
        self.study.enqueue_trial(params=given, user_attrs=attributes)

    def _wind_up(self, error: BaseException) -> None:
        """End a run that cannot go on. What fails here too (a full disk, a store that is gone) is left to the next run."""
        self.executor.close()
        if isinstance(error, LeaseLostError) or self._lease.is_lost():
            return
        # Who ends a run does not want to wait, and what was waited for in vain does not come back now.
        self._patience.give_up_seconds = LAST_WAIT_SECONDS
        with suppress(Exception):
            self._put_back()
            if isinstance(error, KeyboardInterrupt):
                self._close_parent("KILLED", "interrupted; the same command goes on")
            else:
                self._close_parent("FAILED", str(error))

    # Ending

    def _reason_to_end(self, begin: float) -> str | None:
        budget, counted = self.config.budget, self._counted()
        if counted + len(self._running) >= budget.trials:
            return f"{counted} of {budget.trials} trials are done" if not self._running else "budget"
        if self._exhausted and not self._again:
            return (
                "every configuration of the search space was tried"
                if self.config.search
                else "every baseline was tried"
            )
        if budget.timeout is not None and self.clock() - begin > budget.timeout:
            return f"the time limit of {budget.timeout:.0f} s is reached"
        if budget.goal is not None and self._goal_is_met(budget.goal):
            return f"the goal of {budget.goal:g} is reached"
        if budget.stagnation is not None and self._trials_since_best() >= budget.stagnation:
            return f"no better trial among the last {budget.stagnation}"
        return None

    def _counted(self) -> int:
        states = [TrialState.COMPLETE, TrialState.PRUNED]
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _goal_is_met(self, goal: float) -> bool:
        selected = self.view.selected()
        if selected is None or selected.value is None:
            return False
        return selected.value >= goal if self.config.direction == "maximize" else selected.value <= goal

    def _trials_since_best(self) -> int:
        """Finished trials after the one that set the present best value."""
        sign = 1 if self.config.direction == "maximize" else -1
        finished = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        values = [sign * frozen.values[0] for frozen in finished]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def _finish_selected(self) -> TrialView | None:
        """Refit the selected trial, score it on test and save it, unless that was done before."""
        selected = self.view.selected()
        if selected is None:
            reasons = ", ".join(f"{name} {condition}" for name, condition in self.config.constraints.items())
            raise StudyFailedError(
                f"no finished trial meets the constraints ({reasons}); relax them"
                if self._counted()
                else f"no trial finished; `study show {self.config.name}` lists the failures"
            )
        if not selected.detectors or not self._has_threshold_of_config(selected.final):
            self._run_after_search(selected, "final")
        for replicate in range(1, self.config.seeds):
            folder = selected.replicate_folder(replicate)
            if read_result(folder) is None:
                self._run_after_search(selected, "replicate", replicate)
        for view in self.view.trials():
            # The mark of the selected trial may have moved.
            if view.state != "RUNNING":
                self.projection.write_trial(self.view.trial_record(view))
        return self.view.selected()

    def _has_threshold_of_config(self, final: TrialResult | None) -> bool:
        """Whether a refit is there and its threshold follows the rule that the study file gives now."""
        if final is None or final.threshold is None:
            return final is not None
        wanted = self.config.threshold
        rate = wanted.rate if wanted.rule == "false_alarm_rate" else None
        return bool(final.threshold["rule"] == wanted.rule and final.threshold["rate"] == rate)

    def _run_after_search(self, selected: TrialView, task: Task, replicate: int = 0) -> None:
        """Fit the selected setting once more and score it on test, trying again what is tried again for a trial.

        Raises:
            InputError, StudyFailedError: there is no result.
        """
        halvings = int(selected.job.get("memory_halvings", 0))
        for attempt in range(1, self.config.execution.attempts + 1):
            job = self._job(task, selected.number, selected.params, attempt, replicate=replicate)
            job = replace(job, memory_halvings=halvings)
            if attempt == 1:
                (job.path / RESULT_FILE).unlink(missing_ok=True)
            self.executor.submit(job)
            self._notify(Started(job))
            ended = self._wait_for_end()
            if isinstance(ended, Done) or read_result(job.path) is not None:
                return
            if ended.kind == "bad_input":
                raise InputError(ended.message)
            if ended.kind not in RETRIED or attempt == self.config.execution.attempts:
                raise StudyFailedError(f"the refit of trial {selected.number} failed: {ended.kind}: {ended.message}")
            halvings += ended.kind == "out_of_memory"

    def _wait_for_end(self) -> Done | Lost:
        """Of the only job under way."""
        ends: list[Done | Lost] = []

        def handle(event: Event) -> None:
            self._check_lease()
            if isinstance(event, Stage):
                self._notify(Progressed(event))
            elif isinstance(event, Done | Lost):
                ends.append(event)

        while not ends:
            self.executor.poll(POLL_SECONDS, handle)
        return ends[0]

    def _close_parent(self, state: StudyState, reason: str) -> None:
        if not self.projection.parent_run_id:
            return
        summary.write_files(self.view, self.space)
        note = summary.note(self.view, reason)
        self.projection.write_study(self.view.study_record(state=state, note=note, finished_ms=int(time.time() * 1000)))

    # Small things

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _view(self, number: int) -> TrialView:
        return self.view.view(self._frozen(number))

    def _notify(self, notice: Notice) -> None:
        self.listener(notice)


def driver_lock(home: Home, name: str) -> Path:
    """The lock that a driver holds as long as it runs the study of this name (the one in the study file)."""
    digest = hashlib.sha256(f"{home.storage_url}\0{name}".encode()).hexdigest()
    return home.locks / f"driver-{digest[:16]}.lock"


def make_sampler(config: StudyConfig, seed: int, at_random: bool = False) -> BaseSampler:
    """The study's sampler with a seed of its own."""
    sampler = config.sampler
    if at_random or sampler.name in ("random", "grid"):
        return RandomSampler(seed=seed)
    if sampler.name == "gp":
        return GPSampler(seed=seed, n_startup_trials=sampler.startup)
    if sampler.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=sampler.population)
    return TPESampler(seed=seed, n_startup_trials=sampler.startup, constant_liar=True)


def make_pruner(config: StudyConfig) -> BasePruner:
    """The study's pruner; a step is an epoch, and in a study over several products a product."""
    pruner = config.pruner
    if pruner.name == "median":
        return MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=pruner.min_epochs)
    if pruner.name == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=pruner.p_value, n_startup_steps=pruner.min_epochs)
    if pruner.name == "hyperband":
        return HyperbandPruner(
            min_resource=pruner.min_epochs,
            max_resource=max(most_epochs(config), pruner.min_epochs),
            reduction_factor=pruner.reduction_factor,
        )
    return NopPruner()


def most_epochs(config: StudyConfig) -> int:
    """The longest training that the study allows, in epochs; 1 where no detector trains."""
    longest = 1
    for name in config.detectors:
        part = config.for_detector(name)
        known = catalog.parameters(name).get(EPOCHS)
        if known is None:
            continue
        dimension = part.search.get(EPOCHS)
        given: list[Any] = [part.fixed.get(EPOCHS, known.default)]
        if dimension is not None:
            given = list(dimension.choices or dimension.bounds)
        given += [baseline[EPOCHS] for baseline in part.baselines if EPOCHS in baseline]
        longest = max(longest, *(int(epochs) for epochs in given))
    return longest


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """A seed below 2^32 for one purpose and trial: independent of every other, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:4], "big")


def _outcome(result: TrialResult) -> dict[str, Any]:
    """What the storage keeps of a result."""
    kept = ("metrics", "seconds", "environment", "started", "finished")
    return {name: getattr(result, name) for name in kept} | {"undefined": result.undefined}
