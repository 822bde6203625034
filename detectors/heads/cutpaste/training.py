"""Training of CutPaste's network on stored maps, by a Lightning trainer: the same normals untouched, with a pasted rectangle, and
with a pasted scar are classes to be told apart by cross entropy.

Notation: B normals of a step, C channels, h x w positions; K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.base import FitContext, Head, seeded
from detectors.features import Features
from detectors.heads.cutpaste.network import Network
from detectors.heads.cutpaste.pasting import Task, paste
from detectors.process_state import drawn_from
from detectors.training import Training
from detectors.working_memory import parts

MOMENTUM, WEIGHT_DECAY = 0.9, 3e-5
PROJECTION = 128
"""Hidden units of the classifier on top of the embedding; it is dropped after training."""


class Classifier(nn.Module):
    """The network, its last map's mean, and a projection head that tells K classes apart."""

    def __init__(self, network: Network, classes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            embedding = network(network.mean[None].repeat(2, 1, 1, 1)).shape[1]
        with drawn_from(generator.initial_seed()):
            self.projection = nn.Sequential(
                nn.Linear(embedding, PROJECTION), nn.ReLU(), nn.Linear(PROJECTION, classes)
            ).to(network.mean.device)

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B, K]."""
        logits: Tensor = self.projection(self.network(values).mean(dim=(2, 3)))
        return logits


class CutpasteTraining(Training):
    """A head's network with its classifier."""

    def __init__(
        self,
        head: Head,
        network: Network,
        features: Features,
        context: FitContext,
        *,
        task: Task,
        batch: int,
        steps: int,
        epochs: int,
        learning_rate: float,
        patience: int,
        settle: Callable[[Features], None],
    ) -> None:
        """Args:
        batch: normals in a step.
        settle: makes the head ready to score, from the features of the normals and its weights as they are now.
        """
        super().__init__(
            head,
            Classifier(network, task.classes, generator=seeded(head.name, context.seed, "projection")),
            features,
            context,
            steps=steps,
            epochs=epochs,
            learning_rate=learning_rate,
            patience=patience,
        )
        self.task, self.batch, self._settle_head = task, batch, settle
        # Batch normalisation sees the whole batch or does something else.
        self.divisible = not network.mixes_images
        self.channels = network.mean.numel()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            self.model.parameters(), lr=self.largest_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def begin_epoch(self) -> None:
        self.model.train()
        generator, needed = self.generator("batches"), self.steps * self.batch
        rounds = -(-needed // len(self.features))
        order = torch.cat([torch.randperm(len(self.features), generator=generator) for _ in range(rounds)])
        self.images = order[:needed].view(self.steps, -1)
        self.patches = self.generator("patches")

    def step(self, index: int) -> Tensor:
        images = self.images[index].to(self.features.device)
        drawn = self.task.draw(len(images), self.channels, self.head.grid, generator=self.patches)
        pieces = min(parts(), len(images)) if self.divisible else 1
        length = -(-len(images) // pieces)
        total = torch.zeros((), device=self.device)
        self.zero_grad()
        for start in range(0, len(images), length):
            piece = slice(start, start + length)
            values = self.features.joined(images[piece]).to(self.device)
            logits = self.model(torch.cat([values, *(paste(values, patches.part(piece)) for patches in drawn)]))
            labels = torch.arange(self.task.classes, device=self.device).repeat_interleave(len(values))
            loss = functional.cross_entropy(logits, labels, reduction="sum") / (len(images) * self.task.classes)
            self.manual_backward(loss)
            total += loss.detach()
        self.update()
        return total

    def settle(self) -> None:
        self._settle_head(self.features)
