"""Training of FastFlow's flows on stored features, by a Lightning trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detectors.base import FitContext
from detectors.features import Features
from detectors.flows.convolutional import ConvolutionalFlow
from detectors.flows.head import FlowHead
from detectors.training import ImageTraining

WEIGHT_DECAY = 1e-5


class FastflowTraining(ImageTraining):
    """The flows of a head and their data."""

    head: FlowHead[ConvolutionalFlow]

    def __init__(
        self, head: FlowHead[ConvolutionalFlow], features: Features, context: FitContext, **schedule: Any
    ) -> None:
        """Args: `schedule` as `batch_size`, `epochs`, `learning_rate` and `patience` of `ImageTraining`."""
        super().__init__(head, head.flow_modules, features, context, **schedule)

    def configure_optimizers(self) -> Any:
        """Adam, as the paper has it."""
        return torch.optim.Adam(self.model.parameters(), lr=self.largest_rate, weight_decay=WEIGHT_DECAY, fused=True)

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        losses = [
            flow.negative_log_likelihood(self.features.channels_last(stride, images).to(self.device)).mean()
            for stride, flow in self.head.flows.items()
        ]
        return torch.stack(losses).mean()
