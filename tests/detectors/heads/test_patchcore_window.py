"""PatchCore within windows of positions, with normalised features and a bank in half precision, against plain slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.base import FitContext
from detectors.data.images import Size
from detectors.errors import NumericalError
from detectors.features import Features, normalized
from detectors.heads.patchcore import window
from detectors.heads.patchcore.embedding import patch_features
from detectors.heads.patchcore.head import Patchcore
from detectors.heads.patchcore.window import WindowSearch, allowed, reaches

CPU = torch.device("cpu")


def one_stride(images: int, grid: Size, *, channels: int = 4, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    maps = {8: 3 + torch.randn(grid[0] * grid[1], channels, images, generator=generator)}
    return Features(maps=maps, grids={8: grid}, image_size=(8 * grid[0], 8 * grid[1]))


def whole(**changes: float | str) -> Patchcore:
    """A head whose bank is every training patch as it is."""
    return Patchcore(**{"coreset_ratio": 1.0, "neighbourhood": 0, "projection": 0} | changes)


def slow_reach(where: np.ndarray, grid: Size, position: int, reach: int, count: int) -> int:
    row, column = divmod(position, grid[1])
    apart = np.maximum(abs(where // grid[1] - row), abs(where % grid[1] - column))
    return max(reach, int(np.sort(apart)[min(count, len(where)) - 1]))


# --- the windows


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    reach=st.integers(1, 4),
    count=st.integers(1, 7),
    patches=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_a_window_reaches_as_far_as_it_must(grid, reach, count, patches, seed):
    where = np.random.default_rng(seed).integers(0, grid[0] * grid[1], patches)
    found = reaches(torch.from_numpy(where), grid, reach=reach, count=count)
    expected = [slow_reach(where, grid, position, reach, count) for position in range(grid[0] * grid[1])]
    assert found.tolist() == expected


def test_patches_within_a_window():
    where = torch.arange(12)
    inside = allowed(where, torch.tensor([0, 5]), torch.tensor([1, 1]), 4)
    assert where[inside[0]].tolist() == [0, 1, 4, 5]
    assert where[inside[1]].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("block_bytes", [16 * 2**20, 1])
@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    reach=st.integers(1, 3),
    k=st.integers(1, 4),
    patches=st.integers(1, 15),
    seed=st.integers(0, 99),
)
def test_neighbours_are_those_of_a_slow_search(block_bytes, grid, reach, k, patches, seed):
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(patches, 3, generator=generator)
    where = torch.randint(0, grid[0] * grid[1], (patches,), generator=generator)
    queries = torch.randn(grid[0] * grid[1], 2, 3, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "PRODUCT_BYTES", block_bytes)
        distances, indices = WindowSearch(bank, where, grid, reach=reach, count=k).neighbours(queries, k, first=0)
    assert distances.shape == indices.shape == (len(queries), 2, min(k, patches))
    reach_at = reaches(where, grid, reach=reach, count=k + window.EXTRA)
    for position in range(len(queries)):
        inside = allowed(where, torch.tensor([position]), reach_at[[position]], grid[1])[0]
        for image in range(2):
            apart = (bank - queries[position, image]).norm(dim=1)
            expected = apart[inside].sort().values[: min(k, patches)]
            torch.testing.assert_close(distances[position, image], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(apart[indices[position, image]], distances[position, image])


def test_what_is_normal_elsewhere_is_no_excuse_here():
    """Bright on the left, dark on the right; an image the other way round is like the others only patch by patch."""
    grid = (4, 6)
    half = (torch.arange(24) % 6 >= 3).float()[:, None, None]
    normal = one_stride(5, grid)
    train = Features({8: 0.01 * normal.maps[8] + 10 * half}, normal.grids, normal.image_size)
    turned = Features({8: 0.01 * normal.maps[8] + 10 * (1 - half)}, normal.grids, normal.image_size)
    everywhere, nearby = (whole(window=reach).fit(train, FitContext()) for reach in (0, 1))
    assert float(everywhere.score(turned)[0].max()) < 0.5
    scores = nearby.score(turned)[0]
    # At the middle the window sees both sides.
    assert float(scores[:, :, [0, 1, 4, 5]].min()) > 10
    assert float(scores[:, :, 2:4].max()) < 0.5
    assert torch.equal(nearby.score(train)[0], torch.zeros(5, *grid))


def test_a_window_over_the_whole_grid_changes_nothing():
    train, test = one_stride(6, (4, 5)), one_stride(3, (4, 5), seed=1)
    for k in (1, 3):
        head = Patchcore(coreset_ratio=0.3, n_neighbors=k).fit(train, FitContext())
        wide = Patchcore(coreset_ratio=0.3, n_neighbors=k, window=5).fit(train, FitContext())
        assert torch.equal(head.bank_, wide.bank_)
        assert torch.equal(head.score(test)[0], wide.score(test)[0])


def test_the_search_is_exact_whatever_the_index():
    train, test = one_stride(6, (4, 5)), one_stride(3, (4, 5), seed=1)
    flat, lists = (
        Patchcore(coreset_ratio=0.5, window=1, index=name).fit(train, FitContext()) for name in ("flat", "ivf")
    )
    assert torch.equal(flat.score(test)[0], lists.score(test)[0])


def test_the_batch_changes_no_bit_of_a_windows_scores():
    train, test = one_stride(6, (4, 5)), one_stride(7, (4, 5), seed=1)
    head = Patchcore(coreset_ratio=0.4, window=1, n_neighbors=2, normalize="l2").fit(train, FitContext())
    together = head.score(test)[0]
    for image in range(7):
        assert torch.equal(head.score(test.take([image]))[0], together[[image]])


def test_a_stored_window_scores_exactly_alike():
    train, test = one_stride(6, (4, 5)), one_stride(3, (4, 5), seed=1)
    changes = {"coreset_ratio": 0.4, "window": 1, "bank_precision": "float16"}
    head, again = Patchcore(**changes).fit(train, FitContext()), Patchcore(**changes)
    tensors = head.export_tensors()
    again.import_tensors({name: tensor.clone() for name, tensor in tensors.items()})
    assert torch.equal(head.score(test)[0], again.score(test)[0])
    where = tensors["where"]
    for wrong in (where[1:], where.int(), where - 99, where + 99):
        with pytest.raises(ValueError, match="bank"):
            Patchcore(**changes).import_tensors(tensors | {"where": wrong})
    with pytest.raises(KeyError, match="where"):
        Patchcore(**changes).import_tensors({name: one for name, one in tensors.items() if name != "where"})


# --- a bank in half precision


def test_a_bank_in_half_precision_is_half_as_large_and_scores_nearly_alike():
    train, test = one_stride(20, (8, 8), channels=24), one_stride(4, (8, 8), channels=24, seed=1)
    full, half = (
        Patchcore(coreset_ratio=0.3, n_neighbors=2, bank_precision=name).fit(train, FitContext())
        for name in ("float32", "float16")
    )
    assert half.bank_.dtype == torch.float16
    assert torch.equal(half.bank_, full.bank_.half())
    torch.testing.assert_close(half.score(test)[0], full.score(test)[0], rtol=2e-3, atol=2e-3)
    # Distances to what it holds, without further rounding.
    rows = patch_features(test, slice(0, 8), reach=1, device=CPU).permute(3, 0, 1, 2).reshape(-1, 24)
    exact = torch.cdist(rows.double(), half.bank_.double()).topk(2, largest=False).values.mean(dim=1)
    torch.testing.assert_close(half.score(test)[0].flatten().double(), exact, rtol=1e-5, atol=1e-5)


def test_features_too_large_for_half_precision_are_refused():
    train = one_stride(3, (4, 4))
    large = Features({8: 1e5 * train.maps[8]}, train.grids, train.image_size)
    whole().fit(large, FitContext())
    with pytest.raises(NumericalError, match="too large for float16; take bank_precision float32"):
        whole(bank_precision="float16").fit(large, FitContext())


def test_a_bank_of_another_precision_is_refused():
    tensors = whole().fit(one_stride(3, (4, 4)), FitContext()).export_tensors()
    with pytest.raises(ValueError, match="no bank"):
        whole(bank_precision="float16").import_tensors(tensors)


# --- normalised features


def reference(values: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.normalize(values, dim=dim)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vectors_of_length_one(dim):
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    values.select(dim, 0)[...] *= 1e6
    torch.testing.assert_close(normalized(values.clone(), dim=dim), reference(values, dim))


def test_a_vector_of_no_length_stays():
    assert torch.equal(normalized(torch.zeros(2, 3), dim=1), torch.zeros(2, 3))


def test_each_strides_averaged_features_have_length_one():
    features = Features(
        {8: one_stride(3, (4, 4)).maps[8], 16: 100 * one_stride(3, (2, 2)).maps[8]}, {8: (4, 4), 16: (2, 2)}, (32, 32)
    )
    plain = patch_features(features, slice(0, 4), reach=1, device=CPU)
    found = patch_features(features, slice(0, 4), reach=1, device=CPU, normalize=True)
    expected = torch.cat([reference(part, 2) for part in plain.split(4, dim=2)], dim=2)
    torch.testing.assert_close(found, expected)
    alone = patch_features(features.take([1]), slice(0, 4), reach=1, device=CPU, normalize=True)
    assert torch.equal(alone, found[..., 1:2])


def test_brightness_alone_is_no_anomaly_where_features_are_normalised():
    train = one_stride(5, (4, 4))
    brighter = Features({8: 3 * train.maps[8]}, train.grids, train.image_size)
    assert float(whole(normalize="l2").fit(train, FitContext()).score(brighter)[0].max()) < 1e-5
    assert float(whole().fit(train, FitContext()).score(brighter)[0].min()) > 1


def test_normalised_and_plain_features_share_no_memo(tmp_path):
    names: list[str] = []

    class Recording:
        def load(self, name: str) -> None:
            names.append(name)

        def save(self, name: str, tensors: object) -> None:
            names.append(name)

        def lock(self, name: str):
            from contextlib import nullcontext

            return nullcontext()

    for kind in ("none", "l2"):
        Patchcore(coreset_ratio=0.2, normalize=kind, whitening=0.1).fit(
            one_stride(4, (4, 4)), FitContext(memo=Recording())
        )
    plain, l2 = set(names[: len(names) // 2]), set(names[len(names) // 2 :])
    assert len(plain) == len(l2) == 2
    assert not plain & l2


def test_a_window_is_exported_for_any_number_of_images(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from detectors.backbones.pyramid import build_backbone
    from detectors.detector import Detector
    from detectors.runtime.artifact import Artifact
    from detectors.runtime.export import export_detector
    from detectors.testing.contract import random_images

    head = Patchcore(coreset_ratio=0.2, window=1, normalize="l2", n_neighbors=2)
    made = Detector(build_backbone("resnet18@random", [8, 16]), head, image_size=(64, 96)).fit(
        random_images(5, (64, 96))
    )
    found = export_detector(Artifact(made), tmp_path / "window.onnx", "onnx", images=random_images(3, (64, 96), seed=2))
    assert found.relative < 1e-4
