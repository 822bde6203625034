"""Backbone features of a set of images, position-major.

Notation: N images, C channels, P = h * w positions of one stride.

A head that models each position by itself (PaDiM) then reads one contiguous block per position, and a subset of channels
is a subset of its rows: no transposition of the whole set for every trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detectors.data.images import Size
from detectors.errors import NumericalError

MEMBER = 10_000
"""Between the keys of two members' maps, where a detector has several backbones: stride 8 of the second one is 10,008."""
ROUNDING = 1e-5
"""What varies by less than this share of the largest mean does so by rounding."""


@dataclass(frozen=True)
class Features:
    """Features of N images at several strides; may be memory-mapped, so never write into them."""

    maps: Mapping[int, Tensor]
    """{stride: float32 [P, C, N]}"""
    grids: Mapping[int, Size]
    """{stride: (h, w)} with P = h * w, row by row."""
    image_size: Size
    """Height and width, in pixels, of the images they were computed from."""
    tiles: int = 1
    """T, where each image was cut into T tiles (`detectors.tiles`): maps have N * T columns, those of the first image first."""

    @classmethod
    def from_pyramid(cls, pyramid: Mapping[int, Tensor], image_size: Size, *, tiles: int = 1) -> Features:
        """From a backbone's output, {stride: [B, C, h, w]}, or [B * T, C, h, w] of tiles."""
        return cls(
            maps={stride: values.flatten(2).permute(2, 1, 0).contiguous() for stride, values in pyramid.items()},
            grids={stride: (values.shape[2], values.shape[3]) for stride, values in pyramid.items()},
            image_size=image_size,
            tiles=tiles,
        )

    def __len__(self) -> int:
        """Number of images."""
        return next(iter(self.maps.values())).shape[2] // self.tiles

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides in ascending order."""
        return tuple(sorted(self.maps))

    @property
    def device(self) -> torch.device:
        """Where the features lie."""
        return next(iter(self.maps.values())).device

    def select(self, strides: Sequence[int]) -> Features:
        """The same images with some of the strides only, of all members. Raises `KeyError` for a stride that is not there."""
        members = sorted({_member_of(key) for key in self.maps})
        keys = [member * MEMBER + stride for member in members for stride in strides]
        return replace(self, maps={key: self.maps[key] for key in keys}, grids={key: self.grids[key] for key in keys})

    def member(self, place: int) -> Features:
        """The features of one of several backbones."""
        keys = {key - place * MEMBER: key for key in self.maps if _member_of(key) == place}
        return replace(
            self,
            maps={stride: self.maps[key] for stride, key in keys.items()},
            grids={stride: self.grids[key] for stride, key in keys.items()},
        )

    def take(self, images: Sequence[int]) -> Features:
        """Some of the images, in the order of their indices, copied."""
        indices = torch.as_tensor(list(images), dtype=torch.int64, device=self.device)
        if self.tiles > 1:
            indices = (indices[:, None] * self.tiles + torch.arange(self.tiles, device=self.device)).flatten()
        return Features(
            maps={stride: values.index_select(2, indices) for stride, values in self.maps.items()},
            grids=self.grids,
            image_size=self.image_size,
            tiles=self.tiles,
        )

    def tile(self, place: int) -> Features:
        """One tile of every image, as if it were an image; a view of the same memory."""
        maps = {stride: values.unflatten(2, (-1, self.tiles))[..., place] for stride, values in self.maps.items()}
        return Features(maps=maps, grids=self.grids, image_size=self.image_size)

    def all_tiles(self) -> Features:
        """Every tile as if it were an image, in the order of the columns; the same memory."""
        return replace(self, tiles=1)

    def pyramid(self, images: Tensor | slice = slice(None)) -> dict[int, Tensor]:
        """Some of the images as a backbone gives them, {stride: [B, C, h, w]}, copied.

        Args:
            images: their indices, int64 [B] on `device`, or a slice.
        """
        parts = {
            stride: values[:, :, images] if isinstance(images, slice) else values.index_select(2, images)
            for stride, values in self.maps.items()
        }
        return {
            stride: part.permute(2, 1, 0).contiguous().unflatten(2, self.grids[stride])
            for stride, part in parts.items()
        }

    def channels_last(self, stride: int, images: Tensor | slice = slice(None)) -> Tensor:
        """Some images' maps of one stride, [B, C, h, w] with the channels last in memory: convolutions are fastest so on a CPU.

        Args:
            images: as for `pyramid`.
        """
        values = self.maps[stride]
        part = values[:, :, images] if isinstance(images, slice) else values.index_select(2, images)
        return part.permute(2, 0, 1).contiguous().unflatten(1, self.grids[stride]).permute(0, 3, 1, 2)

    def joined(self, images: Tensor | slice = slice(None)) -> Tensor:
        """All strides' channels on the finest grid, [B, sum of C, h, w]; coarser ones are bilinearly upsampled.

        Args:
            images: as for `pyramid`.
        """
        pyramid, size = self.pyramid(images), self.grids[self.strides[0]]
        return torch.cat([_resized(pyramid[stride], size) for stride in self.strides], dim=1)

    def channel_scale(self, *, floor: float) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every channel over all positions and images, the strides one after the other, [sum of C] each.

        A channel that never changes must not be blown up without bound when it does: no deviation is below `floor` times that
        of all channels, or below rounding; where nothing ever changes, all are 1.
        """
        statistics = [torch.var_mean(self.maps[stride], dim=(0, 2), correction=0) for stride in self.strides]
        variance, mean = (torch.cat(parts) for parts in zip(*statistics, strict=True))
        least = torch.maximum(floor * variance.mean().sqrt(), ROUNDING * mean.abs().max())
        deviation = torch.where(variance.amax() > 0, variance.sqrt().maximum(least), torch.ones_like(variance))
        return mean, deviation

    def check_finite(self) -> None:
        """Raise `NumericalError` that names the stride and the first image with NaN or infinite features."""
        for stride, values in self.maps.items():
            # One sum per image: NaN and infinity survive it, and it reads the map once.
            sums = values.sum(dim=(0, 1), dtype=torch.float64)
            if not bool(torch.isfinite(sums).all()):
                first = int((~torch.isfinite(sums)).nonzero()[0])
                raise NumericalError(
                    f"features of stride {stride} are not finite from image {first} on; check weights and data"
                )


