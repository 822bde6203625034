"""PaDiM: one Gaussian per position (Defard et al., "PaDiM: a Patch Distribution Modeling Framework", arXiv 2011.08785).

Notation: N normal images, P = h * w positions of the finest stride, d channels chosen at random, B images to score.

Per position p, with x the d chosen channels of all strides aligned on the finest grid:

    mu_p    = mean of x over the normals
    Sigma_p = 1 / (N - 1) sum (x - mu)(x - mu)^T + regularization * I          (equation 1)
    M(x)    = sqrt((x - mu_p)^T Sigma_p^-1 (x - mu_p))                         (equation 2)

Departures from the paper, both off by default: `shrinkage` mixes Sigma with a multiple of the identity of the same trace
(Ledoit and Wolf 2004), which a study may search together with the regularisation, since with fewer normals than features
these are what makes the model. Scoring uses Sigma^-1 = W^T W with W = L^-1 from the Cholesky factor L: the distance is the
norm of W (x - mu), one batched product over all positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from detectors.base import FitContext, Head, Parameter, ParameterValue
from detectors.data.images import Size
from detectors.embedding import Embedding
from detectors.errors import NumericalError
from detectors.features import Features

BLOCK_BYTES = 64 * 2**20
"""Working memory of one block of positions: large enough for batched products, small enough for any machine."""


class Padim(Head):
    """PaDiM head.

    After `fit`: `mean_` [P, d] and `whitening_` [P, d, d], the lower triangular W of the module's docstring.
    """

    name: ClassVar[str] = "padim"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("n_features", "int", 100, "channels kept of all chosen layers together", 1),
        Parameter("regularization", "float", 0.01, "added to the diagonal of each covariance", 1e-8, 1e6),
        Parameter("shrinkage", "float", 0.0, "share of a scaled identity mixed into each covariance", 0.0, 1.0),
    )

    mean_: Tensor
    whitening_: Tensor

    def __init__(self, *, n_features: int = 100, regularization: float = 0.01, shrinkage: float = 0.0) -> None:
        """Args as in `searchable`. Raises `InputError` for values out of range."""
        super().__init__()
        given = {"n_features": n_features, "regularization": regularization, "shrinkage": shrinkage}
        checked = {parameter.name: parameter.check(given[parameter.name]) for parameter in self.searchable}
        self.n_features = int(checked["n_features"])
        self.regularization, self.shrinkage = float(checked["regularization"]), float(checked["shrinkage"])
        self._grid: Size | None = None
        self._embedding: Embedding | None = None

    @classmethod
    def upper_bounds(cls, channels: Mapping[int, int]) -> dict[str, int]:
        """`n_features` cannot exceed the channels that the chosen strides offer together."""
        return {"n_features": sum(channels.values())}

    @property
    def settings(self) -> dict[str, ParameterValue]:
        return {
            "n_features": self.n_features,
            "regularization": self.regularization,
            "shrinkage": self.shrinkage,
        }

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
        embedding = Embedding.random_subset(channels, self.n_features, seed=context.structural_seed)
        self._embedding, self._grid = embedding, features.grids[features.strides[0]]
        positions, d = self._grid[0] * self._grid[1], self.n_features
        mean = torch.empty(positions, d, device=context.device)
        whitening = torch.empty(positions, d, d, device=context.device)
        for block in self._blocks(len(features)):
            values = embedding.gather(features, block).to(context.device)
            mean[block] = values.mean(dim=2)
            values -= mean[block][:, :, None]
            whitening[block] = self._whiten(values, first_position=block.start)
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
            {int(name.removeprefix(prefix)): tensors[name] for name in tensors if name.startswith(prefix)}
        )

    def _blocks(self, images: int) -> Iterator[slice]:
        """Slices of positions whose vectors and factors fit into `BLOCK_BYTES`."""
        height, width = self.grid
        per_position = 4 * self.n_features * (3 * self.n_features + 2 * images)
        length = max(1, BLOCK_BYTES // per_position)
        for start in range(0, height * width, length):
            yield slice(start, min(start + length, height * width))

    def _whiten(self, centred: Tensor, *, first_position: int) -> Tensor:
        """W = L^-1 of every position's covariance, from centred vectors [P, d, N]; [P, d, d]."""
        covariance = torch.bmm(centred, centred.transpose(1, 2)) / max(1, centred.shape[2] - 1)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        if self.shrinkage:
            target = diagonal.mean(dim=1, keepdim=True)
            covariance *= 1 - self.shrinkage
            diagonal += self.shrinkage * target
        diagonal += self.regularization
        factor, info = torch.linalg.cholesky_ex(covariance)
        identity = torch.eye(self.n_features, device=centred.device)
        whitening = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        failed = info.nonzero().flatten()
        if len(failed):
            # float32 rounding can outweigh a small regularisation; double precision settles it for these few.
            factor64, info64 = torch.linalg.cholesky_ex(covariance[failed].double())
            if bool(info64.any()):
                position = first_position + int(failed[info64.nonzero()[0, 0]])
                raise NumericalError(
                    f"PaDiM: the covariance of position {position} is not positive definite at "
                    f"regularization={self.regularization:g}; raise it or lower n_features"
                )
            exact = torch.linalg.solve_triangular(factor64, identity.double().expand_as(factor64), upper=False)
            whitening[failed] = exact.float()
        return whitening
