"""What goes to a worker and what comes back: plain data, checked where it is read from disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
ARTIFACTS = "artifacts"
"""Folder within a trial's folder whose files go to MLflow."""
CHECKPOINTS = "checkpoints"
"""Folder within a job's folder: what a training that was cut off goes on from."""
PRODUCTS = "products"
"""Folder within a job's folder that holds one job's folder for each of several products."""
DETECTOR = "detector"
"""Folder within a final job's folder: the detector artifact."""

Task = Literal["trial", "final", "replicate"]
LostKind = Literal["bad_input", "exception", "out_of_memory", "crashed", "timeout", "node_lost"]
RETRIED: frozenset[LostKind] = frozenset({"out_of_memory", "crashed", "node_lost"})
"""Failures of the surroundings, which another attempt may not meet; the others would come again."""


@dataclass(frozen=True)
class Job:
    """One piece of work for one worker. Holds no open thing: it can be pickled to another process or node."""

    task: Task
    """``trial``: fit and score on validation. ``final``: refit the selected trial, score it on test, save it. ``replicate``: the
    same with another seed, and nothing saved."""
    study_uid: str
    number: int
    attempt: int
    config: dict[str, Any]
    """The study file, as `StudyConfig.to_json` writes it, with the protocol resolved."""
    params: dict[str, Any]
    strides: tuple[int, ...]
    """All that the study may ask of this backbone: where features are missing, they are computed together."""
    weights_sha256: str
    """Of the backbone: a worker that finds other weights under its name refuses."""
    splits_digest: str
    """Of the image sets: a worker that finds other images refuses."""
    seed: int
    structural_seed: int
    home: str
    folder: str
    """Where result, log and artifacts go."""
    device: str
    threads: int
    weights_dir: str | None = None
    networks: dict[str, str] = field(default_factory=dict)
    """{network whose pretrained weights the detector starts from: their sha256}; a worker that finds others refuses."""
    memory_halvings: int = 0
    """How many attempts ran out of memory: batches and blocks are halved as many times, with the same outcome."""

    @property
    def path(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)


class TrialResult(BaseModel):
    """What ``result.json`` holds: written last and by rename, so that a valid one means finished work."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    study_uid: str
    number: int
    attempt: int
    params: dict[str, Any]
    pruned: bool = False
    """Whether the training was stopped by the pruner; then there are no metrics of the detector."""
    metrics: dict[str, float]
    """With the prefix of their set, ``val/`` or ``test/``; speed and memory without."""
    per_defect: dict[str, float] = {}
    undefined: dict[str, str] = {}
    seconds: dict[str, float]
    """Wall time of each stage."""
    backbone: dict[str, str]
    threshold: dict[str, Any] | None = None
    started: float
    """Seconds since the epoch."""
    finished: float
    environment: dict[str, str]
    """Host, device, threads and versions."""


def read_result(folder: Path) -> TrialResult | None:
    """The result in a job's folder; None where there is none, or no valid one."""
    try:
        return TrialResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError, ValueError):
        return None


@dataclass(frozen=True)
class Stage:
    """A worker says what it is at."""

    number: int
    attempt: int
    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Report:
    """The first objective on validation after so many epochs."""

    number: int
    attempt: int
    step: int
    value: float


@dataclass(frozen=True)
class Done:
    """The job is finished; its result lies in its folder."""

    number: int
    attempt: int
    result: TrialResult


@dataclass(frozen=True)
class Lost:
    """The job will not finish."""

    number: int
    attempt: int
    kind: LostKind
    message: str


Event = Stage | Report | Done | Lost
