"""FastFlow: one normalizing flow with convolutional subnets per stride (Yu et al., "FastFlow: Unsupervised Anomaly Detection and
Localization via 2D Normalizing Flows", arXiv 2111.07677).

Notation: B images, S strides, C channels of a stride, h x w positions of a stride.

A flow f maps the normals' features x [C, h, w] onto standard normal z, by the loss -log p (equations 2 to 5);
`detectors.flows.convolutional` describes it and `detectors.heads.fastflow.training` its training. The score of a position, with
all strides' maps bilinearly upsampled to the finest grid, is

    mean_s q_s,    q_s = (1 / C) (1/2 sum_c z_c^2 - log |det J|),

with the position's share of the log-determinant: -log p / C but for a constant; or without it, `score: latent`.

Departures from the paper:

- Its score is that of z alone (section 3.3), which a trained flow makes equally large everywhere: on screws, smooth background
  then stands out as much as scratches do (pixel AUROC 0.915 against 0.960 with the determinant, after six epochs).
- Its score is -mean_s exp(-q_s). Here the logarithms of the strides' probabilities are averaged, upsampled and
  smoothed, not the probabilities: in float32, every clearly improbable position would have the same one, none, and a position
  counts as anomalous where any stride is sure of it, not only where all are. One stride alone orders positions as in the paper.
- Each channel is standardised by its mean and deviation over all training normals. LayerNorm over [C, h, w], the paper's
  (`normalization: layer`, without its factor and offset for each position, which would tie a flow to one size of images),
  takes from an image how far its features are from those of others: 0.86 against 0.89 on screw's validation half.
- Its loss is the sum over strides; here each is divided by the stride's dimensions, which moves no stride's optimum and lets one
  learning rate do for all.
- Permutations are fixed and drawn at random, as an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.base import PATIENCE, FitContext, Parameter, seeded
from detectors.data.images import Size
from detectors.features import Features
from detectors.flows.head import FlowHead
from detectors.heads.fastflow.graph import FastflowGraph
from detectors.working_memory import portion

if TYPE_CHECKING:
    from detectors.flows.convolutional import ConvolutionalFlow

SCORED_AT_ONCE = 2**19
"""Features of one stride that are scored at a time: more no longer fit into a core's cache."""
KERNELS = {"3x3": (3, 3), "alternating": (3, 1)}
"""Sides of the subnets' convolutions in odd and even steps."""


