"""The networks of the reconstruction detectors: standardisation, reconstruction, and the residual of every position.

Notation: B images, C channels, h x w positions of the finest grid.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from detectors.data.images import Size
from detectors.features import Features
from detectors.heads.reconstruction.convolutional import Plan
from detectors.scoring.anomaly_map import gaussian_matrix

DEVIATION_FLOOR = 1e-2
"""Smallest deviation that a channel is divided by, as a share of that of all channels."""
SSIM_SIGMA, SSIM_REACH = 1.5, 5
"""Gaussian window of 11 x 11 positions (Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004, section III-B)."""
K1, K2 = 0.01, 0.03
"""SSIM's constants, as shares of the data range (the same section)."""

Residual = Literal["ssim", "l2"]


class Network(nn.Module):
    """Standardisation, and the residual of a reconstruction; a subclass reconstructs.

    ``forward`` takes x [B, C, h, w] and returns maps [B, h, w] and image scores [B] or None.
    """

    gives_scores: bool = False
    """Whether image scores come with the maps."""

    def __init__(self, plan: Plan, *, residual: Residual) -> None:
        super().__init__()
        self.scale = Scale(plan.channels)
        self.ssim = Ssim(plan.grid) if residual == "ssim" else None

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        standardised = self.scale(values)
        return self.residual(standardised, self.reconstruct(standardised)), None

    @abstractmethod
    def reconstruct(self, values: Tensor) -> Tensor:
        """Standardised [B, C, h, w] -> the same."""

    def residual(self, values: Tensor, reconstruction: Tensor) -> Tensor:
        """The residual of every position, averaged over the channels, [B, h, w]: 1 - SSIM, or the squared difference."""
        if self.ssim is None:
            return (values - reconstruction).square().mean(dim=1)
        return 1 - self.ssim(values, reconstruction, self.scale).mean(dim=1)


class Scale(nn.Module):
    """Mean, deviation and range of each channel over all training normals, [C, 1, 1] each."""

    mean: Tensor
    deviation: Tensor
    shift: Tensor
    """What is added to standardised values to get values that are not negative, in deviations."""
    span: Tensor
    """Largest less smallest value, in deviations; at least 1, where a channel hardly varies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("mean", "deviation", "shift", "span"):
            self.register_buffer(name, torch.ones(channels, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        """Standardised, [B, C, h, w]."""
        return (values - self.mean) / self.deviation

    def fit_to(self, features: Features) -> None:
        """Take them from the normals."""
        mean, deviation = features.channel_scale(floor=DEVIATION_FLOOR)
        maps = [features.maps[stride] for stride in features.strides]
        low = torch.cat([values.amin(dim=(0, 2)) for values in maps])
        high = torch.cat([values.amax(dim=(0, 2)) for values in maps])
        for name, value in (
            ("mean", mean),
            ("deviation", deviation),
            # SSIM's luminance is made for values from 0 on: images are, features after a ReLU, and others are moved there.
            ("shift", (mean - low.clamp_max(0)) / deviation),
            ("span", ((high - low) / deviation).clamp_min(1)),
        ):
            getattr(self, name).copy_(value[:, None, None])


class Ssim(nn.Module):
    """Structural similarity of every position, channel by channel (Wang et al. 2004, equation 13), with mirrored borders.

    The data range is that of the training normals. On a grid below 11 x 11 the window is the largest that fits.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: Size) -> None:
        super().__init__()
        reach = min(SSIM_REACH, (min(grid) - 1) // 2)
        for name, side in (("rows", grid[0]), ("columns", grid[1])):
            self.register_buffer(name, gaussian_matrix(side, SSIM_SIGMA, reach=reach).float(), persistent=False)

    def forward(self, x: Tensor, y: Tensor, scale: Scale) -> Tensor:
        """[B, C, h, w], both standardised by `scale`; symmetric, from -1 to 1, and 1 where they are the same."""
        c1, c2 = (K1 * scale.span).square(), (K2 * scale.span).square()
        mean_x, mean_y = self._averaged(x), self._averaged(y)
        # From values around 0: E[x^2] - E[x]^2 of others would be rounding, mostly.
        covariance = self._averaged(x * y) - mean_x * mean_y
        variances = self._averaged(x.square() + y.square()) - mean_x.square() - mean_y.square()
        mean_x, mean_y = mean_x + scale.shift, mean_y + scale.shift
        luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        return luminance * (2 * covariance + c2) / (variances + c2)

    def _averaged(self, values: Tensor) -> Tensor:
        """Gaussian mean around each position."""
        return self.rows @ values @ self.columns.T
