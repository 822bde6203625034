"""PatchCore: distance to a memory of normal patches (Roth et al., "Towards Total Recall in Industrial Anomaly Detection",
arXiv 2106.08265).

Notation: N normal images, B images to score, h x w positions of the finest stride, D channels of all strides together, M
patch features in the bank.

- Patch features (equations 1 to 3): each stride's map is averaged over a window around every position, coarser maps are
  brought to the finest grid bilinearly, and all are concatenated.
- Bank (algorithm 1): a greedy k-center coreset of the training patches, chosen in a random projection (Johnson and
  Lindenstrauss) and kept unprojected. `detectors.heads.patchcore.coreset` gives an order in which every smaller coreset is a
  leading part of every larger one; where the fit's context has a memo, the order is computed once for all ratios.
- Patch score: distance to the nearest of the bank (equation 6), or the mean over its `n_neighbors` nearest.
- Image score: the maximum of the smoothed map; or, where `reweighting` = b > 0, of equation 7 for the patch p with the
  highest score s*, m* its nearest in the bank and N_b(m*) what lies around m*:

      s = (1 - exp |p - m*| / sum over m in N_b(m*) of exp |p - m|) * s*

Departures from the paper:

- `whitening` w > 0 (off by default) turns the patch features into z = diag(l + w mean(l))^-1/2 U^T (x - mu), with mu and
  U diag(l) U^T the mean and covariance of all training patches. Directions in which normal patches hardly differ then count
  as much as those that vary with pose and light; w bounds how much.
- Maps are concatenated with all their channels instead of pooled to 1024 each: the nearest neighbours need no fixed size.
- Plain mean of the window without what lies beyond the border, as the authors' code has it.
- N_b(m*) is m* and its b nearest others in the bank, so that the weight lies between 0 and 1 for every b. A bank of one
  patch has no others, and s = s*. With several neighbours s* is the mean over them.
- The faiss index, or a matrix product, finds who is nearest, and one more than asked; the distances are then measured by
  direct differences. |a|^2 - 2ab + |b|^2 cancels, and its rounding depends on how many patches are measured together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from detectors.base import FitContext, Head, Parameter
from detectors.data.images import Size
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.heads.patchcore.coreset import CoresetOrder, full_precision, greedy_k_center
from detectors.heads.patchcore.graph import PatchcoreGraph
from detectors.working_memory import portion

ORDER_VERSION = 1
"""Of everything that decides the order of a coreset; a stored one of another version is not found."""
BLOCK_BYTES = 64 * 2**20
"""Patch features in memory at once, where a head works block by block."""
PRODUCT_BYTES = 16 * 2**20
"""One block of distances between patches and the bank."""
EXTRA = 1
"""Neighbours measured beyond those asked for: rounding in the search then seldom decides between two that lie equally far."""
RECALL = 0.99
"""Share of the true neighbours that an inverted file has to find; it looks into as many lists as that takes."""
SAMPLE = 2048
"""Training patches on which this is measured."""


class Patchcore(Head):
    """PatchCore head.

    After `fit`: `bank_` [M, D], in the order in which the coreset picked them.
    """

    name: ClassVar[str] = "patchcore"
    title: ClassVar[str] = "PatchCore"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "coreset_ratio", "float", 0.01, "share of the training patches in the bank; 1 keeps all of them", 1e-5, 1.0
        ),
        Parameter("n_neighbors", "int", 1, "neighbours in the bank whose mean distance is a patch's score", 1, 50),
        Parameter("projection", "int", 128, "dimension in which the coreset is chosen; 0 for that of the features", 0),
        Parameter(
            "neighbourhood", "int", 1, "reach, in positions, of the window that features are averaged over", 0, 3
        ),
        Parameter(
            "reweighting",
            "int",
            0,
            "neighbours that weigh the image score (equation 7); 0 for the map's maximum",
            0,
            50,
        ),
        Parameter(
            "index",
            "choice",
            "flat",
            "exact search, or an inverted file for large banks on a CPU",
            choices=("flat", "ivf"),
        ),
        Parameter(
            "whitening",
            "float",
            0.0,
            "0 takes features as they are; else they are whitened, this share of the mean variance added to each direction's",
            0.0,
            1000.0,
        ),
    )

    bank_: Tensor
    centre_: Tensor
    whitener_: Tensor

    def __init__(
        self,
        *,
        coreset_ratio: float = 0.01,
        n_neighbors: int = 1,
        projection: int = 128,
        neighbourhood: int = 1,
        reweighting: int = 0,
        index: str = "flat",
        whitening: float = 0.0,
    ) -> None:
        super().__init__()
        self.coreset_ratio, self.whitening, self.index = float(coreset_ratio), float(whitening), index
        self.n_neighbors, self.projection = int(n_neighbors), int(projection)
        self.neighbourhood, self.reweighting = int(neighbourhood), int(reweighting)
        self._grid: Size | None = None
        self._search: _Search | None = None
        self._lists: _Lists | None = None

    @classmethod
    def upper_bounds(cls, channels: Mapping[int, int]) -> dict[str, int]:
        """A projection to more dimensions than the chosen strides have channels would be none."""
        return {"projection": sum(channels.values())}

    @property
    def grid(self) -> Size:
        if self._grid is None:
            raise RuntimeError("PatchCore is not fitted yet")
        return self._grid

    @property
    def diagnostics(self) -> dict[str, float]:
        """Of the last fit: `bank_size`; `coreset_radius`, how far the last patch of the bank lay from the others, in the
        projection; `coreset_new_picks`, those that no memo held; and of an inverted file `index_recall`, `index_lists` and
        `index_probes`, the lists that it looks into."""
        return dict(self._figures)

    @torch.inference_mode()
    def fit(self, features: Features, context: FitContext) -> Self:
        """Choose the bank. Raises `NumericalError` for features that are not finite.

        Projection and first pick follow `context.structural_seed`; nothing else is random.
        """
        self._grid = features.grids[features.strides[0]]
        patches = self._grid[0] * self._grid[1] * len(features)
        size = _bank_size(self.coreset_ratio, patches)
        self._figures = {}
        self._fit_whitening(features, context)
        picks = torch.arange(patches) if size == patches else self._coreset(features, context, size)
        # Patches on which an inverted file is measured, those of the bank left out where there are others.
        rng = np.random.default_rng([context.structural_seed, 2])
        sample = torch.from_numpy(np.sort(rng.choice(patches, min(SAMPLE, patches), replace=False)))
        others = sample[~torch.isin(sample, picks)]
        sample = (others if len(others) else sample) if self.index == "ivf" else sample[:0]
        taken = self._take(features, torch.cat([picks, sample]), context.device)
        bank = taken[: len(picks)].clone()
        if not bool(torch.isfinite(bank).all()):
            raise NumericalError("PatchCore: the bank is not finite; check weights and data")
        self.register_buffer("bank_", bank)
        self._figures["bank_size"] = float(len(bank))
        self._search = self._lists = None
        if self.index == "ivf":
            self._fit_lists(taken[len(picks) :].cpu(), seed=context.structural_seed)
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Mean distance of every patch to its nearest in the bank, [B, h, w]; image scores [B] where `reweighting` is on."""
        (height, width), device = self.grid, self.bank_.device
        images = len(features)
        scores = torch.zeros(height * width, images, device=device)
        highest = torch.full((images,), -math.inf, device=device)
        patches = torch.zeros(images, self.bank_.shape[1], device=device)
        nearest = torch.zeros(images, dtype=torch.int64, device=device)
        for block, values in self._blocks(features, device) if images else ():
            rows = values.transpose(1, 2).flatten(0, 1)
            distances, indices = self._neighbours(rows, self.n_neighbors)
            scores[block] = distances.mean(dim=1).unflatten(0, (-1, images))
            if self.reweighting:
                top, position = scores[block].max(dim=0)
                row = position * images + torch.arange(images, device=device)
                higher = top > highest
                highest = torch.where(higher, top, highest)
                patches = torch.where(higher[:, None], rows[row], patches)
                nearest = torch.where(higher, indices[row, 0], nearest)
        maps = scores.T.reshape(-1, height, width)
        if not self.reweighting:
            return maps, None
        # An image without a score has none here either.
        highest = torch.where(torch.isfinite(maps).flatten(1).all(dim=1), highest, math.nan)
        return maps, highest * self._weights(patches, nearest)

    def export_tensors(self) -> dict[str, Tensor]:
        """The bank, the grid and, of an inverted file, the lists' centroids and how many are looked into."""
        tensors = {"grid": torch.tensor(self.grid), "bank": self.bank_}
        if self.whitening:
            tensors |= {"centre": self.centre_, "whitener": self.whitener_}
        if self._lists is not None:
            tensors |= {"centroids": self._lists.centroids, "probes": torch.tensor(self._lists.probes)}
        return tensors

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        bank, grid = tensors["bank"], tensors["grid"]
        if bank.ndim != 2 or bank.dtype != torch.float32 or not bank.numel() or grid.shape != (2,):
            raise ValueError(f"PatchCore tensors of shapes {list(bank.shape)}, {list(grid.shape)} are no bank and grid")
        lists = None
        if self.index == "ivf":
            centroids, probes = tensors["centroids"], int(tensors["probes"])
            if centroids.ndim != 2 or centroids.shape[1] != bank.shape[1] or not 1 <= probes <= len(centroids):
                raise ValueError(f"centroids {list(centroids.shape)} do not fit a bank {list(bank.shape)}")
            lists = _Lists(centroids, probes)
        if self.whitening:
            centre, whitener = tensors["centre"], tensors["whitener"]
            if centre.shape != bank.shape[1:] or whitener.shape != (bank.shape[1], bank.shape[1]):
                raise ValueError(f"whitening {list(whitener.shape)} does not fit a bank {list(bank.shape)}")
            self.register_buffer("centre_", centre)
            self.register_buffer("whitener_", whitener)
        self.register_buffer("bank_", bank)
        self._grid = (int(grid[0]), int(grid[1]))
        self._search, self._lists = None, lists
        self._figures = {"bank_size": float(len(bank))}

    def export_module(self, grids: Mapping[int, Size]) -> PatchcoreGraph:
        """Searches exactly, whatever the `index`."""
        return PatchcoreGraph(
            self.bank_,
            [grids[stride] for stride in sorted(grids)],
            reach=self.neighbourhood,
            n_neighbors=self.n_neighbors,
            extra=EXTRA,
            reweighting=self.reweighting,
            whitening=(self.centre_, self.whitener_) if self.whitening else None,
        )

    @property
    def export_note(self) -> str:
        return (
            "it finds the neighbours that the detector's inverted file (index ivf) misses"
            if self.index == "ivf"
            else ""
        )

    def _fit_whitening(self, features: Features, context: FitContext) -> None:
        """Mean and whitening matrix of the training patches; their covariance is kept in the memo, for every amount of it."""
        if not self.whitening:
            return
        name = f"covariance v{ORDER_VERSION} strides {_strides_of(features)} neighbourhood {self.neighbourhood}"
        known = context.memo.load(name) if context.memo else None
        channels = sum(features.maps[stride].shape[1] for stride in features.strides)
        if known is None or set(known) != {"mean", "covariance"} or known["covariance"].shape != (channels, channels):
            mean, covariance = self._covariance(features, context.device)
            known = {"mean": mean, "covariance": covariance}
            if context.memo:
                context.memo.save(name, known)
        variances, directions = torch.linalg.eigh(known["covariance"])
        scale = variances.clamp_min(0) + self.whitening * variances.mean().clamp_min(0)
        # Patches that do not differ at all have nothing to be whitened by.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        self.register_buffer("centre_", known["mean"].float().to(context.device))
        self.register_buffer("whitener_", (directions / scale.sqrt()).T.float().contiguous().to(context.device))

    def _covariance(self, features: Features, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of all training patches, float64, on the CPU."""
        channels = sum(features.maps[stride].shape[1] for stride in features.strides)
        patches = self.grid[0] * self.grid[1] * len(features)
        total, scatter = (
            torch.zeros(channels, dtype=torch.float64),
            torch.zeros(channels, channels, dtype=torch.float64),
        )
        shift: Tensor | None = None
        for _, values in self._raw_blocks(features, device):
            rows = values.transpose(1, 2).flatten(0, 1)
            # Around any of the patches, squares are of the size of the variances: nothing cancels.
            shift = rows.mean(dim=0) if shift is None else shift
            rows = rows - shift
            total += rows.sum(dim=0, dtype=torch.float64).cpu()
            scatter += (rows.T @ rows).double().cpu()
        mean = total / patches
        covariance = (scatter / patches).addr_(mean, mean, alpha=-1.0)
        if not bool(torch.isfinite(covariance).all()) or shift is None:
            raise NumericalError("PatchCore: the covariance of the patches is not finite; check weights and data")
        return mean + shift.cpu(), covariance

    def _coreset(self, features: Features, context: FitContext, size: int) -> Tensor:
        """Indices of the bank's patches in the order of their picking, int64, on the CPU; no more than distinct patches."""
        channels = sum(features.maps[stride].shape[1] for stride in features.strides)
        # Where it would not reduce anything, the features themselves serve.
        projection = self.projection if self.projection < channels else 0
        seed = context.structural_seed
        height, width = self.grid
        start = int(np.random.default_rng([seed, 1]).integers(height * width * len(features)))

        def select(known: CoresetOrder | None) -> CoresetOrder:
            points = self._points(features, context.device, projection, seed=seed)
            if known is not None and not known.belongs_to(points):
                known = None
            order = greedy_k_center(points, size, start=start, order=known, should_stop=context.should_stop)
            self._figures["coreset_new_picks"] = float(len(order) - (len(known) if known else 0))
            return order

        self._figures["coreset_new_picks"] = 0.0
        if context.memo is None:
            order = select(None)
        else:
            name = (
                f"coreset v{ORDER_VERSION} strides {_strides_of(features)} neighbourhood {self.neighbourhood} "
                f"whitening {self.whitening!r} projection {projection} seed {seed}"
            )
            with context.memo.lock(name):
                known = _read_order(context.memo.load(name), points=height * width * len(features), start=start)
                if known is not None and (len(known) >= size or known.complete):
                    order = known
                else:
                    order = select(known)
                    context.memo.save(name, order.to_tensors())
        chosen = min(size, len(order))
        if chosen > 1:
            self._figures["coreset_radius"] = float(order.distances[chosen - 1])
        return order.picks[:chosen].cpu()

    def _points(self, features: Features, device: torch.device, projection: int, *, seed: int) -> Tensor:
        """Every patch, projected where `projection` is not 0: float32 [h * w * N, d], all images of a position together."""
        height, width = self.grid
        channels = sum(features.maps[stride].shape[1] for stride in features.strides)
        matrix = _projection(channels, projection, seed=seed).to(device) if projection else None
        points = torch.empty(height * width, len(features), projection or channels, device=device)
        for block, values in self._blocks(features, device):
            rows = values.transpose(1, 2)
            if matrix is None:
                points[block] = rows
            else:
                torch.matmul(rows, matrix, out=points[block])
        return points.flatten(0, 1)

    def _take(self, features: Features, indices: Tensor, device: torch.device) -> Tensor:
        """Some of the patches, by their index among the points, [len(indices), D]."""
        images = len(features)
        channels = sum(features.maps[stride].shape[1] for stride in features.strides)
        taken = torch.empty(len(indices), channels, device=device)
        positions, image = indices.div(images, rounding_mode="floor"), indices % images
        for block, values in self._blocks(features, device):
            here = ((positions >= block.start) & (positions < block.stop)).nonzero().flatten()
            local = (positions[here] - block.start).to(device)
            taken[here.to(device)] = values[local, :, image[here].to(device)]
        return taken

    def _blocks(self, features: Features, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Slices of positions that are whole rows of the grid, with their patch features [P, D, N], whitened if asked for."""
        for block, values in self._raw_blocks(features, device):
            if self.whitening:
                values = torch.matmul(self.whitener_, values - self.centre_[:, None])
            yield block, values

    def _raw_blocks(self, features: Features, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """The same before they are whitened."""
        height, width = self.grid
        channels = sum(features.maps[stride].shape[1] for stride in features.strides)
        length = max(1, portion(BLOCK_BYTES) // (4 * width * channels * len(features)))
        for row in range(0, height, length):
            rows = slice(row, min(row + length, height))
            values = patch_features(features, rows, reach=self.neighbourhood, device=device)
            yield slice(rows.start * width, rows.stop * width), values.flatten(0, 1)

    def _neighbours(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Distances and indices of the k nearest in the bank, or of all where it is smaller; [Q, k] each, ascending."""
        if self._search is None or self._search.device != self.bank_.device:
            self._search = _Search(self.bank_, self._lists)
        k = min(k, len(self.bank_))
        candidates = self._search(queries, min(k + EXTRA, len(self.bank_)))
        distances = torch.empty(candidates.shape, device=queries.device)
        length = max(1, portion(PRODUCT_BYTES) // (4 * candidates.shape[1] * queries.shape[1]))
        for part in (slice(first, first + length) for first in range(0, len(queries), length)):
            there = self.bank_.index_select(0, candidates[part].flatten()).unflatten(0, candidates[part].shape)
            distances[part] = torch.linalg.vector_norm(there.sub_(queries[part, None]), dim=2)
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, :k], candidates.gather(1, order)[:, :k]

    def _weights(self, patches: Tensor, nearest: Tensor) -> Tensor:
        """The factor of equation 7 for each image's patch p and its nearest m*; [B, D], [B] -> [B], each image by itself."""
        count = min(self.reweighting, len(self.bank_) - 1)
        if not count or not len(patches):
            return torch.ones(len(patches), device=patches.device)
        _, around = self._neighbours(self.bank_[nearest], count + 1)
        # Its nearest is m* itself, unless another patch of the bank is the very same: that one then makes way.
        others = around != nearest[:, None]
        others[:, -1] &= ~others.all(dim=1)
        around = around[others].unflatten(0, (-1, count))
        own = torch.linalg.vector_norm(patches - self.bank_[nearest], dim=1)
        theirs = torch.linalg.vector_norm(patches[:, None] - self.bank_[around], dim=2)
        return torch.softmax(torch.cat([own[:, None], theirs], dim=1), dim=1)[:, 1:].sum(dim=1)

    def _fit_lists(self, sample: Tensor, *, seed: int) -> None:
        """Sort the bank into lists, and look into as many of them as `RECALL` takes."""
        bank = self.bank_.cpu()
        centroids = _centroids(bank, seed=seed)
        k = min(self.n_neighbors, len(bank))
        wanted = _Search(bank, None)(sample, k)
        probes = 1
        while True:
            lists = _Lists(centroids, probes)
            found = _Search(bank, lists)(sample, k)
            recall = float((found[:, :, None] == wanted[:, None, :]).any(dim=1).float().mean())
            if recall >= RECALL or probes == len(centroids):
                break
            probes = min(2 * probes, len(centroids))
        self._lists = lists
        self._figures |= {
            "index_recall": recall,
            "index_lists": float(len(centroids)),
            "index_probes": float(probes),
        }


class _Lists:
    """An inverted file: the bank's patches by their nearest centroid."""

    def __init__(self, centroids: Tensor, probes: int) -> None:
        """Args: `centroids` [L, D], relative to the bank's mean; `probes`: lists that a search looks into."""
        self.centroids, self.probes = centroids, probes


class _Search:
    """Who is nearest in a bank: faiss on a CPU, matrix products elsewhere."""

    def __init__(self, bank: Tensor, lists: _Lists | None) -> None:
        self.device = bank.device
        # Less is lost to rounding around the mean than around an origin that lies far away.
        self.mean = bank.mean(dim=0)
        self.probes = self.lists = 0
        if bank.device.type != "cpu":
            self.bank = bank - self.mean
        elif lists is None:
            self.index = _flat_index(bank - self.mean)
        else:
            self.index, self.probes, self.lists = (
                _inverted_file(bank - self.mean, lists),
                lists.probes,
                len(lists.centroids),
            )

    def __call__(self, queries: Tensor, k: int) -> Tensor:
        """Indices of the k nearest of each query, [Q, D] -> int64 [Q, k]; any where a query is not finite."""
        centred = queries - self.mean
        if self.device.type != "cpu":
            return nearest_by_products(centred, self.bank, k)
        faiss = _faiss()
        found = torch.from_numpy(self.index.search(centred.numpy(), k)[1])
        probes = self.probes
        # Lists may hold fewer than k patches together: those queries look into more of them.
        while probes < self.lists and len(short := (found < 0).any(dim=1).nonzero().flatten()):
            probes = min(2 * probes, self.lists)
            wider = faiss.SearchParametersIVF(nprobe=probes)
            found[short] = torch.from_numpy(self.index.search(centred[short].numpy(), k, params=wider)[1])
        return found.clamp_min_(0)


def nearest_by_products(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Indices of the k nearest of each query by |b|^2 - 2 q b, nearest first; [Q, D], [M, D] -> int64 [Q, k]."""
    squares = bank.square().sum(dim=1)
    length = max(1, portion(PRODUCT_BYTES) // (4 * len(bank)))
    with full_precision(bank.device):
        parts = [
            torch.addmm(squares, part, bank.T, alpha=-2).topk(k, dim=1, largest=False).indices
            for part in queries.split(length)
        ]
    return torch.cat(parts)


def patch_features(features: Features, rows: slice, *, reach: int, device: torch.device) -> Tensor:
    """Patch features of some rows of the finest grid, [R, w, D, N].

    Every value is computed from its own image alone, by the same operations in the same order for any number of images.

    Args:
        rows: a slice of the finest grid's rows.
        reach: of the window that maps are averaged over; 0 leaves them as they are.
    """
    strides = features.strides
    height, width = features.grids[strides[0]]
    channels = [features.maps[stride].shape[1] for stride in strides]
    result = torch.empty(rows.stop - rows.start, width, sum(channels), len(features), device=device)
    for stride, part in zip(strides, result.split(channels, dim=2), strict=True):
        grid = features.grids[stride]
        values = features.maps[stride].unflatten(0, grid)
        if grid == (height, width):
            _window_mean(values, rows, reach, out=part, device=device)
        else:
            _upsample(values, rows, (height, width), reach, out=part, device=device)
    return result


def _upsample(values: Tensor, rows: slice, fine: Size, reach: int, *, out: Tensor, device: torch.device) -> None:
    """Bilinear (align_corners=False) from the averaged coarse map [a, b, C, N] to some rows of the fine grid."""
    down, across = _between(fine[0], len(values)), _between(fine[1], values.shape[1])
    needed = slice(down[rows.start][0], down[rows.stop - 1][1] + 1)
    coarse = torch.empty(needed.stop - needed.start, *values.shape[1:], device=device)
    _window_mean(values, needed, reach, out=coarse, device=device)
    wide = torch.empty(len(coarse), fine[1], *values.shape[2:], device=device)
    for column, (left, right, share) in enumerate(across):
        torch.lerp(coarse[:, left], coarse[:, right], share, out=wide[:, column])
    for row, (above, below, share) in enumerate(down[rows]):
        torch.lerp(wide[above - needed.start], wide[below - needed.start], share, out=out[row])


def _between(size: int, length: int) -> list[tuple[int, int, float]]:
    """For each of `size` positions the two of `length` that it lies between, and the share of the second."""
    centres = [max(0.0, (position + 0.5) * length / size - 0.5) for position in range(size)]
    return [(int(centre), min(int(centre) + 1, length - 1), centre - int(centre)) for centre in centres]


def _window_mean(values: Tensor, rows: slice, reach: int, *, out: Tensor, device: torch.device) -> None:
    """Mean over the window around each position, cut at the borders; [h, w, C, N] -> `out` [rows, w, C, N]."""
    height, width = values.shape[:2]
    first = max(0, rows.start - reach)
    around = values[first : rows.stop + reach].to(device)
    here = slice(rows.start - first, rows.stop - first)
    if not reach:
        out.copy_(around[here])
        return
    down = around[here].clone()
    for shift in range(1, reach + 1):
        for signed in (-shift, shift):
            top, bottom = max(0, -signed - here.start), min(here.stop, len(around) - signed) - here.start
            if top < bottom:
                down[top:bottom] += around[here.start + top + signed : here.start + bottom + signed]
    out.copy_(down)
    for shift in range(1, min(reach, width - 1) + 1):
        out[:, shift:] += down[:, :-shift]
        out[:, :-shift] += down[:, shift:]
    inside = [_inside(rows, height, reach), _inside(slice(0, width), width, reach)]
    out /= torch.outer(*(torch.tensor(counts, device=device) for counts in inside))[..., None, None]


def _inside(positions: slice, size: int, reach: int) -> list[float]:
    """How many positions of an axis the window around each of some positions holds."""
    return [float(min(size, at + reach + 1) - max(0, at - reach)) for at in range(positions.start, positions.stop)]


def _strides_of(features: Features) -> str:
    return "+".join(str(stride) for stride in features.strides)


def _bank_size(ratio: float, patches: int) -> int:
    """Patches in the bank, at least 1; rounded up, but not for a product's last digit."""
    return min(patches, max(1, math.ceil(round(ratio * patches, 6))))


def _projection(channels: int, dimension: int, *, seed: int) -> Tensor:
    """A random Gaussian matrix, float32 [D, d], that keeps distances up to little (Johnson and Lindenstrauss 1984)."""
    matrix = np.random.default_rng([seed, 0]).standard_normal((channels, dimension)) / math.sqrt(dimension)
    return torch.from_numpy(matrix.astype(np.float32))


def _read_order(tensors: Mapping[str, Tensor] | None, *, points: int, start: int) -> CoresetOrder | None:
    """A stored order; None where there is none, or one of other points."""
    if tensors is None:
        return None
    try:
        order = CoresetOrder.from_tensors(tensors)
    except (KeyError, ValueError):
        return None
    return order if len(order.bounds) == points and int(order.picks[0]) == start else None


def _faiss() -> Any:
    """The library, held to the threads that torch was given; imported late, as only a search needs it."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _flat_index(bank: Tensor) -> Any:
    """Exact search in a bank [M, D]."""
    index = _faiss().IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    return index


def _inverted_file(bank: Tensor, lists: _Lists) -> Any:
    """Search in the lists of the nearest centroids alone."""
    faiss = _faiss()
    index = faiss.IndexIVFFlat(_flat_index(lists.centroids), bank.shape[1], len(lists.centroids), faiss.METRIC_L2)
    index.is_trained = True  # the centroids are there already
    index.nprobe = lists.probes
    index.add(bank.numpy())
    return index


def _centroids(bank: Tensor, *, seed: int) -> Tensor:
    """k-means of a bank around its mean, [L, D]: about 4 sqrt(M) lists, as faiss's guide advises, none of them tiny."""
    count = max(1, min(round(4 * math.sqrt(len(bank))), len(bank) // 32))
    kmeans = _faiss().Kmeans(bank.shape[1], count, niter=10, seed=seed % 2**31, min_points_per_centroid=1)
    kmeans.train((bank - bank.mean(dim=0)).numpy())
    return torch.from_numpy(kmeans.centroids.copy())
