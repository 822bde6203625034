"""One STUDY_HOME in which a study is run again and again, and an executor that answers as it is told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial

from detectors.files import write_json
from detectors.scoring.operating_point import Threshold
from studies.home import Home
from studies.search import storage as studies_storage
from studies.search.attributes import DISCARDED
from studies.search.notices import Listener, Notice, Remark
from studies.search.outcome import Outcome
from studies.search.plan import Plan
from studies.search.run import refit_trial, run_study
from studies.search.storage import open_storage
from studies.search.stores import Stores
from studies.search.view import StudyView, TrialView
from studies.worker.jobs import (
    DETECTOR,
    FIRST_DETECTOR,
    LOG_FILE,
    RESULT_FILE,
    Done,
    Event,
    Job,
    Lost,
    LostKind,
    Report,
    Stage,
    TrialResult,
)
from tests.helpers.builders import BACKBONE, make_config

Answer = Mapping[str, float] | LostKind | BaseException
Script = Callable[[Job], Answer]
THREE = {"layers": {"choices": [[8], [16], [8, 16]]}}
"""A search space of three configurations."""


def quality(job: Job) -> dict[str, float]:
    """A figure that depends on the parameters alone, with a single best setting."""
    miss = (job.params["n_features"] - 20) / 100 + (job.params["shrinkage"] - 0.2) ** 2
    return {"val/image_auroc": 0.9 - abs(miss), "fps": 50.0}


def by_layers(job: Job) -> dict[str, float]:
    """The figure for `THREE`."""
    return {"val/image_auroc": 0.5 + sum(job.params["layers"]) / 100, "fps": 50.0}


@dataclass
class ScriptedExecutor:
    """Answers each job as its script says: with metrics, a loss, or an exception out of `poll`."""

    script: Script = quality
    final: Script = lambda job: {"test/image_auroc": 0.7}
    """The same for refits."""
    speed: Script = lambda job: {"fps": 50.0}
    """The same for speed that is measured again."""
    probe: Script = quality
    """The same for other fits of a trial's setting."""
    slots: int = 1
    leave_first: bool = False
    """A trial that is to be kept whatever it reaches leaves its detector before it is judged."""
    leave_result: bool = False
    """Write the result also where the answer is an exception: the worker was done, its driver was not."""
    jobs: list[Job] = field(default_factory=list)
    waiting: deque[Job] = field(default_factory=deque)
    started: set[tuple[str, int, int, int]] = field(default_factory=set)
    closed: int = 0

    def submit(self, job: Job) -> None:
        assert len(self.waiting) < self.slots
        self.jobs.append(job)
        self.waiting.append(job)

    def poll(self, timeout: float, handle: Callable[[Event], None]) -> None:
        for event in self.events(timeout):
            handle(event)

    def events(self, timeout: float) -> Sequence[Event]:
        if not self.waiting:
            return []
        job = self.waiting[0]
        resample = job.probe.resample if job.probe is not None else 0
        if (key := (job.task, job.number, job.attempt, resample)) not in self.started:
            self.started.add(key)
            stages = [Stage(job.number, job.attempt, "fit")]
            if self.leave_first and job.keep_above == -math.inf:
                (job.path / DETECTOR).mkdir(parents=True, exist_ok=True)
                stages.append(Stage(job.number, job.attempt, FIRST_DETECTOR, 1, 1))
            return stages
        self.waiting.popleft()
        if job.task == "final":
            (job.path / DETECTOR).mkdir(parents=True, exist_ok=True)
        script = {"trial": self.script, "speed": self.speed, "probe": self.probe}.get(job.task, self.final)
        answer = script(job)
        if isinstance(answer, str):
            (job.path / LOG_FILE).parent.mkdir(parents=True, exist_ok=True)
            (job.path / LOG_FILE).write_text(f"how it went: {answer}\n")
            return [Lost(job.number, job.attempt, answer, "as the script says")]
        if isinstance(answer, BaseException):
            if self.leave_result:
                self._result(job, quality(job))
            raise answer
        result = self._result(job, answer)
        if job.keep_above is not None and answer.get("val/image_auroc", -math.inf) > job.keep_above:
            (job.path / DETECTOR).mkdir(parents=True, exist_ok=True)
        return [Done(job.number, job.attempt, result)]

    def stop(self, number: int) -> None:
        raise AssertionError("nothing here is to be pruned")

    def close(self) -> None:
        self.closed += 1
        self.waiting.clear()

    @property
    def trials(self) -> list[Job]:
        return [job for job in self.jobs if job.task == "trial"]

    @property
    def probes(self) -> list[Job]:
        return [job for job in self.jobs if job.task == "probe"]

    @property
    def finals(self) -> list[Job]:
        return [job for job in self.jobs if job.task == "final"]

    def _result(self, job: Job, metrics: Mapping[str, float]) -> TrialResult:
        result = TrialResult(
            task=job.task,
            study_uid=job.study_uid,
            number=job.number,
            attempt=job.attempt,
            params=job.params,
            metrics=dict(metrics),
            seconds={"fit": 0.1},
            backbone={"name": "resnet18"},
            threshold=_threshold(job.config["threshold"]) if job.task == "final" else None,
            started=1e9 + job.number,
            finished=1e9 + job.number + 0.5,
            environment={"host": "here", "device": "cpu"},
        )
        # A real worker cannot write NaN; one that hands it over must not poison the sampler either.
        if all(map(math.isfinite, metrics.values())):
            write_json(job.path / RESULT_FILE, result.model_dump(mode="json"))
        return result


