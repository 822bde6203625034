"""Samples, data sets and image sets: what every reader hands to the splits, and every split to the detectors."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.data.images import Size, read_image, read_mask, resize_image, resize_mask
from detectors.data.painting.paint import paint
from detectors.data.painting.painted_set import PaintedSet
from detectors.data.painting.recipe import Painting
from detectors.data.synthetic_defects import DefectRecipe, apply_defect
from detectors.errors import InputError

GOOD = "good"
"""The type of images without a defect."""
PIXEL_SAMPLE = 64
"""Painted images whose pixels are scored, and at most as many good ones."""


@dataclass(frozen=True)
class Sample:
    """One image: where it lies and what is known about it."""

    key: str
    """Path within the data set with forward slashes, e.g. ``test/scratch_head/001.png``; unique in its data set."""
    file: Path
    defect_type: str = GOOD
    mask_file: Path | None = None
    recipe: DefectRecipe | Painting | None = None
    """A defect that is painted into the good image when it is loaded: of the first version of recipes, or of the second."""
    fold: int = 0
    """Where images are held out in turns, the turn of this one, from 1 on."""
    turn: int = 0
    """How it is turned when it is loaded: quarter turns to the left, 0 to 3, and 4 more where it is mirrored afterwards."""

    @property
    def label(self) -> int:
        """0 good, 1 defective."""
        return int(self.defect_type != GOOD)


@dataclass(frozen=True)
class Dataset:
    """What a reader found: normals to train on and, where there are any, images with known labels."""

    name: str
    """Data set, e.g. ``mvtec``; with `category` it names the MLflow experiment."""
    category: str
    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()

    @property
    def defect_types(self) -> tuple[str, ...]:
        """Types of defects among the labelled images, sorted, without ``good``."""
        return tuple(sorted({sample.defect_type for sample in self.test} - {GOOD}))


@dataclass(frozen=True)
class ImageSet:
    """An ordered set of samples at one size; the unit that is stored, fitted on, scored and digested."""

    name: str
    """``train``, ``validation`` or ``test``."""
    samples: tuple[Sample, ...]
    image_size: Size = field(default=(256, 256))
    """Height and width, in pixels, that images and masks are resized to."""

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over keys, file contents, masks and synthetic recipes; free of paths, times and sizes."""
        total = hashlib.sha256()
        for sample in self.samples:
            parts = [sample.key, sample.defect_type, file_sha256(sample.file)]
            parts.append(file_sha256(sample.mask_file) if sample.mask_file else "-")
            parts.append(sample.recipe.identity if sample.recipe else "-")
            parts += [f"turn {sample.turn}"] if sample.turn else []
            total.update("\0".join(parts).encode() + b"\n")
        return total.hexdigest()

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        """[N], 0 good, 1 defective."""
        return np.array([sample.label for sample in self.samples], dtype=np.int8)

    @property
    def defect_types(self) -> tuple[str, ...]:
        """[N] type of each sample, ``good`` included."""
        return tuple(sample.defect_type for sample in self.samples)

    @property
    def counts(self) -> dict[str, int]:
        """Images per type, ``good`` first."""
        counts = Counter(self.defect_types)
        return {kind: counts[kind] for kind in sorted(counts, key=lambda kind: (kind != GOOD, kind))}

    @property
    def has_masks(self) -> bool:
        """Whether every defective sample has a mask, so that pixel metrics are defined."""
        defective = [sample for sample in self.samples if sample.label]
        return bool(defective) and all(sample.mask_file or sample.recipe for sample in defective)

    @cached_property
    def painted(self) -> PaintedSet | None:
        """What the ranking score has to know of a set with defects of the second version of recipes; None for any other."""
        if not any(isinstance(sample.recipe, Painting) for sample in self.samples):
            return None
        sources = {file: number for number, file in enumerate(dict.fromkeys(sample.file for sample in self.samples))}
        return PaintedSet(
            cells=tuple(sample.recipe.cell if isinstance(sample.recipe, Painting) else "" for sample in self.samples),
            sources=np.array([sources[sample.file] for sample in self.samples], dtype=np.int64),
            folds=np.array([sample.fold for sample in self.samples], dtype=np.int64),
        )

    @cached_property
    def with_pixels(self) -> tuple[int, ...]:
        """Indices of the images whose pixels are scored: all, but of a painted set `PIXEL_SAMPLE` painted ones and as many good.

        Painting a mask again costs more than scoring the image, and a few dozen settle a mean.
        """
        if self.painted is None or len(self.painted.painted) <= PIXEL_SAMPLE:
            return tuple(range(len(self)))
        places = np.linspace(0, len(self.painted.painted) - 1, PIXEL_SAMPLE).round().astype(int)
        chosen = {*self.painted.painted[places].tolist(), *self.painted.good[:PIXEL_SAMPLE].tolist()}
        return tuple(sorted(chosen))

    def load(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Image [h, w, 3] and mask [h, w] (None where unknown) of one sample, resized.

        Raises:
            InputError: the image or its mask cannot be read, or their sizes differ.
        """
        sample = self.samples[index]
        rgb = _read_painted_into(sample.file) if self.painted is not None else read_image(sample.file)
        mask: NDArray[np.bool_] | None = None
        if isinstance(sample.recipe, Painting):
            rgb, mask = paint(rgb, sample.recipe)
        elif sample.recipe is not None:
            rgb, mask = apply_defect(rgb, sample.recipe)
        elif sample.mask_file is not None:
            mask = read_mask(sample.mask_file, rgb.shape[:2])
        elif not sample.label:
            mask = np.zeros(rgb.shape[:2], dtype=bool)
        resized = resize_image(rgb, self.image_size)
        resized_mask = None if mask is None else resize_mask(mask, self.image_size)
        if sample.turn:
            return _turned(resized, sample.turn), None if resized_mask is None else _turned(resized_mask, sample.turn)
        return resized, resized_mask

    def images(self, indices: Sequence[int] | None = None) -> Tensor:
        """uint8 [B, 3, h, w] of the samples at `indices` (all by default)."""
        chosen = range(len(self)) if indices is None else indices
        stacked = np.stack([self.load(index)[0] for index in chosen])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()

    def masks(self) -> NDArray[np.bool_] | None:
        """bool [n, h, w] of the n images of `with_pixels`, or None where a defective sample has no mask."""
        if not self.has_masks:
            return None
        return np.stack([mask for _, mask in map(self.load, self.with_pixels) if mask is not None])


def _read_painted_into(path: Path) -> NDArray[np.uint8]:
    """An image that is painted into several times: the last one that was read is not decoded again.

    Decoding a large image takes longer than painting and resizing it, and what is painted into it comes next to it in a set.
    """
    try:
        status = path.stat()
    except OSError:
        return read_image(path)  # which says what is wrong
    return _decoded(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _decoded(path: Path, changed: int, size: int) -> NDArray[np.uint8]:
    """Args: `changed` and `size` tell the file apart from what it was before."""
    rgb = read_image(path)
    rgb.setflags(write=False)
    return rgb


def _turned(values: NDArray[Any], turn: int) -> NDArray[Any]:
    """An image [h, w, 3] or mask [h, w] turned as `Sample.turn` says."""
    turned = np.rot90(values, turn % 4)
    return np.ascontiguousarray(turned[:, ::-1] if turn >= 4 else turned)


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, hex. Raises `InputError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
