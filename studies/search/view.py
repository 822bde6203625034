"""A study as it stands: trials with their outcome, and the selected one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from detectors.scoring.evaluation import LOWER_METRICS, METRICS, OPERATING_METRICS
from studies.file.config import StudyConfig
from studies.file.encoding import Setting
from studies.file.keys import DETECTOR_KEY
from studies.file.sections import ThresholdConfig
from studies.home import Home
from studies.search import candidates
from studies.search.attributes import PROBED, REMEASURED, Remeasured, Submission, TrialAttributes, TrialOutcome
from studies.search.choice import CHOICE, Choice
from studies.search.ledger_count import ledger_faults
from studies.search.nested import NESTED, Estimate, basis_of
from studies.search.selection import best_by_value, is_feasible, pareto_front
from studies.search.storage import GENERATION, Header, latest
from studies.worker.jobs import DETECTOR, PRODUCTS, TrialResult, read_result
from studies.worker.ledger import LedgerLine, read_ledger
from tracking.records import TrialState as RecordState

STATES: dict[TrialState, RecordState] = {
    TrialState.RUNNING: "RUNNING",
    TrialState.WAITING: "RUNNING",
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAIL",
}


THRESHOLD = "threshold"
"""Name of the study's attribute that holds a `ChosenThreshold` for each product, under an empty name for all."""


class ChosenThreshold(BaseModel):
    """A ``threshold`` section that was set after the search."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    section: ThresholdConfig
    instead_of: ThresholdConfig
    """The study file's section at that time."""
    trial: int


@dataclass(frozen=True)
class TrialView:
    """One trial that counts as a trial (a discarded duplicate does not)."""

    frozen: FrozenTrial
    folder: Path
    final_folder: Path
    config: StudyConfig
    selected: bool = False
    pareto: bool = False
    """On the Pareto front of a study with several objectives."""
    remeasured: Mapping[str, float] = field(default_factory=dict)
    """Speed that was measured again after the search, and replaces that of the trial."""
    remeasured_at: float | None = None
    """Seconds since the epoch."""
    provisional: bool = False
    """Whether `detectors` and `final` are what the trial itself left, for lack of a refit; see `StudyView.usable`."""

    @property
    def number(self) -> int:
        """Optuna's number."""
        return self.frozen.number

    @property
    def state(self) -> RecordState:
        """``RUNNING``, ``COMPLETE``, ``PRUNED`` or ``FAIL``."""
        return STATES[self.frozen.state]

    @cached_property
    def attributes(self) -> TrialAttributes:
        """What Optuna keeps of it beside parameters and values."""
        return TrialAttributes.of(self.frozen)

    @property
    def submission(self) -> Submission:
        """Attempt and setting of what was submitted last; attempt 0 before that."""
        return self.attributes.job

    @property
    def params(self) -> Setting:
        """The full setting; empty before it was submitted."""
        return self.submission.params

    @property
    def outcome(self) -> TrialOutcome:
        """Metrics, times, failure."""
        return self.attributes.outcome

    @property
    def metrics(self) -> dict[str, float]:
        """All figures of the search; those on test are in `final`."""
        return {**self.outcome.metrics, **self.remeasured}

    @property
    def failure(self) -> str:
        """``<kind>: <message>`` or empty."""
        return self.outcome.failure

    @property
    def feasible(self) -> bool | None:
        """Whether all constraints are met; None where the trial did not complete."""
        return is_feasible(self.config, self.metrics) if self.state == "COMPLETE" else None

    @property
    def value(self) -> float | None:
        """First objective."""
        return self.frozen.values[0] if self.frozen.values else None

    @cached_property
    def final(self) -> TrialResult | None:
        """Result of the refit that was scored on test, where there was one."""
        return read_result(self.final_folder)

    def replicate_folder(self, replicate: int) -> Path:
        """Where the refit with another seed is left."""
        return replicate_folder(self.final_folder, replicate)

    @cached_property
    def replicates(self) -> list[TrialResult]:
        """The refit and those with other seeds, where they were asked for; without a refit none."""
        others = (read_result(self.replicate_folder(number)) for number in range(1, self.config.seeds))
        return [self.final, *(result for result in others if result is not None)] if self.final is not None else []

    @property
    def test_metrics(self) -> dict[str, float]:
        """Figures of the refit on test; with several seeds their mean and standard deviation beside them."""
        if self.final is None:
            return {}
        figures = dict(self.final.metrics)
        if len(self.replicates) > 1:
            figures["seeds"] = len(self.replicates)
            for name in (*METRICS, *LOWER_METRICS):
                if name in OPERATING_METRICS and self.final.threshold_set is not None:
                    continue  # the others still have the threshold of their refit
                values = [
                    result.metrics[key] for result in self.replicates if (key := f"test/{name}") in result.metrics
                ]
                if len(values) > 1:
                    figures |= {f"test/{name}_seeds_mean": fmean(values), f"test/{name}_seeds_std": stdev(values)}
        return figures

    @property
    def detector_name(self) -> str:
        """The kind of detector, in a study over several the one that this trial drew."""
        return str(self.params.get(DETECTOR_KEY, self.config.detectors[0]))

    @property
    def detector(self) -> Path | None:
        """Folder of the saved detector; None where there is none, or one for each of several products."""
        return self.detectors.get("")

    @property
    def detectors(self) -> dict[str, Path]:
        """Folders of the saved detectors by product; under an empty name where the study is over a single one."""
        parts = sorted((self.final_folder / PRODUCTS).glob("*"))
        places = {"": self.final_folder, **{folder.name: folder for folder in parts}}
        return {name: folder / DETECTOR for name, folder in places.items() if (folder / DETECTOR).is_dir()}

    def as_provisional(self) -> TrialView:
        """The trial with its own fit in the place of the refit's."""
        return replace(self, final_folder=self.folder, provisional=True)

    @property
    def seconds_of_fit(self) -> float:
        """What a fit of its setting and the scores on validation take, work counted that the trial found done."""
        stages = self.outcome.seconds
        scored = [value for name, value in stages.items() if name.startswith(("score", "threshold", "validate"))]
        return self.metrics.get("train_seconds", stages.get("fit", 0.0)) + math.fsum(scored)

    @property
    def seconds(self) -> float | None:
        """Wall time of the trial; None where it left no result."""
        started, finished = self.outcome.started, self.outcome.finished
        return finished - started if started is not None and finished is not None else None


