"""A study as it stands: trials with their outcome, the selected one, and the records that MLflow shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from detectors.scoring.evaluation import METRICS
from studies.file.config import StudyConfig, metric_of
from studies.file.encoding import encode
from studies.file.keys import DETECTOR_KEY, SHARED_PARAMETERS, ParameterKey
from studies.home import Home
from studies.search.storage import Header
from studies.worker.jobs import ARTIFACTS, DETECTOR, LOG_FILE, PRODUCTS, TrialResult, read_result
from studies.worker.ledger import LedgerLine, read_ledger
from tracking.records import DatasetRecord, StudyRecord, StudyState, TrialRecord
from tracking.records import TrialState as RecordState

JOB, OUTCOME, OVERRIDES, DISCARDED, ORIGIN = "job", "outcome", "overrides", "discarded", "origin"
"""Attributes of an Optuna trial: what was submitted, what came of it, a baseline's values outside the search, why it does
not count, and where its configuration comes from."""
STATES: dict[TrialState, RecordState] = {
    TrialState.RUNNING: "RUNNING",
    TrialState.WAITING: "RUNNING",
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAIL",
}
INTERRUPTED = "interrupted"
MISSED_BY_FAR = 1e9
"""Finite, for TPE models the violations."""


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

    @property
    def number(self) -> int:
        """Optuna's number."""
        return self.frozen.number

    @property
    def state(self) -> RecordState:
        """``RUNNING``, ``COMPLETE``, ``PRUNED`` or ``FAIL``."""
        return STATES[self.frozen.state]

    @property
    def job(self) -> dict[str, Any]:
        """Attempt and parameters of what was submitted; empty before that."""
        return dict(self.frozen.user_attrs.get(JOB, {}))

    @property
    def params(self) -> dict[str, Any]:
        """The full setting."""
        return dict(self.job.get("params", {}))

    @property
    def outcome(self) -> dict[str, Any]:
        """Metrics, times, failure."""
        return dict(self.frozen.user_attrs.get(OUTCOME, {}))

    @property
    def metrics(self) -> dict[str, float]:
        """All figures of the search; those on test are in `final`."""
        return dict(self.outcome.get("metrics", {}))

    @property
    def failure(self) -> str:
        """``<kind>: <message>`` or empty."""
        return str(self.outcome.get("failure", ""))

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
        found = dict(self.final.metrics)
        if len(self.replicates) > 1:
            found["seeds"] = len(self.replicates)
            for name in METRICS:
                values = [
                    result.metrics[key] for result in self.replicates if (key := f"test/{name}") in result.metrics
                ]
                if len(values) > 1:
                    found |= {f"test/{name}_seeds_mean": fmean(values), f"test/{name}_seeds_std": stdev(values)}
        return found

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

    @property
    def seconds(self) -> float | None:
        """Wall time of the trial; None where it left no result."""
        outcome = self.outcome
        return outcome["finished"] - outcome["started"] if "started" in outcome else None


