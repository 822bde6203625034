"""Training of FastFlow's flows on stored features, by a Lightning trainer.

An epoch goes through all images once, in batches of nearly the same length and random order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detectors.base import FitContext
from detectors.fastflow import Fastflow, maps_of
from detectors.features import Features
from detectors.training import Training
from detectors.working_memory import parts

WEIGHT_DECAY = 1e-5


def train(head: Fastflow, features: Features, context: FitContext) -> dict[str, float]:
    """Train a head's flows in place; returns the head's diagnostics. Raises as `Training.train_head` does."""
    return _Training(head, features, context).train_head()


class _Training(Training):
    """The flows of a head and their data."""

    head: Fastflow

    def __init__(self, head: Fastflow, features: Features, context: FitContext) -> None:
        super().__init__(
            head,
            head.flow_modules,
            features,
            context,
            steps=-(-len(features) // head.batch_size),
            epochs=head.epochs,
            learning_rate=head.learning_rate,
            patience=head.patience,
        )

    def configure_optimizers(self) -> Any:
        """Adam, as the paper has it."""
        return torch.optim.Adam(self.model.parameters(), lr=self.largest_rate, weight_decay=WEIGHT_DECAY, fused=True)

    def begin_epoch(self) -> None:
        order = torch.randperm(len(self.features), generator=self.generator("order"))
        self.batches = order.to(self.features.device).tensor_split(self.steps)

    def step(self, index: int) -> Tensor:
        batch = self.batches[index]
        total = torch.zeros((), device=self.device)
        self.zero_grad()
        for images in batch.tensor_split(min(parts(), len(batch))):
            loss = torch.zeros((), device=self.device)
            for stride, flow in self.head.flows.items():
                maps = maps_of(self.features, stride, images).to(self.device)
                loss = loss + flow.negative_log_likelihood(maps).sum()
            loss = loss / (len(batch) * len(self.head.flows))
            self.manual_backward(loss)
            total += loss.detach()
        self.update()
        return total

    def settle(self) -> None:
        """Nothing is left to do: the weights are all there is."""