class StudyView:
    """Reads one study from storage and folders; writes nothing."""

    def __init__(self, study: optuna.Study, header: Header, home: Home, *, config: StudyConfig | None = None) -> None:
        """Args: `config` is the study file as it is now; without it, as it was at the last run."""
        self.study, self.header, self.home = study, header, home
        self.config = config or StudyConfig.from_store(header.config)

    @property
    def address(self) -> str:
        """The name by which commands find this very study: ``NAME#1`` where ``--fresh`` started others beside it."""
        name = str(self.study.study_name)
        is_last = GENERATION in name or latest(self.study._storage, name) in (name, None)
        return name if is_last else f"{name}{GENERATION}1"

    @property
    def folder(self) -> Path:
        """Folder of the study's trials."""
        return self.home.study_folder(self.header.uid)

    def trial_folder(self, number: int) -> Path:
        """Where a trial's worker leaves its result."""
        return self.folder / f"{number:05d}"

    def final_folder(self, number: int) -> Path:
        """Where the refit of a selected trial is left."""
        return self.folder / "final" / f"{number:05d}"

    def replicate_folder(self, number: int, replicate: int) -> Path:
        """Where the refit of a selected trial with another seed is left."""
        return replicate_folder(self.final_folder(number), replicate)

    def advice_folder(self, name: str) -> Path:
        """Where a fit is left that answers a question of advice."""
        return self.folder / "advice" / name

    def probe_folder(self, number: int, resample: int) -> Path:
        """Where another fit of a trial's setting, scored on validation, is left."""
        return self.probes / f"{number:05d}-{resample}"

    @property
    def probes(self) -> Path:
        """Folder of the other fits of all trials' settings."""
        return self.folder / "probes"

    def trials(self) -> list[TrialView]:
        """All trials but discarded and waiting ones, by number; the selected one is marked."""
        frozen, again = self._frozen(), self._remeasured
        choice = self._choice(frozen)
        front = pareto_front(self.config, frozen, _metrics(again))
        return [
            self._view(
                trial, again, selected=choice is not None and trial.number == choice.trial, pareto=trial.number in front
            )
            for trial in frozen
        ]

    def choice(self) -> Choice | None:
        """Which trial is selected and why: as it was stored at the end of the search, while that stands; None where none is
        feasible."""
        return self._choice(self._frozen())

    @property
    def keeps_test(self) -> bool:
        """Whether test images are kept from the search; see `detectors.data.splits.Splits.keeps_test`."""
        return any(name.rpartition("/")[2] == "test" for name in self.header.identity["data"])

    @property
    def is_nested(self) -> bool:
        """Whether all labelled images were validated and none is kept for test; see `detectors.data.splits.Splits.nested`."""
        return not self.keeps_test and self.config.protocol == "holdout"

    @property
    def is_in_sample(self) -> bool:
        """Whether the good images were too few to hold any out, so that no figure of quality means anything."""
        return not self.keeps_test and self.config.protocol == "synthetic"

    def nested(self) -> Estimate | None:
        """What the choice of a study without test images is worth; None where it has some, and while its search goes on."""
        stored = self.study.user_attrs.get(NESTED)
        if stored is None or not self.is_nested:
            return None
        estimate = Estimate.model_validate(stored)
        stands = estimate.basis == basis_of(self.config, self._frozen(), self.remeasured)
        return estimate if stands else None

    def best(self) -> TrialView | None:
        """The feasible trial with the best value, which need not be the selected one."""
        best = best_by_value(self.config, self._frozen(), self.remeasured)
        return None if best is None else self.view(best)

    def _frozen(self) -> list[FrozenTrial]:
        """All trials but discarded and waiting ones, by number."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and TrialAttributes.of(trial).discarded is None
        ]

    def stored_choice(self) -> Choice | None:
        """The choice at the end of the last search, while it stands: no trial ended since, and the limits are the same."""
        return self._stored_choice(self._frozen())

    def _stored_choice(self, frozen: Sequence[FrozenTrial]) -> Choice | None:
        stored = self.study.user_attrs.get(CHOICE)
        if stored is None:
            return None
        choice = Choice.model_validate(stored)
        return choice if choice.basis == candidates.basis(self.config, frozen, self.remeasured) else None

    def _choice(self, frozen: Sequence[FrozenTrial]) -> Choice | None:
        stored = self._stored_choice(frozen)
        return stored or candidates.choose(self.config, frozen, self.remeasured, folder=self.trial_folder)

    def view(self, trial: FrozenTrial) -> TrialView:
        """One trial."""
        return self._view(trial, self._remeasured)

    def _view(
        self, trial: FrozenTrial, again: Mapping[int, Remeasured], *, selected: bool = False, pareto: bool = False
    ) -> TrialView:
        """One of several trials; what was measured again is read from the store once for all of them."""
        own = again.get(trial.number, Remeasured())
        return TrialView(
            trial,
            self.trial_folder(trial.number),
            self.final_folder(trial.number),
            self.config,
            selected=selected,
            pareto=pareto,
            remeasured=own.metrics,
            remeasured_at=own.time,
        )

    def speed_folder(self, number: int) -> Path:
        """Where a measurement of a trial's speed after the search is left."""
        return self.folder / "speed" / f"{number:05d}"

    @property
    def remeasured(self) -> dict[int, dict[str, float]]:
        """{number of a trial: speed that was measured again}"""
        return _metrics(self._remeasured)

    def probed(self, number: int) -> dict[int, float]:
        """{resample: first objective on validation} of the other fits of a trial's setting."""
        stored = self.study.user_attrs.get(PROBED, {})
        return {int(resample): float(value) for resample, value in stored.get(str(number), {}).items()}

    @property
    def _remeasured(self) -> dict[int, Remeasured]:
        stored = self.study.user_attrs.get(REMEASURED, {})
        return {int(number): Remeasured.model_validate(again) for number, again in stored.items()}

    def threshold_section(self, number: int, product: str = "") -> ThresholdConfig:
        """How the threshold of a trial's detector is chosen: as ``study threshold`` set it, else by the study file.

        What was set gives way where the study file's section was edited since; a given value counts for its own trial alone.

        Args:
            product: one of several; what was set for it goes before what was set for all.
        """
        stored = self.study.user_attrs.get(THRESHOLD, {})
        for key in dict.fromkeys((product, "")):
            if key in stored:
                chosen = ChosenThreshold.model_validate(stored[key])
                other_trial = chosen.section.rule == "value" and chosen.trial != number
                if chosen.instead_of == self.config.threshold and not other_trial:
                    return chosen.section
        return self.config.threshold

    def keep_threshold_section(self, section: ThresholdConfig, number: int, product: str | None) -> None:
        """Store a section that was set for a trial's detectors, or for one product's. The caller holds the study's lease."""
        chosen = ChosenThreshold(section=section, instead_of=self.config.threshold, trial=number)
        stored = self.study.user_attrs.get(THRESHOLD, {}) if product else {}
        kept = {**stored, product or "": chosen.model_dump(mode="json", exclude_none=True)}
        self.study.set_user_attr(THRESHOLD, kept)

    def selected(self) -> TrialView | None:
        """The trial that a person would deploy."""
        return next((trial for trial in self.trials() if trial.selected), None)

    def usable(self) -> TrialView | None:
        """The trial whose detector there is to use now; None while there is none.

        That of the selected trial's refit, until then the best of those that were refitted before, until then the best of those
        that trials left on the way, marked `TrialView.provisional`.
        """
        refitted = [trial for trial in self._finished() if trial.detectors and trial.final is not None]
        if len(refitted) > 1 and (selected := self.selected()) is not None:
            refitted = [trial for trial in refitted if trial.number == selected.number] or refitted
        return self._best_of(refitted or self.provisional())

    def provisional(self) -> list[TrialView]:
        """Finished trials that kept their own detector, `TrialView.provisional`; no more than a few.

        Until there is one, those that left theirs before they were judged.
        """
        own = self.with_own_detector()
        return [trial for trial in own if trial.state == "COMPLETE"] or own

    def with_own_detector(self) -> list[TrialView]:
        """All trials whose folder holds their own detector, as `TrialView.provisional`, however they stand."""
        again = self._remeasured
        own = [self._view(trial, again).as_provisional() for trial in self._frozen()]
        return [trial for trial in own if trial.detectors]

    def _finished(self) -> list[TrialView]:
        again = self._remeasured
        return [self._view(trial, again) for trial in self._frozen() if trial.state == TrialState.COMPLETE]

    def _best_of(self, trials: Sequence[TrialView]) -> TrialView | None:
        best = best_by_value(self.config, [trial.frozen for trial in trials], self.remeasured)
        # Where none meets the constraints, one that misses them is better than nothing.
        return next((trial for trial in trials if best is None or trial.number == best.number), None)

    def ledger(self) -> list[LedgerLine]:
        """Every scoring of this study on test."""
        return read_ledger(self.home.ledger(self.header.uid))

    def ledger_faults(self) -> list[str]:
        """What is wrong with the ledger, in words, which belong beside every figure of it; empty if nothing is."""
        faults = ledger_faults(self.study, self.home, self.header.uid)
        if not faults and not self.ledger():
            # Those of an earlier version have no count.
            scored = [trial.number for trial in self.trials() if self._was_scored_on_test(trial)]
            if scored:
                faults = [f"trial {scored[0]} has figures on test, and {self.home.ledger(self.header.uid)} has no line"]
        return faults

    def _was_scored_on_test(self, trial: TrialView) -> bool:
        figures = trial.metrics if self.config.protocol == "paper" and trial.folder.is_dir() else trial.test_metrics
        return any(name.startswith("test/") for name in figures)


def _metrics(again: Mapping[int, Remeasured]) -> dict[int, dict[str, float]]:
    return {number: measured.metrics for number, measured in again.items()}


def replicate_folder(final: Path, replicate: int) -> Path:
    """``00007`` -> ``00007-seed1``."""
    return final.with_name(f"{final.name}-seed{replicate}")
