"""Convolutional autoencoder with a structural residual (Bergmann, Löwe, Fauser, Sattlegger & Steger, "Improving Unsupervised
Defect Segmentation by Applying Structural Similarity to Autoencoders", arXiv 1807.02011).

Notation: B images, C channels, h x w positions.

A decoder gives the input x [C, h, w] back from a short code, y = D(E(x)), which it can learn for normals only. Training minimises
the mean residual, and the map is the residual of each position: 1 - SSIM(x, y) (section 3.2) or (x - y)^2 (equation 1), averaged
over the channels. The image score is the highest value of the smoothed map.

Departures from the paper: whole images instead of random crops of 128 x 128, without augmentation, and a pyramid of strided
convolutions as `detectors.heads.reconstruction.convolutional` describes it, with group normalisation, so that tens of epochs do
in place of 200.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from detectors.base import Parameter
from detectors.heads.reconstruction.convolutional import Decoder, Encoder, Plan
from detectors.heads.reconstruction.head import Reconstruction, common
from detectors.heads.reconstruction.network import Network, Residual


class AutoencoderNetwork(Network):
    """Encoder and decoder."""

    def __init__(self, plan: Plan, *, residual: Residual, generator: torch.Generator) -> None:
        super().__init__(plan, residual=residual)
        self.encoder = Encoder(plan, generator=generator)
        self.decoder = Decoder(plan, generator=generator)

    def reconstruct(self, values: Tensor) -> Tensor:
        """D(E(x)), both [B, C, h, w]."""
        decoded: Tensor = self.decoder(self.encoder(values))
        return decoded


class Autoencoder(Reconstruction):
    """Autoencoder head."""

    name: ClassVar[str] = "autoencoder"
    title: ClassVar[str] = "Autoencoder"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("loss", "choice", "l2", "what is minimised and makes the map", choices=("ssim", "l2")),
        *common(),
    )

    def __init__(
        self,
        *,
        loss: str = "l2",
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
        self.residual = cast(Residual, loss)

    def least_weights(self, plan: Plan) -> int:
        return plan.code_weights

    def make_network(self, plan: Plan, generator: torch.Generator) -> AutoencoderNetwork:
        return AutoencoderNetwork(plan, residual=self.residual, generator=generator)
