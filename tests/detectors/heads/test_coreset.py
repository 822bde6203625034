"""Greedy k-center, against a float64 reference and a textbook loop."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.errors import NumericalError
from detectors.heads.patchcore import coreset
from detectors.heads.patchcore.coreset import CoresetOrder, greedy_k_center

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
KINDS = ("random", "duplicates", "grid", "clusters", "far", "tiny", "mixed")
MIDDLE = {"BATCH": 128, "WINDOW": 16}
SMALL = {"BATCH": 24, "WINDOW": 4, "ROWS": 7, "GROUP": 2, "CENTERS": 6, "PAIRS": 5, "COMPACTION": 3}


def make_points(kind: str, n: int, dimension: int, *, seed: int) -> torch.Tensor:
    """float32 [n, dimension] that is hard in a way of its own."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, dimension))
    match kind:
        case "duplicates":
            values = values[rng.integers(0, max(1, n // 4), n)]
        case "grid":  # ties everywhere, and exact arithmetic
            values = rng.integers(-2, 3, (n, dimension)).astype(float)
        case "clusters":  # far apart, each of them tight
            values = 1e3 * rng.normal(size=(3, dimension))[rng.integers(0, 3, n)] + 1e-3 * values
        case "far":
            values = 1e4 + 0.05 * values
        case "tiny":
            values = 1e-30 * values
        case "mixed":  # sizes from below float32's squares to above them
            values = values * 10.0 ** rng.integers(-25, 25, (n, 1))
    return torch.from_numpy(values.astype(np.float32))


def textbook(points: torch.Tensor, k: int, *, start: int = 0) -> list[int]:
    """One pass over all points per pick, with the distances that the selection is defined by."""
    values = points.double()
    nearest = torch.full((len(points),), float("inf"), dtype=torch.float64, device=points.device)
    picks = [start]
    while len(picks) < k:
        new = torch.cdist(values, values[picks[-1:]], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
        nearest = torch.minimum(nearest, new)
        farthest = int(nearest.argmax())
        if float(nearest[farthest]) == 0:
            break
        picks.append(farthest)
    return picks


def check_exact(points: torch.Tensor, order: CoresetOrder, *, k: int) -> None:
    """Every pick lies as far from the earlier ones as any point does, by numpy's float64 and up to 1e-5."""
    values, picks = points.cpu().double().numpy(), order.picks.tolist()
    nearest = np.full(len(values), np.inf)
    for earlier, pick, distance in zip(picks, picks[1:], order.distances[1:].tolist(), strict=False):
        nearest = np.minimum(nearest, np.sqrt(np.square(values - values[earlier]).sum(axis=1)))
        assert nearest[pick] > 0
        assert nearest[pick] >= nearest.max() * (1 - 1e-5)
        np.testing.assert_allclose(distance, nearest[pick], rtol=1e-9)
    assert len(picks) == min(k, len(np.unique(values, axis=0)))


@contextmanager
def with_sizes(**sizes: int) -> Iterator[None]:
    """The module's sizes changed for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(coreset, name, value)
        yield


def same(first: CoresetOrder, second: CoresetOrder) -> bool:
    return torch.equal(first.picks, second.picks) and torch.equal(first.distances, second.distances)


# --- exact


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 90),
    dimension=st.integers(1, 9),
    share=st.floats(0.01, 1.2),
    seed=st.integers(0, 10**6),
    sizes=st.sampled_from([{}, SMALL, SMALL | {"BATCH": 1, "WINDOW": 1}, SMALL | {"WINDOW": 90}, {"BATCH": 16}]),
)
def test_every_pick_is_the_farthest_point_and_the_first_among_equals(kind, n, dimension, share, seed, sizes):
    points = make_points(kind, n, dimension, seed=seed)
    k, start = max(1, round(share * n)), seed % n
    with with_sizes(**sizes):
        order = greedy_k_center(points, k, start=start)
    check_exact(points, order, k=k)
    assert order.picks.tolist() == textbook(points, k, start=start)
    assert float(order.distances[0]) == float("inf")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_points_of_many_dimensions(kind, device):
    points = make_points(kind, 3000, 40, seed=1).to(device)
    with with_sizes(**MIDDLE):  # by default all of them would fit into the first window
        order = greedy_k_center(points, 200, start=5)
    check_exact(points, order, k=200)
    assert order.picks.tolist() == textbook(points, 200, start=5)


def test_the_lowest_index_wins_among_equals():
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]])
    for sizes in ({}, SMALL, SMALL | {"BATCH": 1, "WINDOW": 1}, SMALL | {"BATCH": 2, "WINDOW": 2}):
        with with_sizes(**sizes):
            # The centre stays every corner's nearest pick.
            assert greedy_k_center(corners, 6).picks.tolist() == [0, 1, 2, 3, 4]


def test_the_lowest_index_wins_where_the_best_of_the_window_falls_to_the_floor():
    points = [[4, 1], [5, 4], [1, 2], [3, 3], [1, 2], [3, 2], [1, 1], [1, 5], [1, 5], [1, 3], [2, 3]]
    with with_sizes(BATCH=5, WINDOW=1, ROWS=4, GROUP=1, CENTERS=2):
        # Points 9 and 10 are equally far from the others; 10 is in the window and 9 is not.
        assert greedy_k_center(torch.tensor(points).float(), 11).picks.tolist() == [0, 7, 1, 2, 3, 5, 6, 9, 10]


def test_no_more_picks_than_distinct_points():
    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).repeat(50, 1)
    order = greedy_k_center(points, 100, start=7)
    assert len(order) == 4
    assert order.complete
    assert sorted(pick % 4 for pick in order.picks.tolist()) == [0, 1, 2, 3]
    assert len(greedy_k_center(torch.full((300, 5), 3.3), 10)) == 1
    assert len(greedy_k_center(torch.zeros(1, 5), 10)) == 1
    assert len(greedy_k_center(torch.zeros(7, 0), 3)) == 1
    assert greedy_k_center(torch.randn(5, 2), 5).complete
    assert not greedy_k_center(torch.randn(5, 2), 4).complete


def test_points_that_differ_in_float32s_smallest_numbers_are_distinct():
    points = torch.zeros(40, 3)
    points[:20, 0] = torch.arange(20) * 1e-44
    points[20:, 1] = 1.0 + torch.arange(20)
    order = greedy_k_center(points, 100)
    check_exact(points, order, k=100)


def test_points_too_near_the_mean_for_float32s_squares_are_distinct():
    points = torch.tensor([[0.0], [1.0], [-1.0], [1e-25], [-2e-25], [0.0]])
    for sizes in ({}, SMALL, SMALL | {"BATCH": 1, "WINDOW": 1}):
        with with_sizes(**sizes):
            assert greedy_k_center(points, 6).picks.tolist() == [0, 1, 2, 4, 3]


def test_the_largest_numbers_of_float32_do_not_overflow():
    points = 3e38 * (2 * torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) - 1)
    check_exact(points, greedy_k_center(points, 60), k=60)


@pytest.mark.parametrize("lowered", ["autocast", "matmul precision"])
def test_a_lower_precision_of_products_changes_nothing(lowered):
    points = make_points("random", 2500, 64, seed=2)
    before = torch.get_float32_matmul_precision()
    with with_sizes(**MIDDLE):
        wanted = greedy_k_center(points, 150)
        try:
            torch.set_float32_matmul_precision("medium" if lowered == "matmul precision" else "highest")
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered == "autocast"):
                order = greedy_k_center(points, 150)
        finally:
            torch.set_float32_matmul_precision(before)
    assert same(order, wanted)
    assert torch.equal(order.bounds, wanted.bounds)


# --- canonical: the order does not depend on how it came about


@pytest.mark.parametrize("kind", KINDS)
def test_block_and_window_sizes_change_nothing(kind):
    points = make_points(kind, 400, 12, seed=3)
    wanted = greedy_k_center(points, 120, start=9)
    for sizes in (
        SMALL,
        {"BATCH": 8, "WINDOW": 2},
        {"BATCH": 64, "WINDOW": 64},
        {"GROUP": 1, "CENTERS": 1},
        {"ROWS": 1, "PAIRS": 1, "COMPACTION": 1},
    ):
        with with_sizes(**sizes):
            assert same(greedy_k_center(points, 120, start=9), wanted)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    cuts=st.lists(st.integers(1, 130), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_an_order_that_goes_on_equals_one_run(kind, cuts, seed):
    points = make_points(kind, 100, 5, seed=seed)
    whole = greedy_k_center(points, max(cuts), start=3)
    order = None
    for k in sorted(cuts):
        with with_sizes(**SMALL):
            order = greedy_k_center(points, k, start=3, order=order)
        # Stored and read back in between, and the first picks of a long run are those of a short one.
        order = CoresetOrder.from_tensors(order.to_tensors())
        assert order.picks.tolist() == whole.picks[: len(order)].tolist()
        check_exact(points, order, k=k)
    assert order is not None
    assert same(order, whole)


def test_an_order_says_how_long_it_took_to_each_pick():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    order = greedy_k_center(points, 20, began=time.perf_counter() - 100)
    assert len(order.seconds) == 20
    assert 100 <= float(order.seconds[0]) <= float(order.seconds[-1])
    stored = dataclasses.replace(order, seconds=order.seconds + 1000)
    longer = greedy_k_center(points, 30, order=stored)
    assert torch.equal(longer.seconds[:20], stored.seconds)
    assert float(stored.seconds[-1]) <= float(longer.seconds[20]) < float(stored.seconds[-1]) + 60
    assert bool((longer.seconds.diff() >= 0).all())


def test_an_order_that_is_long_enough_comes_back_as_it_is():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    order = greedy_k_center(points, 20)
    for k in (1, 19, 20):
        assert greedy_k_center(points, k, order=order) is order
    complete = greedy_k_center(points.repeat(2, 1), 60)
    assert greedy_k_center(points.repeat(2, 1), 100, order=complete) is complete


def test_what_is_gone_on_from_stays_as_it_was():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    order = greedy_k_center(points, 20)
    before = {name: tensor.clone() for name, tensor in order.to_tensors().items()}
    points_before = points.clone()
    greedy_k_center(points, 60, order=order)
    assert all(torch.equal(tensor, before[name]) for name, tensor in order.to_tensors().items())
    assert torch.equal(points, points_before)


def test_most_points_never_meet_most_picks():
    """What makes it fast, by count: in a crowd around a centre, points near it are covered early and left alone."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20_000, 4, generator=generator) * torch.rand(20_000, 1, generator=generator) ** 4
    with with_sizes(BATCH=512, WINDOW=64):
        order = greedy_k_center(points, 500)
    assert order.picks.tolist() == textbook(points, 500)
    assert float(order.seen.float().mean()) < 0.5 * len(order)


# --- bounds


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_and_are_exact_where_they_say_so(kind):
    points = make_points(kind, 300, 6, seed=4)
    with with_sizes(**SMALL):
        order = greedy_k_center(points, 80)
    values = points.double()
    distances = torch.cdist(values, values[order.picks], compute_mode="donot_use_mm_for_euclid_dist")
    for row in range(len(points)):
        nearest = float(distances[row, : int(order.seen[row])].min())
        assert float(order.bounds[row]) >= nearest
        if order.exact[row]:
            assert float(order.bounds[row]) == nearest


# --- interrupted and watched


def test_stopping_leaves_a_shorter_order_of_the_same_picks():
    points = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    whole = greedy_k_center(points, 200)
    for calls in (1, 2, 5, 9):
        asked = itertools.count(1)
        order = greedy_k_center(points, 200, should_stop=lambda asked=asked, calls=calls: next(asked) >= calls)
        assert 1 <= len(order) < 200
        assert order.picks.tolist() == whole.picks[: len(order)].tolist()
        assert same(greedy_k_center(points, 200, order=order), whole)


def test_progress_rises_to_the_picks_wanted():
    seen: list[tuple[int, int]] = []
    greedy_k_center(torch.randn(300, 3), 100, progress=lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [100] * len(seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (100, 100)
    assert len(seen) > 3


# --- refusals


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_points_that_are_not_finite_are_refused(bad):
    points = torch.randn(50, 3)
    points[31, 1] = bad
    with pytest.raises(NumericalError, match="not finite"):
        greedy_k_center(points, 5)


def test_wrong_arguments_are_refused():
    points = torch.randn(10, 3)
    for wrong in (points.double(), points[0], points[:0], points[None]):
        with pytest.raises(ValueError, match="float32"):
            greedy_k_center(wrong, 2)
    for k, start in ((0, 0), (-1, 0), (2, 10), (2, -1)):
        with pytest.raises(ValueError, match="allow k >= 1"):
            greedy_k_center(points, k, start=start)


def test_an_order_of_other_points_is_refused():
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    order = greedy_k_center(points, 20)
    for other, start in ((points[:-1], 0), (points * 1.01, 0), (points.flip(0), 0), (points, 1)):
        with pytest.raises(ValueError, match="other points or begins elsewhere"):
            greedy_k_center(other, 30, start=start, order=order)


def test_tensors_that_are_no_order_are_refused():
    order = greedy_k_center(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), 20).to_tensors()
    twice = order["picks"].clone()
    twice[3] = twice[2]
    outside = order["picks"].clone()
    outside[3] = 60
    rising = order["distances"].flip(0)
    for name, wrong in (
        ("picks", twice),
        ("picks", outside),
        ("picks", order["picks"][:-1]),
        ("picks", order["picks"].int()),
        ("picks", order["picks"][:0]),
        ("distances", rising),
        ("distances", order["distances"].float()),
        ("distances", order["distances"] * float("nan")),
        ("bounds", order["bounds"][:-1]),
        ("bounds", order["bounds"] * float("nan")),
        ("bounds", -1 - order["bounds"]),
        ("seen", order["seen"] + 20),
        ("seen", order["seen"] * 0),
        ("seconds", order["seconds"][:-1]),
        ("seconds", 1 + torch.arange(20, dtype=torch.float64).flip(0)),
        ("seconds", -1 - order["seconds"]),
        ("seconds", order["seconds"] * float("nan")),
        ("exact", order["exact"].int()),
        ("exact", order["exact"][None]),
    ):
        with pytest.raises(ValueError, match="not the order"):
            CoresetOrder.from_tensors(order | {name: wrong})
        with pytest.raises(KeyError):
            CoresetOrder.from_tensors({key: value for key, value in order.items() if key != name})
    assert same(CoresetOrder.from_tensors(order), CoresetOrder(**order))
