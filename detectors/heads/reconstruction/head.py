"""What the reconstruction detectors share: a network that learns to give good images back, and the residual where it cannot.

Notation: B images, C channels, h x w positions of the finest grid.

Their input is x = `Features.joined()`: with the backbone `pixels` the image itself, with another one its feature maps, which
makes them deep feature reconstruction (Yang, Shi & Qi, "DFR: Deep Feature Reconstruction for Unsupervised Anomaly Segmentation",
arXiv 2012.07122). Each channel is standardised by its mean and deviation over all training normals, and the decoder's last layer
is linear, so that output and input have the same range whatever the backbone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from detectors.base import PATIENCE, FitContext, Head, Parameter, ParameterValue, seeded
from detectors.data.images import Size
from detectors.features import Features
from detectors.graphs import ReconstructionGraph
from detectors.heads.reconstruction.convolutional import Plan
from detectors.scoring.anomaly_map import gaussian_matrix
from detectors.working_memory import portion

SCORED_AT_ONCE = 2**21
"""Values of one layer that are computed at a time."""
DEVIATION_FLOOR = 1e-2
"""Smallest deviation that a channel is divided by, as a share of that of all channels."""
SSIM_SIGMA, SSIM_REACH = 1.5, 5
"""Gaussian window of 11 x 11 positions (Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004, section III-B)."""
K1, K2 = 0.01, 0.03
"""SSIM's constants, as shares of the data range (the same section)."""

Residual = Literal["ssim", "l2"]


def common(**defaults: ParameterValue) -> tuple[Parameter, ...]:
    """The parameters that all of them have, with a detector's own defaults."""
    listed = (
        Parameter("latent", "int", 100, "dimensions of the code", 1, 4096),
        Parameter(
            "bottleneck",
            "choice",
            "picture",
            "what has a code: the image as a whole, or each position of the encoder's last grid",
            choices=("picture", "position"),
        ),
        Parameter("width", "choice", 16, "channels behind the first convolution", choices=(8, 16, 32, 64, 128)),
        Parameter("depth", "int", 6, "halvings of the grid at most; no side gets shorter than 2 to 4 positions", 1, 8),
        Parameter("learning_rate", "float", 1e-3, "largest step size of Adam", 1e-6, 0.1),
        Parameter("batch_size", "int", 16, "images in a training step", 1, 1024),
        Parameter("epochs", "int", 30, "passes over all training images", 1, 2000),
        replace(PATIENCE, high=2000),
    )
    return tuple(replace(one, default=defaults.get(one.name, one.default)) for one in listed)


class Reconstruction(Head):
    """A head whose map is the residual of a network's reconstruction.

    After `fit`: `network`, and `shape`, int64 [3]: C, h, w.
    """

    shape: Tensor

    def __init__(
        self,
        *,
        latent: int,
        bottleneck: str,
        width: int,
        depth: int,
        learning_rate: float,
        batch_size: int,
        epochs: int,
        patience: int,
    ) -> None:
        """Args: as `common` describes them; a subclass has their defaults."""
        super().__init__()
        self.latent, self.bottleneck, self.width, self.depth = int(latent), bottleneck, int(width), int(depth)
        self.learning_rate, self.batch_size = float(learning_rate), int(batch_size)
        self.epochs, self.patience = int(epochs), int(patience)
        self.network: Network | None = None

    @property
    def grid(self) -> Size:
        if self.network is None:
            raise RuntimeError(f"{self.name} is not fitted yet")
        _, height, width = self.shape.tolist()
        return height, width

    @abstractmethod
    def make_network(self, plan: Plan, generator: torch.Generator) -> Network:
        """A network of these sizes, by the settings; the generator draws its weights."""

    def fit(self, features: Features, context: FitContext) -> Self:
        """Train the network; all that is random follows `context.seed`.

        Raises:
            NumericalError: the loss is no longer finite.
        """
        from detectors.heads.reconstruction.training import train  # Lightning takes seconds to import

        channels = sum(values.shape[1] for values in features.maps.values())
        network = self._new_network(channels, features.grids[features.strides[0]], seed=context.seed)
        network.scale.fit_to(features)
        self.to(context.device)
        self._figures = train(self, network, features, context)
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Residual maps [B, h, w] and, where the detector has a rule of its own, image scores [B]."""
        size = features.grids[features.strides[0]]
        found = [self._network(part) for part in self._portions(features)]
        maps = torch.cat([self.shape.new_zeros(0, *size).float(), *(own for own, _ in found)])
        if not self._network.own_scores:
            return maps, None
        return maps, torch.cat([maps.new_zeros(0), *(scores for _, scores in found if scores is not None)])

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors["shape"].shape != (3,) or int(tensors["shape"].min()) < 1:
            raise ValueError(f"{self.name} tensors of shape {tensors['shape'].tolist()}")
        channels, height, width = (int(value) for value in tensors["shape"])
        network = self._new_network(channels, (height, width), seed=0)
        own = {name.removeprefix("network."): value for name, value in tensors.items() if name != "shape"}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{self.name} tensors do not fit the settings: {error}") from error
        self.to(tensors["shape"].device)

    def export_module(self, grids: Mapping[int, Size]) -> ReconstructionGraph:
        return ReconstructionGraph(self._network, grids)

    @property
    def _network(self) -> Network:
        if self.network is None:
            raise RuntimeError(f"{self.name} is not fitted yet")
        return self.network

    def _new_network(self, channels: int, grid: Size, *, seed: int) -> Network:
        """A fresh network, with weights drawn from the seed."""
        self.register_buffer("shape", torch.tensor([channels, *grid]))
        plan = Plan(
            channels=channels,
            grid=grid,
            width=self.width,
            depth=self.depth,
            code=self.latent,
            whole=self.bottleneck == "picture",
        )
        self.network = self.make_network(plan, seeded(self.name, seed, "weights")).eval()
        return self.network

    def _portions(self, features: Features) -> Iterator[Tensor]:
        """All images in portions, [B, C, h, w] each, where the network lies."""
        channels, height, width = self.shape.tolist()
        # The first convolution has a quarter of the positions, SSIM a few maps of every channel.
        values = height * width * max(channels, self.width)
        step = max(1, portion(SCORED_AT_ONCE) // values)
        for first in range(0, len(features), step):
            yield features.joined(slice(first, first + step)).to(self.shape.device)


class Network(nn.Module):
    """Standardisation, and the residual of a reconstruction; a subclass reconstructs.

    ``forward`` takes x [B, C, h, w] and returns maps [B, h, w] and image scores [B] or None.
    """

    own_scores: bool = False
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
