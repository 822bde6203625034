"""How the first objective of a trial varies over the images that it was measured on: its bootstrap replicates, from the scores of
its validation images.

All trials of a study see the same draws, so that the replicates of two of them can be subtracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError
from detectors.scoring.paired import METRICS_BY_IMAGE, Counts, draw, metric_replicates
from studies.search.samplers import derive_seed
from studies.worker.validation_scores import VALIDATION_SCORES_FILE, read_validation_scores

KEPT = 256
"""Trials whose replicates are held in memory, of the last ones that were asked for."""


@dataclass(frozen=True)
class Spread:
    """The bootstrap replicates of one fit, and the images behind them."""

    images: tuple[str, ...]
    """Digest of the images, of each product; two fits with the same ones can be compared image by image."""
    replicates: NDArray[np.float64] | None
    """[B]; of several products their mean. None for a metric that does not follow from what is kept of each image, such as
    ``pixel_aupro``, and where too few images are left to draw from."""


def spread_of(artifacts: Path, metric: str, *, seed: int) -> Spread | None:
    """The spread of a job that was scored on validation; None where it left no scores, as trials of earlier versions.

    Args:
        artifacts: folder of the job's artifacts; that of a job over several products has a folder for each.
        metric: of the study's objectives.
        seed: of the study.
    """
    if (artifacts / VALIDATION_SCORES_FILE).is_file():
        return _of_product(artifacts, metric, derive_seed(seed, "noise", 0))
    folders = sorted(path.parent for path in artifacts.glob(f"*/{VALIDATION_SCORES_FILE}"))
    parts = [_of_product(folder, metric, derive_seed(seed, f"noise {folder.name}", 0)) for folder in folders]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    replicates = [part.replicates for part in known if part.replicates is not None]
    mean = np.mean(replicates, axis=0) if len(replicates) == len(known) else None
    return Spread(tuple(digest for part in known for digest in part.images), mean)


def mean_spread(spreads: Sequence[Spread]) -> Spread:
    """That of the mean over several fits of one setting, each scored on the same images, or on others of the same groups."""
    replicates = [spread.replicates for spread in spreads if spread.replicates is not None]
    mean = np.mean(replicates, axis=0) if len(replicates) == len(spreads) else None
    return Spread(tuple(digest for spread in spreads for digest in spread.images), mean)


def _of_product(artifacts: Path, metric: str, seed: int) -> Spread | None:
    path = artifacts / VALIDATION_SCORES_FILE
    try:
        status = path.stat()
    except OSError:
        return None
    return _read(path, status.st_mtime_ns, status.st_size, metric, seed)


@lru_cache(maxsize=KEPT)
def _read(path: Path, changed: int, size: int, metric: str, seed: int) -> Spread | None:
    """Args: `changed` and `size` tell the file apart from what it was before."""
    stored = read_validation_scores(path.parent)
    if stored is None:
        return None
    digest = hashlib.sha256(repr(stored.images).encode()).hexdigest()
    if metric not in METRICS_BY_IMAGE:
        return Spread((digest,), None)
    try:
        scored = stored.scored()
        counts = _draw(scored.labels.tobytes(), scored.groups, seed)
        replicates = metric_replicates(metric, scored, counts)
    except InputError:  # too few images, or a threshold that is not there
        return Spread((digest,), None)
    replicates.setflags(write=False)
    return Spread((digest,), replicates)


@lru_cache(maxsize=4)
def _draw(labels: bytes, groups: tuple[Hashable, ...] | None, seed: int) -> Counts:
    return draw(np.frombuffer(labels, dtype=np.int8), groups, seed=seed)