def merged(members: Sequence[Features]) -> Features:
    """The features of the same images from several backbones, as those of one detector."""
    first = members[0]
    return replace(
        first,
        maps={place * MEMBER + key: values for place, one in enumerate(members) for key, values in one.maps.items()},
        grids={place * MEMBER + key: grid for place, one in enumerate(members) for key, grid in one.grids.items()},
    )


def _member_of(key: int) -> int:
    """Whose map a key is; blocks of vision transformers are below 0."""
    return (key + MEMBER // 2) // MEMBER


def normalized(values: Tensor, *, dim: int) -> Tensor:
    """Vectors divided by their length (L2), in place; one of no length stays as it is.

    The squares are added one after the other, so that no vector's result depends on how many there are beside it.

    Args:
        dim: along which the vectors lie.
    """
    squares = torch.zeros_like(values.select(dim, 0))
    for part in values.unbind(dim):
        squares.addcmul_(part, part)
    return values.div_(squares.sqrt_().clamp_min_(torch.finfo(values.dtype).tiny).unsqueeze(dim))


def _resized(values: Tensor, size: Size) -> Tensor:
    """[B, C, h, w] on another grid; B may be 0, which torch would refuse."""
    if values.shape[2:] == size:
        return values
    if not len(values):
        return values.new_zeros(0, values.shape[1], *size)
    return interpolate(values, size=size, mode="bilinear", align_corners=False)
