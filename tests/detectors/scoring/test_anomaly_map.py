"""Patch scores -> pixel map: the matrices against torch's interpolation and SciPy's Gaussian filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

from detectors.scoring.anomaly_map import AnomalyMap, bilinear_matrix, gaussian_matrix, image_scores, resampled


def patch_scores(batch: int, grid: tuple[int, int], *, seed: int = 0) -> torch.Tensor:
    return 10 * torch.rand(batch, *grid, generator=torch.Generator().manual_seed(seed))


def reference(scores: torch.Tensor, image_size: tuple[int, int], sigma: float) -> np.ndarray:
    """float64 [B, H, W] by torch's bilinear interpolation and SciPy's separable filter."""
    maps = functional.interpolate(scores.double()[:, None], size=image_size, mode="bilinear")[:, 0].numpy()
    for axis in (1, 2) if sigma else ():
        maps = ndimage.gaussian_filter1d(maps, sigma, axis=axis, mode="reflect", truncate=4)
    return maps


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 2.37, 4.0, 4.1, 8.0])
@pytest.mark.parametrize(("grid", "image_size"), [((8, 8), (64, 64)), ((13, 10), (100, 76)), ((5, 12), (33, 95))])
def test_equal_to_interpolation_and_gaussian_filter(grid, image_size, sigma):
    scores = patch_scores(3, grid)
    maps = AnomalyMap(grid, image_size, smoothing_sigma=sigma)(scores)
    assert maps.dtype == torch.float32
    assert maps.shape == (3, *image_size)
    np.testing.assert_allclose(maps.numpy(), reference(scores, image_size, sigma), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    image_size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    sigma=st.just(0.0) | st.floats(0.05, 64),
)
def test_equal_for_any_sizes(grid, image_size, sigma):
    scores = patch_scores(2, grid)
    maps = AnomalyMap(grid, image_size, smoothing_sigma=sigma)(scores)
    np.testing.assert_allclose(maps.numpy(), reference(scores, image_size, sigma), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [20.0, 64.0])
def test_a_sigma_larger_than_the_image(sigma):
    scores = patch_scores(2, (3, 2))
    maps = AnomalyMap((3, 2), (24, 16), smoothing_sigma=sigma)(scores)
    np.testing.assert_allclose(maps.numpy(), reference(scores, (24, 16), sigma), rtol=0, atol=1e-5)
    assert float(maps.std()) < float(scores.std())


def test_sigma_zero_is_the_upsampling_alone():
    scores = patch_scores(2, (6, 5))
    upsampled = functional.interpolate(scores[:, None], size=(48, 40), mode="bilinear")[:, 0]
    torch.testing.assert_close(AnomalyMap((6, 5), (48, 40), smoothing_sigma=0)(scores), upsampled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("sigma", [1e-300, 0.1, 4.0, 64.0])
def test_rows_of_both_matrices_sum_to_one_so_that_a_constant_stays(size, sigma):
    ones = torch.ones(size, dtype=torch.float64)
    torch.testing.assert_close(gaussian_matrix(size, sigma).sum(dim=1), ones)
    torch.testing.assert_close(bilinear_matrix(size, 3).sum(dim=1), ones)
    maps = AnomalyMap((3, 3), (size, size), smoothing_sigma=sigma)(torch.full((1, 3, 3), 7.5))
    torch.testing.assert_close(maps, torch.full_like(maps, 7.5), rtol=1e-6, atol=0)


def test_height_and_width_are_not_confused():
    scores = torch.zeros(1, 4, 8)
    scores[0, 3, 0] = 1
    maps = AnomalyMap((4, 8), (32, 64), smoothing_sigma=1)(scores)
    row, column = divmod(int(maps.argmax()), 64)
    assert row >= 24
    assert column < 8


def test_nothing_of_it_is_stored_in_a_state_dict():
    module = AnomalyMap((4, 4), (32, 32))
    assert not module.state_dict()
    assert module.rows.dtype == module.columns.dtype == torch.float32


def test_an_image_is_scored_by_its_highest_pixel():
    maps = torch.zeros(3, 5, 4)
    maps[1, 4, 0], maps[2] = 3.5, -2.0
    assert image_scores(maps).tolist() == [0.0, 3.5, -2.0]


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (1e-4, 1), (0.01, 1), (0.02, 2), (0.021, 3), (0.5, 50)])
def test_an_image_score_is_the_mean_of_the_highest_pixels(share, count):
    maps = patch_scores(4, (5, 20))
    expected = maps.flatten(1).sort(dim=1, descending=True).values[:, :count].mean(dim=1)
    torch.testing.assert_close(image_scores(maps, top_share=share), expected)
    for image in range(4):
        assert image_scores(maps[image : image + 1], top_share=share)[0] == image_scores(maps, top_share=share)[image]


def test_a_peak_between_two_pixels_of_a_reduced_map_is_not_passed_over():
    maps = torch.zeros(1, 64, 64)
    maps[0, 31, 33] = 16.0
    small = resampled(maps, (4, 4))
    assert float(small.sum()) == pytest.approx(16 / 256, rel=1e-3)
    # Enlarged, a map is what torch's interpolation gives.
    large = resampled(maps, (100, 80))
    expected = functional.interpolate(maps[:, None], size=(100, 80), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(large, expected, rtol=1e-4, atol=1e-4)
