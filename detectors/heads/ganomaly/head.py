"""GANomaly (Akcay, Atapour-Abarghouei & Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training",
arXiv 1805.06725).

Notation: B images, C channels, h x w positions, d dimensions of the code.

A generator encodes, decodes, and encodes again: z = E1(x), y = D1(z), u = E2(y). A discriminator tells x from y; f is what its
last convolution sees. The generator minimises (equations 1 to 4)

    w_adv mean (f(x) - f(y))^2 + w_con mean |x - y| + w_lat mean (z - u)^2,    w = 1, 50, 1,

the discriminator the binary cross-entropy of real x and made y. The map is (x - y)^2 averaged over the channels. The image score
is its highest value after smoothing or, with `score: latent`, the paper's mean |z - u| (equation 5). The former is the default:
on images of screws the latter takes the damaged ones for the better ones.

Departures from the paper: scores are not scaled by the smallest and largest score of the test images (equation 6), for a
product sees one image at a time; groups of channels are normalised in place of batches; weights are drawn as He et al. do;
gradients are clipped, and the learning rate rises and falls, as in all training here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from detectors.base import Parameter
from detectors.heads.reconstruction.convolutional import Decoder, Encoder, Plan
from detectors.heads.reconstruction.head import Network, Reconstruction, common

ADVERSARIAL, CONTEXTUAL, LATENT = 1.0, 50.0, 1.0
"""Weights of the generator's losses."""
BETAS = 0.5, 0.999
"""Of Adam, for both."""


class Generated(NamedTuple):
    """What the generator makes of a batch."""

    code: Tensor
    """z [B, d, ...]"""
    reconstruction: Tensor
    """y [B, C, h, w]"""
    code_again: Tensor
    """u [B, d, ...]"""


class GanomalyNetwork(Network):
    """The generator; the discriminator is needed in training only."""

    def __init__(self, plan: Plan, *, own_scores: bool, generator: torch.Generator) -> None:
        super().__init__(plan, residual="l2")
        self.own_scores = own_scores
        self.judging_plan = replace(plan, code=1, whole=True)
        """Of the discriminator, which gives one number."""
        self.encoder = Encoder(plan, generator=generator)
        self.decoder = Decoder(plan, generator=generator)
        self.second_encoder = Encoder(plan, generator=generator)

    def generate(self, values: Tensor) -> Generated:
        """From standardised [B, C, h, w]."""
        code = self.encoder(values)
        reconstruction = self.decoder(code)
        return Generated(code, reconstruction, self.second_encoder(reconstruction))

    def reconstruct(self, values: Tensor) -> Tensor:
        """y, [B, C, h, w]."""
        return self.generate(values).reconstruction

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        standardised = self.scale(values)
        code, reconstruction, code_again = self.generate(standardised)
        scores = (code - code_again).abs().flatten(1).mean(dim=1) if self.own_scores else None
        return self.residual(standardised, reconstruction), scores


class Ganomaly(Reconstruction):
    """GANomaly head."""

    name: ClassVar[str] = "ganomaly"
    title: ClassVar[str] = "GANomaly"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "score",
            "choice",
            "residual",
            "what makes the image score: the distance of the codes before and after, or the map",
            choices=("latent", "residual"),
        ),
        *common(learning_rate=2e-4),
    )

    def __init__(
        self,
        *,
        score: str = "residual",
        latent: int = 100,
        bottleneck: str = "picture",
        width: int = 16,
        depth: int = 6,
        learning_rate: float = 2e-4,
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
        self.by_latent = score == "latent"

    def make_network(self, plan: Plan, generator: torch.Generator) -> GanomalyNetwork:
        return GanomalyNetwork(plan, own_scores=self.by_latent, generator=generator)
