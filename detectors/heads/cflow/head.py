"""CFlow-AD: one conditional normalizing flow per stride (Gudovskiy et al., "CFLOW-AD: Real-Time Unsupervised Anomaly Detection
with Localization via Conditional Normalizing Flows", arXiv 2107.12571).

Notation: B images, S strides, C channels of a stride, h x w positions of a stride.

A flow learns log p(x | position) of the normals' vectors x, by the loss -logsigmoid(log p / C); `detectors.flows.coupling`
describes it and `detectors.heads.cflow.training` its training. The score of a position, with all strides' maps bilinearly
upsampled to the finest grid, is

    -log sum_s exp(log p_s / C_s - peak_s),    peak_s = the largest log p_s / C_s among training normals.

Departures from the paper:

- Its score is a constant minus that sum (section 3.3 and the official code). The logarithm keeps the order of the positions and
  does without the underflow: in float32, every clearly improbable vector would have the same probability, none.
  The maps are upsampled and smoothed as logarithms.
- The peak is that of training normals, stored with the detector. Taken from the images that are scored, it would let a score
  depend on the other images.
- Channels are standardised before the flow; permutations are hard, not random rotations; a step takes the same share of
  each stride's vectors, thousands at a time, with a learning rate to match.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.base import MAX_GRID, PATIENCE, FitContext, Parameter, seeded
from detectors.data.images import Size
from detectors.features import Features
from detectors.flows.head import FlowHead
from detectors.flows.passes import FlowPass, Workspace
from detectors.heads.cflow.graph import CflowGraph

if TYPE_CHECKING:
    from detectors.flows.coupling import Flow

PEAK_IMAGES = 32
"""Training normals whose largest likelihoods are the peaks: enough for a constant that only weighs strides against each other."""


class Cflow(FlowHead["Flow"]):
    """CFlow-AD head.

    After `fit`: `flows`, {stride: `Flow`}, and `peaks` [S], the strides' largest log p / C among training normals.
    """

    name: ClassVar[str] = "cflow"
    trained: ClassVar[bool] = True
    title: ClassVar[str] = "CFlow-AD"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coupling_blocks", "int", 8, "coupling blocks of each stride's flow", 1, 24),
        Parameter("condition_dimension", "int", 128, "length of the sine and cosine code of a position", 4, 1024),
        Parameter("hidden_ratio", "float", 2.0, "hidden units of a block's subnet for each of its inputs", 0.1, 8.0),
        Parameter("clamp", "float", 1.9, "largest logarithm of a coupling's factor", 0.1, 4.0),
        Parameter("learning_rate", "float", 1e-2, "largest step size of Adam", 1e-6, 0.1),
        Parameter(
            "fibre_batch", "int", 2048, "vectors (fibres), of all layers together, in a training step", 64, 2**20
        ),
        Parameter("epochs", "int", 10, "passes over all training images", 1, 1000),
        PATIENCE,
    )

    peaks: Tensor

    def __init__(
        self,
        *,
        coupling_blocks: int = 8,
        condition_dimension: int = 128,
        hidden_ratio: float = 2.0,
        clamp: float = 1.9,
        learning_rate: float = 1e-2,
        fibre_batch: int = 2048,
        epochs: int = 10,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.coupling_blocks, self.condition_dimension = int(coupling_blocks), int(condition_dimension)
        self.hidden_ratio, self.clamp = float(hidden_ratio), float(clamp)
        self.learning_rate, self.fibre_batch = float(learning_rate), int(fibre_batch)
        self.epochs, self.patience = int(epochs), int(patience)
        self._passes: dict[int, FlowPass] = {}
        self._workspaces: list[Workspace] = []

    @property
    def grid(self) -> Size:
        self.check_fitted()
        return next(iter(self.flows.values())).grid

    def fit(self, features: Features, context: FitContext) -> Self:
        """Train the flows; all that is random follows `context.seed`.

        Raises:
            InputError: a stride has one channel only, of which no coupling can be made.
            NumericalError: the loss is no longer finite.
        """
        from detectors.heads.cflow.training import CflowTraining  # Lightning takes seconds to import

        channels = {stride: features.maps[stride].shape[1] for stride in features.strides}
        self._make_flows(channels, {stride: features.grids[stride] for stride in channels}, seed=context.seed)
        for stride, flow in self.flows.items():
            flow.standardise_to(features.select([stride]))
        self.to(context.device)
        self._figures = CflowTraining(
            self,
            features,
            context,
            fibre_batch=self.fibre_batch,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
            settle=self.settle,
        ).train_head()
        return self

    def settle(self, features: Features) -> None:
        """Take the peaks from training normals, with the weights as they are now; `score` works from here on."""
        self._passes = {}
        step = -(-len(features) // PEAK_IMAGES)
        peaks = []
        for stride in self.flows:
            log_likelihoods = self._log_likelihoods(stride, features.maps[stride][:, :, ::step])
            peaks.append(float(log_likelihoods.max()))
        self.register_buffer("peaks", torch.tensor(peaks, device=next(self.parameters()).device))

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, None]:
        """The score of every position as in the module's docstring, [B, h, w]."""
        height, width = self.grid
        maps = []
        for index, (stride, flow) in enumerate(self.flows.items()):
            log_likelihoods = self._log_likelihoods(stride, features.maps[stride]) - self.peaks[index]
            grid = log_likelihoods.T.reshape(-1, 1, *flow.grid)
            if flow.grid != (height, width) and len(grid):
                grid = functional.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
            maps.append(grid.reshape(-1, height, width))
        return -torch.stack(maps).logsumexp(dim=0), None

    def export_tensors(self) -> dict[str, Tensor]:
        """The flows' weights, their grids and the peaks."""
        self.check_fitted()
        grids = {f"{stride}.grid": torch.tensor(flow.grid) for stride, flow in self.flows.items()}
        return self.flow_tensors() | grids | {"peaks": self.peaks}

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        strides = sorted(int(name.removesuffix(".grid")) for name in tensors if name.endswith(".grid"))
        channels = {stride: len(tensors[f"{stride}.mean"]) for stride in strides}
        grids = {stride: _size(tensors[f"{stride}.grid"]) for stride in strides}
        if not strides or tensors["peaks"].shape != (len(strides),):
            raise ValueError(f"CFlow tensors of strides {strides} with peaks of shape {list(tensors['peaks'].shape)}")
        self._make_flows(channels, grids, seed=0)
        self.load_flows({name: value for name, value in tensors.items() if not name.endswith(".grid")})
        self.register_buffer("peaks", tensors["peaks"])

    def export_module(self, grids: Mapping[int, Size]) -> CflowGraph:
        self.check_fitted()
        return CflowGraph([FlowPass(flow) for flow in self.flows.values()], self.peaks)

    def _make_flows(self, channels: Mapping[int, int], grids: Mapping[int, Size], *, seed: int) -> None:
        """Fresh flows, with weights and permutations drawn from the seed."""
        from detectors.flows.coupling import Flow  # FrEIA takes a second to import

        generator = seeded(self.name, seed, "weights")
        self._passes = {}

        def make(stride: int, channels: int) -> Flow:
            return Flow(
                channels,
                grids[stride],
                coupling_blocks=self.coupling_blocks,
                condition_dimension=self.condition_dimension,
                hidden_ratio=self.hidden_ratio,
                clamp=self.clamp,
                generator=generator,
            )

        self.make_flows(channels, make)

    @torch.inference_mode()
    def _log_likelihoods(self, stride: int, values: Tensor) -> Tensor:
        """log p / C of vectors [P, C, B], [P, B]."""
        flow = self.flows[stride]
        one = self._passes.get(stride)
        if one is None or one.device != flow.mean.device:
            one = self._passes[stride] = FlowPass(flow)
        # Threads that score at the same time must not share buffers.
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = Workspace(flow.mean)
        if workspace.device != one.device:
            workspace = Workspace(flow.mean)
        result = one.grid_log_likelihood(values, workspace).div_(flow.channels)
        self._workspaces.append(workspace)
        return result


def _size(values: Tensor) -> Size:
    height, width = (int(side) for side in values)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_GRID:
        raise ValueError(f"a grid of {height} x {width} positions")
    return height, width
