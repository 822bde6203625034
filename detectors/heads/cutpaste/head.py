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
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.backbones.pyramid import load_network, normalisation
from detectors.backbones.weights import BackboneSpec
from detectors.base import PATIENCE, FitContext, Head, Parameter, seeded, with_prefix
from detectors.data.images import Size
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.graphs import CutpasteGraph
from detectors.working_memory import portion

TAIL, RANDOM = "tail", "@random"
NETWORKS = ("tf_efficientnet_lite0", "resnet18", "resnet10t", "mobilenetv3_small_100")
"""Of timm, with pretrained weights; with `RANDOM` behind the name, without."""
TAIL_WIDTH = 32
"""Channels behind the first convolution of `Tail`; each block has twice as many as the one before."""
TAIL_STRIDE = 32
"""Of the last map of `Tail`, in pixels, as of most backbones."""
GROUP = 8
"""Channels of a group of group normalisation."""
SCORING_POSITIONS = 2**17
"""Positions of the finest grid that go through the network at once in scoring."""
DEVIATION_FLOOR = 1e-2
"""Smallest deviation that a channel is divided by, as a share of that of all channels."""
VARIANCE_FLOOR = 1e-3
"""Added to the variances of the embedding, as a share of their mean."""
SMALLEST_VARIANCE = 1e-6
"""Added where normals do not vary at all."""
NU = 0.5
"""Share of the normals that may lie outside the SVM's boundary, scikit-learn's default."""


class Cutpaste(Head):
    """CutPaste head.

    After `fit`: `network`, which gives the last map, `second_stage`, and `shape`, int64 [3]: h, w and the finest stride.
    """

    name: ClassVar[str] = "cutpaste"
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
        self.variant, self.largest_area = variant, float(largest_area)
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
        from detectors.heads.cutpaste.training import train  # Lightning takes seconds to import

        stride = features.strides[0]
        height, width = features.grids[stride]
        channels = sum(values.shape[1] for values in features.maps.values())
        self._make_network((height, width, stride), channels, seed=context.seed)
        if self._pretrained:
            self._whole.start_from(self.network_name, weights_dir=context.weights_dir)
        else:
            self._whole.standardise_to(features)
        self.to(context.device)
        self._figures = train(self, features, context)
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
            own, relevance = self.second_stage(part)
            scores.append(own)
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
        name, stride = self.network_name, shape[2]
        self.second_stage = None
        self.register_buffer("shape", torch.tensor(shape))
        with drawing(seeded(self.name, seed, "weights")):
            body = Tail(channels, stride) if name == TAIL else _timm_network(name.removesuffix(RANDOM), channels)
        self.network = Network(body, channels, pretrained=self._pretrained).eval()

    def _last_maps(self, features: Features) -> Iterator[Tensor]:
        """f of all images in portions, [B, D, a, b] each."""
        height, width = self.grid
        step = portion(max(1, SCORING_POSITIONS // (height * width)))
        for start in range(0, len(features), step):
            yield self._whole(features.joined(slice(start, start + step)).to(self.shape.device))


class Network(nn.Module):
    """Standardisation by channel, then a convolutional body: [B, C, h, w] -> the last map [B, D, a, b]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, body: nn.Module, channels: int, *, pretrained: bool = False) -> None:
        """Args: `pretrained`: batch normalisation keeps its statistics."""
        super().__init__()
        self.body, self.pretrained = body.to(memory_format=torch.channels_last), pretrained
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        # Depthwise convolutions take half the time on a CPU with the channels last.
        standardised = ((values - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.body(standardised)
        return found

    def train(self, mode: bool = True) -> Self:
        """Batch normalisation with pretrained statistics stays in eval mode."""
        super().train(mode)
        if self.pretrained:
            for part in self._batch_normalisations():
                part.eval()
        return self

    def start_from(self, name: str, *, weights_dir: Path | None) -> None:
        """Take a timm network's pretrained weights, and the mean and deviation of the images that these were trained on.

        Raises:
            InputError: they are not on this machine, or do not fit the input.
        """
        if self.mean.numel() != 3:
            raise InputError(
                f"cutpaste: network {name} starts from weights for images; give it `backbone: pixels` and one layer, "
                f"or take `network: {TAIL}`"
            )
        self.body.load_state_dict(load_network(name, weights_dir=weights_dir).state_dict())
        mean, deviation = normalisation(BackboneSpec.parse(name))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standardise_to(self, features: Features) -> None:
        """Take the mean and deviation of each channel of the normals."""
        mean, deviation = features.channel_scale(floor=DEVIATION_FLOOR)
        self.mean.copy_(mean[:, None, None])
        self.deviation.copy_(deviation[:, None, None])

    @property
    def mixes_images(self) -> bool:
        """Whether images of a batch depend on each other in training, by batch normalisation."""
        return not self.pretrained and any(self._batch_normalisations())

    def _batch_normalisations(self) -> Iterator[nn.Module]:
        return (part for part in self.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))


class Tail(nn.Sequential):
    """Residual blocks, each of which halves the grid, from the finest stride down to `TAIL_STRIDE`; at least one block."""

    def __init__(self, channels: int, stride: int) -> None:
        halvings = max(0, round(math.log2(TAIL_STRIDE / stride)))
        parts: list[nn.Module] = [*_convolution(channels, TAIL_WIDTH, 3), nn.ReLU()]
        for index in range(max(1, halvings)):
            width = TAIL_WIDTH << index
            parts.append(_Block(width, 2 * width, step=2 if halvings else 1))
        super().__init__(*parts)


class _Block(nn.Module):
    """relu(convolutions(x) + projection(x))"""

    def __init__(self, inputs: int, outputs: int, *, step: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(inputs, outputs, 3, step=step), nn.ReLU(), *_convolution(outputs, outputs, 3)
        )
        self.projection = nn.Sequential(*_convolution(inputs, outputs, 1, step=step))

    def forward(self, values: Tensor) -> Tensor:
        return functional.relu(self.convolutions(values) + self.projection(values))


def _convolution(inputs: int, outputs: int, width: int, *, step: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, width, stride=step, padding=width // 2, bias=False)
    return convolution, nn.GroupNorm(outputs // GROUP, outputs)


def _timm_network(name: str, channels: int) -> nn.Module:
    """A whole network up to its last map, with random weights."""
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=0, global_pool="")
    return model


@contextmanager
def drawing(generator: torch.Generator) -> Iterator[None]:
    """Layers that are made here draw their weights from the generator's seed; torch's own generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


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
        from sklearn.covariance import ledoit_wolf

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
        from sklearn.svm import OneClassSVM

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
