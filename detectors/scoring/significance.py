"""Whether differences that a bootstrap drew are there at all, for one of them and for several at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """p of the hypothesis that a difference is zero, from its bootstrap replicates [B]: twice the share on the rarer side.

    The observed sample counts as a replicate on both sides (Davison and Hinkley 1997, "Bootstrap Methods and their Application",
    section 4.2), so that p is never below 2 / (B + 1). Replicates of exactly zero count on both sides as well.
    """
    total = len(differences) + 1
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum())) + 1
    return min(1.0, 2 * rarer / total)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979): where all below a level are taken for differences,
    the chance that any one of them is none is below that level too, whatever their dependence."""
    count, running = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def sign_test_p(losses: int, gains: int) -> float:
    """One-sided p of so many losses or more against so many gains, if each were as likely: the exact test of McNemar (1947).

    For two models on the same images `losses` counts the images that only the old one gets right, and `gains` those that only
    the new one does; images on which both agree say nothing. 5 losses without a gain have p = 1/32.
    """
    if losses < 0 or gains < 0:
        raise ValueError(f"losses and gains are counts, got {losses} and {gains}")
    if losses == 0:
        return 1.0
    # The regularised incomplete beta function is the upper tail of the binomial distribution.
    return float(special.betainc(losses, gains + 1, 0.5))
