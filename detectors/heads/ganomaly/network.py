"""GANomaly's generator, which encodes, decodes and encodes again.

Notation: B images, C channels, h x w positions, d dimensions of the code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.heads.reconstruction.convolutional import Decoder, Encoder, Plan
from detectors.heads.reconstruction.network import Network


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

    def __init__(self, plan: Plan, *, gives_scores: bool, generator: torch.Generator) -> None:
        super().__init__(plan, residual="l2")
        self.gives_scores = gives_scores
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
        scores = (code - code_again).abs().flatten(1).mean(dim=1) if self.gives_scores else None
        return self.residual(standardised, reconstruction), scores
