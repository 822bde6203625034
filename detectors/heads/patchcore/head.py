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
- `normalize` l2 (off by default) divides the averaged features of each stride by their length, before anything is whitened.
- `window` r > 0 (off by default) looks for neighbours among the patches of nearby positions alone
  (`detectors.heads.patchcore.window`), whatever the `index`.
- `bank_precision` float16 keeps the bank in half the memory; distances to what it holds are measured in float32.
- `top_share` takes the mean of the map's highest pixels for the image score, where `reweighting` is off.
- Maps are concatenated with all their channels instead of pooled to 1024 each: the nearest neighbours need no fixed size.
- Plain mean of the window without what lies beyond the border, as the authors' code has it.
- N_b(m*) is m* and its b nearest others in the bank, so that the weight lies between 0 and 1 for every b. A bank of one
  patch has no others, and s = s*. With several neighbours s* is the mean over them.
- A distance is measured by direct differences, as `detectors.heads.patchcore.index` describes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from detectors.base import NORMALIZE, TOP_SHARE, FitContext, Head, Parameter
from detectors.data.images import Size
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.heads.patchcore.embedding import PatchEmbedding
from detectors.heads.patchcore.graph import PatchcoreGraph
from detectors.heads.patchcore.index import EXTRA, SAMPLE, BankSearch, InvertedFile, fit_inverted_file
from detectors.heads.patchcore.shared_work import mean_and_covariance_of, picks_of
from detectors.heads.patchcore.whitening import Whitening
from detectors.heads.patchcore.window import WindowSearch

LEAST_BANK_OF_FEW = 1024
"""Patches in the bank, at least, where images are few: those of one image of 256 px at stride 8."""


