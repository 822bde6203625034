"""Training of the reconstruction detectors on stored features, by a Lightning trainer.

An epoch goes through all images once, in batches of nearly the same length and random order.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.base import FitContext, seeded
from detectors.convolutional import Encoder
from detectors.features import Features
from detectors.ganomaly import ADVERSARIAL, BETAS, CONTEXTUAL, LATENT, Ganomaly, GanomalyNetwork
from detectors.reconstruction import Network, Reconstruction
from detectors.training import Training
from detectors.vae import Vae, VaeNetwork, divergence
from detectors.working_memory import parts


def train(head: Reconstruction, network: Network, features: Features, context: FitContext) -> dict[str, float]:
    """Train a head's network in place; returns the head's diagnostics. Raises as `Training.train_head` does."""
    if isinstance(head, Ganomaly):
        return _Adversarial(head, cast(GanomalyNetwork, network), features, context).train_head()
    if isinstance(head, Vae):
        return _Variational(head, cast(VaeNetwork, network), features, context).train_head()
    return _Residual(head, network, features, context).train_head()


class _Batches(Training):
    """A head's data, batch by batch."""

    def __init__(
        self, head: Reconstruction, network: Network, trained: nn.Module, features: Features, context: FitContext
    ) -> None:
        """Args: `trained` is the network and what it is trained with."""
        settings = head.settings
        super().__init__(
            head,
            trained,
            features,
            context,
            steps=-(-len(features) // int(settings["batch_size"])),
            epochs=int(settings["epochs"]),
            learning_rate=float(settings["learning_rate"]),
            patience=int(settings["patience"]),
        )
        self.scale = network.scale

    def begin_epoch(self) -> None:
        order = torch.randperm(len(self.features), generator=self.generator("order"))
        self.batches = order.to(self.features.device).tensor_split(self.steps)

    def pieces(self, index: int) -> list[Tensor]:
        """Standardised maps of a batch, [B, C, h, w] each, in as many pieces as memory makes necessary."""
        images = self.batches[index]
        pieces = images.tensor_split(min(parts(), len(images)))
        return [self.scale(self.features.joined(own).to(self.device)) for own in pieces]

    def settle(self) -> None:
        """Nothing is left to do: the weights are all there is."""


class _Single(_Batches):
    """One loss, which is a mean over images, and one optimizer."""

    def __init__(self, head: Reconstruction, network: Network, features: Features, context: FitContext) -> None:
        super().__init__(head, network, network, features, context)

    @abstractmethod
    def loss_of(self, values: Tensor, first: int) -> Tensor:
        """Mean loss of images [B, C, h, w], the first of which has this number in the batch."""

    def step(self, index: int) -> Tensor:
        total, first, images = torch.zeros((), device=self.device), 0, len(self.batches[index])
        self.zero_grad()
        for values in self.pieces(index):
            loss = self.loss_of(values, first) * (len(values) / images)
            self.manual_backward(loss)
            total += loss.detach()
            first += len(values)
        self.update()
        return total


class _Residual(_Single):
    """The residual that is the map, too."""

    model: Network

    def loss_of(self, values: Tensor, first: int) -> Tensor:
        reconstruction = self.model.reconstruct(values)
        with torch.autocast(values.device.type, enabled=False):  # SSIM's variances are differences of near equals
            return self.model.residual(values, reconstruction.float()).mean()


class _Variational(_Single):
    """The negative evidence lower bound of `detectors.vae`."""

    model: VaeNetwork

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.noise_generator = self.generator("noise")

    def step(self, index: int) -> Tensor:
        # For all of the batch, so that its noise is the same however it is cut.
        shape = len(self.batches[index]), *self.model.code_shape
        self.noise = torch.randn(shape, generator=self.noise_generator).to(self.device)
        return super().step(index)

    def loss_of(self, values: Tensor, first: int) -> Tensor:
        mean, log_variance = (part.float() for part in self.model.posterior(values))
        noise = self.noise[first : first + len(values)]
        reconstruction = self.model.decoder(mean + (0.5 * log_variance).exp() * noise)
        likelihood = 0.5 * (values - reconstruction).square().mean()
        return (
            likelihood + float(self.head.settings["beta"]) * divergence(mean, log_variance).mean() / values[0].numel()
        )


class _Adversarial(_Batches):
    """Generator and discriminator of `detectors.ganomaly`, by turns."""

    def __init__(self, head: Reconstruction, network: GanomalyNetwork, features: Features, context: FitContext) -> None:
        generator = seeded(head.name, context.seed, "discriminator")
        discriminator = Encoder(network.judging_plan, generator=generator).to(context.device)
        both = nn.ModuleDict({"network": network, "discriminator": discriminator})
        super().__init__(head, network, both, features, context)
        self.network, self.discriminator = network, discriminator

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(part.parameters(), lr=self.largest_rate, betas=BETAS, fused=True)
            for part in (self.network, self.discriminator)
        ]

    def step(self, index: int) -> Tensor:
        """Both take a step; returns the generator's loss."""
        total, images, pieces = torch.zeros((), device=self.device), len(self.batches[index]), self.pieces(index)
        self.zero_grad()
        made = []
        for values in pieces:
            generated = self.network.generate(values)
            made.append(generated.reconstruction.detach())
            real, fake = self.discriminator.features(values), self.discriminator.features(generated.reconstruction)
            loss = ADVERSARIAL * functional.mse_loss(fake.float(), real.detach().float())
            loss = loss + CONTEXTUAL * functional.l1_loss(generated.reconstruction.float(), values)
            loss = loss + LATENT * functional.mse_loss(generated.code_again.float(), generated.code.float())
            loss = loss * (len(values) / images)
            self.manual_backward(loss)
            total += loss.detach()
        self.update(0)
        self.zero_grad()
        for values, reconstruction in zip(pieces, made, strict=True):
            # softplus(-t) and softplus(t) are -log of the probabilities that real is real and made is made.
            real, fake = self.discriminator(values).float(), self.discriminator(reconstruction).float()
            loss = 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())
            self.manual_backward(loss * (len(values) / images))
        self.update(1)
        return total
