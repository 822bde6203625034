"""What a comparison shows of each study: the figures of the selected trial, under protocol paper of every finished one."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from detectors.errors import InputError
from detectors.scoring.evaluation import FALSE_ALARMS, RECALL
from detectors.scoring.ranked_by import RANKING_SCORE
from studies.file.encoding import encode
from studies.file.sizes import size_of
from studies.search.operating_point import metrics_on_test, points_on_test, pooled
from studies.search.view import StudyView, TrialView

AT_THRESHOLD = tuple(f"{name}{end}" for name in (RECALL, FALSE_ALARMS) for end in ("", "_low", "_high"))
"""Figures at the threshold, as a row and a trial's metrics on test name them."""


class Row(BaseModel):
    """One trial of a study. A figure that was not measured is None; nothing is rounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    trial: int
    selected: bool
    """Whether the study would deploy this trial; under protocol paper every finished trial has a row."""
    detector: str
    experiment: str
    """``<dataset>/<category>``"""
    protocol: str
    backbone: str
    layers: list[int]
    """Strides of the backbone's layers."""
    weights: str
    """timm's tag of the backbone's weights."""
    image_size: list[int]
    """Height and width in pixels."""
    params: dict[str, Any]
    """The values of all parameters."""
    scored: bool
    """Whether the trial was scored on test: the selected one at the end of a search, every one under protocol paper."""
    image_auroc: float | None
    """On test, as all figures without ``val``: half of the labelled images under protocol holdout, all under protocol paper."""
    image_auroc_low: float | None
    """Lower end of the 95 % bootstrap interval."""
    image_auroc_high: float | None
    """Its upper end."""
    seeds: int | None
    """Number of fits with different seeds behind the next two figures; None after a single fit."""
    image_auroc_seeds_mean: float | None
    image_auroc_seeds_std: float | None
    val_image_auroc: float | None
    """On validation, which chose the trial."""
    ranking_score: float | None = None
    """On painted test defects, where there are no labelled ones: it ranks settings and is no AUROC."""
    val_ranking_score: float | None = None
    image_recall: float | None = None
    """Share of the defective test images that raise an alarm at the threshold; over several products the mean."""
    image_recall_low: float | None = None
    """Lower end of the 95 % interval; None over several products."""
    image_recall_high: float | None = None
    false_alarm_rate: float | None = None
    """Share of the good test images that raise an alarm at the threshold; over several products the mean."""
    false_alarm_rate_low: float | None = None
    false_alarm_rate_high: float | None = None
    threshold_normals: int | None = None
    """Good images that the threshold rests on; None over several products, as the next."""
    threshold_expected_rate: float | None = None
    """False-alarm rate to expect on new good images, as far as these support one."""
    recall_per_defect: dict[str, float] = {}
    """{type of defect: share of its test images that raise an alarm}; of several products ``product/type``."""
    pixel_auroc: float | None
    pixel_aupro: float | None
    pixel_aupro_05: float | None = None
    """As AUPRO, up to a false-positive rate of 0.05 in the place of 0.3."""
    seg_f1: float | None = None
    """F1 of the pixels at the threshold for pixels."""
    nested_image_auroc: float | None = None
    """Nested estimate of a study that keeps no images for test; it is no figure on test and is not compared with one."""
    nested_image_auroc_low: float | None = None
    nested_image_auroc_high: float | None = None
    train_seconds: float | None
    """Seconds of the fit on stored features, without their extraction; stored work of other trials included."""
    fps: float | None
    """Images per second at batch 1."""
    throughput: float | None
    """Images per second at batch 32."""
    model_size_mb: float | None
    """Size of the stored detector's tensors in units of 10^6 bytes."""
    device: str
    """Where the speed was measured: device, its name, CPU threads."""
    test_images: int = Field(
        serialization_alias="test_pictures", validation_alias=AliasChoices("test_images", "test_pictures")
    )
    """Number of test images."""
    test_sets: dict[str, int] = {}
    """In a study of several products {product: number of its test images}; else empty."""
    test_digest: str
    """sha256 of the test images, of several products of their digests. Rows with different ones cannot be compared."""
    test_scorings: int
    """How many times this study was scored on test so far."""

    @property
    def label(self) -> str:
        """A short name of the row: the study, and the trial under protocol paper."""
        return self.study if self.protocol != "paper" else f"{self.study} trial {self.trial}"

    @property
    def test_images_text(self) -> str:
        """Number of test images, and how many are of which product where there are several: ``24 (nut 12, bolt 12)``."""
        each = ", ".join(f"{product} {count}" for product, count in self.test_sets.items())
        return f"{self.test_images} ({each})" if each else str(self.test_images)

    @property
    def setting(self) -> str:
        """Backbone and strides: ``resnet18 8+16``."""
        return f"{self.backbone} {encode(self.layers)}"


