"""Diagonal: the channels of each position as independent Gaussians. PaDiM (arXiv 2011.08785) without correlations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Self

import torch
from torch import Tensor

from detectors.base import FitContext, Head, Parameter
from detectors.data.images import Size
from detectors.embedding import Embedding
from detectors.features import Features

BLOCK = 256
"""Positions at a time, which bounds the memory."""


class Diagonal(Head):
    """After `fit`: `mean` and `deviation` [P, d], for P positions of the finest grid and d channels of all strides."""

    name: ClassVar[str] = "diagonal"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("regularization", "float", 0.01, "added to every variance", 1e-6, 1.0),
    )
    mean: Tensor
    deviation: Tensor
    size: Tensor

    def __init__(self, *, regularization: float = 0.01) -> None:
        super().__init__()
        self.regularization = float(regularization)

    @property
    def grid(self) -> Size:
        height, width = self.size.tolist()
        return height, width

    @torch.inference_mode()
    def fit(self, features: Features, context: FitContext) -> Self:
        statistics = [
            torch.var_mean(values.to(context.device), dim=2, correction=0) for _, values in _vectors(features)
        ]
        self.register_buffer("mean", torch.cat([mean for _, mean in statistics]))
        variance = torch.cat([variance for variance, _ in statistics])
        self.register_buffer("deviation", (variance + self.regularization).sqrt())
        self.register_buffer("size", torch.tensor(features.grids[features.strides[0]]))
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, None]:
        distances = []
        for block, values in _vectors(features):
            apart = values.to(self.mean.device) - self.mean[block, :, None]
            distances.append((apart / self.deviation[block, :, None]).square().mean(dim=1).sqrt())
        return torch.cat(distances).T.reshape(-1, *self.grid), None


def _vectors(features: Features) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of positions with their vectors, [P, d, N]."""
    channels = {stride: torch.arange(features.maps[stride].shape[1]) for stride in features.strides}
    height, width = features.grids[features.strides[0]]
    for start in range(0, height * width, BLOCK):
        block = slice(start, start + BLOCK)
        yield block, Embedding(channels).gather(features, block)
