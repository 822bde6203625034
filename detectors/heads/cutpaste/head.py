"""CutPaste (Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", arXiv 2104.04015).

Notation: N training normals, B images, C channels of the input on the finest grid h x w, f_p the D values of the network's last
map at position p, z = mean over p of f_p the embedding of an image.

First stage: a network learns to tell normals from normals with a piece of themselves pasted elsewhere, by cross entropy;
`detectors.heads.cutpaste.training` describes it. With the backbone `pixels` the input is the image, as in the paper, for a whole
network of timm: one that starts from pretrained weights, as reproductions do, or from random ones (`@random`), as the paper does.
With another backbone it is its frozen maps, and the network (`tail`) is small.
Second stage: a one-class model of the normals' z.

- `gaussian`: the score is the Mahalanobis distance ((z - m)^T P (z - m))^0.5, m and P the mean and the inverse of the
  Ledoit-Wolf covariance.
- `ocsvm`: with support vectors s_i and coefficients a_i of a one-class SVM with kernel exp(-gamma |z - s|^2), the score is
  log(rho) - log sum_i a_i exp(-gamma |z - s_i|^2), above 0 where the SVM's decision is below 0. The logarithm keeps the order of
  the decisions, which all end at -rho where z is far from the normals, and their gradient at 0.

Localisation is the paper's Grad-CAM (its figure 4), of the second stage's score s: z is a mean, so that the gradient g = ds/dz is
the same at every position, and the map is relu(g . (f_p - m)) in closed form. For `gaussian` its mean without the relu is s.

Departures from the paper:

- No model of patches slid over the image: at 64 of 256 pixels and a step of 4 it takes 2401 forward passes an image.
- Patches are jittered by a factor per channel, the same rule for images and features; the images themselves are not shifted
  or jittered.
- The gradient's norm is clipped, and the learning rate warms up.
- `tail` has group normalisation: it trains on one image, and in parts of a batch, where batch normalisation would not.
- Batch normalisation that comes with pretrained weights keeps its statistics: a third of a batch, or two, is pasted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.base import PATIENCE, FitContext, Head, Parameter, seeded, with_prefix
from detectors.data.images import Size
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.heads.cutpaste.graph import CutpasteGraph
from detectors.heads.cutpaste.network import NETWORKS, RANDOM, TAIL, Network, new_network
from detectors.heads.cutpaste.pasting import Task
from detectors.heads.cutpaste.second_stage import Gaussian, SupportVectors
from detectors.working_memory import portion

SCORING_POSITIONS = 2**17
"""Positions of the finest grid that go through the network at once in scoring."""


class Cutpaste(Head):
    """CutPaste head.

    After `fit`: `network`, which gives the last map, `second_stage`, and `shape`, int64 [3]: h, w and the finest stride.
    """

    name: ClassVar[str] = "cutpaste"
    trained: ClassVar[bool] = True
    title: ClassVar[str] = "CutPaste"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "network",
            "choice",
            TAIL,
            "what is trained: a small network on the backbone's maps, or a network of timm, with @random from random weights",
            choices=(TAIL, *NETWORKS, *(f"{name}{RANDOM}" for name in NETWORKS)),
            networks=NETWORKS,
        ),
        Parameter(
            "variant",
            "choice",
            "3way",
            "what normals are told from: pasted rectangles, thin rotated scars, or each of both",
            choices=("normal-vs-patch", "scar", "3way"),
        ),
        Parameter(
            "largest_area", "float", 0.15, "largest share of the image that a pasted rectangle covers", 0.02, 0.5
        ),
        Parameter(
            "second_stage",
            "choice",
            "gaussian",
            "model of the normals' embeddings: a Gaussian density or a one-class SVM",
            choices=("gaussian", "ocsvm"),
        ),
        Parameter("learning_rate", "float", 0.03, "largest step size of stochastic gradient descent", 1e-5, 1.0),
        Parameter("batch", "int", 16, "normals in a training step, each of them once per class", 1, 1024),
        Parameter("steps", "int", 16, "training steps of an epoch", 1, 4096),
        Parameter("epochs", "int", 10, "epochs of so many steps", 1, 1000),
        PATIENCE,
    )

    shape: Tensor

    def __init__(
        self,
        *,
        network: str = TAIL,
        variant: str = "3way",
        largest_area: float = 0.15,
        second_stage: str = "gaussian",
        learning_rate: float = 0.03,
        batch: int = 16,
        steps: int = 16,
        epochs: int = 10,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.network_name, self.second_stage_kind = network, second_stage
        self.task = Task(variant, float(largest_area))
        self.learning_rate, self.batch = float(learning_rate), int(batch)
        self.steps, self.epochs, self.patience = int(steps), int(epochs), int(patience)
        self.network: Network | None = None
        self.second_stage: Gaussian | SupportVectors | None = None

    @property
    def grid(self) -> Size:
        return self._fitted_shape[:2]

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever `mode` says: with batch statistics, a score would depend on the other images."""
        return super().train(False)

    def fit(self, features: Features, context: FitContext) -> Self:
        """Train the network, then fit the second stage; all that is random follows `context.seed`.

        Raises:
            InputError: the network's pretrained weights are not on this machine, or the input is no image.
            NumericalError: the loss is no longer finite.
        """
        from detectors.heads.cutpaste.training import CutpasteTraining  # Lightning takes seconds to import

        stride = features.strides[0]
        height, width = features.grids[stride]
        channels = sum(values.shape[1] for values in features.maps.values())
        self._make_network((height, width, stride), channels, seed=context.seed)
        if self._pretrained:
            self._whole.start_from(self.network_name, weights_dir=context.weights_dir)
        else:
            self._whole.standardise_to(features)
        self.to(context.device)
        self._figures = CutpasteTraining(
            self,
            self._whole,
            features,
            context,
            task=self.task,
            batch=self.batch,
            steps=self.steps,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
            settle=self.settle,
        ).train_head()
        return self

    @torch.no_grad()
    def settle(self, features: Features) -> None:
        """Fit the second stage to the normals, with the network as it is now; `score` works from here on."""
        embeddings = torch.cat([part.mean(dim=(2, 3)).double().cpu() for part in self._last_maps(features)])
        if not bool(torch.isfinite(embeddings).all()):
            raise NumericalError(
                f"cutpaste: embeddings are not finite at learning_rate={self.learning_rate:g}; lower it"
            )
        kind = Gaussian if self.second_stage_kind == "gaussian" else SupportVectors
        self.second_stage = kind.fitted_to(embeddings).to(self.shape.device)

    @torch.inference_mode()
    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        """The map of the module's docstring, bilinearly upsampled to the finest grid [B, h, w], and the scores [B]."""
        if self.second_stage is None:
            raise RuntimeError("CutPaste is not fitted yet")
        maps, scores = [self.shape.new_zeros(0, *self.grid).float()], [self.shape.new_zeros(0).float()]
        for part in self._last_maps(features):
            part_scores, relevance = self.second_stage(part)
            scores.append(part_scores)
            maps.append(functional.interpolate(relevance[:, None], size=self.grid, mode="bilinear")[:, 0])
        return torch.cat(maps), torch.cat(scores)

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors["shape"].shape != (3,) or int(tensors["shape"].min()) < 1:
            raise ValueError(f"CutPaste tensors of shape {tensors['shape'].tolist()}")
        height, width, stride = (int(value) for value in tensors["shape"])
        self._make_network((height, width, stride), tensors["network.mean"].numel(), seed=0)
        network, stage = (with_prefix(tensors, prefix) for prefix in ("network.", "second_stage."))
        try:
            self._whole.load_state_dict(network)
        except RuntimeError as error:
            raise ValueError(f"CutPaste tensors do not fit the settings: {error}") from error
        gaussian = self.second_stage_kind == "gaussian"
        try:
            self.second_stage = Gaussian(**stage) if gaussian else SupportVectors(**stage)
        except TypeError as error:
            raise ValueError(f"CutPaste tensors of another second stage than the settings': {sorted(stage)}") from error
        self.to(tensors["shape"].device)

    def export_module(self, grids: Mapping[int, Size]) -> CutpasteGraph:
        if self.second_stage is None:
            raise RuntimeError("CutPaste is not fitted yet")
        network, second_stage = (copy.deepcopy(part).cpu() for part in (self._whole, self.second_stage))
        last = network(torch.zeros(1, network.mean.numel(), *self.grid)).shape[2:]
        return CutpasteGraph(network, second_stage, [grids[stride] for stride in sorted(grids)], (last[0], last[1]))

    @property
    def _pretrained(self) -> bool:
        return self.network_name in NETWORKS

    @property
    def _whole(self) -> Network:
        if self.network is None:
            raise RuntimeError("CutPaste is not fitted yet")
        return self.network

    @property
    def _fitted_shape(self) -> tuple[int, int, int]:
        if self.network is None:
            raise RuntimeError("CutPaste is not fitted yet")
        height, width, stride = (int(value) for value in self.shape)
        return height, width, stride

    def _make_network(self, shape: tuple[int, int, int], channels: int, *, seed: int) -> None:
        """A fresh network, with weights drawn from the seed."""
        self.second_stage = None
        self.register_buffer("shape", torch.tensor(shape))
        generator = seeded(self.name, seed, "weights")
        self.network = new_network(self.network_name, channels, stride=shape[2], generator=generator).eval()

    def _last_maps(self, features: Features) -> Iterator[Tensor]:
        """f of all images in portions, [B, D, a, b] each."""
        height, width = self.grid
        step = portion(max(1, SCORING_POSITIONS // (height * width)))
        for start in range(0, len(features), step):
            yield self._whole(features.joined(slice(start, start + step)).to(self.shape.device))
