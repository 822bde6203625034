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
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from detectors.base import MAX_GRID, PATIENCE, FitContext, Head, Parameter, ParameterValue, seeded
from detectors.data.images import Size
from detectors.features import Features
from detectors.heads.reconstruction.convolutional import Plan
from detectors.heads.reconstruction.graph import ReconstructionGraph
from detectors.heads.reconstruction.network import Network
from detectors.working_memory import portion

if TYPE_CHECKING:
    from detectors.training import Training  # Lightning takes seconds to import

SCORED_AT_ONCE = 2**21
"""Values of one layer that are computed at a time."""


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

    trained: ClassVar[bool] = True
    shape: Tensor

    def __init__(self, **settings: ParameterValue) -> None:
        """A subclass with a constructor need not hand on the settings of `common`: they are taken from `settings`."""
        super().__init__(**settings)
        self.latent, self.bottleneck = int(self._settings["latent"]), str(self._settings["bottleneck"])
        self.width, self.depth = int(self._settings["width"]), int(self._settings["depth"])
        self.learning_rate, self.batch_size = float(self._settings["learning_rate"]), int(self._settings["batch_size"])
        self.epochs, self.patience = int(self._settings["epochs"]), int(self._settings["patience"])
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

    def make_training(self, network: Network, features: Features, context: FitContext) -> Training:
        """What trains the network: by default, the residual that makes the map is minimised.

        A detector with a loss of its own returns its own subclass of `detectors.heads.reconstruction.training.NetworkTraining`.
        """
        from detectors.heads.reconstruction.training import ResidualTraining  # Lightning takes seconds to import

        return ResidualTraining(self, network, features, context, **self.schedule)

    @property
    def schedule(self) -> dict[str, Any]:
        """The keyword arguments of a training: `batch_size`, `epochs`, `learning_rate` and `patience`."""
        return {
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "patience": self.patience,
        }

    def fit(self, features: Features, context: FitContext) -> Self:
        """Train the network; all that is random follows `context.seed`.

        Raises:
            NumericalError: the loss is no longer finite.
        """
        channels = sum(values.shape[1] for values in features.maps.values())
        network = self._new_network(channels, features.grids[features.strides[0]], seed=context.seed)
        network.scale.fit_to(features)
        self.to(context.device)
        self._figures = self.make_training(network, features, context).train_head()
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Residual maps [B, h, w] and, where the detector has a rule of its own, image scores [B]."""
        size = features.grids[features.strides[0]]
        results = [self._network(part) for part in self._portions(features)]
        maps = torch.cat([self.shape.new_zeros(0, *size).float(), *(part for part, _ in results)])
        if not self._network.gives_scores:
            return maps, None
        return maps, torch.cat([maps.new_zeros(0), *(scores for _, scores in results if scores is not None)])

    def least_weights(self, plan: Plan) -> int:
        """Weights that a network of this plan has at least, so that stored ones are counted before it is made; 0 if not known."""
        return 0

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors["shape"].shape != (3,) or int(tensors["shape"].min()) < 1:
            raise ValueError(f"{self.name} tensors of shape {tensors['shape'].tolist()}")
        channels, height, width = (int(value) for value in tensors["shape"])
        # Before the network is made: a grid or channels that nobody fitted could ask for any memory.
        plan, held = self._plan(channels, (height, width)), sum(value.numel() for value in tensors.values())
        if max(height, width) > MAX_GRID or channels + self.least_weights(plan) > held:
            raise ValueError(f"{self.name} tensors of shape {tensors['shape'].tolist()} with {held} values")
        network = self._new_network(channels, (height, width), seed=0)
        weights = {name.removeprefix("network."): value for name, value in tensors.items() if name != "shape"}
        try:
            network.load_state_dict(weights)
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
        self.network = self.make_network(self._plan(channels, grid), seeded(self.name, seed, "weights")).eval()
        return self.network

    def _plan(self, channels: int, grid: Size) -> Plan:
        return Plan(
            channels=channels,
            grid=grid,
            width=self.width,
            depth=self.depth,
            code=self.latent,
            whole=self.bottleneck == "picture",
        )

    def _portions(self, features: Features) -> Iterator[Tensor]:
        """All images in portions, [B, C, h, w] each, where the network lies."""
        channels, height, width = self.shape.tolist()
        # The first convolution has a quarter of the positions, SSIM a few maps of every channel.
        values = height * width * max(channels, self.width)
        step = max(1, portion(SCORED_AT_ONCE) // values)
        for first in range(0, len(features), step):
            yield features.joined(slice(first, first + step)).to(self.shape.device)
