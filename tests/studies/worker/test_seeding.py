"""A fit in the process of a user repeats exactly and leaves the user's random numbers and threads as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from studies.worker.seeding import seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_a_seed_repeats_all_random_numbers() -> None:
    with seeded(2**40 + 1):
        first = draw()
    with seeded(2**40 + 1):
        assert draw() == first
    with seeded(7):
        assert draw() != first


def test_the_process_is_as_it_was_after_the_block() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw(), draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first, threads = draw(), torch.get_num_threads()
    with pytest.raises(KeyError), seeded(5, threads=threads + 1):  # noqa: PT012
        assert torch.get_num_threads() == threads + 1
        draw()
        raise KeyError
    assert (first, draw()) == expected
    assert torch.get_num_threads() == threads
