"""A fit in the process of a user repeats exactly and leaves the user's random numbers and threads as they were."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

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


def test_threads_that_fit_at_a_time_draw_what_they_would_alone() -> None:
    def fit(seed: int) -> list[tuple[float, float, float]]:
        numbers = []
        with seeded(seed, threads=seed + 1):
            for _ in range(5):
                numbers.append(draw())
                time.sleep(0.002)
                assert torch.get_num_threads() == seed + 1
        return numbers

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before, threads = draw(), torch.get_num_threads()
    alone = [fit(seed) for seed in range(4)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fit, range(4))) == alone
    assert draw() == before
    assert torch.get_num_threads() == threads
