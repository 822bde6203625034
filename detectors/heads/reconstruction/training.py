"""Training of the reconstruction detectors on stored features, by a Lightning trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detectors.base import FitContext, Head
from detectors.features import Features
from detectors.heads.reconstruction.network import Network
from detectors.training import ImageTraining


class NetworkTraining(ImageTraining):
    """A head's network and data; a subclass gives `loss_of`."""

    def __init__(
        self,
        head: Head,
        network: Network,
        features: Features,
        context: FitContext,
        *,
        trained: nn.Module | None = None,
        **schedule: Any,
    ) -> None:
        """Args:
        trained: what the optimizer changes, where that is more than the network.
        schedule: `batch_size`, `epochs`, `learning_rate` and `patience`, as of `ImageTraining`.
        """
        super().__init__(head, network if trained is None else trained, features, context, **schedule)
        self.scale = network.scale

    def values_of(self, images: Tensor) -> Tensor:
        """Standardised maps of some images, by their indices, [B, C, h, w]."""
        standardised: Tensor = self.scale(self.features.joined(images).to(self.device))
        return standardised


class ResidualTraining(NetworkTraining):
    """Minimises the mean of the residual that makes the map."""

    model: Network

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        values = self.values_of(images)
        reconstruction = self.model.reconstruct(values)
        with torch.autocast(values.device.type, enabled=False):  # SSIM's variances are differences of near equals
            return self.model.residual(values, reconstruction.float()).mean()
