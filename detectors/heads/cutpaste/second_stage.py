"""CutPaste's second stage: a one-class model of the normals' embeddings, with the relevance of every position.

Notation: N training normals, B images, D values of the network's last map at each of its a x b positions, S support vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-3
"""Added to the variances of the embedding, as a share of their mean."""
SMALLEST_VARIANCE = 1e-6
"""Added where normals do not vary at all."""
NU = 0.5
"""Share of the normals that may lie outside the SVM's boundary, scikit-learn's default."""


class Gaussian(nn.Module):
    """Gaussian density of the embeddings: mean m [D] and precision P [D, D]."""

    mean: Tensor
    precision: Tensor

    def __init__(self, mean: Tensor, precision: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("precision", precision)

    @classmethod
    def fitted_to(cls, embeddings: Tensor) -> Gaussian:
        """Ledoit-Wolf covariance of float64 [N, D], with floors below the variances."""
        from sklearn.covariance import ledoit_wolf  # takes a second; a fit alone needs it

        covariance = torch.zeros(embeddings.shape[1], embeddings.shape[1], dtype=torch.float64)
        if len(embeddings) > 1:
            covariance = torch.from_numpy(ledoit_wolf(embeddings.numpy())[0])
        covariance.diagonal().add_(VARIANCE_FLOOR * covariance.diagonal().mean() + SMALLEST_VARIANCE)
        precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        return cls(embeddings.mean(dim=0).float(), precision.float().contiguous())

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Last maps [B, D, a, b] -> scores [B] and Grad-CAM maps [B, a, b]."""
        apart = values - self.mean[:, None, None]
        z = apart.mean(dim=(2, 3))
        weighted = z @ self.precision
        scores = (z * weighted).sum(dim=1).clamp_min(0).sqrt()
        gradient = weighted / scores.clamp_min(torch.finfo(scores.dtype).eps)[:, None]
        return scores, _grad_cam(gradient, apart)


class SupportVectors(nn.Module):
    """One-class SVM of the embeddings, plain tensors: support vectors around m [S, D], log a [S], m [D], gamma [], log rho []."""

    vectors: Tensor
    log_coefficients: Tensor
    mean: Tensor
    gamma: Tensor
    log_offset: Tensor

    def __init__(
        self, vectors: Tensor, log_coefficients: Tensor, mean: Tensor, gamma: Tensor, log_offset: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("log_coefficients", log_coefficients)
        self.register_buffer("mean", mean)
        self.register_buffer("gamma", gamma)
        self.register_buffer("log_offset", log_offset)

    @classmethod
    def fitted_to(cls, embeddings: Tensor) -> SupportVectors:
        """scikit-learn's, of float64 [N, D], with its gamma "scale" = 1 / (D variance)."""
        from sklearn.svm import OneClassSVM  # takes a second; a fit alone needs it

        mean = embeddings.mean(dim=0)
        apart = embeddings - mean
        variance = float(embeddings.var(correction=0))
        gamma = 1 / (embeddings.shape[1] * max(variance, SMALLEST_VARIANCE))
        machine = OneClassSVM(kernel="rbf", gamma=gamma, nu=NU).fit(apart.numpy())
        numbers: tuple[Any, ...] = (machine.support_vectors_, machine.dual_coef_[0], gamma, machine.offset_[0])
        vectors, coefficients, gamma_, offset = (torch.as_tensor(value, dtype=torch.float64) for value in numbers)
        return cls(vectors.float(), coefficients.log().float(), mean.float(), gamma_.float(), offset.log().float())

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Last maps [B, D, a, b] -> scores [B] and Grad-CAM maps [B, a, b]."""
        apart = values - self.mean[:, None, None]
        z = apart.mean(dim=(2, 3))
        squares = z.square().sum(dim=1, keepdim=True) + self.vectors.square().sum(dim=1)
        distances = (squares - 2 * z @ self.vectors.T).clamp_min(0)
        logarithms = self.log_coefficients - self.gamma * distances
        # Written out: some runtimes sum the plain exponentials, which underflow.
        highest = logarithms.amax(dim=1, keepdim=True)
        kernels = (logarithms - highest).exp()
        total = kernels.sum(dim=1, keepdim=True)
        gradient = 2 * self.gamma * (z - kernels / total @ self.vectors)
        return (self.log_offset - highest - total.log())[:, 0], _grad_cam(gradient, apart)


def _grad_cam(gradient: Tensor, apart: Tensor) -> Tensor:
    """relu(g . (f_p - m)) from g [B, D] and f - m [B, D, a, b], [B, a, b]."""
    return (gradient[:, :, None, None] * apart).sum(dim=1).relu()
