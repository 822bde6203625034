"""Small backbones, their tensors, and images for them."""

from __future__ import annotations

import pytest
import timm
import torch

from detectors.errors import InputError

SMALL = "test_resnet"
"""timm's own tiny ResNet, for its tests and ours: half a million weights, strides 4 to 32."""


def random_images(count: int = 2, height: int = 64, width: int = 64, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def drawn_state(name: str = SMALL, *, seed: int = 5) -> dict[str, torch.Tensor]:
    """A whole classifier's tensors, as a checkpoint file holds them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False).state_dict()


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text
