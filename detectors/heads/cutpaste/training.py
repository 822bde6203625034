"""Training of CutPaste's network on stored maps, by a Lightning trainer: the same normals untouched, with a pasted rectangle, and
with a pasted scar are classes to be told apart by cross entropy.

Notation: B normals of a step, C channels, h x w positions; K classes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.base import FitContext, seeded
from detectors.data.images import Size
from detectors.features import Features
from detectors.heads.cutpaste.head import Cutpaste, Network, drawing
from detectors.training import Training
from detectors.working_memory import parts

SMALLEST_AREA = 0.02
"""Smallest share of the image that a pasted rectangle covers."""
ASPECT_RATIOS = (0.3, 3.3)
"""Height over width of a pasted rectangle."""
SCAR_WIDTHS, SCAR_LENGTHS = (2.0, 16.0), (10.0, 25.0)
"""Sides of a scar, in pixels of an image whose shorter side has `SCAR_SIDE` of them."""
SCAR_SIDE = 256
SCAR_ANGLE = math.pi / 4
"""Largest rotation of a scar to either side."""
JITTER = 0.1
"""Largest change of a pasted patch's channel, as a share of its value."""
MOMENTUM, WEIGHT_DECAY = 0.9, 3e-5
PROJECTION = 128
"""Hidden units of the classifier on top of the embedding; it is dropped after training."""


def train(head: Cutpaste, features: Features, context: FitContext) -> dict[str, float]:
    """Train a head's network in place; returns the head's diagnostics. Raises as `Training.train_head` does."""
    return _Training(head, features, context).train_head()


class Patches(NamedTuple):
    """What is cut from each of B maps, and where it is pasted; positions count from 0 at the centre of the first."""

    size: Tensor
    """Height and width of the rectangle in positions, int64 [B, 2]."""
    source: Tensor
    """First row and column of the place it is cut from, int64 [B, 2]."""
    target: Tensor
    """The same of the place it is pasted to, before it is rotated about its centre."""
    angle: Tensor
    """Of the rotation, float32 [B]."""
    factor: Tensor
    """For each of its channels, float32 [B, C]."""

    def part(self, images: slice) -> Patches:
        """Those of some of the maps."""
        return Patches(*(values[images] for values in self))


def draw_rectangles(
    count: int, channels: int, grid: Size, *, largest_area: float, generator: torch.Generator
) -> Patches:
    """Axis-parallel rectangles: uniform areas, log-uniform aspect ratios, at least one position, at most the grid."""
    area = _uniform(count, SMALLEST_AREA, largest_area, generator=generator) * grid[0] * grid[1]
    ratio = _uniform(count, *(math.log(ratio) for ratio in ASPECT_RATIOS), generator=generator).exp()
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1)
    return _placed(size, torch.zeros(count), channels, grid, generator=generator)


def draw_scars(count: int, channels: int, grid: Size, *, generator: torch.Generator) -> Patches:
    """Thin rectangles at uniform angles, sides scaled to the grid, at least one position."""
    size = torch.stack(
        [_uniform(count, *sides, generator=generator) for sides in (SCAR_LENGTHS, SCAR_WIDTHS)], dim=1
    ) * (min(grid) / SCAR_SIDE)
    angle = _uniform(count, -SCAR_ANGLE, SCAR_ANGLE, generator=generator)
    return _placed(size, angle, channels, grid, generator=generator)


def _placed(size: Tensor, angle: Tensor, channels: int, grid: Size, *, generator: torch.Generator) -> Patches:
    """Whole numbers of positions, at two random places of the grid each."""
    whole = size.round().long().clamp_min(1).minimum(torch.tensor(grid))
    free = torch.tensor(grid) - whole + 1
    source, target = ((torch.rand(len(size), 2, generator=generator) * free).long().minimum(free - 1) for _ in range(2))
    factor = _uniform(len(size) * channels, 1 - JITTER, 1 + JITTER, generator=generator).view(-1, channels)
    return Patches(whole, source, target, angle, factor)


