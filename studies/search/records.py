"""A study and its trials as records for MLflow: what its runs show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from detectors.backbones.weights import digits
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file.config import StudyConfig, metric_of
from studies.file.encoding import encode
from studies.file.keys import SHARED_PARAMETERS, ParameterKey
from studies.search.attributes import TrialOutcome
from studies.search.figures import study_figures
from studies.search.nested import CALLED
from studies.search.view import StudyView, TrialView
from studies.worker.jobs import ARTIFACTS, LOG_FILE
from tracking.records import DatasetRecord, StudyRecord, StudyState, TrialRecord

JUDGED_BY = "study.judged_by"
"""Tag of the runs of a study that keeps no images for test, and of those of its trials."""


def study_record(view: StudyView, *, state: StudyState, note: str = "", finished_ms: int | None = None) -> StudyRecord:
    """The record of the parent run."""
    header, config = view.header, view.config
    digests: Mapping[str, str] = header.identity["data"]
    dataset = header.experiment.partition("/")[0]
    objective = next(iter(config.objectives))
    figures, curves = study_figures(view)
    return StudyRecord(
        uid=header.uid,
        name=view.study.study_name,
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
            **({JUDGED_BY: CALLED} if view.is_nested else {}),
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
        figures=figures,
        curves=curves,
        artifacts=view.folder / "summary",
        columns=_columns(config),
        order_by=f"metrics.{metric_of(config, objective)}",
        ascending=config.objectives[objective] == "minimize",
    )


def _columns(config: StudyConfig) -> tuple[str, ...]:
    """Columns of MLflow's table of trials: objectives and constraints first, then the searched parameters."""
    aims = [metric_of(config, name) for name in (*config.objectives, *config.constraints)]
    rank = RANKING_SCORE if RANKING_SCORE in config.objectives else "image_auroc"
    ranked = (f"val/{rank}", f"test/{rank}", f"test/{RECALL}", f"test/{FALSE_ALARMS}")
    metrics = dict.fromkeys([*aims, *ranked, "fps"])
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


def trial_record(view: StudyView, trial: TrialView) -> TrialRecord:
    """The record of a child run."""
    # An outcome counts when Optuna knows the state: a trial that still runs may end otherwise.
    outcome = trial.outcome if trial.state != "RUNNING" else TrialOutcome()
    started = _seconds(trial.frozen.datetime_start) or view.header.created
    finished = outcome.finished or _seconds(trial.frozen.datetime_complete)
    params = {name: str(encode(value)) for name, value in trial.params.items()}
    weights = view.header.backbones.get(str(trial.params.get("backbone")))
    if weights:
        params["weights"] = f"{weights['name']}.{weights['tag']} ({weights['origin']}) {digits(weights['sha256'], 16)}"
    metrics, artifacts = dict(outcome.metrics), {"": trial.folder / ARTIFACTS}
    final = trial.final if trial.state == "COMPLETE" else None
    if final is not None:
        metrics |= trial.test_metrics
        artifacts["test"] = trial.final_folder / ARTIFACTS
    return TrialRecord(
        number=trial.number,
        attempt=trial.submission.attempt or 1,
        state=trial.state,
        run_name=f"{view.study.study_name} {trial.number:03d}",
        started_ms=int(started * 1000),
        finished_ms=int(finished * 1000) if finished else None,
        params=params,
        metrics=metrics,
        later=dict(trial.remeasured),
        later_ms=int(trial.remeasured_at * 1000) if trial.remeasured_at else None,
        revised_ms=int(final.threshold_set * 1000) if final is not None and final.threshold_set else None,
        steps=tuple(
            (step, value, int((finished or started) * 1000))
            for step, value in sorted(trial.frozen.intermediate_values.items())
        ),
        failure=outcome.failure,
        feasible=trial.feasible,
        tags={
            "study.selected": str(trial.selected).lower(),
            **({JUDGED_BY: CALLED} if view.is_nested else {}),
            "trial.detector": trial.detector_name,
            **({"trial.backbone": str(trial.params["backbone"])} if "backbone" in trial.params else {}),
            **({"trial.pareto": str(trial.pareto).lower()} if len(view.config.objectives) > 1 else {}),
            "trial.origin": trial.attributes.origin,
            **({"trial.warm_from": trial.attributes.warm_from} if trial.attributes.warm_from else {}),
            **{name: value for name, value in outcome.environment.items() if name in ("host", "device")},
        },
        artifacts=artifacts,
        log=trial.folder / LOG_FILE,
    )


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None