def study_rows(view: StudyView) -> list[Row]:
    """The row of the selected trial of a study, or under protocol paper, which selects none, of every finished trial.

    Raises:
        InputError: the study has no finished trial, or none that meets its constraints.
    """
    name, trials = view.study.study_name, [trial for trial in view.trials() if trial.state == "COMPLETE"]
    if not trials:
        raise InputError(f"study {name!r} has no finished trial to compare; `study show {name}` shows its state")
    if view.config.protocol != "paper":
        trials = [trial for trial in trials if trial.selected]
    if not trials:
        limits = ", ".join(f"{metric} {condition}" for metric, condition in view.config.constraints.items())
        raise InputError(f"study {name!r} has no finished trial that meets its constraints ({limits}); relax them")
    return [_row(view, trial) for trial in trials]


def _row(view: StudyView, trial: TrialView) -> Row:
    metrics = trial.metrics | metrics_on_test(view, trial)
    points = points_on_test(view, trial)
    counts, threshold = pooled(points), points[0].threshold if len(points) == 1 else None
    params, environment = trial.params, trial.outcome.environment
    seeds, images = metrics.get("seeds"), count_images(view, "test")
    estimate = view.nested() if trial.selected else None
    nested = estimate.metrics if estimate is not None else {}
    device = " ".join(str(environment[name]) for name in ("device", "device_name") if environment.get(name))
    return Row(
        study=view.study.study_name,
        trial=trial.number,
        selected=trial.selected,
        detector=trial.detector_name,
        experiment=view.header.experiment,
        protocol=view.config.protocol,
        backbone=str(params.get("backbone", "")),
        layers=list(params.get("layers", [])),
        weights=view.header.backbones.get(str(params.get("backbone")), {}).get("tag", ""),
        image_size=list(size_of(params, view.config.data.size)),
        params=params,
        scored=view.config.protocol == "paper" or trial.final is not None,
        image_auroc=metrics.get("test/image_auroc"),
        image_auroc_low=metrics.get("test/image_auroc_low"),
        image_auroc_high=metrics.get("test/image_auroc_high"),
        seeds=int(seeds) if seeds else None,
        image_auroc_seeds_mean=metrics.get("test/image_auroc_seeds_mean"),
        image_auroc_seeds_std=metrics.get("test/image_auroc_seeds_std"),
        val_image_auroc=metrics.get("val/image_auroc"),
        ranking_score=metrics.get(f"test/{RANKING_SCORE}"),
        val_ranking_score=metrics.get(f"val/{RANKING_SCORE}"),
        **{name: metrics.get(f"test/{name}") for name in AT_THRESHOLD},
        threshold_normals=threshold.normals if threshold is not None else None,
        threshold_expected_rate=threshold.expected_rate if threshold is not None else None,
        recall_per_defect={kind: caught / of for kind, (caught, of) in counts.per_defect.items()} if counts else {},
        pixel_auroc=metrics.get("test/pixel_auroc"),
        pixel_aupro=metrics.get("test/pixel_aupro"),
        pixel_aupro_05=metrics.get("test/pixel_aupro_05"),
        seg_f1=metrics.get("test/seg_f1"),
        nested_image_auroc=nested.get("nested/image_auroc"),
        nested_image_auroc_low=nested.get("nested/image_auroc_low"),
        nested_image_auroc_high=nested.get("nested/image_auroc_high"),
        train_seconds=metrics.get("train_seconds"),
        fps=metrics.get("fps"),
        throughput=metrics.get("throughput"),
        model_size_mb=metrics.get("model_size_mb"),
        device=f"{device}, {metrics['latency_threads']:.0f} threads" if "latency_threads" in metrics else device,
        test_images=sum(images.values()),
        test_sets=images if list(images) != [""] else {},
        test_digest=_test_digest(view),
        test_scorings=len(view.ledger()),
    )


def count_images(view: StudyView, name: str) -> dict[str, int]:
    """{product: images in its set of this name}, under an empty product where the study is over a single one."""
    found = {key.rpartition("/")[::2]: sum(kinds.values()) for key, kinds in view.header.counts.items()}
    return {product: count for (product, set_name), count in found.items() if set_name == name}


def _test_digest(view: StudyView) -> str:
    """sha256 of the test images; of several products one over their names and digests; of a study without test images that of its
    labelled ones, marked so that they are taken for no other study's test images."""
    if not view.keeps_test:
        return f"nested:{view.header.identity['data'].get('validation', '')}"
    digests = {key.rpartition("/")[::2]: digest for key, digest in view.header.identity["data"].items()}
    each = {product: digest for (product, name), digest in digests.items() if name == "test"}
    if set(each) <= {""}:
        return str(each.get("", ""))
    return hashlib.sha256("\n".join(f"{product}:{each[product]}" for product in sorted(each)).encode()).hexdigest()
