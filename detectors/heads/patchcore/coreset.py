"""Greedy k-center (farthest point) selection, exact, without a pass over all points per pick.

Notation: N points of D dimensions, t picks so far out of k wanted.

Gonzalez 1985 ("Clustering to minimize the maximum intercluster distance"); PatchCore (arXiv 2106.08265, algorithm 1) selects
its memory bank this way. Every pick is the point that lies farthest from the picks before it; the textbook loop measures all N
points against every pick. Here:

- A point's distance to the picks only falls as picks are added: what it was after s of them bounds what it is after t.
- The points whose bounds are largest form a window, with exact distances. While the best of the window is not below the
  largest bound outside it (the floor), no other point can win: a pick costs one pass over the window.
- When the best falls below the floor, the next points are measured against all the picks that they have missed at once, by
  a matrix product. |a|^2 - 2ab + |b|^2 cancels and its rounding depends on the shape of the product, so that it serves for
  bounds alone, raised by all that rounding can do. What enters the window is measured again by direct differences in
  double precision, against the few picks that may be its nearest.

So the distances that decide are the same numbers whatever the sizes of blocks and window, a run for k picks begins with the
run for fewer, and an order that was stored goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from detectors.errors import NumericalError
from detectors.precision import full_precision

BATCH = 16384
"""Points whose bounds are brought up to date together: many enough that the search for the largest bounds costs little."""
WINDOW = 1024
"""Points that a new window holds at least: few enough for the cache, many enough for tens of picks."""
ROWS, CENTERS, GROUP = 2048, 1024, 64
"""Points and picks of one matrix product, and the picks among which one minimum is taken first."""
PAIRS = 8192
"""Pairs of vectors that are gathered at once for direct differences."""
COMPACTION = 16
"""Picks after which the window drops the points that fell below the floor."""
ROUNDING = 2.0**-24
UNDERFLOW = 1e-30
"""Added to a squared distance's margin, in units of the largest coordinate: products below it may have vanished in float32."""


