"""Patch features, bank and scores of PatchCore, against closed forms and torch's own pooling and interpolation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.heads.patchcore import embedding, index
from detectors.heads.patchcore import head as patchcore
from detectors.heads.patchcore.coreset import CoresetOrder, greedy_k_center
from detectors.heads.patchcore.embedding import gaussian_projection, patch_features
from detectors.heads.patchcore.head import Patchcore
from detectors.heads.patchcore.index import nearest_by_products
from detectors.scoring.metrics import auroc

CPU = torch.device("cpu")


def random_features(
    images: int, channels: Mapping[int, int], grids: Mapping[int, tuple[int, int]], *, seed: int = 0
) -> Features:
    """Gaussian features far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    maps = {
        stride: 4 + torch.randn(grids[stride][0] * grids[stride][1], count, images, generator=generator)
        for stride, count in channels.items()
    }
    return Features(maps=maps, grids=dict(grids), image_size=(64, 64))


def two_strides(images: int, *, seed: int = 0) -> Features:
    return random_features(images, {8: 3, 16: 5}, {8: (6, 5), 16: (3, 3)}, seed=seed)


def one_stride(vectors: torch.Tensor) -> Features:
    """Features of one image on a grid of one row, [P, D]."""
    return Features(
        maps={8: vectors.float()[:, :, None]}, grids={8: (1, len(vectors))}, image_size=(8, 8 * len(vectors))
    )


def reference(features: Features, reach: int) -> torch.Tensor:
    """Patch features by torch's pooling and interpolation, [h, w, D, N]."""
    parts: list[torch.Tensor] = []
    for stride in features.strides:
        images = features.maps[stride].unflatten(0, features.grids[stride]).permute(3, 2, 0, 1)
        pooled = functional.avg_pool2d(images, 2 * reach + 1, 1, reach, count_include_pad=False)
        fine = features.grids[features.strides[0]]
        parts.append(functional.interpolate(pooled, size=fine, mode="bilinear", align_corners=False))
    return torch.cat(parts, dim=1).permute(2, 3, 1, 0)


def nothing_averaged(**settings: float | str) -> Patchcore:
    """A head whose bank is every training patch as it is."""
    return Patchcore(**{"coreset_ratio": 1.0, "neighbourhood": 0, "projection": 0} | settings)


