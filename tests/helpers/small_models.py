"""Small real detectors, saved, and runs that they could come from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient

from detectors.backbones.pyramid import Backbone, build_backbone
from detectors.base import FitContext
from detectors.detector import Detector
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import Artifact, save_artifact
from detectors.runtime.latency import Latency
from detectors.scoring.operating_point import GoodScores, choose_threshold
from tracking.registered_models import Source

SIZE = (64, 64)
LATENCY = Latency(
    latency_ms_p50=5.0,
    latency_ms_p95=6.0,
    fps=200.0,
    throughput=900.0,
    peak_memory_mb=50.0,
    model_size_mb=45.0,
    latency_threads=1.0,
)
"""The same for every detector, for tests that are not about speed."""


def random_images(count: int, seed: int) -> torch.Tensor:
    """uint8 [count, 3, 64, 64]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, 190, (count, 3, *SIZE), generator=generator, dtype=torch.uint8)


@lru_cache(maxsize=1)
def backbone() -> Backbone:
    return build_backbone("test_resnet@random", (8, 16))


def save_detector(folder: Path, *, features: int = 8) -> Path:
    """A fitted PaDiM with a threshold."""
    detector = Detector(backbone(), Padim(n_features=features), image_size=SIZE, smoothing_sigma=2.0)
    detector.fit(random_images(6, 0), FitContext())
    normals = detector(random_images(8, 1)).scores.numpy().astype(np.float64)
    detector.threshold = choose_threshold(
        rule="false_alarm_rate",
        rate=0.1,
        good=GoodScores(normals, "validation"),
    )
    return save_artifact(Artifact(detector, normals, {"study": "widgets", "trial": features}), folder)


def make_run(uri: str, artifacts: Path) -> str:
    """A run with figures on test."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("tiny/widget")
    experiment = found.experiment_id if found else client.create_experiment("tiny/widget", artifacts.as_uri())
    run = client.create_run(experiment, tags={"trial.key": "uid/3"})
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def source(folder: Path, run_id: str, *, key: str = "uid/3//abc", auroc: float = 0.9) -> Source:
    return Source(
        key=key,
        folder=folder,
        run_id=run_id,
        description="padim, trial 3 of study widgets.",
        tags={"study.uid": "uid", "detector": "padim"},
        metrics={"test/image_auroc": auroc},
        dataset=("tiny/widget", "0123abcd"),
    )
