"""Convolutional variational autoencoder (Kingma & Welling, "Auto-Encoding Variational Bayes", arXiv 1312.6114), whose residual is
the map, as Baur et al. (arXiv 2004.03271) use it.

Notation: B images, C channels, h x w positions; x has D = C h w values, its code d dimensions in all.

The encoder gives mean mu and log-variance log s^2 of the code z, the decoder y(z). Training minimises the negative evidence lower
bound of a decoder with unit variance, per value and without constants,

    (1 / D) [ 1/2 |x - y(mu + s e)|^2 + beta KL ],    e ~ N(0, I),

    KL = 1/2 sum_d (mu^2 + s^2 - log s^2 - 1)

(appendix B; beta = 1 is the paper's, others are Higgins et al.'s beta-VAE). Scores come from z = mu, without noise: the map is
(x - y(mu))^2, or 1 - SSIM, averaged over the channels, and the image score is the highest value of the smoothed map.

Departures: the decoder's variance is that of the standardised input; log s^2 is cut at 10 to either side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch

from detectors.base import FitContext, Parameter
from detectors.features import Features
from detectors.heads.reconstruction.convolutional import Plan
from detectors.heads.reconstruction.head import Reconstruction, common
from detectors.heads.reconstruction.network import Network, Residual
from detectors.heads.vae.network import VaeNetwork

if TYPE_CHECKING:
    from detectors.training import Training  # Lightning takes seconds to import


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
        super().__init__()
        self.beta, self.residual = float(beta), cast(Residual, map)

    def least_weights(self, plan: Plan) -> int:
        return plan.code_weights

    def make_network(self, plan: Plan, generator: torch.Generator) -> VaeNetwork:
        return VaeNetwork(plan, residual=self.residual, generator=generator)

    def make_training(self, network: Network, features: Features, context: FitContext) -> Training:
        """The negative evidence lower bound is minimised."""
        from detectors.heads.vae.training import VariationalTraining  # Lightning takes seconds to import

        return VariationalTraining(self, cast(VaeNetwork, network), features, context, beta=self.beta, **self.schedule)
