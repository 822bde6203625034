"""One trial of a study of several products: a detector of the same setting is fitted to each, and their figures are averaged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from statistics import fmean

from detectors.errors import InputError
from detectors.files import os_errors_as_input_errors, write_json
from studies.file import datasets
from studies.file.config import StudyConfig, metric_of
from studies.file.datasets import StudyImages
from studies.file.sections import COST_METRICS, PrunerConfig
from studies.home import Home
from studies.worker.jobs import ARTIFACTS, PRODUCTS, RESULT_FILE, Event, Job, Report, Stage, TrialResult

Run = Callable[[Job, Callable[[Event], None], Callable[[], bool]], TrialResult]
SLOWEST = ("fps", "throughput")
"""Metrics of which the lowest value over the products counts, because every product must be fast enough. Of `train_seconds` the
sum counts, of other costs the highest value."""


def run_products(
    job: Job,
    config: StudyConfig,
    home: Home,
    *,
    run: Run,
    emit: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> TrialResult:
    """Do a job for every product in the order of the study, and write the combined result into the job's folder.

    After each product the value of the first objective is reported, with the place of the product, from 0, as step. A trial that
    is to stop ends between two products.

    Args:
        run: does the job of one product.
        emit: called with the stages and intermediate values of the job.
        should_stop: whether to end before the next product.

    Raises:
        InputError: as `run` does, or the images are not those of the study.
    """
    started, results, stopped = time.time(), dict[str, TrialResult](), False
    images = load_images(config, home, job.splits_digest)
    objective = metric_of(config, next(iter(config.objectives)))
    shutil.rmtree(job.path / ARTIFACTS, ignore_errors=True)
    for place, part in enumerate(images.parts):
        stopped = job.task == "trial" and should_stop()
        if stopped:
            break
        single = config.model_copy(update={"data": config.data.of(part.category), "pruner": PrunerConfig()})
        folder = job.path / PRODUCTS / part.category
        product_job = replace(job, config=single.to_json(), splits_digest=part.splits.digest, folder=str(folder))
        result = results[part.category] = run(product_job, _emit_for(part.category, emit), lambda: False)
        with os_errors_as_input_errors(job.path):
            shutil.copytree(folder / ARTIFACTS, job.path / ARTIFACTS / part.category)
        if job.task == "trial" and objective in result.metrics:
            emit(Report(job.number, job.attempt, place, result.metrics[objective]))
    combined = combine(job, results, started=started, pruned=stopped)
    write_json(job.path / RESULT_FILE, combined.model_dump(mode="json"))
    return combined


def combine(job: Job | TrialResult, results: Mapping[str, TrialResult], *, started: float, pruned: bool) -> TrialResult:
    """The combined result of all products; the figures of each are kept under ``product/<name>/``.

    Args:
        job: the job, or the combined result as it was before one of its products changed.
        results: {product: its result}.
        started: seconds since the epoch.
        pruned: whether the trial was stopped between two products; then there are no means.
    """
    last = list(results.values())[-1] if results else None
    metrics = {
        f"product/{category}/{name}": value
        for category, result in results.items()
        for name, value in result.metrics.items()
    }
    if not pruned:
        metrics |= _mean_metrics([result.metrics for result in results.values()])
    stages = dict.fromkeys(name for result in results.values() for name in result.seconds)
    thresholds = {category: result.threshold for category, result in results.items() if result.threshold}
    first = next(iter(thresholds.values()), None)
    return TrialResult(
        task=job.task,
        study_uid=job.study_uid,
        number=job.number,
        attempt=job.attempt,
        params=job.params,
        pruned=pruned,
        metrics=metrics,
        per_defect={f"{c}/{kind}": value for c, result in results.items() for kind, value in result.per_defect.items()},
        undefined={f"{c}/{name}": why for c, result in results.items() for name, why in result.undefined.items()},
        seconds={name: round(sum(r.seconds.get(name, 0.0) for r in results.values()), 4) for name in stages},
        backbone=last.backbone if last else {},
        per_defect_recall={
            f"{c}/{kind}": value for c, result in results.items() for kind, value in result.per_defect_recall.items()
        },
        threshold={"rule": first["rule"], "rate": first["rate"], "products": thresholds} if first else None,
        threshold_set=max((result.threshold_set or 0.0 for result in results.values()), default=0.0) or None,
        started=started,
        finished=job.finished if isinstance(job, TrialResult) else time.time(),
        environment=last.environment if last else {},
    )


def _mean_metrics(each: list[dict[str, float]]) -> dict[str, float]:
    """Means of the scores, and the costs of all products together; only metrics that every product has.

    Intervals are left out, because that of a mean does not follow from those of the products, and thresholds, which have no
    common scale.
    """
    common = [name for name in each[0] if all(name in metrics for metrics in each)]
    combined: dict[str, float] = {}
    for name in common:
        values = [metrics[name] for metrics in each]
        if name.endswith(("_low", "_high")) or name.count("/") > 1 or name.startswith("threshold"):
            continue
        if name in SLOWEST:
            combined[name] = min(values)
        elif name == "train_seconds":
            combined[name] = sum(values)
        else:
            combined[name] = max(values) if name in (*COST_METRICS, "latency_load") else fmean(values)
    return combined


def _emit_for(category: str, emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """An `emit` that puts the name of the product before stages, and drops the intermediate values of its training."""

    def emit_named(event: Event) -> None:
        if isinstance(event, Stage):
            emit(replace(event, name=f"{category}: {event.name}"))
        elif not isinstance(event, Report):
            emit(event)

    return emit_named


@lru_cache(maxsize=2)
def _cached_images(config_json: str, home: Home) -> StudyImages:
    return datasets.load(StudyConfig.model_validate_json(config_json), home)


def load_images(config: StudyConfig, home: Home, digest: str) -> StudyImages:
    """The images of a study, which are read once per process.

    Raises:
        InputError: their digest is not `digest`.
    """
    images = _cached_images(config.model_dump_json(), home)
    if images.digest != digest:
        raise InputError(
            f"the images of {images.experiment} changed while the study was running; "
            "restore them, or start again with --fresh"
        )
    return images
