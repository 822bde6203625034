"""Training of GANomaly's generator and discriminator on stored features, by a Lightning trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.base import FitContext, Head, seeded
from detectors.features import Features
from detectors.heads.ganomaly.network import GanomalyNetwork
from detectors.heads.reconstruction.convolutional import Encoder
from detectors.heads.reconstruction.training import NetworkTraining

ADVERSARIAL, CONTEXTUAL, LATENT = 1.0, 50.0, 1.0
"""Weights of the generator's losses."""
BETAS = 0.5, 0.999
"""Of Adam, for both."""


class AdversarialTraining(NetworkTraining):
    """Generator and discriminator of `detectors.heads.ganomaly.head`, by turns."""

    def __init__(
        self, head: Head, network: GanomalyNetwork, features: Features, context: FitContext, **schedule: Any
    ) -> None:
        """Args: `schedule` as for `NetworkTraining`."""
        generator = seeded(head.name, context.seed, "discriminator")
        discriminator = Encoder(network.judging_plan, generator=generator).to(context.device)
        both = nn.ModuleDict({"network": network, "discriminator": discriminator})
        super().__init__(head, network, features, context, trained=both, **schedule)
        self.network, self.discriminator = network, discriminator
        self.made: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(part.parameters(), lr=self.largest_rate, betas=BETAS, fused=True)
            for part in (self.network, self.discriminator)
        ]

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        """The generator's; what it made is kept for the discriminator."""
        values = self.values_of(images)
        generated = self.network.generate(values)
        self.made.append((values, generated.reconstruction.detach()))
        real, fake = self.discriminator.features(values), self.discriminator.features(generated.reconstruction)
        loss = ADVERSARIAL * functional.mse_loss(fake.float(), real.detach().float())
        loss = loss + CONTEXTUAL * functional.l1_loss(generated.reconstruction.float(), values)
        return loss + LATENT * functional.mse_loss(generated.code_again.float(), generated.code.float())

    def step(self, index: int) -> Tensor:
        """Both take a step; returns the generator's loss."""
        self.made = []
        total = super().step(index)
        self.zero_grad()
        for values, reconstruction in self.made:
            # softplus(-t) and softplus(t) are -log of the probabilities that real is real and made is made.
            real, fake = self.discriminator(values).float(), self.discriminator(reconstruction).float()
            loss = 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())
            self.manual_backward(loss * (len(values) / len(self.batches[index])))
        self.update(1)
        return total