class Patchcore(Head):
    """PatchCore head.

    After `fit`: `bank_` [M, D], in the order in which the coreset picked them.
    """

    name: ClassVar[str] = "patchcore"
    title: ClassVar[str] = "PatchCore"
    turned_copies: ClassVar[bool] = True
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
        NORMALIZE,
        Parameter(
            "window",
            "int",
            0,
            "reach, in positions, of the window in which neighbours are looked for; 0 for everywhere, more where parts lie alike",
            0,
            64,
        ),
        Parameter(
            "bank_precision",
            "choice",
            "float32",
            "of the numbers that the bank is kept in; float16 takes half the memory",
            choices=("float32", "float16"),
        ),
        TOP_SHARE,
    )

    bank_: Tensor
    where_: Tensor
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
        normalize: str = "none",
        window: int = 0,
        bank_precision: str = "float32",
        top_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.normalize, self.window = normalize == "l2", int(window)
        self.bank_dtype = torch.float16 if bank_precision == "float16" else torch.float32
        self.coreset_ratio, self.whitening, self.index = float(coreset_ratio), float(whitening), index
        self.n_neighbors, self.projection = int(n_neighbors), int(projection)
        self.neighbourhood, self.reweighting = int(neighbourhood), int(reweighting)
        self._grid: Size | None = None
        self._search: BankSearch | None = None
        self._window_search: WindowSearch | None = None
        self._inverted_file: InvertedFile | None = None

    @classmethod
    def upper_bounds(cls, channels: Mapping[int, int]) -> dict[str, int]:
        """A projection to more dimensions than the chosen strides have channels would be none."""
        return {"projection": sum(channels.values())}

    @property
    def positional(self) -> bool:
        """With a `window`, patches are compared with those of their own surroundings."""
        return self.window > 0

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
        if context.turned_copies:
            # A coreset saves time that few images do not take; a hundredth of one image is no memory.
            size = max(size, min(patches, LEAST_BANK_OF_FEW))
        self._figures = {}
        self._fit_whitening(features, context)
        picks = torch.arange(patches) if size == patches else self._coreset(features, context, size)
        # Patches on which an inverted file is measured, those of the bank left out where there are others.
        rng = np.random.default_rng([context.structural_seed, 2])
        sample = torch.from_numpy(np.sort(rng.choice(patches, min(SAMPLE, patches), replace=False)))
        others = sample[~torch.isin(sample, picks)]
        sample = (others if len(others) else sample) if self.index == "ivf" else sample[:0]
        taken = self._embedding.take(features, torch.cat([picks, sample]), context.device)
        bank = taken[: len(picks)].clone()
        if not bool(torch.isfinite(bank).all()):
            raise NumericalError("PatchCore: the bank is not finite; check weights and data")
        bank = bank.to(self.bank_dtype)
        if not bool(torch.isfinite(bank).all()):
            raise NumericalError("PatchCore: features too large for float16; take bank_precision float32, or whitening")
        self.register_buffer("bank_", bank)
        if self.window:
            self.register_buffer("where_", picks.div(len(features), rounding_mode="floor").to(context.device))
        self._figures["bank_size"] = float(len(bank))
        self._search = self._inverted_file = self._window_search = None
        if self.index == "ivf":
            self._inverted_file, recall = fit_inverted_file(
                bank.cpu().float(), taken[len(picks) :].cpu(), k=self.n_neighbors, seed=context.structural_seed
            )
            self._figures |= {
                "index_recall": recall,
                "index_lists": float(len(self._inverted_file.centroids)),
                "index_probes": float(self._inverted_file.probes),
            }
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
        for block, values in self._embedding.blocks(features, device) if images else ():
            rows = values.transpose(1, 2).flatten(0, 1)
            distances, indices = self._neighbours(rows, images, first=block.start)
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
        return maps, highest * _weights(self.bank_, self._bank_search(), patches, nearest, count=self.reweighting)

    def export_tensors(self) -> dict[str, Tensor]:
        """The bank, the grid and, of an inverted file, the lists' centroids and how many are looked into."""
        tensors = {"grid": torch.tensor(self.grid), "bank": self.bank_}
        if self.window:
            tensors["where"] = self.where_
        if self.whitening:
            tensors |= {"centre": self.centre_, "whitener": self.whitener_}
        if self._inverted_file is not None:
            tensors |= {
                "centroids": self._inverted_file.centroids,
                "probes": torch.tensor(self._inverted_file.probes),
            }
        return tensors

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        bank, grid = tensors["bank"], tensors["grid"]
        if bank.ndim != 2 or bank.dtype != self.bank_dtype or not bank.numel() or grid.shape != (2,):
            raise ValueError(f"PatchCore tensors of shapes {list(bank.shape)}, {list(grid.shape)} are no bank and grid")
        inverted_file = None
        if self.index == "ivf":
            centroids, probes = tensors["centroids"], int(tensors["probes"])
            if centroids.ndim != 2 or centroids.shape[1] != bank.shape[1] or not 1 <= probes <= len(centroids):
                raise ValueError(f"centroids {list(centroids.shape)} do not fit a bank {list(bank.shape)}")
            inverted_file = InvertedFile(centroids, probes)
        if self.whitening:
            centre, whitener = tensors["centre"], tensors["whitener"]
            if centre.shape != bank.shape[1:] or whitener.shape != (bank.shape[1], bank.shape[1]):
                raise ValueError(f"whitening {list(whitener.shape)} does not fit a bank {list(bank.shape)}")
            self.register_buffer("centre_", centre)
            self.register_buffer("whitener_", whitener)
        if self.window:
            where, positions = tensors["where"], int(grid[0]) * int(grid[1])
            if where.shape != bank.shape[:1] or where.dtype != torch.int64:
                raise ValueError(f"positions {list(where.shape)} do not fit a bank {list(bank.shape)}")
            if not bool(((where >= 0) & (where < positions)).all()):
                raise ValueError(f"the bank has patches at positions that a grid of {positions} has not")
            self.register_buffer("where_", where)
        self.register_buffer("bank_", bank)
        self._grid = (int(grid[0]), int(grid[1]))
        self._search = self._window_search = None
        self._inverted_file = inverted_file
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
            normalizes=self.normalize,
            windows=(self.where_, self.window) if self.window else None,
        )

    @property
    def export_note(self) -> str:
        return (
            "it finds the neighbours that the detector's inverted file (index ivf) misses"
            if self.index == "ivf" and not self.window
            else ""
        )

    @property
    def _embedding(self) -> PatchEmbedding:
        whitening = Whitening(self.centre_, self.whitener_) if self.whitening else None
        return PatchEmbedding(self.neighbourhood, whitening, self.normalize)

    def _neighbours(self, rows: Tensor, images: int, *, first: int) -> tuple[Tensor, Tensor]:
        """Distances and indices of each patch's nearest in the bank, or in its window of it, [P * B, n_neighbors] each.

        Args:
            rows: patches [P * B, D] of positions from `first` on, B images at each.
        """
        if not self.window:
            return self._bank_search().neighbours(rows, self.n_neighbors)
        if self._window_search is None or self._window_search.device != self.bank_.device:
            self._window_search = WindowSearch(
                self.bank_, self.where_, self.grid, reach=self.window, count=self.n_neighbors
            )
        found = self._window_search.neighbours(rows.unflatten(0, (-1, images)), self.n_neighbors, first=first)
        return found[0].flatten(0, 1), found[1].flatten(0, 1)

    def _bank_search(self) -> BankSearch:
        """Made again where the head was moved to another device."""
        if self._search is None or self._search.device != self.bank_.device:
            self._search = BankSearch(self.bank_, self._inverted_file)
        return self._search

    def _fit_whitening(self, features: Features, context: FitContext) -> None:
        """Mean and whitening matrix of the training patches."""
        if not self.whitening:
            return
        plain = PatchEmbedding(self.neighbourhood, normalize=self.normalize)
        whitening = Whitening.from_covariance(*mean_and_covariance_of(features, plain, context), share=self.whitening)
        self.register_buffer("centre_", whitening.centre.to(context.device))
        self.register_buffer("whitener_", whitening.matrix.to(context.device))

    def _coreset(self, features: Features, context: FitContext, size: int) -> Tensor:
        """Indices of the bank's patches in the order of their picking, int64, on the CPU; no more than distinct patches."""
        picks, figures = picks_of(
            features, self._embedding, context, size, projection=self.projection, whitening=self.whitening
        )
        self._figures |= figures
        return picks


