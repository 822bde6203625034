"""SPADE: correspondences to the most similar normal images (Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid
Correspondences", arXiv 2005.02357).

Notation: N normal images, B images to score; per stride C channels and P positions; K nearest images, k correspondences.

- Retrieval (equation 1): each image is its features' mean over all positions; its score is the mean squared Euclidean
  distance to the K nearest of the normals.
- Correspondence (equation 3): per stride, a position's score is the mean Euclidean distance to its k nearest among all K * P
  positions of the retrieved images' maps. Strides are bilinearly upsampled to the finest and averaged.

Departures from the paper:

- The strides' maps are searched one by one instead of concatenated at the finest: a coarse stride then costs what it has.
- `pooled` says which strides retrieval goes by; ``deepest`` is nearest to the paper, which pools the network's last layer.
- `normalize` l2 divides each position's features of a stride by their length before all else.
- `top_share` takes the mean of the map's highest pixels for an image score by the map.
- faiss or a matrix product finds who is nearest; distances are then measured by direct differences, image by image, so that
  neither rounding nor the batch has a say.

All features of the normals are kept: 4 * N * sum of P * C bytes, 0.09 GB for 320 images of 256 px and the strides 8 and 16 of
an EfficientNet-Lite0, 2.3 GB for the paper's Wide ResNet-50 with strides 4, 8 and 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.base import NORMALIZE, TOP_SHARE, FitContext, Head, Parameter
from detectors.data.images import Size
from detectors.features import Features, normalized
from detectors.heads.spade.graph import SpadeGraph
from detectors.precision import full_precision
from detectors.working_memory import portion

PRODUCT_BYTES = 16 * 2**20
"""One block of distances between an image's positions and those of the retrieved ones."""


