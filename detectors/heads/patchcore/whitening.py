"""Whitening of PatchCore's patch features by the covariance of all training patches.

Notation: N images, P positions, D channels of all strides together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from detectors.errors import NumericalError


@dataclass(frozen=True)
class Whitening:
    """z = diag(l + w mean(l))^-1/2 U^T (x - mu), with mu and U diag(l) U^T the mean and covariance of the training patches."""

    centre: Tensor
    """mu, float32 [D]"""
    matrix: Tensor
    """float32 [D, D]"""

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor, *, share: float) -> Self:
        """From mean [D] and covariance [D, D], float64; `share` is w, above 0: how much of the mean variance is added."""
        variances, directions = torch.linalg.eigh(covariance)
        scale = variances.clamp_min(0) + share * variances.mean().clamp_min(0)
        # Patches that do not differ at all have nothing to be whitened by.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls(mean.float(), (directions / scale.sqrt()).T.float().contiguous())

    def __call__(self, patches: Tensor) -> Tensor:
        """Whitened patch features, [P, D, N] -> [P, D, N]."""
        return torch.matmul(self.matrix, patches - self.centre[:, None])


def mean_and_covariance(blocks: Iterable[Tensor], channels: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of all patches, float64, on the CPU.

    Args:
        blocks: patch features, float32 [P, D, N] each.
        channels: D.

    Raises:
        NumericalError: the covariance is not finite, or there are no patches.
    """
    patches = 0
    total = torch.zeros(channels, dtype=torch.float64)
    scatter = torch.zeros(channels, channels, dtype=torch.float64)
    shift: Tensor | None = None
    for block in blocks:
        rows = block.transpose(1, 2).flatten(0, 1)
        # Around any of the patches, squares are of the size of the variances: nothing cancels.
        shift = rows.mean(dim=0) if shift is None else shift
        rows = rows - shift
        patches += len(rows)
        total += rows.sum(dim=0, dtype=torch.float64).cpu()
        scatter += (rows.T @ rows).double().cpu()
    mean = total / patches
    covariance = (scatter / patches).addr_(mean, mean, alpha=-1.0)
    if shift is None or not bool(torch.isfinite(covariance).all()):
        raise NumericalError("PatchCore: the covariance of the patches is not finite; check weights and data")
    return mean + shift.cpu(), covariance