class Fastflow(FlowHead["ConvolutionalFlow"]):
    """FastFlow head.

    After `fit`: `flows`, {stride: `ConvolutionalFlow`}, none of whose parameters depends on the size of the images.
    """

    name: ClassVar[str] = "fastflow"
    trained: ClassVar[bool] = True
    title: ClassVar[str] = "FastFlow"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("flow_steps", "int", 8, "coupling steps of each stride's flow", 1, 32),
        Parameter("hidden_ratio", "float", 1.0, "hidden channels of a step's subnet for each of its inputs", 0.05, 4.0),
        Parameter(
            "subnets",
            "choice",
            "alternating",
            "convolutions of the subnets: all 3x3, or 3x3 and 1x1 by turns",
            choices=tuple(KERNELS),
        ),
        Parameter(
            "normalization",
            "choice",
            "channel",
            "what maps are divided by: each channel's deviation among the normals, or as in the paper each map's own",
            choices=("channel", "layer"),
        ),
        Parameter("clamp", "float", 2.0, "largest logarithm of a coupling's factor", 0.1, 4.0),
        Parameter(
            "score",
            "choice",
            "likelihood",
            "what a position is judged by: its likelihood, or as in the paper its latent vector alone",
            choices=("likelihood", "latent"),
        ),
        Parameter("learning_rate", "float", 5e-3, "largest step size of Adam", 1e-6, 0.1),
        Parameter("batch_size", "int", 16, "images in a training step", 1, 1024),
        Parameter("epochs", "int", 30, "passes over all training images", 1, 1000),
        PATIENCE,
    )

    size: Tensor

    def __init__(
        self,
        *,
        flow_steps: int = 8,
        hidden_ratio: float = 1.0,
        subnets: str = "alternating",
        normalization: str = "channel",
        clamp: float = 2.0,
        score: str = "likelihood",
        learning_rate: float = 5e-3,
        batch_size: int = 16,
        epochs: int = 30,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.flow_steps, self.subnets, self.normalization = int(flow_steps), subnets, normalization
        self.hidden_ratio, self.clamp = float(hidden_ratio), float(clamp)
        self.by_likelihood = score == "likelihood"
        self.learning_rate, self.batch_size = float(learning_rate), int(batch_size)
        self.epochs, self.patience = int(epochs), int(patience)

    @property
    def grid(self) -> Size:
        self.check_fitted()
        height, width = self.size.tolist()
        return height, width

    def fit(self, features: Features, context: FitContext) -> Self:
        """Train the flows; all that is random follows `context.seed`.

        Raises:
            InputError: a stride has one channel only, of which no coupling can be made.
            NumericalError: the loss is no longer finite.
        """
        from detectors.heads.fastflow.training import FastflowTraining  # Lightning takes seconds to import

        channels = {stride: features.maps[stride].shape[1] for stride in features.strides}
        self._make_flows(channels, features.grids[features.strides[0]], seed=context.seed)
        for stride, flow in self.flows.items():
            flow.standardise_to(features.select([stride]))
        self.to(context.device)
        self._figures = FastflowTraining(
            self,
            features,
            context,
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
        ).train_head()
        return self

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, None]:
        """The score of every position as in the module's docstring, [B, h, w], whatever the grid of the features."""
        size = features.grids[features.strides[0]]
        levels = []
        for stride, flow in self.flows.items():
            parts = self._portions(features, stride)
            level = torch.cat([flow.surprise(part, likelihood=self.by_likelihood) for part in parts])
            if level.shape[1:] != size and len(level):
                level = functional.interpolate(level[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
            levels.append(level.reshape(-1, *size))
        return torch.stack(levels).mean(dim=0), None

    def export_tensors(self) -> dict[str, Tensor]:
        """The flows' weights and the grid."""
        return self.flow_tensors() | {"size": self.size}

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        height, width = (int(side) for side in tensors["size"])
        prefixes = {name.partition(".")[0] for name in tensors if name != "size"}
        strides = sorted(int(prefix) for prefix in prefixes)
        if not strides or height < 1 or width < 1:
            raise ValueError(f"FastFlow tensors of strides {strides} for a grid of {height} x {width} positions")
        channels = {stride: len(tensors[f"{stride}.mean"]) for stride in strides}
        self._make_flows(channels, (height, width), seed=0)
        self.load_flows(tensors)

    def export_module(self, grids: Mapping[int, Size]) -> FastflowGraph:
        self.check_fitted()
        return FastflowGraph(self.flows, grids, likelihood=self.by_likelihood)

    def _make_flows(self, channels: Mapping[int, int], grid: Size, *, seed: int) -> None:
        """Fresh flows, with weights and permutations drawn from the seed."""
        from detectors.flows.convolutional import ConvolutionalFlow  # FrEIA takes a second to import

        odd, even = KERNELS[self.subnets]
        kernels = [even if step % 2 else odd for step in range(self.flow_steps)]

        def make(stride: int, channels: int) -> ConvolutionalFlow:
            return ConvolutionalFlow(
                channels,
                kernels=kernels,
                hidden_ratio=self.hidden_ratio,
                clamp=self.clamp,
                generator=seeded(self.name, seed, f"weights {stride}"),
                layer_norm=self.normalization == "layer",
            )

        self.make_flows(channels, make)
        self.register_buffer("size", torch.tensor(grid))

    def _portions(self, features: Features, stride: int) -> Iterator[Tensor]:
        """All images' maps of a stride where the flow lies, some at a time; one empty portion where there are none."""
        positions, channels, images = features.maps[stride].shape
        step = max(1, portion(SCORED_AT_ONCE) // (positions * channels))
        for first in range(0, max(1, images), step):
            yield features.channels_last(stride, slice(first, first + step)).to(self.size.device)
