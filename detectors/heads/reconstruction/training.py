"""Training of the reconstruction detectors on stored features, by a Lightning trainer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.base import FitContext, seeded
from detectors.features import Features
from detectors.heads.ganomaly.head import ADVERSARIAL, BETAS, CONTEXTUAL, LATENT, Ganomaly, GanomalyNetwork
from detectors.heads.reconstruction.convolutional import Encoder
from detectors.heads.reconstruction.head import Network, Reconstruction
from detectors.heads.vae.head import Vae, VaeNetwork, divergence
from detectors.training import ImageTraining


def train(head: Reconstruction, network: Network, features: Features, context: FitContext) -> dict[str, float]:
    """Train a head's network in place; returns the head's diagnostics. Raises as `Training.train_head` does."""
    if isinstance(head, Ganomaly):
        return _Adversarial(head, cast(GanomalyNetwork, network), features, context).train_head()
    if isinstance(head, Vae):
        return _Variational(head, cast(VaeNetwork, network), network, features, context).train_head()
    return _Residual(head, network, network, features, context).train_head()


class _Training(ImageTraining):
    """A head's network and data."""

    def __init__(
        self, head: Reconstruction, network: Network, trained: nn.Module, features: Features, context: FitContext
    ) -> None:
        """Args: `trained` is the network, or that and what it is trained with."""
        super().__init__(
            head,
            trained,
            features,
            context,
            batch_size=head.batch_size,
            epochs=head.epochs,
            learning_rate=head.learning_rate,
            patience=head.patience,
        )
        self.scale = network.scale

    def values_of(self, images: Tensor) -> Tensor:
        """Standardised maps of some images, [B, C, h, w]."""
        standardised: Tensor = self.scale(self.features.joined(images).to(self.device))
        return standardised


class _Residual(_Training):
    """The residual that is the map, too."""

    model: Network

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        values = self.values_of(images)
        reconstruction = self.model.reconstruct(values)
        with torch.autocast(values.device.type, enabled=False):  # SSIM's variances are differences of near equals
            return self.model.residual(values, reconstruction.float()).mean()


class _Variational(_Training):
    """The negative evidence lower bound of `detectors.heads.vae.head`."""

    model: VaeNetwork

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
        return (
            likelihood + float(self.head.settings["beta"]) * divergence(mean, log_variance).mean() / values[0].numel()
        )


class _Adversarial(_Training):
    """Generator and discriminator of `detectors.heads.ganomaly.head`, by turns."""

    def __init__(self, head: Reconstruction, network: GanomalyNetwork, features: Features, context: FitContext) -> None:
        generator = seeded(head.name, context.seed, "discriminator")
        discriminator = Encoder(network.judging_plan, generator=generator).to(context.device)
        both = nn.ModuleDict({"network": network, "discriminator": discriminator})
        super().__init__(head, network, both, features, context)
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
