"""The network of the variational autoencoder, and the divergence of its code's distribution from the prior."""

from __future__ import annotations

import torch
from torch import Tensor

from detectors.heads.reconstruction.convolutional import Decoder, Encoder, Plan
from detectors.heads.reconstruction.network import Network, Residual

LARGEST_LOG_VARIANCE = 10.0
"""Of the code, in either direction from 0."""


class VaeNetwork(Network):
    """Encoder with two outputs for each dimension of the code, and decoder."""

    def __init__(self, plan: Plan, *, residual: Residual, generator: torch.Generator) -> None:
        super().__init__(plan, residual=residual)
        self.code_shape = plan.code_shape
        self.encoder = Encoder(plan, outputs=2 * plan.code, generator=generator)
        self.decoder = Decoder(plan, generator=generator)

    def posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log s^2 of standardised [B, C, h, w], each [B, *code_shape]."""
        mean, log_variance = self.encoder(values).chunk(2, dim=1)
        return mean, log_variance.clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)

    def reconstruct(self, values: Tensor) -> Tensor:
        """y(mu), [B, C, h, w]."""
        decoded: Tensor = self.decoder(self.posterior(values)[0])
        return decoded


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, I), each [B, ...]; [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(dim=1)