def _threshold(section: Mapping[str, Any]) -> dict[str, Any]:
    """A threshold by the section of a study file, as a worker writes it."""
    rate = section["rate"] if section["rule"] == "false_alarm_rate" else None
    return Threshold(0.5, section["rule"], "validation", normals=12, rate=rate, expected_rate=1 / 13).to_json()


class Killed(BaseException):
    """The driver is gone at once: nothing is put back."""


@dataclass
class BenchRun:
    """One run of a study that has not begun."""

    plan: Plan
    executor: Any
    listener: Listener
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, *, fresh: bool = False) -> Outcome:
        stores = Stores.open(self.plan.home, self.listener)
        return run_study(self.plan, self.executor, stores, fresh=fresh, listener=self.listener, **self.options)

    def refit(self, number: int) -> TrialView:
        return refit_trial(self.plan, self.executor, Stores.open(self.plan.home), number, listener=self.listener)

    def kill(self) -> None:
        """Run until somebody raises `Killed`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("studies.search.run.wind_up", lambda session, patience, error: None)
            with pytest.raises(Killed):
                self.run()


@dataclass
class Bench:
    """One STUDY_HOME in which a study is run again and again, as separate processes would."""

    base: Plan
    root: Path
    home: Home
    notices: list[Notice] = field(default_factory=list)

    def driver(self, executor: Any = None, *, backbones: Sequence[str] | None = None, **changes: Any) -> BenchRun:
        listener = changes.pop("listener", None)
        options = {"clock": clock} if (clock := changes.pop("clock", None)) else {}
        config = make_config(self.root, **changes)
        found = {name: identity for name, identity in self.base.backbones.items() if name in (backbones or [BACKBONE])}
        plan = replace(self.base, config=config, home=self.home, backbones=found)

        def listen(notice: Notice) -> None:
            self.notices.append(notice)
            if listener is not None:
                listener(notice)

        return BenchRun(plan, executor or ScriptedExecutor(), listen, options)

    def run(self, executor: Any = None, *, fresh: bool = False, **changes: Any) -> Outcome:
        return self.driver(executor, **changes).run(fresh=fresh)

    def kill(self, executor: ScriptedExecutor, **changes: Any) -> None:
        """Run until the script raises `Killed`."""
        self.driver(executor, **changes).kill()

    def view(self, name: str = "tiny") -> StudyView:
        return StudyView(*studies_storage.load_study(open_storage(self.home), name), self.home)

    def frozen(self, name: str = "tiny") -> list[FrozenTrial]:
        """Optuna's trials without discarded duplicates."""
        return [trial for trial in self.all_frozen(name) if DISCARDED not in trial.user_attrs]

    def all_frozen(self, name: str = "tiny") -> list[FrozenTrial]:
        return optuna.load_study(study_name=name, storage=open_storage(self.home)).get_trials()

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.frozen()]

    def runs(self) -> list[Run]:
        client = MlflowClient(tracking_uri=self.home.tracking_uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, max_results=1000))

    def parent(self) -> Run:
        (parent,) = [run for run in self.runs() if run.data.tags["study.role"] == "study"]
        return parent

    def children(self) -> dict[int, Run]:
        runs = [run for run in self.runs() if run.data.tags["study.role"] == "trial"]
        children = {int(run.data.tags["trial.number"]): run for run in runs}
        assert len(children) == len(runs)
        return children

    def said(self) -> str:
        return "\n".join(notice.text for notice in self.notices if isinstance(notice, Remark))


@dataclass
class Training(ScriptedExecutor):
    """Reports an epoch at a time, trial n a value of `curve(n)`, and ends early when it is stopped, unless it is `deaf`."""

    curve: Callable[[int], float] = lambda number: 0.5
    epochs: int = 4
    deaf: bool = False
    stopped: list[int] = field(default_factory=list)
    done: dict[int, int] = field(default_factory=dict)

    def events(self, timeout: float) -> Sequence[Event]:
        if not self.waiting or self.waiting[0].task != "trial":
            return super().events(timeout)
        job = self.waiting[0]
        if job.number in self.stopped and not self.deaf:
            self.waiting.popleft()
            result = self._result(job, {"train_seconds": 0.1}).model_copy(update={"pruned": True})
            write_json(job.path / RESULT_FILE, result.model_dump(mode="json"))
            return [Done(job.number, job.attempt, result)]
        epoch = self.done[job.number] = self.done.get(job.number, 0) + 1
        if epoch > self.epochs:
            self.waiting.popleft()
            value = {"val/image_auroc": self.curve(job.number), "fps": 50.0}
            return [Done(job.number, job.attempt, self._result(job, value))]
        return [Report(job.number, job.attempt, epoch, self.curve(job.number))]

    def stop(self, number: int) -> None:
        self.stopped.append(number)


def three(**changes: Any) -> dict[str, Any]:
    """A study over `THREE`."""
    fixed = {"backbone": BACKBONE, "n_features": 12, "smoothing_sigma": 2.0}
    return {"search": THREE, "fixed": fixed, "budget": {"trials": 10}, **changes}
