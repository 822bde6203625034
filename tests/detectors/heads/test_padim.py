"""Features, embeddings and PaDiM, against float64 closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import make_splits
from detectors.detector import Detector
from detectors.embedding import Embedding, channel_order, nearest_positions
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.heads.padim import head as padim
from detectors.heads.padim.head import Padim
from detectors.scoring.metrics import auroc


def normal_features(
    images: int,
    channels: dict[int, int],
    grids: dict[int, tuple[int, int]],
    *,
    seed: int = 0,
    scale: float = 1.0,
    shift: float = 3.0,
) -> Features:
    """Correlated Gaussian features, another mean and covariance at each position."""
    rng = np.random.default_rng(seed)
    maps = {}
    for stride, count in channels.items():
        positions = grids[stride][0] * grids[stride][1]
        model = np.random.default_rng([7, stride])
        mixing, centre = model.normal(size=(positions, count, count)), model.normal(size=(positions, count, 1))
        values = scale * (mixing @ rng.normal(size=(positions, count, images)) + shift * centre)
        maps[stride] = torch.from_numpy(values.astype(np.float32))
    return Features(maps=maps, grids=grids, image_size=(64, 64))


def one_stride(images: int, channels: int, *, seed: int = 0, scale: float = 1.0) -> Features:
    return normal_features(images, {8: channels}, {8: (3, 2)}, seed=seed, scale=scale)


def closed_form(
    train: np.ndarray, test: np.ndarray, *, regularization: float, shrinkage: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 means [P, d], covariances [P, d, d] and distances [P, B] of position-major values [P, d, N], [P, d, B]."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    positions, d, images = train.shape
    means, covariances, distances = train.mean(axis=2), [], []
    for position in range(positions):
        sigma = np.cov(train[position], ddof=1).reshape(d, d) if images > 1 else np.zeros((d, d))
        sigma = (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / d * np.eye(d) + regularization * np.eye(d)
        difference = test[position] - means[position][:, None]
        covariances.append(sigma)
        distances.append(np.sqrt((difference * np.linalg.solve(sigma, difference)).sum(axis=0)))
    return means, np.stack(covariances), np.stack(distances)


def chosen(head: Padim, features: Features) -> np.ndarray:
    return head._embedding.gather(features, slice(0, None)).numpy()


# --- features


def test_features_are_position_major_row_by_row():
    pyramid = {4: torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5), 8: torch.rand(2, 6, 2, 3)}
    features = Features.from_pyramid(pyramid, (16, 20))
    assert (len(features), features.strides, features.grids) == (2, (4, 8), {4: (4, 5), 8: (2, 3)})
    assert features.maps[4].shape == (20, 3, 2)
    assert features.maps[4].is_contiguous()
    for image, channel, row, column in ((0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 2, 1)):
        assert features.maps[4][row * 5 + column, channel, image] == pyramid[4][image, channel, row, column]


def test_select_takes_strides_and_knows_what_is_missing():
    features = normal_features(2, {4: 2, 8: 3}, {4: (4, 4), 8: (2, 2)})
    assert features.select([8]).strides == (8,)
    assert features.select([8]).maps[8] is features.maps[8]
    with pytest.raises(KeyError):
        features.select([8, 16])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_named(bad):
    features = normal_features(5, {4: 2, 8: 3}, {4: (4, 4), 8: (2, 2)})
    features.check_finite()
    features.maps[8][1, 2, 3] = bad
    with pytest.raises(NumericalError, match="stride 8 are not finite from image 3"):
        features.check_finite()


def test_opposite_infinities_do_not_cancel():
    features = one_stride(2, 3)
    features.maps[8][0, 0, 1], features.maps[8][0, 1, 1] = float("inf"), -float("inf")
    with pytest.raises(NumericalError):
        features.check_finite()


def test_large_finite_features_pass():
    features = one_stride(2, 3)
    features.maps[8][:] = 3e38
    features.check_finite()


# --- embedding


@pytest.mark.parametrize("pixels", [(64, 64), (100, 76), (33, 95), (250, 31)])
@pytest.mark.parametrize(("fine_stride", "coarse_stride"), [(4, 8), (4, 32), (8, 16), (8, 8)])
def test_nearest_positions_are_those_of_torchs_nearest_upsampling(pixels, fine_stride, coarse_stride):
    fine, coarse = (tuple(-(-side // stride) for side in pixels) for stride in (fine_stride, coarse_stride))
    numbers = torch.arange(coarse[0] * coarse[1], dtype=torch.float32).reshape(1, 1, *coarse)
    upsampled = functional.interpolate(numbers, size=fine, mode="nearest").flatten().long()
    assert torch.equal(nearest_positions(fine, coarse), upsampled)


@given(fine=st.tuples(st.integers(1, 40), st.integers(1, 40)), coarse=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(deadline=None)
def test_nearest_positions_stay_in_the_coarse_grid_and_ascend(fine, coarse):
    at = nearest_positions(fine, coarse).reshape(fine)
    assert at.min() == 0
    assert at.max() < coarse[0] * coarse[1]
    rows, columns = at[:, 0] // coarse[1], at[0] % coarse[1]
    assert rows.tolist() == [row * coarse[0] // fine[0] for row in range(fine[0])]
    assert columns.tolist() == [column * coarse[1] // fine[1] for column in range(fine[1])]


@given(channels=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=40)
def test_the_channel_order_is_a_permutation_that_the_seed_fixes(channels, seed):
    order = channel_order(channels, seed=seed)
    assert sorted(order.tolist()) == list(range(channels))
    assert torch.equal(order, channel_order(channels, seed=seed))


def test_subsets_of_different_sizes_are_nested():
    channels = {4: 24, 8: 40, 16: 112}

    def members(n_features: int, seed: int = 0) -> set[tuple[int, int]]:
        embedding = Embedding.random_subset(channels, n_features, seed=seed)
        assert embedding.dimension == n_features
        return {(stride, int(index)) for stride, indices in embedding.channels.items() for index in indices}

    nested = [members(n_features) for n_features in (1, 20, 100, 175, 176)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(nested))
    assert nested[-1] == {(stride, index) for stride, count in channels.items() for index in range(count)}
    assert members(20) != members(20, seed=1)


def test_a_random_subset_draws_from_every_stride_alike():
    counts = np.zeros(2)
    for seed in range(200):
        embedding = Embedding.random_subset({8: 10, 16: 30}, 20, seed=seed)
        counts += [len(embedding.channels[8]), len(embedding.channels[16])]
    np.testing.assert_allclose(counts / 200, [5, 15], atol=0.5)


@pytest.mark.parametrize("n_features", [0, -1, 6, 1000])
def test_a_subset_larger_than_the_channels_or_empty_is_refused(n_features):
    with pytest.raises(ValueError, match="1 to 5"):
        Embedding.random_subset({4: 2, 8: 3}, n_features, seed=0)


@pytest.mark.parametrize("block", [slice(0, 20), slice(3, 4), slice(7, 19), slice(19, 20)])
def test_gather_is_the_nearest_upsampled_concatenation(block):
    pyramid = {4: torch.rand(3, 4, 4, 5), 8: torch.rand(3, 6, 2, 3)}
    features = Features.from_pyramid(pyramid, (16, 20))
    upsampled = functional.interpolate(pyramid[8], size=(4, 5), mode="nearest")
    whole = torch.cat([pyramid[4], upsampled], dim=1).flatten(2).permute(2, 1, 0)
    embedding = Embedding.random_subset({4: 4, 8: 6}, 7, seed=2)
    columns = [*embedding.channels[4].tolist(), *(4 + embedding.channels[8]).tolist()]
    assert columns == sorted(columns)
    assert torch.equal(embedding.gather(features, block), whole[block][:, columns])


def test_a_stride_without_a_chosen_channel_still_fixes_the_grid():
    features = normal_features(3, {4: 2, 8: 50}, {4: (4, 4), 8: (2, 2)})
    seed = next(
        seed for seed in range(100) if not len(Embedding.random_subset({4: 2, 8: 50}, 3, seed=seed).channels[4])
    )
    embedding = Embedding.random_subset({4: 2, 8: 50}, 3, seed=seed)
    assert embedding.gather(features, slice(0, 16)).shape == (16, 3, 3)
    head = Padim(n_features=3).fit(features, FitContext(structural_seed=seed))
    assert head.grid == (4, 4)
    assert head.score(features)[0].shape == (3, 4, 4)


def test_gather_gives_a_copy():
    features = one_stride(2, 3)
    before = features.maps[8].clone()
    Embedding({8: torch.arange(3)}).gather(features, slice(0, 6)).zero_()
    assert torch.equal(features.maps[8], before)


# --- PaDiM against the closed form


@pytest.fixture
def factored(monkeypatch) -> list[tuple[torch.dtype, int]]:
    """(type, matrices) of every Cholesky factorisation."""
    calls = []
    real = torch.linalg.cholesky_ex

    def watched(matrices):
        calls.append((matrices.dtype, len(matrices)))
        return real(matrices)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", watched)
    return calls


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("images", "regularization"), [(200, 0.01), (200, 1e-8), (30, 0.01), (5, 1.0)])
def test_mean_covariance_and_distance_are_those_of_the_paper(images, regularization, shrinkage):
    train, test = one_stride(images, 12), one_stride(7, 12, seed=1)
    head = Padim(n_features=12, regularization=regularization, shrinkage=shrinkage).fit(train, FitContext())
    means, covariances, distances = closed_form(
        chosen(head, train), chosen(head, test), regularization=regularization, shrinkage=shrinkage
    )
    scores, image_scores = head.score(test)
    assert image_scores is None
    assert scores.shape == (7, 3, 2)
    np.testing.assert_allclose(head.mean_.numpy(), means, rtol=1e-5, atol=1e-5)
    whitening = head.whitening_.double().numpy()
    assert np.array_equal(whitening, np.tril(whitening))
    precision = whitening.transpose(0, 2, 1) @ whitening
    np.testing.assert_allclose(precision @ covariances, np.broadcast_to(np.eye(12), covariances.shape), atol=2e-3)
    np.testing.assert_allclose(scores.flatten(1).T.numpy(), distances, rtol=1e-3)


def test_the_covariance_divides_by_n_minus_one():
    """One channel, two images at +-1: variance 2, so that a point at distance 3 scores 3 / sqrt(2 + 0.25)."""
    train = Features({8: torch.tensor([[[4.0, 6.0]]])}, {8: (1, 1)}, (8, 8))
    head = Padim(n_features=1, regularization=0.25).fit(train, FitContext())
    scores, _ = head.score(Features({8: torch.tensor([[[8.0, 5.0, 2.0]]])}, {8: (1, 1)}, (8, 8)))
    np.testing.assert_allclose(scores.flatten().numpy(), [2.0, 0.0, 2.0], rtol=1e-6, atol=1e-6)


def test_distances_of_gaussian_data_follow_the_chi_distribution():
    """With the true law known, squared distances of new points have mean d (Hotelling: n large, n >> d)."""
    train, test = one_stride(4000, 6), one_stride(4000, 6, seed=1)
    scores, _ = Padim(n_features=6, regularization=1e-8).fit(train, FitContext()).score(test)
    np.testing.assert_allclose((scores**2).mean(dim=0).flatten().numpy(), 6, rtol=0.05)


def test_the_neighbourhood_is_off_by_default():
    train, test = one_stride(20, 6), one_stride(3, 6, seed=1)
    by_default, off = (Padim(n_features=6, **given).fit(train, FitContext()) for given in ({}, {"neighbourhood": 0}))
    assert torch.equal(by_default.score(test)[0], off.score(test)[0])


@pytest.mark.parametrize("block_bytes", [1, 10_000, 2**40])
@pytest.mark.parametrize(("images", "reach", "shrinkage"), [(20, 1, 0.0), (20, 2, 0.3), (1, 1, 0.0), (20, 8, 0.0)])
def test_a_neighbourhood_pools_the_vectors_of_its_window(monkeypatch, block_bytes, images, reach, shrinkage):
    """As if each position had been fitted to the vectors of all positions within `reach` rows and columns."""
    monkeypatch.setattr(padim, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(padim, "ROWS_BYTES", block_bytes)
    channels, (height, width) = 7, (6, 5)
    train, test = (normal_features(count, {8: channels}, {8: (height, width)}, seed=count) for count in (images, 3))
    head = Padim(n_features=channels, shrinkage=shrinkage, neighbourhood=reach).fit(train, FitContext())
    scores = head.score(test)[0]
    values = train.maps[8].numpy().reshape(height, width, channels, images)
    for row, column in ((0, 0), (2, 3), (5, 4), (3, 0)):
        window = values[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        pooled = window.transpose(2, 0, 1, 3).reshape(1, channels, -1)
        at = row * width + column
        means, _, distances = closed_form(
            pooled, test.maps[8].numpy()[at : at + 1], regularization=0.01, shrinkage=shrinkage
        )
        np.testing.assert_allclose(head.mean_[at].numpy(), means[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scores[:, row, column].numpy(), distances[0], rtol=2e-3)


@pytest.mark.parametrize("regularization", [0.01, 1e-8])
def test_a_neighbourhood_with_fewer_vectors_than_features_is_done_in_double_precision(factored, regularization):
    train, test = (normal_features(images, {8: 40}, {8: (4, 4)}, seed=images) for images in (2, 3))
    head = Padim(n_features=40, regularization=regularization, neighbourhood=1).fit(train, FitContext())
    scores = head.score(test)[0]
    assert torch.float64 in {dtype for dtype, _ in factored}
    values = train.maps[8].numpy().reshape(4, 4, 40, 2)
    pooled = values[0:3, 0:3].transpose(2, 0, 1, 3).reshape(1, 40, -1)
    _, _, distances = closed_form(pooled, test.maps[8].numpy()[5:6], regularization=regularization)
    np.testing.assert_allclose(scores[:, 1, 1].numpy(), distances[0], rtol=0.01)


def test_a_neighbourhood_stays_exact_far_from_the_origin():
    """Sums of raw squares would lose what little the vectors differ by."""
    train, test = (normal_features(images, {8: 5}, {8: (4, 4)}, seed=images) for images in (30, 3))
    for features in (train, test):
        features.maps[8].add_(1000)
    scores = Padim(n_features=5, neighbourhood=1).fit(train, FitContext()).score(test)[0]
    values = train.maps[8].numpy().reshape(4, 4, 5, 30)
    pooled = values[0:3, 0:3].transpose(2, 0, 1, 3).reshape(1, 5, -1)
    _, _, distances = closed_form(pooled, test.maps[8].numpy()[5:6], regularization=0.01)
    np.testing.assert_allclose(scores[:, 1, 1].numpy(), distances[0], rtol=5e-3)


@pytest.mark.parametrize("neighbourhood", [0, 1])
@pytest.mark.parametrize("block_bytes", [1, 30_000, 2**40])
def test_the_block_size_changes_nothing(monkeypatch, block_bytes, neighbourhood):
    channels, grids = {4: 5, 8: 9}, {4: (6, 5), 8: (3, 3)}
    train, test = normal_features(30, channels, grids), normal_features(4, channels, grids, seed=1)
    whole = Padim(n_features=10, neighbourhood=neighbourhood).fit(train, FitContext())
    wanted, _ = whole.score(test)
    monkeypatch.setattr(padim, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(padim, "ROWS_BYTES", block_bytes)
    head = Padim(n_features=10, neighbourhood=neighbourhood).fit(train, FitContext())
    blocks = list(head._blocks_of_rows() if neighbourhood else head._blocks(30))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == 30
    assert (len(blocks) == 1) == (block_bytes == 2**40)
    torch.testing.assert_close(head.mean_, whole.mean_)
    torch.testing.assert_close(head.score(test)[0], wanted, rtol=1e-5, atol=1e-5)


def test_one_training_image_measures_the_plain_distance_to_it():
    train, test = one_stride(1, 8), one_stride(3, 8, seed=1)
    head = Padim(n_features=8, regularization=0.04).fit(train, FitContext())
    plain = (test.maps[8] - train.maps[8]).norm(dim=1) / 0.2
    torch.testing.assert_close(head.score(test)[0].flatten(1).T, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(head.score(train)[0], torch.zeros(1, 3, 2))


@pytest.mark.parametrize("regularization", [1e-8, 0.01])
def test_identical_training_images_score_zero_and_others_not(regularization):
    one = one_stride(1, 8)
    train = Features({8: one.maps[8].expand(-1, -1, 10).contiguous()}, one.grids, one.image_size)
    head = Padim(n_features=8, regularization=regularization).fit(train, FitContext())
    own, other = head.score(one)[0], head.score(one_stride(1, 8, seed=1))[0]
    # Rounding of the mean, magnified by 1 / sqrt(regularization).
    assert float(own.max()) < 1e-4 * float(other.min())


@pytest.mark.parametrize("regularization", [0.01, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize(("images", "scale"), [(2, 1.0), (20, 4.0), (39, 1.0)])
@pytest.mark.parametrize("block_bytes", [1, 2**26])
def test_fewer_images_than_features_need_no_luck(monkeypatch, regularization, images, scale, block_bytes):
    """Rank-deficient covariances: float32 rounding outweighs the regularisation, float64 does not."""
    monkeypatch.setattr(padim, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(padim, "ROWS_BYTES", block_bytes)
    train, test = one_stride(images, 40, scale=scale), one_stride(3, 40, seed=1, scale=scale)
    head = Padim(n_features=40, regularization=regularization).fit(train, FitContext())
    _, _, distances = closed_form(chosen(head, train), chosen(head, test), regularization=regularization)
    np.testing.assert_allclose(head.score(test)[0].flatten(1).T.numpy(), distances, rtol=0.01)


def test_double_precision_is_reached_for_the_positions_that_need_it_alone(factored):
    train = one_stride(50, 20)
    Padim(n_features=20, regularization=0.01).fit(train, FitContext())
    assert factored == [(torch.float32, 6)]
    factored.clear()
    train.maps[8][[1, 4], 10:] = train.maps[8][[1, 4], :10]  # twice the same ten channels: rank 10 of 20
    head = Padim(n_features=20, regularization=1e-8).fit(train, FitContext())
    assert factored == [(torch.float32, 6), (torch.float64, 2)]
    assert bool(torch.isfinite(head.whitening_).all())


def test_a_covariance_without_a_factor_is_a_numerical_error_that_names_the_position():
    train = one_stride(5, 8)
    train.maps[8][4, 2, 1] = float("nan")
    with pytest.raises(NumericalError, match=r"position 4 .*regularization=0\.01"):
        Padim(n_features=8).fit(train, FitContext())


def test_the_position_is_named_across_blocks(monkeypatch):
    monkeypatch.setattr(padim, "BLOCK_BYTES", 1)
    monkeypatch.setattr(padim, "ROWS_BYTES", 1)
    train = one_stride(5, 8)
    train.maps[8][5, 2, 1] = float("inf")
    with pytest.raises(NumericalError, match="position 5 "):
        Padim(n_features=8).fit(train, FitContext())


def test_features_beyond_float32_are_a_numerical_error():
    train = one_stride(5, 8)
    train.maps[8][2] *= 1e25
    with pytest.raises(NumericalError):
        Padim(n_features=8).fit(train, FitContext())


# --- behaviour


def test_the_structural_seed_alone_chooses_the_channels():
    train, test = one_stride(20, 12), one_stride(3, 12, seed=1)

    def scores(**seeds: int) -> torch.Tensor:
        return Padim(n_features=5).fit(train, FitContext(**seeds)).score(test)[0]

    assert torch.equal(scores(seed=0), scores(seed=99))
    assert not torch.allclose(scores(), scores(structural_seed=1))


def test_fitting_again_forgets_the_former_fit():
    first, second, test = one_stride(20, 8), one_stride(20, 8, seed=5), one_stride(3, 8, seed=1)
    twice = Padim(n_features=8).fit(first, FitContext()).fit(second, FitContext())
    once = Padim(n_features=8).fit(second, FitContext())
    assert torch.equal(twice.score(test)[0], once.score(test)[0])


def test_features_are_not_written_into():
    train = one_stride(10, 8)
    before = train.maps[8].clone()
    head = Padim(n_features=8).fit(train, FitContext())
    head.score(train)
    assert torch.equal(train.maps[8], before)


def test_settings_out_of_range_are_refused_by_name():
    for name, values in {
        "n_features": [0, -1, 2.5, "10", True, None, float("nan"), float("inf"), 10**400],
        "regularization": [0.0, -0.1, 1e-9, 1e7, float("nan"), float("inf"), "x"],
        "shrinkage": [-0.01, 1.01, float("nan"), False],
        "neighbourhood": [-1, 0.5, 9, float("inf"), "1"],
    }.items():
        for value in values:
            with pytest.raises(InputError, match=name):
                Padim(**{name: value})


def test_more_features_than_channels_are_refused():
    assert Padim.upper_bounds({4: 24, 8: 40}) == {"n_features": 64}
    Padim(n_features=12).fit(one_stride(3, 12), FitContext())
    with pytest.raises(ValueError, match="1 to 12"):
        Padim(n_features=13).fit(one_stride(3, 12), FitContext())


def test_an_unfitted_head_says_so():
    head = Padim(n_features=3)
    for call in (lambda: head.grid, lambda: head.score(one_stride(1, 3)), head.export_tensors):
        with pytest.raises(RuntimeError, match="not fitted"):
            call()


def test_tensors_of_another_shape_are_refused():
    tensors = Padim(n_features=5).fit(one_stride(10, 8), FitContext()).export_tensors()
    for name, damaged in {
        "mean": tensors["mean"][:-1],
        "whitening_triangle": tensors["whitening_triangle"][:, :-1],
        "grid": torch.tensor([3, 3]),
    }.items():
        with pytest.raises(ValueError, match="n_features=5"):
            Padim(n_features=5).import_tensors({**tensors, name: damaged})
    with pytest.raises(ValueError, match="n_features=6"):
        Padim(n_features=6).import_tensors(tensors)
    with pytest.raises(KeyError):
        Padim(n_features=5).import_tensors({name: value for name, value in tensors.items() if name != "mean"})


def test_the_stored_triangle_is_half_the_square():
    tensors = Padim(n_features=5).fit(one_stride(10, 8), FitContext()).export_tensors()
    assert tensors["whitening_triangle"].shape == (6, 15)


# --- real images


@pytest.mark.real_images
def test_real_screws_are_distinguished(real_data):
    splits = make_splits(read_mvtec(real_data / "MVTecAD", "screw"), protocol="paper", image_size=(256, 256))
    detector = Detector(build_backbone("tf_efficientnet_lite0", [8, 16]), Padim(n_features=100), image_size=(256, 256))
    detector.fit(splits.train.images())
    prediction = detector.score_features(detector.extract(splits.test.images()))
    assert len(prediction) == len(splits.test) == 160
    assert auroc(prediction.scores.numpy(), splits.test.labels) > 0.85


def test_the_chosen_channels_of_each_stride_are_normalised():
    train = normal_features(20, {8: 6, 16: 5}, {8: (4, 4), 16: (2, 2)})
    test = normal_features(3, {8: 6, 16: 5}, {8: (4, 4), 16: (2, 2)}, seed=1)
    head = Padim(n_features=7, regularization=1e-3, normalize="l2").fit(train, FitContext())
    plain = Embedding(head._embedding.channels)
    split = [len(plain.channels[stride]) for stride in plain.strides]
    values = {
        name: torch.cat(
            [functional.normalize(part, dim=1) for part in plain.gather(features, slice(0, None)).split(split, dim=1)],
            dim=1,
        ).numpy()
        for name, features in (("train", train), ("test", test))
    }
    _, _, expected = closed_form(values["train"], values["test"], regularization=1e-3)
    np.testing.assert_allclose(head.score(test)[0].flatten(1).T.numpy(), expected, rtol=2e-3)
    again = Padim(n_features=7, regularization=1e-3, normalize="l2")
    again.import_tensors(head.export_tensors())
    assert torch.equal(again.score(test)[0], head.score(test)[0])