def _uniform(count: int, low: float, high: float, *, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def paste(values: Tensor, patches: Patches) -> Tensor:
    """A copy of maps [B, C, h, w] with a patch pasted in each; a rotated one takes the nearest value."""
    rows, columns = (torch.arange(side, device=values.device) for side in values.shape[2:])
    size, source, target, angle, factor = (given.to(values.device) for given in patches)
    middle = (size - 1) / 2
    down = (rows - (target + middle)[:, :1])[:, :, None]
    across = (columns - (target + middle)[:, 1:])[:, None]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    own = torch.stack([cosine * down - sine * across, sine * down + cosine * across], dim=-1)
    # The sides lie half a position beyond the outermost centres, and what is strictly within rounds to one of these.
    inside = (own.abs() < size[:, None, None] / 2).all(dim=-1)
    image, row, column = inside.nonzero(as_tuple=True)
    found = ((source + middle)[image] + own[image, row, column]).round().long()
    pasted = values.clone()
    pasted[image, :, row, column] = values[image, :, found[:, 0], found[:, 1]] * factor[image]
    return pasted


class Classifier(nn.Module):
    """The network, its last map's mean, and a projection head that tells K classes."""

    def __init__(self, network: Network, classes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            embedding = network(network.mean[None].repeat(2, 1, 1, 1)).shape[1]
        with drawing(generator):
            self.projection = nn.Sequential(
                nn.Linear(embedding, PROJECTION), nn.ReLU(), nn.Linear(PROJECTION, classes)
            ).to(network.mean.device)

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B, K]."""
        logits: Tensor = self.projection(self.network(values).mean(dim=(2, 3)))
        return logits


class _Training(Training):
    """The network of a head with its classifier."""

    head: Cutpaste

    def __init__(self, head: Cutpaste, features: Features, context: FitContext) -> None:
        if head.network is None:
            raise RuntimeError("CutPaste has no network to train yet")
        classes = 3 if head.variant == "3way" else 2
        super().__init__(
            head,
            Classifier(head.network, classes, generator=seeded(head.name, context.seed, "projection")),
            features,
            context,
            steps=head.steps,
            epochs=head.epochs,
            learning_rate=head.learning_rate,
            patience=head.patience,
        )
        self.classes = classes
        # Batch normalisation sees the whole batch or does something else.
        self.divisible = not head.network.mixes_images
        self.channels = head.network.mean.numel()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            self.model.parameters(), lr=self.largest_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def begin_epoch(self) -> None:
        self.model.train()
        generator, needed = self.generator("batches"), self.steps * self.head.batch
        rounds = -(-needed // len(self.features))
        order = torch.cat([torch.randperm(len(self.features), generator=generator) for _ in range(rounds)])
        self.images = order[:needed].view(self.steps, -1)
        self.patches = self.generator("patches")

    def step(self, index: int) -> Tensor:
        images = self.images[index].to(self.features.device)
        drawn = self._draw(len(images))
        pieces = min(parts(), len(images)) if self.divisible else 1
        length = -(-len(images) // pieces)
        total = torch.zeros((), device=self.device)
        self.zero_grad()
        for start in range(0, len(images), length):
            own = slice(start, start + length)
            values = self.features.joined(images[own]).to(self.device)
            logits = self.model(torch.cat([values, *(paste(values, patches.part(own)) for patches in drawn)]))
            labels = torch.arange(self.classes, device=self.device).repeat_interleave(len(values))
            loss = functional.cross_entropy(logits, labels, reduction="sum") / (len(images) * self.classes)
            self.manual_backward(loss)
            total += loss.detach()
        self.update()
        return total

    def settle(self) -> None:
        self.head.settle(self.features)

    def _draw(self, count: int) -> list[Patches]:
        """The patches of every class but that of the normals."""
        grid, head, generator = self.head.grid, self.head, self.patches
        drawn = []
        if head.variant != "scar":
            drawn.append(
                draw_rectangles(count, self.channels, grid, largest_area=head.largest_area, generator=generator)
            )
        if head.variant != "normal-vs-patch":
            drawn.append(draw_scars(count, self.channels, grid, generator=generator))
        return drawn