def _weights(bank: Tensor, search: BankSearch, patches: Tensor, nearest: Tensor, *, count: int) -> Tensor:
    """The factor of equation 7 for each image's patch p and its nearest m*; [B, D], [B] -> [B], each image by itself.

    Args:
        bank: [M, D], in which `search` finds who is nearest.
        count: neighbours of m* that weigh; all others where the bank has fewer.
    """
    count = min(count, len(bank) - 1)
    if not count or not len(patches):
        return torch.ones(len(patches), device=patches.device)
    closest = bank[nearest].float()
    _, around = search.neighbours(closest, count + 1)
    # Its nearest is m* itself, unless another patch of the bank is the very same: that one then makes way.
    others = around != nearest[:, None]
    others[:, -1] &= ~others.all(dim=1)
    around = around[others].unflatten(0, (-1, count))
    to_nearest = torch.linalg.vector_norm(patches - closest, dim=1)
    to_others = torch.linalg.vector_norm(patches[:, None] - bank[around].float(), dim=2)
    return torch.softmax(torch.cat([to_nearest[:, None], to_others], dim=1), dim=1)[:, 1:].sum(dim=1)


def _bank_size(ratio: float, patches: int) -> int:
    """Patches in the bank, at least 1; rounded up, but not for a product's last digit."""
    return min(patches, max(1, math.ceil(round(ratio * patches, 6))))