@dataclass(frozen=True)
class CoresetOrder:
    """M picks out of N points in the order of the greedy selection, with all that is needed to go on."""

    picks: Tensor
    """int64 [M], distinct."""
    distances: Tensor
    """float64 [M]: how far each pick lies from the picks before it, never rising; infinite for the first."""
    bounds: Tensor
    """float64 [N]: no point lies farther from its first `seen` picks."""
    seen: Tensor
    """int32 [N], from 1 to M."""
    exact: Tensor
    """bool [N]: the bound is the distance itself."""
    seconds: Tensor
    """float64 [M]: how long it took from nothing to each pick, over all runs that added some; never falling."""

    def __len__(self) -> int:
        """Number of picks, M."""
        return len(self.picks)

    @property
    def complete(self) -> bool:
        """Whether every point is a pick or equals one, so that there is no further pick."""
        return not bool(self.bounds.any())

    def belongs_to(self, points: Tensor) -> bool:
        """Whether this may be an order of these points: as many, and the last pick as far from the others as it says."""
        if len(self.bounds) != len(points) or len(self) == 1:
            return len(self.bounds) == len(points)
        picks = self.picks.to(points.device)
        last = points[picks[-1:]]
        earlier = (points.index_select(0, part) for part in picks[:-1].split(PAIRS))
        distance = min(float(_distances(last, part).min()) for part in earlier)
        return math.isclose(distance, float(self.distances[-1]), rel_tol=1e-4)

    def to_tensors(self) -> dict[str, Tensor]:
        """For storing, on the CPU."""
        return {field.name: getattr(self, field.name).cpu() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `to_tensors` gave. Raises `KeyError` or `ValueError` for tensors that are not an order's."""
        order = cls(**{field.name: tensors[field.name] for field in fields(cls)})
        picks, points = order.picks, len(order.bounds)
        sound = (
            [tensor.dtype for tensor in (picks, order.distances, order.bounds, order.seen, order.exact, order.seconds)]
            == [torch.int64, torch.float64, torch.float64, torch.int32, torch.bool, torch.float64]
            and picks.shape == order.distances.shape == order.seconds.shape
            and order.bounds.shape == order.seen.shape == order.exact.shape == (points,)
            and 1 <= len(picks) <= points
            and picks.ndim == 1
            and bool(((picks >= 0) & (picks < points)).all())
            and len(picks.unique()) == len(picks)
            and bool(((order.seen >= 1) & (order.seen <= len(picks))).all())
            and bool((order.bounds >= 0).all())
            and bool((order.distances[1:] > 0).all())
            and bool((order.distances[1:] <= order.distances[:-1]).all())
            and bool((order.seconds >= 0).all() and torch.isfinite(order.seconds).all())
            and bool((order.seconds[1:] >= order.seconds[:-1]).all())
        )
        if not sound:
            raise ValueError("these tensors are not the order of a coreset")
        return order


@torch.no_grad()
def greedy_k_center(
    points: Tensor,
    k: int,
    *,
    start: int = 0,
    order: CoresetOrder | None = None,
    began: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CoresetOrder:
    """The first k picks of the greedy k-center selection.

    Each pick is the point with the largest distance to the picks before it, the lowest index among equals. There are no
    more picks than distinct points.

    Args:
        points: float32 [N, D] on any device, N >= 1.
        k: picks wanted, at least 1.
        start: index of the first pick.
        order: an order of the same points that is gone on from; returned as it is where it is long enough.
        began: `time.perf_counter` when the work on the points began, from which the `seconds` of a new order count; default
            now. What goes on counts from the seconds of the last pick that was there.
        progress: called with (picks there, picks wanted) now and then.
        should_stop: asked now and then; True ends the selection early, with a shorter order.

    Raises:
        NumericalError: a point is not finite.
        ValueError: no points, `k` or `start` out of range, or an order that cannot be one of these points from this start.
    """
    if points.ndim != 2 or points.dtype != torch.float32 or not len(points):
        raise ValueError(f"points must be float32 [N, D], not {points.dtype} {list(points.shape)}")
    if k < 1 or not 0 <= start < len(points):
        raise ValueError(f"k={k}, start={start}: {len(points)} points allow k >= 1 and 0 <= start < {len(points)}")
    if order is not None and (int(order.picks[0]) != start or not order.belongs_to(points)):
        raise ValueError("the order to go on from is one of other points or begins elsewhere")
    k = min(k, len(points))
    began = time.perf_counter() if began is None else began
    if order is not None and (len(order) >= k or order.complete):
        return order
    with full_precision(points.device):
        selection = _Selection(points, k, start, order, began)
        selection.run(progress or (lambda done, total: None), should_stop or (lambda: False))
    return selection.order()


class _Selection:
    """The working state of one run: a `CoresetOrder` in the making, the centred picks, and the window."""

    def __init__(self, points: Tensor, k: int, start: int, order: CoresetOrder | None, began: float) -> None:
        # To go on needs the points and their squares once more, which from nothing are needed once: only the picks count.
        self.points, self.k, self.began = points, k, began
        device, n = points.device, len(points)
        total = torch.zeros(points.shape[1], dtype=torch.float64, device=device)
        for block in points.split(ROWS):
            total += block.sum(dim=0, dtype=torch.float64)
        if not bool(torch.isfinite(total).all()):
            raise NumericalError("points of the coreset are not finite; check weights and data")
        low, high = points.aminmax() if points.numel() else (points.sum(), points.sum())
        largest = max(-float(low), float(high))
        # A power of two scales without rounding: float32 squares neither overflow nor vanish, whatever the points' unit.
        self.scale = 2.0 ** -min(max(math.frexp(largest)[1], -126), 126)
        self.mean = (total / n * self.scale).float()
        self.squares = torch.cat([self._centred(block).square_().sum(dim=1) for block in points.split(ROWS)])

        self.picks = torch.full((k,), start, dtype=torch.int64, device=device)
        capacity = -(-k // GROUP) * GROUP
        self.centers = torch.zeros(capacity, points.shape[1], device=device)
        # Where there is no pick yet, the square keeps it from being anybody's nearest.
        self.center_squares = torch.full((capacity,), math.inf, device=device)
        self.centred, self.reach = 0, 0.0
        if order is None:
            self.distances = [math.inf]
            self.bounds = torch.full((n,), math.inf, dtype=torch.float64, device=device)
            self.seen = torch.zeros(n, dtype=torch.int32, device=device)
            self.exact = torch.zeros(n, dtype=torch.bool, device=device)
            self._refresh(torch.arange(n, device=device))
            self.seconds = [time.perf_counter() - began]
        else:
            self.seconds = order.seconds.tolist()
            self.began = time.perf_counter() - self.seconds[-1]
            self.picks[: len(order)] = order.picks
            self.distances = order.distances.tolist()
            self.bounds, self.seen, self.exact = (
                tensor.to(device, copy=True) for tensor in (order.bounds, order.seen, order.exact)
            )

    @property
    def t(self) -> int:
        return len(self.distances)

    def order(self) -> CoresetOrder:
        return CoresetOrder(
            picks=self.picks[: self.t].clone(),
            distances=torch.tensor(self.distances, dtype=torch.float64, device=self.points.device),
            bounds=self.bounds,
            seen=self.seen,
            exact=self.exact,
            seconds=torch.tensor(self.seconds, dtype=torch.float64, device=self.points.device),
        )

    def run(self, progress: Callable[[int, int], None], should_stop: Callable[[], bool]) -> None:
        """Pick until there are k, no distinct point is left, or it is time to stop."""
        window = self._window(should_stop)
        while window is not None and self.t < self.k:
            if self.t % COMPACTION == 0:
                progress(self.t, self.k)
                if should_stop():
                    break
                self._shrink(window)
            winner = window.winner()
            if winner is None:
                self._put_back(window)
                window = self._window(should_stop)
                continue
            place, pick, distance = winner
            if distance == 0:
                break
            self.picks[self.t] = pick
            self.distances.append(distance)
            self.seconds.append(time.perf_counter() - self.began)
            window.add(place)
        if window is not None:
            self._put_back(window)
        progress(self.t, self.k)

    def _window(self, should_stop: Callable[[], bool]) -> _Window | None:
        """The points that may be next, measured against all picks; None when it is time to stop."""
        while not should_stop():
            rows, floor, last = self._largest(min(BATCH, len(self.bounds)))
            stale = rows[self.seen[rows] < self.t]
            self._refresh(stale)
            above = _not_below(self.bounds[rows], rows, floor, last)
            if len(stale) and int(above.sum()) < WINDOW:
                continue
            blurred = rows[above & ~self.exact[rows]]
            self._sharpen(blurred)
            distances = self.bounds[rows]
            above = _not_below(distances, rows, floor, last)
            if int(above.sum()) >= WINDOW or not (len(stale) or len(blurred)):
                rows = rows[above]
                return _Window(rows, distances[above], self.points.index_select(0, rows).double(), floor, last)
        return None

    def _largest(self, count: int) -> tuple[Tensor, float, int]:
        """The points with the largest bounds, ascending, the lowest indices among equals; the least of these bounds, and
        the highest index that has it."""
        floor = torch.topk(self.bounds, count, sorted=False).values.min()
        above = (self.bounds > floor).nonzero().flatten()
        equal = (self.bounds == floor).nonzero().flatten()[: count - len(above)]
        return torch.cat([above, equal]).sort().values, float(floor), int(equal[-1])

    def _put_back(self, window: _Window, which: Tensor | slice = slice(None)) -> None:
        rows = window.rows[which]
        self.bounds[rows], self.seen[rows], self.exact[rows] = window.distances[which], self.t, True

    def _shrink(self, window: _Window) -> None:
        """Drop what cannot win before the next window is made."""
        keep = window.distances >= window.floor
        self._put_back(window, ~keep)
        window.keep(keep)

    def _refresh(self, rows: Tensor) -> None:
        """Bring the bounds of points up to date."""
        self._centre_picks()
        # Points that have missed the same picks go together.
        rows = rows[self.seen[rows].argsort()]
        for part in _parts(rows, ROWS):
            x, squares, bounds = self._centred(self.points.index_select(0, part)), self.squares[part], self.bounds[part]
            lowest = torch.full_like(squares, math.inf)
            for picks in self._blocks(int(self.seen[part[0]])):
                lowest = torch.minimum(lowest, self._products(x, picks).amin(dim=1))
            nearest, margin = lowest.double() + squares, self._margin(squares)
            upper = (nearest + margin).clamp_min_(0).sqrt_() / self.scale
            # Where one of the missed picks may be nearer after all, the bound holds, but is no longer the distance.
            self.exact[part] &= nearest - margin > (bounds * self.scale).square_()
            self.bounds[part], self.seen[part] = torch.minimum(bounds, upper), self.t

    def _sharpen(self, rows: Tensor) -> None:
        """Make bounds that are up to date exact."""
        self._centre_picks()
        for part in _parts(rows, ROWS):
            x, squares = self._centred(self.points.index_select(0, part)), self.squares[part]
            margin = self._margin(squares)
            highest = (self.bounds[part] * self.scale).square_() - squares + margin
            distances = torch.full_like(margin, math.inf)
            for picks in self._blocks(0):
                products = self._products(x, picks).unflatten(1, (-1, GROUP))
                lowest = products.amin(dim=2)
                # The nearest pick's product is among those at or below this.
                limit = torch.minimum(lowest.amin(dim=1) + 2 * margin, highest).float()
                row, group = (lowest <= limit[:, None]).nonzero().unbind(1)
                inner = products.flatten(0, 1).index_select(0, row * lowest.shape[1] + group)
                which, place = (inner <= limit[row, None]).nonzero().unbind(1)
                row, pick = row[which], picks.start + group[which] * GROUP + place
                distances.scatter_reduce_(0, row, self._measured(part[row], pick), "amin")
            self.bounds[part], self.exact[part] = distances, True

    def _measured(self, rows: Tensor, picks: Tensor) -> Tensor:
        """Distance of each point to the pick beside it, float64 [R]."""
        return torch.cat(
            [rows.new_empty(0, dtype=torch.float64)]
            + [
                _distances(self.points.index_select(0, a)[:, None], self.points.index_select(0, b)[:, None]).flatten()
                for a, b in zip(_parts(rows, PAIRS), _parts(self.picks[picks], PAIRS), strict=True)
            ]
        )

    def _centre_picks(self) -> None:
        new = slice(self.centred, self.t)
        if new.start < new.stop:
            self.centers[new] = self._centred(self.points.index_select(0, self.picks[new]))
            self.center_squares[new] = self.squares[self.picks[new]]
            self.reach = max(self.reach, float(self.center_squares[new].max()) ** 0.5)
            self.centred = self.t

    def _centred(self, points: Tensor) -> Tensor:
        """Scaled and centred, so that little is lost where all points lie far from the origin."""
        return (points * self.scale).sub_(self.mean)

    def _blocks(self, first: int) -> Iterator[slice]:
        """Slices of whole groups of picks, from the one that holds `first` on."""
        last = -(-self.t // GROUP) * GROUP
        for start in range(first // GROUP * GROUP, last, CENTERS):
            yield slice(start, min(start + CENTERS, last))

    def _products(self, x: Tensor, picks: slice) -> Tensor:
        """|c|^2 - 2 x c of centred points and picks, [R, picks]: with |x|^2 added, the squared distance but for rounding."""
        return torch.addmm(self.center_squares[picks], x, self.centers[picks].T, alpha=-2)

    def _margin(self, squares: Tensor) -> Tensor:
        """More than rounding can add to or take from |x|^2 + |c|^2 - 2 x c, whatever the order of summation; float64 [R].

        A sum of D products errs by at most D roundings of the sum of their sizes (Higham, "Accuracy and stability of
        numerical algorithms", section 3.1): for the three of them together 1.5 D (|x| + |c|)^2.
        """
        size = (squares.double().sqrt_() + self.reach).square_()
        return size * ((1.5 * self.points.shape[1] + 16) * ROUNDING) + UNDERFLOW


class _Window:
    """Points that may be the next picks, with their exact distances to all picks."""

    def __init__(self, rows: Tensor, distances: Tensor, values: Tensor, floor: float, last: int) -> None:
        """Args: `rows` ascending; outside, bounds are below `floor`, or equal to it at a higher index than `last`."""
        self.rows, self.distances, self.values, self.floor, self.last = rows, distances, values, floor, last

    def winner(self) -> tuple[int, int, float] | None:
        """Place in the window, index and distance of the next pick; None where it may lie outside."""
        if not len(self.rows):
            return None
        place = int(self.distances.argmax())  # the first among equals, so the lowest index
        row, distance = int(self.rows[place]), float(self.distances[place])
        return (place, row, distance) if (distance, -row) >= (self.floor, -self.last) else None

    def add(self, place: int) -> None:
        """Make the point at a place a pick."""
        new = _distances(self.values, self.values[place : place + 1]).squeeze(1)
        torch.minimum(self.distances, new, out=self.distances)

    def keep(self, which: Tensor) -> None:
        """Drop the other points."""
        self.rows, self.distances, self.values = self.rows[which], self.distances[which], self.values[which]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances of all pairs, [..., A, D] and [..., B, D] -> float64 [..., A, B], by direct differences.

    The kernel sums each pair by itself: a pair's distance does not depend on what is measured beside it.
    """
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _not_below(values: Tensor, rows: Tensor, floor: float, last: int) -> Tensor:
    return (values > floor) | ((values == floor) & (rows <= last))


def _parts(rows: Tensor, size: int) -> Iterator[Tensor]:
    """As `Tensor.split`, but nothing for nothing."""
    return iter(rows.split(size) if len(rows) else ())
