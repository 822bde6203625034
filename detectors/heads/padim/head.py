"""PaDiM: one Gaussian per position (Defard et al., "PaDiM: a Patch Distribution Modeling Framework", arXiv 2011.08785).

Notation: N normal images, P = h * w positions of the finest stride, d channels chosen at random, B images to score.

Per position p, with x the d chosen channels of all strides aligned on the finest grid:

    mu_p    = mean of x over the normals
    Sigma_p = 1 / (N - 1) sum (x - mu)(x - mu)^T + regularization * I          (equation 1)
    M(x)    = sqrt((x - mu_p)^T Sigma_p^-1 (x - mu_p))                         (equation 2)

Departures from the paper, all off by default and all for a study to search:

- `shrinkage` mixes Sigma with a multiple of the identity of the same trace (Ledoit and Wolf 2004): with fewer normals than
  features, it and the regularisation are what makes the model.
- `neighbourhood` estimates mu_p and Sigma_p from the vectors of all positions within this many rows and columns of p. A part
  that lies a little differently in every image then is no anomaly, and each Gaussian rests on more vectors.
- `normalize` l2 divides the chosen channels of each stride by their length.
- `top_share` takes the mean of the map's highest pixels for the image score.

Scoring uses Sigma^-1 = W^T W with W = L^-1 from the Cholesky factor L: the distance is the norm of W (x - mu), one batched
product over all positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from detectors.base import NORMALIZE, TOP_SHARE, FitContext, Head, Parameter
from detectors.data.images import Size
from detectors.embedding import Embedding
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.heads.padim.graph import PadimGraph
from detectors.working_memory import portion

BLOCK_BYTES = 64 * 2**20
"""Working memory of one block of positions: large enough for batched products, small enough for any machine."""
ROWS_BYTES = 512 * 2**20
"""The same for blocks of whole rows, whose neighbours above and below are estimated once more in the next block."""
FLOAT32_FLOOR = 1e-4
"""Smallest pivot, as a share of the largest variance, down to which float32 keeps three digits of a distance; below it,
as with fewer normals than features and little regularisation, a position is done in float64."""


class Padim(Head):
    """PaDiM head.

    After `fit`: `mean_` [P, d] and `whitening_` [P, d, d], the lower triangular W of the module's docstring.
    """

    name: ClassVar[str] = "padim"
    title: ClassVar[str] = "PaDiM"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("n_features", "int", 100, "channels kept of all chosen layers together", 1),
        Parameter("regularization", "float", 0.01, "added to the diagonal of each covariance", 1e-8, 1e6),
        Parameter("shrinkage", "float", 0.0, "share of a scaled identity mixed into each covariance", 0.0, 1.0),
        Parameter(
            "neighbourhood", "int", 0, "reach, in positions, of the window that each Gaussian is estimated from", 0, 8
        ),
        NORMALIZE,
        TOP_SHARE,
    )

    mean_: Tensor
    whitening_: Tensor

    def __init__(
        self,
        *,
        n_features: int = 100,
        regularization: float = 0.01,
        shrinkage: float = 0.0,
        neighbourhood: int = 0,
        normalize: str = "none",
        top_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_features, self.neighbourhood, self.normalize = int(n_features), int(neighbourhood), normalize == "l2"
        self.regularization, self.shrinkage = float(regularization), float(shrinkage)
        self._grid: Size | None = None
        self._embedding: Embedding | None = None

    @classmethod
    def upper_bounds(cls, channels: Mapping[int, int]) -> dict[str, int]:
        """`n_features` cannot exceed the channels that the chosen strides offer together."""
        return {"n_features": sum(channels.values())}

    @property
    def positional(self) -> bool:
        return True

    @property
    def grid(self) -> Size:
        if self._grid is None:
            raise RuntimeError("PaDiM is not fitted yet")
        return self._grid

    @torch.inference_mode()
    def fit(self, features: Features, context: FitContext) -> Self:
        """Estimate mean and covariance of every position. Raises `NumericalError` where a covariance has no factor.

        The channels follow `context.structural_seed`; nothing else is random.
        """
        channels = {stride: features.maps[stride].shape[1] for stride in features.strides}
        embedding = Embedding.random_subset(
            channels, self.n_features, seed=context.structural_seed, normalize=self.normalize
        )
        self._embedding, self._grid = embedding, features.grids[features.strides[0]]
        (height, width), d = self._grid, self.n_features
        mean = torch.empty(height * width, d, device=context.device)
        whitening = torch.empty(height * width, d, d, device=context.device)
        for block in self._blocks_of_rows() if self.neighbourhood else self._blocks(len(features)):
            mean[block], covariance = self._estimate(features, block, context.device)
            whitening[block], doubtful = _whiten(covariance)
            if len(doubtful):
                _, covariance = self._estimate(features, block, context.device, torch.float64)
                whitening[block.start + doubtful] = self._whiten_exactly(covariance, doubtful, block.start)
        self.register_buffer("mean_", mean)
        self.register_buffer("whitening_", whitening)
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, None]:
        """Mahalanobis distance of every position, [B, h, w]."""
        if self._embedding is None:
            raise RuntimeError("PaDiM is not fitted yet")
        height, width = self.grid
        distances = torch.empty(height * width, len(features), device=self.mean_.device)
        for block in self._blocks(len(features)):
            values = self._embedding.gather(features, block).to(self.mean_.device)
            values -= self.mean_[block][:, :, None]
            distances[block] = torch.bmm(self.whitening_[block], values).square_().sum(dim=1).sqrt_()
        return distances.T.reshape(-1, height, width), None

    def export_tensors(self) -> dict[str, Tensor]:
        """The triangles alone (half the size of the square factors), the chosen channels and the grid."""
        rows, columns = torch.tril_indices(self.n_features, self.n_features)
        embedding = self._embedding
        if embedding is None:
            raise RuntimeError("PaDiM is not fitted yet")
        return {
            "mean": self.mean_,
            "whitening_triangle": self.whitening_[:, rows, columns],
            "grid": torch.tensor(self.grid),
            **{f"channels.{stride}": embedding.channels[stride] for stride in embedding.strides},
        }

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        mean, triangle = tensors["mean"], tensors["whitening_triangle"]
        d = self.n_features
        height, width = (int(side) for side in tensors["grid"])
        if mean.shape != (height * width, d) or triangle.shape != (height * width, d * (d + 1) // 2):
            raise ValueError(
                f"PaDiM tensors of shapes {list(mean.shape)}, {list(triangle.shape)} do not fit n_features={d}"
            )
        rows, columns = torch.tril_indices(d, d)
        whitening = torch.zeros(height * width, d, d)
        whitening[:, rows, columns] = triangle
        self.register_buffer("mean_", mean)
        self.register_buffer("whitening_", whitening)
        self._grid = (height, width)
        prefix = "channels."
        self._embedding = Embedding(
            {int(name.removeprefix(prefix)): tensors[name] for name in tensors if name.startswith(prefix)},
            normalize=self.normalize,
        )

    def export_module(self, grids: Mapping[int, Size]) -> PadimGraph:
        if self._embedding is None:
            raise RuntimeError("PaDiM is not fitted yet")
        return PadimGraph(self.mean_, self.whitening_, self._embedding, grids)

    def _blocks(self, images: int) -> Iterator[slice]:
        """Slices of positions whose vectors and factors fit into `BLOCK_BYTES`."""
        height, width = self.grid
        per_position = 4 * self.n_features * (3 * self.n_features + 2 * images)
        length = max(1, portion(BLOCK_BYTES) // per_position)
        for start in range(0, height * width, length):
            yield slice(start, min(start + length, height * width))

    def _blocks_of_rows(self) -> Iterator[slice]:
        """Slices of positions that are whole rows of the grid, as many as `ROWS_BYTES` allows, at least one."""
        height, width = self.grid
        length = max(1, portion(ROWS_BYTES) // (4 * width * 3 * self.n_features**2))
        for row in range(0, height, length):
            yield slice(row * width, min(row + length, height) * width)

    def _estimate(
        self, features: Features, block: slice, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Mean [P, d] and regularised covariance [P, d, d] of a block of positions."""
        if self._embedding is None:
            raise RuntimeError("the channels are not chosen yet")
        height, width = self.grid
        reach = self.neighbourhood * width
        around = slice(max(0, block.start - reach), min(height * width, block.stop + reach))
        statistics = _statistics(self._embedding.gather(features, around).to(device, dtype))
        if self.neighbourhood:
            rows = slice((block.start - around.start) // width, (block.stop - around.start) // width)
            statistics = _pooled(statistics, width=width, rows=rows, reach=self.neighbourhood)
        covariance = statistics.covariance
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        if self.shrinkage:
            target = diagonal.mean(dim=1, keepdim=True)
            covariance *= 1 - self.shrinkage
            diagonal += self.shrinkage * target
        diagonal += self.regularization
        return statistics.mean, covariance

    def _whiten_exactly(self, covariance: Tensor, doubtful: Tensor, first_position: int) -> Tensor:
        """W of the doubtful ones among float64 covariances [P, d, d]. Raises `NumericalError` naming the position."""
        factor, info = torch.linalg.cholesky_ex(covariance[doubtful])
        if bool(info.any()):
            position = first_position + int(doubtful[info.nonzero()[0, 0]])
            raise NumericalError(
                f"PaDiM: the covariance of position {position} is not positive definite at "
                f"regularization={self.regularization:g}; raise it or lower n_features"
            )
        return _inverse_triangle(factor).float()


def _whiten(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """W = L^-1 of each covariance [P, d, d], and the indices of those that float32 is not precise enough for."""
    largest = covariance.diagonal(dim1=1, dim2=2).amax(dim=1)
    factor, info = torch.linalg.cholesky_ex(covariance)
    smallest = factor.diagonal(dim1=1, dim2=2).amin(dim=1).square()
    doubtful = ((info > 0) | ~(smallest > FLOAT32_FLOOR * largest)).nonzero().flatten()
    return _inverse_triangle(factor), doubtful


def _inverse_triangle(factor: Tensor) -> Tensor:
    """L^-1 of lower triangles, [P, d, d]."""
    identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


class _Statistics(NamedTuple):
    """Mean [P, d] and scatter (sum of outer products of centred vectors) [P, d, d] of `vectors` [P] vectors each."""

    mean: Tensor
    scatter: Tensor
    vectors: Tensor

    @property
    def covariance(self) -> Tensor:
        """[P, d, d], ddof 1; zero where there is one vector alone. Takes the scatter's memory: read it once."""
        return self.scatter.div_((self.vectors - 1).clamp_min(1)[:, None, None])


def _statistics(values: Tensor) -> _Statistics:
    """Of each position's vectors, [P, d, N]; overwrites them."""
    mean = values.mean(dim=2)
    values -= mean[:, :, None]
    count = torch.full((len(values),), float(values.shape[2]), device=values.device)
    return _Statistics(mean, torch.bmm(values, values.transpose(1, 2)), count)


def _pooled(statistics: _Statistics, *, width: int, rows: slice, reach: int) -> _Statistics:
    """Statistics of all vectors within `reach` rows and columns, for the positions of some rows of the grid.

    The scatter of a union is the sum of the scatters plus that of the means: exact, and nothing large is subtracted.

    Args:
        statistics: of whole rows of the grid, `width` positions each, that reach around `rows`.
        rows: of those, the ones to be returned.
    """
    mean, scatter, count = (part.unflatten(0, (-1, width)) for part in statistics)
    total = _window_sum(count, rows, reach)
    centre = _window_sum(mean * count[..., None], rows, reach) / total[..., None]
    pooled = _window_sum(scatter, rows, reach).flatten(0, 1)
    # [P, window, d]: how far each mean of the window lies from the centre; nothing where the window leaves the grid.
    apart = torch.zeros(*total.shape, (2 * reach + 1) ** 2, mean.shape[2], dtype=mean.dtype, device=mean.device)
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    for index, (dy, dx) in enumerate(offsets):
        top, bottom = max(0, -dy - rows.start), min(rows.stop, len(mean) - dy) - rows.start
        left, right = max(0, -dx), width - max(0, dx)
        if top >= bottom or left >= right:
            continue
        here = (slice(top, bottom), slice(left, right))
        there = (slice(rows.start + top + dy, rows.start + bottom + dy), slice(left + dx, right + dx))
        apart[*here, index] = (mean[there] - centre[here]) * count[there][..., None].sqrt()
    apart = apart.flatten(0, 1)
    pooled.baddbmm_(apart.transpose(1, 2), apart)
    return _Statistics(centre.flatten(0, 1), pooled, total.flatten())


def _window_sum(values: Tensor, rows: slice, reach: int) -> Tensor:
    """Sum over the window around each position, cut at the borders; [R, w, ...] -> [rows, w, ...]."""
    down = values[rows].clone()
    for shift in range(1, reach + 1):
        for signed in (-shift, shift):
            top, bottom = max(0, -signed - rows.start), min(rows.stop, len(values) - signed) - rows.start
            if top < bottom:
                down[top:bottom] += values[rows.start + top + signed : rows.start + bottom + signed]
    total = down.clone()
    for shift in range(1, reach + 1):
        total[:, shift:] += down[:, :-shift]
        total[:, :-shift] += down[:, shift:]
    return total
