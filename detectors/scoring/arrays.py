"""Scores, labels and maps as numpy arrays, whatever holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from detectors.errors import InputError


def as_array(values: ArrayLike | Tensor) -> NDArray[Any]:
    """As numpy array; a tensor keeps its memory.

    Raises:
        InputError: a tensor in bfloat16, which numpy does not know.
    """
    if not isinstance(values, Tensor):
        return np.asarray(values)
    if values.dtype == torch.bfloat16:
        raise InputError("scores must be float32 or float64, got bfloat16; half precision ties scores")
    return values.detach().cpu().numpy()
