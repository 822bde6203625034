"""The search for nearest neighbours among those patches of PatchCore's bank that lie near the same place.

Notation: M patch features of D channels in the bank, Q queries, h x w positions.

For parts that lie alike in every image, a patch that is normal elsewhere is no excuse here. RAD (arXiv 2601.22763) compares
patches within a window of positions, as PaDiM's Gaussians and the correspondences of DN2 and SPADE invite to.

The window around a position reaches as far as asked for, and farther where a small bank has fewer patches there than a search
asks for: until it has as many. Who is nearest is found by products, how far that is by direct differences, as in
`detectors.heads.patchcore.index`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detectors.data.images import Size
from detectors.heads.patchcore.index import EXTRA, measured, products
from detectors.working_memory import portion

PRODUCT_BYTES = 16 * 2**20
"""One block of distances between patches and the bank."""


def reaches(where: Tensor, grid: Size, *, reach: int, count: int) -> Tensor:
    """How far the window around each position goes, int64 [h * w], at least `reach`.

    Args:
        where: position of each patch of the bank, row by row, int64 [M].
        count: patches that a window holds at least; all of them where the bank has fewer.
    """
    height, width = grid
    count = min(count, len(where))
    held = torch.bincount(where, minlength=height * width).reshape(height, width)
    # Sums over rectangles from a table of sums from the corner: four look-ups a position, whatever the reach.
    sums = torch.zeros(height + 1, width + 1, dtype=torch.int64, device=where.device)
    sums[1:, 1:] = held.cumsum(0).cumsum(1)
    rows = torch.arange(height, device=where.device)[:, None]
    columns = torch.arange(width, device=where.device)[None]
    # The count only grows with the window: the least one that suffices lies between these.
    least = torch.full((height, width), reach, dtype=torch.int64, device=where.device)
    most = torch.full_like(least, max(reach, height, width))
    while bool((least < most).any()):
        size = (least + most) // 2
        top, bottom = (rows - size).clamp_min(0), (rows + size + 1).clamp_max(height)
        left, right = (columns - size).clamp_min(0), (columns + size + 1).clamp_max(width)
        enough = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] >= count
        least, most = torch.where(enough, least, size + 1), torch.where(enough, size, most)
    return least.flatten()


def allowed(where: Tensor, positions: Tensor, reach: Tensor, width: int) -> Tensor:
    """Which patches of a bank lie in the windows around positions, bool [P, M].

    Args:
        where: positions of the patches, int64 [M].
        positions: int64 [P].
        reach: of the window around each of these, int64 [P].
        width: of the grid.
    """
    rows = (where // width)[None] - (positions // width)[:, None]
    columns = (where % width)[None] - (positions % width)[:, None]
    return torch.maximum(rows.abs_(), columns.abs_()) <= reach[:, None]


class WindowSearch:
    """Who is nearest in a bank [M, D] within the window around a position, and how far."""

    def __init__(self, bank: Tensor, where: Tensor, grid: Size, *, reach: int, count: int) -> None:
        """Args: `where` the position of each patch of the bank, int64 [M]; `count` neighbours that a search asks for."""
        self.bank, self.device, self.width = bank, bank.device, grid[1]
        self.where = where.to(bank.device)
        self.reach = reaches(self.where, grid, reach=reach, count=count + EXTRA)
        # By rows of the grid, so that a window's patches lie in one piece.
        self.order = self.where.argsort(stable=True)
        self.sorted_where = self.where[self.order]
        self.mean = bank.float().mean(dim=0)
        self.centred = bank[self.order].float() - self.mean
        self.squares = self.centred.square().sum(dim=1)

    def neighbours(self, queries: Tensor, k: int, *, first: int) -> tuple[Tensor, Tensor]:
        """Distances and indices of the k nearest in each window, or of all where the bank is smaller; [P, B, D] -> [P, B, k].

        Args:
            queries: of P positions that follow each other, B at each.
            first: the first of these positions; it begins a row of the grid.
            k: at most the `count` of the constructor.
        """
        k = min(k, len(self.bank))
        count, (positions, images, _) = min(k + EXTRA, len(self.bank)), queries.shape
        distances = torch.empty(positions, images, k, device=self.device)
        indices = torch.empty(positions, images, k, dtype=torch.int64, device=self.device)
        for row in range(0, positions, self.width):
            here = torch.arange(first + row, first + min(row + self.width, positions), device=self.device)
            reach = self.reach[here]
            low, high = self._piece(first + row, int(reach.max()))
            inside = allowed(self.sorted_where[low:high], here, reach, self.width)
            length = max(1, portion(PRODUCT_BYTES) // (4 * len(here) * max(1, high - low)))
            for part in (slice(begin, begin + length) for begin in range(0, images, length)):
                asked = queries[row : row + self.width, part]
                apart = products(
                    asked.reshape(-1, asked.shape[2]) - self.mean, self.centred[low:high], self.squares[low:high]
                ).unflatten(0, asked.shape[:2])
                apart.masked_fill_(~inside[:, None], math.inf)
                bounds, candidates = apart.topk(count, dim=2, largest=False)
                candidates = self.order[low + candidates]
                exact = measured(self.bank, asked.reshape(-1, asked.shape[2]), candidates.flatten(0, 1))
                exact = exact.unflatten(0, asked.shape[:2]).masked_fill_(bounds.isinf(), math.inf)
                exact, order = exact.sort(dim=2, stable=True)
                distances[row : row + self.width, part] = exact[:, :, :k]
                indices[row : row + self.width, part] = candidates.gather(2, order)[:, :, :k]
        return distances, indices

    def _piece(self, position: int, reach: int) -> tuple[int, int]:
        """The sorted bank's part in which all windows around a row of the grid lie."""
        row = position // self.width
        ends = torch.tensor([(row - reach) * self.width, (row + reach + 1) * self.width], device=self.device)
        low, high = torch.searchsorted(self.sorted_where, ends).tolist()
        return low, high
