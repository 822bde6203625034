"""Training of the variational autoencoder on stored features, by a Lightning trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detectors.base import FitContext, Head
from detectors.features import Features
from detectors.heads.reconstruction.training import NetworkTraining
from detectors.heads.vae.network import VaeNetwork, divergence


class VariationalTraining(NetworkTraining):
    """Minimises the negative evidence lower bound of `detectors.heads.vae.head`."""

    model: VaeNetwork

    def __init__(
        self, head: Head, network: VaeNetwork, features: Features, context: FitContext, *, beta: float, **schedule: Any
    ) -> None:
        """Args:
        beta: weight of the divergence from the prior.
        schedule: as for `NetworkTraining`.
        """
        super().__init__(head, network, features, context, **schedule)
        self.beta = beta

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.noise_generator = self.generator("noise")

    def step(self, index: int) -> Tensor:
        # For all of the batch, so that its noise is the same however it is cut.
        shape = len(self.batches[index]), *self.model.code_shape
        self.noise = torch.randn(shape, generator=self.noise_generator).to(self.device)
        return super().step(index)

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        values = self.values_of(images)
        mean, log_variance = (part.float() for part in self.model.posterior(values))
        noise = self.noise[first : first + len(values)]
        reconstruction = self.model.decoder(mean + (0.5 * log_variance).exp() * noise)
        likelihood = 0.5 * (values - reconstruction).square().mean()
        return likelihood + self.beta * divergence(mean, log_variance).mean() / values[0].numel()