class StudyView:
    """Reads one study from storage and folders; writes nothing."""

    def __init__(self, study: optuna.Study, header: Header, home: Home) -> None:
        self.study, self.header, self.home = study, header, home
        self.config = StudyConfig.model_validate(header.config)

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

    def trials(self) -> list[TrialView]:
        """All trials but discarded and waiting ones, by number; the selected one is marked."""
        frozen = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and DISCARDED not in trial.user_attrs
        ]
        best = select(self.config, frozen)
        front = pareto_front(self.config, frozen)
        return [
            self.view(trial, selected=best is not None and trial.number == best.number, pareto=trial.number in front)
            for trial in frozen
        ]

    def view(self, trial: FrozenTrial, *, selected: bool = False, pareto: bool = False) -> TrialView:
        """One trial."""
        folder, final = self.trial_folder(trial.number), self.final_folder(trial.number)
        return TrialView(trial, folder, final, self.config, selected=selected, pareto=pareto)

    def selected(self) -> TrialView | None:
        """The trial that a person would deploy."""
        return next((trial for trial in self.trials() if trial.selected), None)

    def ledger(self) -> list[LedgerLine]:
        """Every scoring of this study on test."""
        return read_ledger(self.home.ledger(self.header.uid))

    def study_record(self, *, state: StudyState, note: str = "", finished_ms: int | None = None) -> StudyRecord:
        """The parent run."""
        header, config = self.header, self.config
        digests: Mapping[str, str] = header.identity["data"]
        dataset = header.experiment.partition("/")[0]
        objective = next(iter(config.objectives))
        return StudyRecord(
            uid=header.uid,
            name=self.study.study_name,
            experiment=header.experiment,
            started_ms=int(header.created * 1000),
            state=state,
            finished_ms=finished_ms,
            note=note,
            # MLflow lets no param change: these belong to the study's identity, what may differ on resume is a tag.
            params={
                "detector": config.detector_label,
                "protocol": config.protocol,
                "dataset": header.experiment.partition("/")[0],
                "category": header.experiment.partition("/")[2],
                "image_size": "x".join(str(side) for side in config.data.size),
                "seed": str(config.sampler.seed),
                "objectives": ", ".join(f"{name} ({way})" for name, way in config.objectives.items()),
                "backbones": ", ".join(header.backbones),
            },
            tags={
                "study.detector": config.detector_label,
                "study.protocol": config.protocol,
                "study.data": header.experiment,
                "study.sampler": config.sampler.name,
            },
            datasets=tuple(
                DatasetRecord(
                    f"{dataset}/{product}" if (product := name.rpartition("/")[0]) else header.experiment,
                    name.rpartition("/")[2],
                    digest,
                    header.dataset,
                    header.counts[name],
                )
                for name, digest in digests.items()
            ),
            artifacts=self.folder / "summary",
            columns=self._columns(),
            order_by=f"metrics.{metric_of(config, objective)}",
            ascending=config.objectives[objective] == "minimize",
        )

    def _columns(self) -> tuple[str, ...]:
        """What tells trials apart, the most telling first."""
        config = self.config
        asked = [metric_of(config, name) for name in (*config.objectives, *config.constraints)]
        metrics = dict.fromkeys([*asked, *(f"{name}/image_auroc" for name in ("val", "test")), "fps"])
        params = dict.fromkeys([*SHARED_PARAMETERS, *(ParameterKey.parse(key).name for key in config.search)])
        several = ["tags.trial.detector"] if len(config.detectors) > 1 else []
        return (
            *(f"metrics.{name}" for name in metrics),
            "tags.study.selected",
            *several,
            *(f"params.{name}" for name in params),
            "tags.trial.state",
            "tags.trial.failure",
        )

    def trial_record(self, trial: TrialView) -> TrialRecord:
        """A child run."""
        # An outcome that was written but not told does not count yet: what runs may still end otherwise.
        outcome = trial.outcome if trial.state != "RUNNING" else {}
        started = _seconds(trial.frozen.datetime_start) or self.header.created
        finished = outcome.get("finished") or _seconds(trial.frozen.datetime_complete)
        params = {name: str(encode(value)) for name, value in trial.params.items()}
        weights = self.header.backbones.get(str(trial.params.get("backbone")))
        if weights:
            params["weights"] = f"{weights['name']}.{weights['tag']} ({weights['origin']}) {weights['sha256'][:16]}"
        metrics, artifacts = dict(outcome.get("metrics", {})), {"": trial.folder / ARTIFACTS}
        final = trial.final if trial.state == "COMPLETE" else None
        if final is not None:
            metrics |= trial.test_metrics
            artifacts["test"] = trial.final_folder / ARTIFACTS
        return TrialRecord(
            number=trial.number,
            attempt=int(trial.job.get("attempt", 1)),
            state=trial.state,
            run_name=f"{self.study.study_name} {trial.number:03d}",
            started_ms=int(started * 1000),
            finished_ms=int(finished * 1000) if finished else None,
            params=params,
            metrics=metrics,
            steps=tuple(
                (step, value, int((finished or started) * 1000))
                for step, value in sorted(trial.frozen.intermediate_values.items())
            ),
            failure=str(outcome.get("failure", "")),
            feasible=trial.feasible,
            tags={
                "study.selected": str(trial.selected).lower(),
                "trial.detector": trial.detector_name,
                **({"trial.backbone": str(trial.params["backbone"])} if "backbone" in trial.params else {}),
                **({"trial.pareto": str(trial.pareto).lower()} if len(self.config.objectives) > 1 else {}),
                "trial.origin": str(trial.frozen.user_attrs.get(ORIGIN, "search")),
                **{name: value for name, value in outcome.get("environment", {}).items() if name in ("host", "device")},
            },
            artifacts=artifacts,
            log=trial.folder / LOG_FILE,
        )


def replicate_folder(final: Path, replicate: int) -> Path:
    """``00007`` -> ``00007-seed1``."""
    return final.with_name(f"{final.name}-seed{replicate}")


def violations(config: StudyConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """By how much each constraint is missed; met where 0 or less. A metric that is not there is missed by far."""
    found = {}
    for name, condition in config.constraints.items():
        limit = float(condition.strip()[2:])
        value = metrics.get(metric_of(config, name))
        if value is None:
            found[name] = MISSED_BY_FAR
        else:
            found[name] = limit - value if condition.strip().startswith(">=") else value - limit
    return found


def is_feasible(config: StudyConfig, metrics: Mapping[str, float]) -> bool:
    """Whether all constraints are met."""
    return all(missed <= 0 for missed in violations(config, metrics).values())


def select(config: StudyConfig, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The feasible trial with the best first objective; ties go to the higher fps, then to the earlier one."""
    sign = 1 if config.direction == "maximize" else -1
    candidates = [
        (sign * trial.values[0], metrics.get("fps", 0.0), -trial.number, trial)
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and is_feasible(config, metrics := trial.user_attrs.get(OUTCOME, {}).get("metrics", {}))
    ]
    return max(candidates, key=lambda candidate: candidate[:3], default=(0, 0, 0, None))[3]


def pareto_front(config: StudyConfig, trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the feasible trials that no other one beats; empty for a single objective."""
    if len(config.objectives) < 2:
        return set()
    signs = [1 if way == "maximize" else -1 for way in config.objectives.values()]
    candidates = {
        trial.number: [sign * value for sign, value in zip(signs, trial.values, strict=True)]
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and is_feasible(config, trial.user_attrs.get(OUTCOME, {}).get("metrics", {}))
    }
    return {
        number for number, own in candidates.items() if not any(_beats(other, own) for other in candidates.values())
    }


def _beats(first: Sequence[float], second: Sequence[float]) -> bool:
    """At least as good everywhere, and better somewhere."""
    pairs = list(zip(first, second, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _seconds(moment: Any) -> float | None:
    return moment.timestamp() if moment is not None else None
