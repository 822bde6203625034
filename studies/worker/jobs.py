"""What goes to a worker and what comes back: plain data, which is validated when it is read from disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from studies.file.encoding import Setting

RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
ARTIFACTS = "artifacts"
"""Folder within a trial's folder whose files go to MLflow."""
CHECKPOINTS = "checkpoints"
"""Folder within a job's folder with the checkpoints from which a training that was cut off continues."""
PRODUCTS = "products"
"""Folder within a job's folder that contains one job's folder for each of several products."""
DETECTOR = "detector"
"""Folder within a final job's folder that is the detector artifact; in a trial's folder it is a provisional one."""
FIRST_DETECTOR = "first detector"
"""Stage of the first trial of a study without labels; once it is done, the trial's folder holds a provisional detector."""
PROVISIONAL = "provisional"
"""Key in the provenance of a detector that a trial kept of its own fit, while the search goes on."""

Task = Literal["trial", "final", "replicate", "speed", "probe"]
LostKind = Literal["bad_input", "exception", "out_of_memory", "crashed", "timeout", "node_lost"]
RETRIED: frozenset[LostKind] = frozenset({"out_of_memory", "crashed", "node_lost"})
"""Failures that another attempt may avoid; the others would happen again."""


@dataclass(frozen=True)
class Probe:
    """How a job of task ``probe`` differs from the trial whose setting it fits."""

    resample: int
    """From 1 on. Each draws other seeds and another part of train; the same one is the same for all settings of a study."""
    train_share: float = 1.0
    """Share of train that is fitted, above 0 up to 1; copies of an image stay together."""
    repaint: bool = False
    """Paint other defects into the good images of validation, of the same kinds and grades; real ones stay as they are."""
    name: str = ""
    """Of the question that it answers (`studies.search.advice`); empty for a fresh fit of a trial's setting."""
    image_size: tuple[int, int] | None = None
    """Height and width, in pixels, that images are resized to in the place of the study's."""


@dataclass(frozen=True)
class Job:
    """One piece of work for one worker. It contains plain data only, so that it can be sent to another process or node."""

    task: Task
    """``trial``: fit and score on validation. ``final``: refit the selected trial, score it on test and save it. ``replicate``:
    refit it with another seed and score it on test. ``speed``: refit it and measure its speed
    alone, when the machine is quiet. ``probe``: fit it as `probe` says and score it on validation, never on test."""
    study_uid: str
    number: int
    """Number of the trial."""
    attempt: int
    """1 for the first attempt at the trial."""
    config: dict[str, Any]
    """The study file, as `StudyConfig.to_json` writes it, with the protocol resolved."""
    params: Setting
    """{parameter: value}, those that are not searched included."""
    strides: tuple[int, ...]
    """All strides that the study may use of this backbone. Features that are missing are computed for all of them together."""
    weights_sha256: str
    """Weights of the backbone; a worker that has other weights under its name raises an error."""
    splits_digest: str
    """Digest of the image sets; a worker that has other images raises an error."""
    seed: int
    """Seed of the fit, which differs between trials and replicates."""
    structural_seed: int
    """Seed of what all trials share, such as the bootstrap."""
    home: str
    folder: str
    """Folder for result, log and artifacts."""
    device: str
    threads: int
    """CPU threads."""
    weights_dir: str | None = None
    networks: dict[str, str] = field(default_factory=dict)
    """{network from whose pretrained weights the detector starts: their sha256}; a worker that has others raises an error."""
    memory_halvings: int = 0
    """How many attempts ran out of memory. Batches and blocks are halved as many times, which does not change the result."""
    probe: Probe | None = None
    """Of task ``probe``."""
    keep_above: float | None = None
    """Of a trial: its detector is kept as the provisional one where the first objective is above this (with its sign turned where
    less is better); None keeps none."""

    @property
    def path(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)


class TrialResult(BaseModel):
    """The content of ``result.json``, which is written last and by rename: a valid file means that the job is finished."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    study_uid: str
    number: int
    attempt: int
    params: Setting
    pruned: bool = False
    """Whether the pruner stopped the training; then there are no metrics of the detector."""
    metrics: dict[str, float]
    """Metrics on images have the prefix of their set, ``val/`` or ``test/``; speed and memory have none."""
    per_defect: dict[str, float] = {}
    """{type of defect: image AUROC against all good images}"""
    per_defect_recall: dict[str, float] = {}
    """{type of defect: share of its images that raise an alarm}; empty without a threshold."""
    undefined: dict[str, str] = {}
    """{metric that could not be computed: why}"""
    seconds: dict[str, float]
    """Wall time of each stage in seconds."""
    backbone: dict[str, str]
    threshold: dict[str, Any] | None = None
    """`Threshold.to_json` of the fitted detector; of several products ``{"products": {product: ...}}``."""
    threshold_set: float | None = None
    """When the threshold was chosen anew after the job, in seconds since the epoch; None where it was not."""
    started: float
    """Seconds since the epoch."""
    finished: float
    environment: dict[str, str]
    """Host, device, threads and versions."""


def read_result(folder: Path) -> TrialResult | None:
    """The result in a job's folder; None if there is no valid one."""
    try:
        return TrialResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError, ValueError):
        return None


@dataclass(frozen=True)
class Stage:
    """A worker begins a stage, or has done `done` of its `total` steps; a total of 0 means that it does not count."""

    number: int
    attempt: int
    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Report:
    """The first objective on validation after `step` epochs."""

    number: int
    attempt: int
    step: int
    value: float


@dataclass(frozen=True)
class Done:
    """The job is finished and its result is in its folder."""

    number: int
    attempt: int
    result: TrialResult


@dataclass(frozen=True)
class Lost:
    """The job failed or was lost, and will not finish."""

    number: int
    attempt: int
    kind: LostKind
    message: str


Event = Stage | Report | Done | Lost
