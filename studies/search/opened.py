"""A study that is open for writing: what the collaborators of a driver read and write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial, TrialState

from studies.file.config import StudyConfig
from studies.search import summary
from studies.search.attributes import PROBED, REMEASURED, Remeasured
from studies.search.choice import CHOICE, Choice
from studies.search.ledger_count import count_ledger
from studies.search.nested import NESTED, Estimate
from studies.search.notices import Listener, Remark
from studies.search.plan import Plan
from studies.search.records import study_record, trial_record
from studies.search.space import SearchSpace
from studies.search.storage import Header
from studies.search.view import StudyView, TrialView
from tracking.projection import Projection
from tracking.records import StudyState


@dataclass(frozen=True)
class OpenStudy:
    """One study in both stores. Only the driver that holds its lease has one."""

    plan: Plan
    """With the backbones that the study was created with."""
    study: optuna.Study
    view: StudyView
    projection: Projection
    notify: Listener
    """Hears what happens."""

    @classmethod
    def create(
        cls, plan: Plan, study: optuna.Study, header: Header, *, projection: Projection, notify: Listener
    ) -> OpenStudy:
        """What the study was created with wins over what this machine could offer now."""
        backbones = {name: plan.backbones[name] for name in header.backbones}
        plan = replace(plan, backbones=backbones)
        opened = cls(plan, study, StudyView(study, header, plan.home, config=plan.resolved), projection, notify)
        summary.write_files(opened.view, opened.space)
        return opened

    @property
    def config(self) -> StudyConfig:
        """The study file, with the protocol and the sampler that ``auto`` came to."""
        return self.view.config

    @property
    def space(self) -> SearchSpace:
        """The search space over the study's backbones."""
        return self.plan.space

    def all_trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Optuna's trials of these states, or all, by number; do not change them."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def frozen(self, number: int) -> FrozenTrial:
        """One of Optuna's trials as it is now."""
        return self.all_trials()[number]

    def trial(self, number: int) -> TrialView:
        """One trial as it is now, without the marks of selection."""
        return self.view.view(self.frozen(number))

    def count_finished(self) -> int:
        """Trials that count towards the budget: complete and pruned ones."""
        return len(self.all_trials(TrialState.COMPLETE, TrialState.PRUNED))

    def count_ledger(self) -> None:
        """Note in the storage how long the ledger of test is by now; what is wrong with it is told."""
        for fault in count_ledger(self.study, self.view.home, self.view.header.uid):
            self.notify(Remark(f"the ledger of the test images is at fault: {fault}"))

    def store_remeasured(self, number: int, metrics: Mapping[str, float], at: float) -> None:
        """Keep the speed of a trial that was measured again at a time, in seconds since the epoch."""
        kept = dict(self.study.user_attrs.get(REMEASURED, {}))
        kept[str(number)] = Remeasured(metrics=dict(metrics), time=at).model_dump()
        self.study.set_user_attr(REMEASURED, kept)

    def store_probed(self, number: int, resample: int, value: float) -> None:
        """Keep the first objective of another fit of a trial's setting."""
        kept = dict(self.study.user_attrs.get(PROBED, {}))
        kept[str(number)] = {**kept.get(str(number), {}), str(resample): value}
        self.study.set_user_attr(PROBED, kept)

    def keep_choice(self, choice: Choice) -> None:
        """Keep which trial was selected and why."""
        self.study.set_user_attr(CHOICE, choice.model_dump(mode="json"))

    def keep_nested(self, estimate: Estimate) -> None:
        """Keep what the choice is worth."""
        self.study.set_user_attr(NESTED, estimate.model_dump(mode="json"))

    # MLflow

    def open_parent(self) -> None:
        """Find or make the parent run, and mark it as running."""
        self.projection.open(study_record(self.view, state="RUNNING", note=summary.note(self.view)))

    def write_trial(self, trial: TrialView) -> None:
        """Bring a trial's child run up to date."""
        self.projection.write_trial(trial_record(self.view, trial))

    def write_figures(self) -> None:
        """Bring the metrics of the parent run up to date; nothing where there is no such run."""
        if self.projection.parent_run_id:
            self.projection.write_figures(study_record(self.view, state="RUNNING"))

    def write_finished_trials(self) -> None:
        """Bring the child runs of all trials up to date that do not run any more; cheap where they are."""
        for trial in self.view.trials():
            if trial.state != "RUNNING":
                self.write_trial(trial)

    def close_parent(self, state: StudyState, reason: str) -> None:
        """End the parent run; nothing where there is none."""
        if not self.projection.parent_run_id:
            return
        summary.write_files(self.view, self.space)
        note = summary.note(self.view, reason)
        finished_ms = int(time.time() * 1000)
        self.projection.write_study(study_record(self.view, state=state, note=note, finished_ms=finished_ms))