class DictMemo:
    """A memo in memory that counts."""

    def __init__(self) -> None:
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}
        self.locked: list[str] = []
        self.saved = 0

    def load(self, name: str) -> dict[str, torch.Tensor] | None:
        assert self.locked[-1] == name
        return self.tensors.get(name)

    def save(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        assert self.locked[-1] == name
        self.tensors[name] = {key: value.clone() for key, value in tensors.items()}
        self.saved += 1

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        self.locked.append(name)
        yield
        self.locked.append("")


# --- patch features


@settings(max_examples=60, deadline=None)
@given(
    fine=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    coarse=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    reach=st.integers(0, 3),
    images=st.integers(1, 3),
)
def test_patch_features_are_those_of_torchs_pooling_and_interpolation(fine, coarse, reach, images):
    features = random_features(images, {8: 2, 16: 3}, {8: fine, 16: coarse})
    found = patch_features(features, slice(0, fine[0]), reach=reach, device=CPU)
    torch.testing.assert_close(found, reference(features, reach).contiguous(), rtol=1e-5, atol=1e-5)


def test_the_mean_at_borders_leaves_out_what_lies_beyond():
    values = torch.arange(12.0).reshape(3, 4)
    features = Features(maps={8: values.reshape(12, 1, 1)}, grids={8: (3, 4)}, image_size=(24, 32))
    found = patch_features(features, slice(0, 3), reach=1, device=CPU)[:, :, 0, 0]
    assert found[0, 0] == (0 + 1 + 4 + 5) / 4
    assert found[0, 1] == (0 + 1 + 2 + 4 + 5 + 6) / 6
    assert found[1, 3] == (2 + 3 + 6 + 7 + 10 + 11) / 6
    assert found[1, 1] == 5
    everything = patch_features(features, slice(0, 3), reach=3, device=CPU)[:, :, 0, 0]
    assert everything[1, 1] == 5.5
    torch.testing.assert_close(everything[:, 3], values[:, :].mean().expand(3))


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_blocks_of_rows_and_images_change_no_bit(reach):
    features = two_strides(4)
    whole = patch_features(features, slice(0, 6), reach=reach, device=CPU)
    for first, last in ((0, 1), (2, 5), (5, 6), (1, 6)):
        part = patch_features(features, slice(first, last), reach=reach, device=CPU)
        assert torch.equal(part, whole[first:last])
    alone = Features({s: v[:, :, 2:3] for s, v in features.maps.items()}, features.grids, features.image_size)
    assert torch.equal(patch_features(alone, slice(0, 6), reach=reach, device=CPU), whole[..., 2:3])


# --- distances


def test_the_nearest_on_a_grid_in_closed_form():
    lattice = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    head = nothing_averaged().fit(one_stride(lattice), FitContext())
    for offset, distance in (((0.0, 0.0), 0.0), ((0.3, 0.4), 0.5), ((-3.0, -4.0), 5.0), ((0.5, 0.5), math.sqrt(0.5))):
        query = torch.tensor([offset]).repeat(36, 1)
        np.testing.assert_allclose(head.score(one_stride(query))[0].numpy(), distance, rtol=1e-6)


@pytest.mark.parametrize(("n_neighbors", "mean"), [(1, 0.5), (2, 0.5), (3, (1 + math.sqrt(0.25 + 4)) / 3), (50, None)])
def test_the_score_is_the_mean_over_the_neighbours(n_neighbors, mean):
    # From 0.5 beside the line the distances are 0.5 (a point and its twin) and sqrt(0.25 + 4), sqrt(0.25 + 9) ...
    line = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    distances = torch.tensor([0.5, 0.5, math.sqrt(4.25), math.sqrt(9.25)])
    head = nothing_averaged(n_neighbors=n_neighbors).fit(one_stride(line), FitContext())
    score = float(head.score(one_stride(torch.tensor([[0.0, 0.5]] * 4)))[0][0, 0, 0])
    # No more neighbours than the bank has.
    assert score == pytest.approx(float(distances.mean()) if mean is None else mean, rel=1e-6)


def test_scores_are_those_of_float64():
    train, test = two_strides(6), two_strides(3, seed=1)
    head = Patchcore(coreset_ratio=0.5, n_neighbors=3, projection=4).fit(train, FitContext())
    patches = reference(test, 1).double().permute(3, 0, 1, 2)
    distances = torch.cdist(patches.reshape(-1, 8), head.bank_.double())
    wanted = distances.topk(3, largest=False).values.mean(dim=1).reshape(3, 6, 5)
    torch.testing.assert_close(head.score(test)[0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_distances_far_from_the_origin_do_not_cancel():
    """The bank's own patches score zero exactly, and tiny distances keep their digits."""
    lattice = 1000 + torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0)) / 64
    head = nothing_averaged().fit(one_stride(lattice), FitContext())
    assert torch.equal(head.score(one_stride(lattice))[0], torch.zeros(1, 1, 400))
    scores = head.score(one_stride(lattice + torch.tensor([1 / 512, 0.0])))[0]
    np.testing.assert_allclose(scores.numpy(), 1 / 512, rtol=1e-6)


def test_rounding_in_the_search_does_not_decide_between_near_neighbours():
    """Pairs of patches far apart: the products' rounding is larger than the difference between the two of a pair."""
    places = 1000 * torch.arange(16.0)
    bank, queries = torch.zeros(32, 40), torch.zeros(32, 40)
    bank[:, 0] = torch.cat([places, places + 1 / 32])
    queries[:, 0] = torch.cat([places + 1 / 128, places + 3 / 128])
    head = nothing_averaged().fit(one_stride(bank), FitContext())
    for repeats in (1, 128):  # few are measured one by one, many by products
        distances, _ = head._bank_search().neighbours(queries.repeat(repeats, 1), 1)
        np.testing.assert_allclose(distances.numpy(), 1 / 128, rtol=1e-6)


def test_blocks_change_no_score(monkeypatch):
    train, test = two_strides(5), two_strides(7, seed=1)

    def scores() -> torch.Tensor:
        return Patchcore(coreset_ratio=0.3, n_neighbors=2).fit(train, FitContext()).score(test)[0]

    wanted = scores()
    monkeypatch.setattr(embedding, "BLOCK_BYTES", 1)
    monkeypatch.setattr(index, "PRODUCT_BYTES", 1)
    torch.testing.assert_close(scores(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_products_find_the_nearest_that_distances_do(k, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(300, 12, generator=generator), torch.randn(90, 12, generator=generator)
    wanted = torch.cdist(queries.double(), bank.double()).topk(k, largest=False).indices
    assert torch.equal(nearest_by_products(queries, bank, k), wanted)
    monkeypatch.setattr(index, "PRODUCT_BYTES", 4 * 90 * 7)
    assert torch.equal(nearest_by_products(queries, bank, k), wanted)


# --- bank


@pytest.mark.parametrize(
    ("ratio", "patches", "size"),
    [(1.0, 10, 10), (0.01, 327_680, 3277), (0.1, 30, 3), (0.07, 100, 7), (1e-5, 64, 1), (0.999, 10, 10)],
)
def test_the_bank_holds_its_share_rounded_up(ratio, patches, size):
    assert patchcore._bank_size(ratio, patches) == size


def test_the_bank_is_a_greedy_coreset_of_the_unprojected_patches():
    train = two_strides(6)
    head = Patchcore(coreset_ratio=0.2, projection=0).fit(train, FitContext())
    points = reference(train, 1).permute(0, 1, 3, 2).reshape(-1, 8)
    where = torch.cdist(head.bank_, points, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert float(where.values.max()) < 1e-5
    picks = where.indices
    assert len(picks) == len(picks.unique()) == 36
    assert picks.tolist() == greedy_k_center(points.contiguous(), 36, start=int(picks[0])).picks.tolist()
    assert head.diagnostics["bank_size"] == 36
    radius = torch.cdist(points[picks[35:]], points[picks[:35]]).min()
    assert head.diagnostics["coreset_radius"] == pytest.approx(float(radius), rel=1e-5)


def test_projected_or_not_the_bank_holds_whole_patches():
    train = two_strides(6)
    rows = reference(train, 1).permute(0, 1, 3, 2).reshape(-1, 8)
    banks = [Patchcore(coreset_ratio=0.2, projection=p).fit(train, FitContext()).bank_ for p in (0, 2, 8, 128)]
    for bank in banks:
        assert bank.shape == (36, 8)
        assert (
            float(torch.cdist(bank, rows, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values.max()) < 1e-5
        )
    assert not torch.equal(banks[0], banks[1])
    # A projection that reduces nothing is none.
    assert torch.equal(banks[0], banks[2])
    assert torch.equal(banks[0], banks[3])


def test_a_projection_keeps_lengths_on_average():
    matrix = gaussian_projection(400, 128, seed=3)
    assert matrix.shape == (400, 128)
    vectors = torch.randn(500, 400, generator=torch.Generator().manual_seed(0))
    ratios = (vectors @ matrix).norm(dim=1) / vectors.norm(dim=1)
    assert float(ratios.mean()) == pytest.approx(1, abs=0.02)
    assert float(ratios.std()) == pytest.approx(1 / math.sqrt(2 * 128), rel=0.2)
    assert torch.equal(matrix, gaussian_projection(400, 128, seed=3))
    assert not torch.equal(matrix, gaussian_projection(400, 128, seed=4))


def test_identical_images_fill_the_bank_with_distinct_patches_only():
    once = two_strides(1)
    train = Features({s: v.repeat(1, 1, 5) for s, v in once.maps.items()}, once.grids, once.image_size)
    head = Patchcore(coreset_ratio=0.9).fit(train, FitContext())
    assert head.diagnostics["bank_size"] == 30
    assert float(head.score(once)[0].max()) == 0
    assert Patchcore(coreset_ratio=1.0).fit(train, FitContext()).diagnostics["bank_size"] == 150


def test_the_structural_seed_alone_chooses_the_bank():
    train = two_strides(6)

    def bank(**seeds: int) -> torch.Tensor:
        return Patchcore(coreset_ratio=0.1, projection=4).fit(train, FitContext(**seeds)).bank_

    assert torch.equal(bank(seed=0), bank(seed=99))
    assert not torch.equal(bank(), bank(structural_seed=1))


# --- memo


def test_a_smaller_bank_is_a_leading_part_of_a_larger_one_and_computed_once():
    train, memo = two_strides(6), DictMemo()
    context = FitContext(memo=memo)
    first = Patchcore(coreset_ratio=0.3).fit(train, context)
    assert first.diagnostics["coreset_new_picks"] == 54
    for settings_ in ({"coreset_ratio": 0.1}, {"coreset_ratio": 0.3, "n_neighbors": 4}, {"coreset_ratio": 0.01}):
        head = Patchcore(**settings_).fit(train, context)
        assert head.diagnostics["coreset_new_picks"] == 0
        assert torch.equal(head.bank_, first.bank_[: len(head.bank_)])
    assert memo.saved == 1
    assert len(memo.tensors) == 1
    assert memo.locked[-1] == ""


def test_a_larger_bank_goes_on_from_the_stored_order():
    train, memo = two_strides(6), DictMemo()
    Patchcore(coreset_ratio=0.1).fit(train, FitContext(memo=memo))
    larger = Patchcore(coreset_ratio=0.5).fit(train, FitContext(memo=memo))
    assert larger.diagnostics["coreset_new_picks"] == 90 - 18
    assert memo.saved == 2
    at_once = Patchcore(coreset_ratio=0.5).fit(train, FitContext())
    assert at_once.diagnostics["coreset_new_picks"] == 90
    assert torch.equal(larger.bank_, at_once.bank_)
    assert larger.diagnostics["coreset_radius"] == at_once.diagnostics["coreset_radius"]


def test_a_complete_order_is_not_computed_again():
    once, memo = two_strides(1), DictMemo()
    train = Features({s: v.repeat(1, 1, 5) for s, v in once.maps.items()}, once.grids, once.image_size)
    for ratio, new in ((0.5, 30), (0.9, 0)):
        head = Patchcore(coreset_ratio=ratio).fit(train, FitContext(memo=memo))
        assert head.diagnostics["coreset_new_picks"] == new
        assert len(head.bank_) == 30
    assert memo.saved == 1


def test_whatever_decides_the_order_has_a_memo_of_its_own():
    train, memo = two_strides(6), DictMemo()
    for settings_, seed in (({}, 0), ({"projection": 4}, 0), ({"neighbourhood": 0}, 0), ({}, 1)):
        head = Patchcore(coreset_ratio=0.1, **settings_).fit(train, FitContext(memo=memo, structural_seed=seed))
        assert head.diagnostics["coreset_new_picks"] == 18
    head = Patchcore(coreset_ratio=0.1).fit(train.select([8]), FitContext(memo=memo))
    assert head.diagnostics["coreset_new_picks"] == 18
    assert len(memo.tensors) == 5
    # These reduce nothing: the same order serves.
    for projection in (0, 8, 128):
        head = Patchcore(coreset_ratio=0.1, projection=projection).fit(train, FitContext(memo=memo))
        assert head.diagnostics["coreset_new_picks"] == 0


def test_a_memo_that_is_damaged_or_of_other_features_is_ignored():
    train, other, memo = two_strides(6), two_strides(6, seed=5), DictMemo()
    wanted = Patchcore(coreset_ratio=0.1).fit(train, FitContext(memo=memo))
    (name, good) = next(iter(memo.tensors.items()))
    fewer = greedy_k_center(torch.randn(50, 3), 18).to_tensors()
    elsewhere = greedy_k_center(torch.randn(180, 3), 18, start=(int(good["picks"][0]) + 1) % 180).to_tensors()
    for damaged in (
        {},
        {"x": torch.ones(3)},
        good | {"picks": good["picks"] * 0},
        good | {"bounds": good["bounds"][:-1]},
        {key: value for key, value in good.items() if key != "seen"},
        fewer,
        elsewhere,
    ):
        memo.tensors[name] = dict(damaged)
        head = Patchcore(coreset_ratio=0.1).fit(train, FitContext(memo=memo))
        assert head.diagnostics["coreset_new_picks"] == 18
        assert torch.equal(head.bank_, wanted.bank_)
    # An order of as many other points is recognised when it is to be gone on from.
    larger = Patchcore(coreset_ratio=0.2).fit(other, FitContext(memo=memo))
    assert larger.diagnostics["coreset_new_picks"] == 36
    assert torch.equal(larger.bank_, Patchcore(coreset_ratio=0.2).fit(other, FitContext()).bank_)


def test_a_fit_that_is_stopped_keeps_its_picks_in_the_memo():
    train, memo = two_strides(6), DictMemo()
    asked = iter([False] * 4)
    Patchcore(coreset_ratio=0.9).fit(train, FitContext(memo=memo, should_stop=lambda: next(asked, True)))
    kept = len(CoresetOrder.from_tensors(next(iter(memo.tensors.values()))))
    assert 1 < kept < 162
    head = Patchcore(coreset_ratio=0.9).fit(train, FitContext(memo=memo))
    assert head.diagnostics["coreset_new_picks"] == 162 - kept
    assert torch.equal(head.bank_, Patchcore(coreset_ratio=0.9).fit(train, FitContext()).bank_)


def test_stored_work_counts_with_what_it_took_and_no_pick_that_is_not_needed():
    train, memo = two_strides(6), DictMemo()
    counted: list[float] = []
    context = FitContext(memo=memo, count_stored=counted.append)
    Patchcore(coreset_ratio=0.5).fit(train, context)
    assert -60 < sum(counted) <= 0  # all was done now
    for tensors in memo.tensors.values():
        tensors["seconds"] = 1000.0 + torch.arange(90, dtype=torch.float64)
    counted.clear()
    Patchcore(coreset_ratio=0.1).fit(train, context)
    assert 1017 - 60 < sum(counted) <= 1017
    counted.clear()
    head = Patchcore(coreset_ratio=0.6).fit(train, context)
    assert head.diagnostics["coreset_new_picks"] == 18
    assert 1089 - 60 < sum(counted) <= 1089 + 60


def test_the_stored_covariance_counts_too_and_one_without_its_time_is_computed_again():
    train, counted = two_strides(6), []

    class Unlocked(DictMemo):
        def __init__(self) -> None:
            super().__init__()
            self.locked.append("")

        def load(self, name: str) -> dict[str, torch.Tensor] | None:
            return self.tensors.get(name)

        def save(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
            self.tensors[name] = {key: value.clone() for key, value in tensors.items()}

    memo = Unlocked()
    context = FitContext(memo=memo, count_stored=counted.append)
    # The whole of the patches needs no order: the covariance alone is stored.
    Patchcore(coreset_ratio=1.0, whitening=0.1).fit(train, context)
    ((name, stored),) = memo.tensors.items()
    stored["seconds"] = torch.tensor(500.0, dtype=torch.float64)
    counted.clear()
    Patchcore(coreset_ratio=1.0, whitening=0.2).fit(train, context)
    assert 440 < sum(counted) <= 500
    del memo.tensors[name]["seconds"]
    Patchcore(coreset_ratio=1.0, whitening=0.2).fit(train, context)
    assert 0 <= float(memo.tensors[name]["seconds"]) < 60


# --- equation 7


def weighed(patches: np.ndarray, bank: np.ndarray, b: int, k: int) -> float:
    """Equation 7 in float64 for one image, patches [P, D] and bank [M, D]."""
    distances = np.linalg.norm(patches[:, None].astype(float) - bank[None].astype(float), axis=2)
    scores = np.sort(distances, axis=1)[:, :k].mean(axis=1)
    p = int(scores.argmax())
    nearest = int(distances[p].argmin())
    from_nearest = np.linalg.norm(bank - bank[nearest], axis=1)
    from_nearest[nearest] = np.inf
    around = np.argsort(from_nearest)[: min(b, len(bank) - 1)]
    exponentials = np.exp(distances[p, around])
    own = np.exp(distances[p, nearest])
    return float((1 - own / (own + exponentials.sum())) * scores[p])


@pytest.mark.parametrize(("b", "k"), [(1, 1), (3, 1), (9, 1), (9, 4), (50, 2)])
@pytest.mark.parametrize("block_bytes", [1, 2**26])
def test_reweighting_is_equation_7(monkeypatch, b, k, block_bytes):
    monkeypatch.setattr(embedding, "BLOCK_BYTES", block_bytes)
    train, test = two_strides(6), two_strides(4, seed=1)
    head = Patchcore(coreset_ratio=0.15, reweighting=b, n_neighbors=k).fit(train, FitContext())
    maps, scores = head.score(test)
    assert scores is not None
    patches = reference(test, 1).permute(3, 0, 1, 2).reshape(4, -1, 8).numpy()
    wanted = [weighed(image, head.bank_.numpy(), b, k) for image in patches]
    np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-4)
    plain, none = Patchcore(coreset_ratio=0.15, n_neighbors=k).fit(train, FitContext()).score(test)
    assert none is None
    assert torch.equal(plain, maps)


def test_a_reweighted_score_does_not_depend_on_the_batch():
    train, test = two_strides(6), two_strides(5, seed=1)
    head = Patchcore(coreset_ratio=0.15, reweighting=4).fit(train, FitContext())
    together = head.score(test)[1]
    assert together is not None
    for image in range(5):
        alone = Features({s: v[:, :, image : image + 1] for s, v in test.maps.items()}, test.grids, test.image_size)
        torch.testing.assert_close(head.score(alone)[1], together[image : image + 1], rtol=1e-5, atol=0)


def test_large_distances_do_not_overflow_the_weights():
    head = nothing_averaged(reweighting=2).fit(one_stride(torch.tensor([[0.0], [1.0], [3.0]])), FitContext())
    scores = head.score(one_stride(torch.tensor([[-5e5], [0.0], [0.0]])))[1]
    assert scores is not None
    # exp(1) and exp(3) as far as the differences of such distances are exact in float32.
    assert float(scores[0]) == pytest.approx(
        5e5 * (math.exp(1) + math.exp(3)) / (1 + math.exp(1) + math.exp(3)), rel=1e-6
    )


def test_a_bank_of_one_patch_or_of_twins_has_weights_too():
    alone = nothing_averaged(reweighting=3).fit(one_stride(torch.tensor([[2.0]])), FitContext())
    scores = alone.score(one_stride(torch.tensor([[5.0]])))[1]
    assert scores is not None
    assert scores.tolist() == [3.0]
    twins = nothing_averaged(reweighting=2).fit(one_stride(torch.tensor([[2.0]] * 9)), FitContext())
    scores = twins.score(one_stride(torch.tensor([[5.0]] * 9)))[1]
    assert scores is not None
    assert float(scores[0]) == pytest.approx(3 * 2 / 3)
    # Whichever of the twins is the nearest, it is not its own neighbour twice.
    for nearest in range(9):
        patch, search = torch.tensor([[5.0]]), twins._bank_search()
        weight = patchcore._weights(twins.bank_, search, patch, torch.tensor([nearest]), count=2)
        assert weight.tolist() == pytest.approx([2 / 3])


def test_an_image_without_a_score_has_no_reweighted_one():
    test = two_strides(3, seed=1)
    test.maps[8][4, 1, 1] = float("nan")
    scores = Patchcore(coreset_ratio=0.2, reweighting=2).fit(two_strides(6), FitContext()).score(test)[1]
    assert scores is not None
    assert torch.isfinite(scores).tolist() == [True, False, True]


# --- inverted file


def crowd(images: int, *, seed: int = 0) -> Features:
    """Patches around many centres, so that lists mean something."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(77).normal(size=(40, 6)) * 6
    values = centres[rng.integers(0, 40, (64, images))] + rng.normal(size=(64, images, 6))
    return Features(
        maps={8: torch.from_numpy(values.transpose(0, 2, 1).astype(np.float32))}, grids={8: (8, 8)}, image_size=(64, 64)
    )


@pytest.mark.parametrize("k", [1, 5])
def test_an_inverted_file_finds_nearly_what_exact_search_does(k):
    train, test = crowd(40), crowd(10, seed=1)
    settings_ = {"coreset_ratio": 0.5, "neighbourhood": 0, "n_neighbors": k}
    flat = Patchcore(**settings_).fit(train, FitContext())
    lists = Patchcore(**settings_, index="ivf").fit(train, FitContext())
    assert "index_recall" not in flat.diagnostics
    assert torch.equal(flat.bank_, lists.bank_)
    assert index.RECALL <= lists.diagnostics["index_recall"] <= 1
    assert lists.diagnostics["index_lists"] == 40
    assert 1 <= lists.diagnostics["index_probes"] < 40
    exact, found = flat.score(test)[0], lists.score(test)[0]
    assert bool((found >= exact * (1 - 1e-5)).all())
    assert float((found > exact * (1 + 1e-5)).float().mean()) < 0.05


def test_the_recall_is_measured_on_patches_outside_the_bank(monkeypatch):
    """With one list looked into, whatever its recall, the figure is that of the sample."""
    monkeypatch.setattr(index, "RECALL", 0.0)
    train = crowd(40)
    head = Patchcore(coreset_ratio=0.5, neighbourhood=0, n_neighbors=5, index="ivf").fit(train, FitContext())
    assert head.diagnostics["index_probes"] == 1
    assert 0.2 < head.diagnostics["index_recall"] < 0.99


def test_lists_too_short_for_all_neighbours_are_made_up_for(monkeypatch):
    monkeypatch.setattr(index, "RECALL", 0.0)
    train, test = crowd(40), crowd(3, seed=1)
    settings_ = {"coreset_ratio": 0.5, "neighbourhood": 0, "n_neighbors": 50}
    lists = Patchcore(**settings_, index="ivf").fit(train, FitContext())
    assert lists.diagnostics["index_probes"] == 1
    distances, indices = lists._bank_search().neighbours(torch.randn(20, 6) * 6, 50)
    assert all(len(row.unique()) == 50 for row in indices)
    assert bool((distances[:, 1:] >= distances[:, :-1]).all())
    flat = Patchcore(**settings_).fit(train, FitContext())
    assert bool((lists.score(test)[0] >= flat.score(test)[0] * (1 - 1e-5)).all())


@pytest.mark.parametrize("ratio", [1e-5, 0.02, 1.0])
def test_small_banks_and_whole_ones_have_inverted_files_too(ratio):
    train = crowd(5)
    head = Patchcore(coreset_ratio=ratio, neighbourhood=0, index="ivf").fit(train, FitContext())
    assert head.diagnostics["index_recall"] >= index.RECALL
    assert bool(torch.isfinite(head.score(crowd(2, seed=1))[0]).all())


def test_a_stored_inverted_file_scores_exactly_alike():
    train, test = crowd(40), crowd(6, seed=1)
    head = Patchcore(coreset_ratio=0.5, neighbourhood=0, index="ivf").fit(train, FitContext())
    again = Patchcore(coreset_ratio=0.5, neighbourhood=0, index="ivf")
    again.import_tensors({name: tensor.clone() for name, tensor in head.export_tensors().items()})
    assert torch.equal(again.score(test)[0], head.score(test)[0])
    tensors = head.export_tensors()
    for name, wrong in (
        ("centroids", tensors["centroids"][:, 1:]),
        ("probes", torch.tensor(0)),
        ("probes", torch.tensor(99)),
    ):
        with pytest.raises(ValueError, match="centroids"):
            Patchcore(index="ivf").import_tensors(tensors | {name: wrong})
    with pytest.raises(KeyError):
        Patchcore(index="ivf").import_tensors({"bank": tensors["bank"], "grid": tensors["grid"]})


# --- behaviour and refusals


def test_fitting_again_forgets_the_former_fit():
    first, second, test = two_strides(6), two_strides(6, seed=5), two_strides(3, seed=1)
    head = Patchcore(coreset_ratio=0.1).fit(first, FitContext())
    head.score(test)
    once = Patchcore(coreset_ratio=0.1).fit(second, FitContext())
    assert torch.equal(head.fit(second, FitContext()).score(test)[0], once.score(test)[0])


def test_one_image_of_one_position_is_enough():
    head = Patchcore(reweighting=3).fit(one_stride(torch.tensor([[1.0, 2.0]])), FitContext())
    maps, scores = head.score(one_stride(torch.tensor([[4.0, 6.0]])))
    assert scores is not None
    assert (maps.tolist(), scores.tolist()) == ([[[5.0]]], [5.0])


def test_features_that_are_not_finite_are_refused():
    for ratio in (0.1, 1.0):
        train = two_strides(4)
        train.maps[16][3, 2, 1] = float("nan")
        with pytest.raises(NumericalError, match="not finite"):
            Patchcore(coreset_ratio=ratio).fit(train, FitContext())


def test_settings_out_of_range_are_refused_by_name():
    for name, values in {
        "coreset_ratio": [0.0, 1e-6, 1.01, -0.1, float("nan"), "x", True],
        "n_neighbors": [0, -1, 51, 1.5, "1", None],
        "projection": [-1, 0.5, float("inf")],
        "neighbourhood": [-1, 4, 0.5, True],
        "reweighting": [-1, 51, 2.5],
        "index": ["hnsw", "", None, 0, True],
    }.items():
        for value in values:
            with pytest.raises(InputError, match=name):
                Patchcore(**{name: value})


def test_the_projection_is_bounded_by_the_channels():
    assert Patchcore.upper_bounds({8: 40, 16: 112}) == {"projection": 152}


def test_an_unfitted_head_says_so():
    head = Patchcore()
    for call in (lambda: head.grid, lambda: head.score(two_strides(1)), head.export_tensors):
        with pytest.raises(RuntimeError, match="not fitted"):
            call()
    assert head.diagnostics == {}


def test_tensors_of_another_shape_are_refused():
    tensors = Patchcore(coreset_ratio=0.1).fit(two_strides(4), FitContext()).export_tensors()
    for name, wrong in (
        ("bank", tensors["bank"][0]),
        ("bank", tensors["bank"][:0]),
        ("bank", tensors["bank"].double()),
        ("grid", torch.tensor([3, 3, 3])),
    ):
        with pytest.raises(ValueError, match="no bank and grid"):
            Patchcore().import_tensors(tensors | {name: wrong})
    for name in tensors:
        with pytest.raises(KeyError):
            Patchcore().import_tensors({key: value for key, value in tensors.items() if key != name})


# --- real images


@pytest.mark.real_images
def test_real_screws_are_distinguished(real_data):
    splits = make_splits(read_mvtec(real_data / "MVTecAD", "screw"), protocol="paper", image_size=(256, 256))
    detector = Detector(build_backbone("tf_efficientnet_lite0", [8, 16]), Patchcore(), image_size=(256, 256))
    detector.fit(splits.train.images(range(0, len(splits.train), 2)))
    some = range(0, len(splits.test), 2)
    prediction = detector.score_features(detector.extract(splits.test.images(some)))
    # A guard against breakage, not a figure of merit: on half of the images, with default settings.
    assert auroc(prediction.scores.numpy(), splits.test.labels[list(some)]) > 0.8
