"""Training of FastFlow's flows on stored features, by a Lightning trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detectors.base import FitContext
from detectors.features import Features
from detectors.heads.fastflow.head import Fastflow, maps_of
from detectors.training import ImageTraining

WEIGHT_DECAY = 1e-5


def train(head: Fastflow, features: Features, context: FitContext) -> dict[str, float]:
    """Train a head's flows in place; returns the head's diagnostics. Raises as `Training.train_head` does."""
    return _Training(head, features, context).train_head()


class _Training(ImageTraining):
    """The flows of a head and their data."""

    head: Fastflow

    def __init__(self, head: Fastflow, features: Features, context: FitContext) -> None:
        super().__init__(
            head,
            head.flow_modules,
            features,
            context,
            batch_size=head.batch_size,
            epochs=head.epochs,
            learning_rate=head.learning_rate,
            patience=head.patience,
        )

    def configure_optimizers(self) -> Any:
        """Adam, as the paper has it."""
        return torch.optim.Adam(self.model.parameters(), lr=self.largest_rate, weight_decay=WEIGHT_DECAY, fused=True)

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        losses = [
            flow.negative_log_likelihood(maps_of(self.features, stride, images).to(self.device)).mean()
            for stride, flow in self.head.flows.items()
        ]
        return torch.stack(losses).mean()
