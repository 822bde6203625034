"""Convolutional variational autoencoder (Kingma & Welling, "Auto-Encoding Variational Bayes", arXiv 1312.6114), whose residual is
the map, as Baur et al. (arXiv 2004.03271) use it.

Notation: B images, C channels, h x w positions; x has D = C h w values, its code d dimensions in all.

The encoder gives mean mu and log-variance log s^2 of the code z, the decoder y(z). Training minimises the negative evidence lower
bound of a decoder with unit variance, per value and without constants,

    (1 / D) [ 1/2 |x - y(mu + s e)|^2 + beta KL ],    e ~ N(0, I),

    KL = 1/2 sum_d (mu^2 + s^2 - log s^2 - 1)

(appendix B; beta = 1 is the paper's, others are Higgins et al.'s beta-VAE). Scores come from z = mu, without noise: the map is
(x - y(mu))^2, or 1 - SSIM, averaged over the channels, and the image score is the highest value of the smoothed map.

Departures: the decoder's variance is that of the standardised input; log s^2 is cut at `LARGEST_LOG_VARIANCE` to either side.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from detectors.base import Parameter
from detectors.heads.reconstruction.convolutional import Decoder, Encoder, Plan
from detectors.heads.reconstruction.head import Network, Reconstruction, Residual, common

LARGEST_LOG_VARIANCE = 10.0


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


class Vae(Reconstruction):
    """Variational autoencoder head."""

    name: ClassVar[str] = "vae"
    title: ClassVar[str] = "VAE"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("beta", "float", 1.0, "weight of the divergence from the prior", 0.0, 1000.0),
        Parameter("map", "choice", "l2", "residual that makes the map", choices=("l2", "ssim")),
        *common(),
    )

    def __init__(
        self,
        *,
        beta: float = 1.0,
        map: str = "l2",
        latent: int = 100,
        bottleneck: str = "picture",
        width: int = 16,
        depth: int = 6,
        learning_rate: float = 1e-3,
        batch_size: int = 16,
        epochs: int = 30,
        patience: int = 0,
    ) -> None:
        super().__init__(
            latent=latent,
            bottleneck=bottleneck,
            width=width,
            depth=depth,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs,
            patience=patience,
        )
        self.beta, self.residual = float(beta), cast(Residual, map)

    def make_network(self, plan: Plan, generator: torch.Generator) -> VaeNetwork:
        return VaeNetwork(plan, residual=self.residual, generator=generator)
