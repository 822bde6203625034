"""Weights of fitted heads, to be compared."""

from __future__ import annotations

import torch

from detectors.base import Head


def weights_of(head: Head) -> dict[str, torch.Tensor]:
    """A copy of all that an artifact would store."""
    return {name: value.clone() for name, value in head.export_tensors().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """To the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
