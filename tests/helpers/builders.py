"""Small studies that run in a moment: configurations, plans and jobs over the data set `tiny_mvtec`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from detectors import catalog
from studies.file.config import StudyConfig, validate
from studies.home import Home
from studies.search.plan import Options, Plan, make_plan
from studies.search.samplers import derive_seed
from studies.testing.checks import COSTS as COSTS
from studies.testing.checks import repeatable as repeatable
from studies.worker.jobs import Job, Task

BACKBONE = "resnet18@random"
PARAMS: dict[str, Any] = {
    **{name: parameter.default for name, parameter in catalog.parameters("padim").items()},
    "backbone": BACKBONE,
    "layers": [8, 16],
    "n_features": 12,
    "smoothing_sigma": 2.0,
}


def raw_config(root: Path, **changes: Any) -> dict[str, Any]:
    """A study in its plain form; `changes` replace whole sections, and None leaves one out."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "detector": "padim",
        "data": {"dataset": "tiny", "category": "widget", "root": str(root), "image_size": 64},
        "search": {"n_features": {"int": [4, 40]}, "shrinkage": {"float": [0.0, 0.5]}},
        "fixed": {"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 2.0},
        # A Gaussian process, which `auto` would take here, needs a second for a suggestion.
        "sampler": {"name": "tpe"},
        "budget": {"trials": 3},
        # So few labelled images are not halved by default.
        "nested": False,
        "advice": False,
        "rerank": 0,
    }
    raw |= copy.deepcopy(changes)
    return {key: value for key, value in raw.items() if value is not None}


def make_config(root: Path, **changes: Any) -> StudyConfig:
    """`raw_config`, validated."""
    return validate(raw_config(root, **changes), source="tiny.yaml")


def paper_config(root: Path) -> StudyConfig:
    """Protocol paper, which has no search."""
    return make_config(root, protocol="paper", search={}, baselines=[{"n_features": 12}])


def build_plan(config: StudyConfig, home: Path, **options: Any) -> Plan:
    """A plan on the CPU, without network."""
    return make_plan(config, Home(home).prepare(), Options(**{"device": "cpu", "offline": True, **options}))


def build_job(plan: Plan, number: int = 0, *, task: Task = "trial", folder: Path | None = None, **changes: Any) -> Job:
    """A job as the driver would submit it; `changes` replace fields of the job, and of its ``params``."""
    params = {**PARAMS, **changes.pop("params", {})}
    uid = changes.pop("study_uid", "0123456789ab")
    fields: dict[str, Any] = {
        "task": task,
        "study_uid": uid,
        "number": number,
        "attempt": 1,
        "config": plan.config.to_json() | {"protocol": plan.splits.protocol},
        "params": params,
        "strides": tuple(plan.space.strides(params["backbone"])),
        "weights_sha256": plan.backbones[params["backbone"]].sha256,
        "splits_digest": plan.splits.digest,
        "seed": derive_seed(plan.config.sampler.seed, "trial", number),
        "structural_seed": plan.config.sampler.seed,
        "home": str(plan.home.root),
        "folder": str(folder or plan.home.study_folder(uid) / f"{task}-{number:05d}"),
        "device": str(plan.device),
        "threads": 1,
    }
    return Job(**fields | changes)
