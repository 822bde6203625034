"""Which images of train a probe fits: another fit of a trial's setting, to see what it owes to chance, or to how many images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studies.worker.jobs import Probe

LEAST = 3
"""Images with different contents that a probe leaves to fit."""


def rows_of(probe: Probe, groups: Sequence[int], *, seed: int) -> tuple[int, ...] | None:
    """Indices of the images of train that are fitted, ascending; None for all.

    Args:
        groups: a number for the content of each image [N]: copies stay together.
        seed: the same for all settings of a study that are to be compared; smaller shares are then parts of larger ones.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < probe.train_share <= 1:
        raise ValueError(f"the share of train is above 0 and at most 1, got {probe.train_share:g}")
    contents = list(dict.fromkeys(groups))
    count = max(LEAST, round(probe.train_share * len(contents)))
    if count >= len(contents):
        return None
    order = np.random.default_rng((seed, probe.resample)).permutation(len(contents))
    kept = {contents[index] for index in order[:count]}
    return tuple(index for index, group in enumerate(groups) if group in kept)
