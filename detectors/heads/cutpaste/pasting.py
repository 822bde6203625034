"""CutPaste's task: normals with a piece of themselves pasted elsewhere, which a network learns to tell from untouched ones.

Notation: B maps, C channels, h x w positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.data.images import Size

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


@dataclass(frozen=True)
class Task:
    """Which classes a network tells apart."""

    variant: str
    """``normal-vs-patch``: pasted rectangles from untouched normals; ``scar``: thin rotated ones; ``3way``: each of both."""
    largest_area: float
    """Largest share of the image that a pasted rectangle covers."""

    @property
    def classes(self) -> int:
        """Number of classes, the untouched normals included."""
        return 3 if self.variant == "3way" else 2

    def draw(self, count: int, channels: int, grid: Size, *, generator: torch.Generator) -> list[Patches]:
        """For `count` maps, the patches of every class but that of the untouched normals."""
        drawn = []
        if self.variant != "scar":
            drawn.append(draw_rectangles(count, channels, grid, largest_area=self.largest_area, generator=generator))
        if self.variant != "normal-vs-patch":
            drawn.append(draw_scars(count, channels, grid, generator=generator))
        return drawn


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
    size, source, target, angle, factor = (part.to(values.device) for part in patches)
    middle = (size - 1) / 2
    down = (rows - (target + middle)[:, :1])[:, :, None]
    across = (columns - (target + middle)[:, 1:])[:, None]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turned = torch.stack([cosine * down - sine * across, sine * down + cosine * across], dim=-1)
    # The sides lie half a position beyond the outermost centres, and what is strictly within rounds to one of these.
    inside = (turned.abs() < size[:, None, None] / 2).all(dim=-1)
    image, row, column = inside.nonzero(as_tuple=True)
    place = ((source + middle)[image] + turned[image, row, column]).round().long()
    pasted = values.clone()
    pasted[image, :, row, column] = values[image, :, place[:, 0], place[:, 1]] * factor[image]
    return pasted
