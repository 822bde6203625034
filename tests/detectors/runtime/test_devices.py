"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from detectors.errors import InputError
from detectors.runtime.devices import choose_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "cuda:99", ""])
def test_devices_that_are_none(name):
    with pytest.raises(InputError, match=f"device '{name}': "):
        choose_device(name)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