class Spade(Head):
    """SPADE head.

    After `fit`: `pooled_` [N, D], by which images are retrieved; per stride `bank<stride>` [N, P, C] and `grid<stride>` [2].
    """

    name: ClassVar[str] = "spade"
    title: ClassVar[str] = "SPADE"
    turned_copies: ClassVar[bool] = True
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("n_neighbors", "int", 5, "normal images that are retrieved; at most all of them", 1, 1000),
        Parameter("n_correspondences", "int", 1, "nearest positions whose mean distance is a position's score", 1, 50),
        Parameter(
            "pooled",
            "choice",
            "deepest",
            "strides whose mean features images are retrieved by",
            choices=("deepest", "all"),
        ),
        Parameter(
            "image_score",
            "choice",
            "map",
            "maximum of the smoothed map, or the distance to the retrieved images as in the paper",
            choices=("map", "retrieval"),
        ),
        NORMALIZE,
        TOP_SHARE,
    )

    pooled_: Tensor

    def __init__(
        self,
        *,
        n_neighbors: int = 5,
        n_correspondences: int = 1,
        pooled: str = "deepest",
        image_score: str = "map",
        normalize: str = "none",
        top_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.normalize = normalize == "l2"
        self.n_neighbors, self.n_correspondences = int(n_neighbors), int(n_correspondences)
        self.pooled, self.image_score = pooled, image_score
        self._index: Any = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the fit, ascending."""
        return tuple(sorted(int(name.removeprefix("bank")) for name in self._buffers if name.startswith("bank")))

    @property
    def grid(self) -> Size:
        if not self.strides:
            raise RuntimeError("SPADE is not fitted yet")
        return self._grid(self.strides[0])

    @torch.inference_mode()
    def fit(self, features: Features, context: FitContext) -> Self:
        """Keep the features. Nothing is drawn."""
        for name in list(self._buffers):
            delattr(self, name)
        for stride in features.strides:
            self.register_buffer(f"bank{stride}", self._vectors(features, stride, context.device))
            self.register_buffer(f"grid{stride}", torch.tensor(features.grids[stride]))
        self.register_buffer("pooled_", self._pool(features).to(context.device))
        self._index = None
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Patch scores [B, h, w]; image scores [B] for ``image_score`` retrieval."""
        device = self.pooled_.device
        nearest, distances = self._retrieve(self._pool(features).to(device))
        maps = []
        for stride in self.strides:
            bank = self.get_buffer(f"bank{stride}")
            images = self._vectors(features, stride, device)
            scores = [self._correspond(image, bank[normals]) for image, normals in zip(images, nearest, strict=True)]
            grid = torch.stack(scores) if scores else images.new_zeros(0, images.shape[1])
            maps.append(self._at_finest(grid.unflatten(1, self._grid(stride))))
        image_scores = distances.mean(dim=1) if self.image_score == "retrieval" else None
        return torch.stack(maps).mean(dim=0), image_scores

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().import_tensors(tensors)
        self._index = None
        images = len(self.pooled_)
        for stride in self.strides:
            bank, (height, width) = self.get_buffer(f"bank{stride}"), self._grid(stride)
            if bank.ndim != 3 or bank.shape[:2] != (images, height * width):
                raise ValueError(
                    f"a bank of shape {list(bank.shape)} for {images} images on {height} x {width} positions"
                )
        if not self.strides:
            raise KeyError("no bank")

    def export_module(self, grids: Mapping[int, Size]) -> SpadeGraph:
        return SpadeGraph(
            self.pooled_,
            {stride: self.get_buffer(f"bank{stride}") for stride in self.strides},
            grids,
            n_neighbors=self._neighbours,
            n_correspondences=self.n_correspondences,
            pooled_strides=self._pooled_strides(self.strides),
            scores_by_retrieval=self.image_score == "retrieval",
            normalizes=self.normalize,
        )

    @property
    def _neighbours(self) -> int:
        return min(self.n_neighbors, len(self.pooled_))

    def _grid(self, stride: int) -> Size:
        height, width = self.get_buffer(f"grid{stride}").tolist()
        return height, width

    def _pooled_strides(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        return strides if self.pooled == "all" else strides[-1:]

    def _vectors(self, features: Features, stride: int, device: torch.device) -> Tensor:
        """Features of all positions of a stride, [B, P, C]."""
        vectors = features.maps[stride].to(device).permute(2, 0, 1).contiguous()
        # What is contiguous already is no copy, and features may be mapped from a file.
        return normalized(vectors.clone(), dim=2) if self.normalize else vectors

    def _pool(self, features: Features) -> Tensor:
        """The mean over all positions, [B, D]."""
        strides = self._pooled_strides(features.strides)
        if self.normalize:
            parts = [self._vectors(features, stride, features.device).mean(dim=1) for stride in strides]
        else:
            parts = [features.maps[stride].mean(dim=0).T for stride in strides]
        return torch.cat(parts, dim=1).contiguous()

    def _retrieve(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the K nearest normals, int64 [B, K], and the squared distances to them."""
        import faiss  # a library of its own, which the search alone needs

        if self._index is None:
            index = faiss.IndexFlatL2(self.pooled_.shape[1])
            index.add(self.pooled_.cpu().numpy())
            self._index = index
        if not len(pooled):
            return torch.zeros(0, self._neighbours, dtype=torch.int64), pooled.new_zeros(0, self._neighbours)
        # One by one: faiss rounds otherwise where it is asked for many at once.
        rows = [self._index.search(row, self._neighbours)[1] for row in pooled.cpu().numpy()[:, None]]
        nearest = torch.cat([torch.from_numpy(row) for row in rows]).to(pooled.device)
        return nearest, (self.pooled_[nearest] - pooled[:, None]).square().sum(dim=2)

    def _correspond(self, queries: Tensor, retrieved: Tensor) -> Tensor:
        """Mean distance of positions [P, C] to their nearest among those of the images retrieved, [K, P, C]; [P]."""
        candidates, queries = retrieved.flatten(0, 1), queries.contiguous()
        squares = candidates.square().sum(dim=1)
        count = min(self.n_correspondences, len(candidates))
        distances = []
        with full_precision(queries.device):
            for block in queries.split(portion(max(1, PRODUCT_BYTES // (4 * len(candidates))))):
                apart = torch.addmm(squares, block, candidates.T, alpha=-2)
                nearest = apart.argmin(dim=1, keepdim=True) if count == 1 else apart.topk(count, largest=False).indices
                differences = candidates[nearest] - block[:, None]
                distances.append(differences.square().sum(dim=2).sqrt().mean(dim=1))
        return torch.cat(distances)

    def _at_finest(self, values: Tensor) -> Tensor:
        if values.shape[1:] == self.grid:
            return values
        if not len(values):
            return values.new_zeros(0, *self.grid)
        return functional.interpolate(values[:, None], size=self.grid, mode="bilinear", align_corners=False)[:, 0]
