"""A detector: a backbone, a head, an anomaly map, and the tiles that large images are cut into.

Notation: B images, h x w positions of the finest stride, H x W pixels, T tiles of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from detectors.backbones.pyramid import Backbone, extraction_batch
from detectors.base import DEFAULT_SIGMA, FitContext, Head, Memo, Prediction
from detectors.data.images import Size
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.precision import full_precision
from detectors.scoring.anomaly_map import AnomalyMap, image_scores
from detectors.scoring.operating_point import Threshold
from detectors.tiles import TileGrid, Tiles

MOST_TWINS = 256
"""Tiles that have a head each."""


class Look(NamedTuple):
    """What a detector sees in B images."""

    scores: Tensor
    """Of each tile, float32 [B, T]; of whole images [B, 1]."""
    maps: Tensor
    """float32 [B, H, W]"""
    patches: Tensor
    """Patch scores [B, h, w], or of tiles [B, T, h, w]."""

    @property
    def prediction(self) -> Prediction:
        """An image's score is that of its highest tile."""
        return Prediction(scores=self.scores.amax(dim=1), maps=self.maps)


class Detector(nn.Module):
    """Backbone + head + anomaly map, with the threshold above which an image counts as defective.

    ``forward`` takes uint8 [B, 3, H, W] images of `image_size` and returns a `Prediction`. Whatever scores images computes in
    float32 throughout (`detectors.precision`), so that a score is the same on a GPU and on a CPU.

    Where images are cut into T tiles (`detectors.tiles`), patch scores are [B, T, h, w], an image's score is its highest tile's,
    and a head whose model depends on the position has a twin for each tile.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        image_size: Size,
        smoothing_sigma: float = DEFAULT_SIGMA,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.image_size, self.smoothing_sigma = image_size, smoothing_sigma
        grid = TileGrid(image_size, tiles) if tiles is not None else None
        # A single tile is the image itself.
        self.tiles, self.tile_grid = tiles, grid if grid is not None and len(grid) > 1 else None
        twins = len(self.tile_grid) - 1 if self.tile_grid is not None and head.positional else 0
        if twins >= MOST_TWINS:
            raise InputError(
                f"tiles: {head.name} learns each tile by itself here, and {twins + 1} are too many (at most {MOST_TWINS}); give "
                "a larger side"
            )
        self.heads = nn.ModuleList([head, *(type(head)(**head.settings) for _ in range(twins))])
        self.threshold: Threshold | None = None
        self.anomaly_map: AnomalyMap | None = None
        self.eval()

    @property
    def input_size(self) -> Size:
        """Height and width of what the backbone takes: an image, or a tile of one."""
        return self.image_size if self.tile_grid is None else self.tile_grid.size

    def fit(self, images: Tensor, context: FitContext | None = None) -> Detector:
        """Fit to normal images, uint8 [N, 3, H, W]. Raises `InputError` for images of another size, `NumericalError`."""
        return self.fit_features(self.extract(images), context or FitContext())

    def fit_features(self, features: Features, context: FitContext) -> Detector:
        """Fit to features that are there already. Raises `InputError` where there are none, `NumericalError`."""
        if not len(features):
            raise InputError("no normal images to fit to; give at least one")
        features.check_finite()
        # Before the fit, so that a head that trains can be validated on the way.
        self._make_map(features.grids[features.strides[0]], context.device)
        if len(self.heads) == 1:
            self.head.fit(features.all_tiles(), context)
        else:
            for place, head in enumerate(self.twins):
                head.fit(features.tile(place), context_of_part(context, f"tile {place}"))
        self.finish_fit()
        return self

    def finish_fit(self) -> None:
        """Make what follows from a fitted head: the anomaly map for its grid."""
        self._make_map(self.head.grid, self.anomaly_map.rows.device if self.anomaly_map else torch.device("cpu"))
        self.eval().requires_grad_(False)

    def _make_map(self, grid: Size, device: torch.device) -> None:
        self.anomaly_map = AnomalyMap(grid, self.input_size, smoothing_sigma=self.smoothing_sigma).to(device)

    def unfitted(self) -> Self:
        """A detector of the same setting, on the same backbone, that is not fitted yet."""
        return type(self)(
            self.backbone,
            type(self.head)(**self.head.settings),
            image_size=self.image_size,
            smoothing_sigma=self.smoothing_sigma,
            tiles=self.tiles,
        )

    @property
    def each(self) -> list[Detector]:
        """The detectors that this one is made of: itself, or the members of several backbones."""
        return [self]

    @property
    def twins(self) -> list[Head]:
        """`head`, and those of the other tiles where it depends on the position."""
        return [head for head in self.heads if isinstance(head, Head)]

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Features of uint8 [N, 3, H, W] images, computed in small batches and in float32 throughout."""
        check_images(images, self.image_size)
        looked_at = images if self.tile_grid is None else self.tile_grid.cut(images)
        with full_precision(images.device):
            parts = [self.backbone(batch) for batch in looked_at.split(extraction_batch(images.device))]
        pyramid = {stride: torch.cat([part[stride] for part in parts]) for stride in self.backbone.strides}
        return Features.from_pyramid(pyramid, self.image_size, tiles=self._tiles)

    @property
    def _tiles(self) -> int:
        return 1 if self.tile_grid is None else len(self.tile_grid)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Prediction:
        """uint8 [B, 3, H, W] -> Prediction. Raises `InputError` for images of another size or type."""
        check_images(images, self.image_size)
        return self.look(images).prediction

    def look(self, images: Tensor) -> Look:
        """What is seen in images, uint8 [B, 3, H, W]. Raises as `score_patches`."""
        with full_precision(images.device):
            if self.tile_grid is None:
                return self.look_at(Features.from_pyramid(self.backbone(images), self.image_size))
            # Image by image and a few tiles at a time: memory holds the features of these alone, however large an image is.
            found = [self._look_at_tiles(image, self.tile_grid) for image in images]
        if not found:
            nothing = images.new_zeros(0, self._tiles, *self.head.grid).float()
            return Look(nothing[:, :, 0, 0], images.new_zeros(0, *self.image_size).float(), nothing)
        return Look(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _look_at_tiles(self, image: Tensor, grid: TileGrid) -> Look:
        """What is seen in one image, uint8 [3, H, W]."""
        tiles, patches, scores = grid.cut(image[None]), list[Tensor](), list[Tensor | None]()
        for places in torch.arange(len(grid)).split(extraction_batch(image.device)):
            features = Features.from_pyramid(self.backbone(tiles[places[0] : places[-1] + 1]), self.image_size)
            self._check_grid(features)
            for taken, head in self._heads_of(features, places.tolist()):
                found, own = head.score(taken)
                patches.append(found)
                scores.append(own)
        own_scores = [one for one in scores if one is not None]
        return self._joined(torch.cat(patches)[None], torch.cat(own_scores)[None] if own_scores else None)

    def _heads_of(self, features: Features, places: list[int]) -> Iterator[tuple[Features, Head]]:
        """Features of some tiles of one image, by their places, with the head that scores them."""
        if len(self.heads) == 1:
            yield features, self.head
            return
        twins = self.twins
        for index, place in enumerate(places):
            yield features.take([index]), twins[place]

    def score_features(self, features: Features) -> Prediction:
        """Prediction from features that are there already. Raises as `score_patches`."""
        return self.score_patches(features)[0]

    @torch.inference_mode()
    def score_patches(self, features: Features) -> tuple[Prediction, Tensor]:
        """Prediction, and the patch scores [B, h, w], or [B, T, h, w] of tiles, that its maps are made of.

        Raises:
            InputError: the features lie on another grid than those of the fit, or are of other tiles.
            NumericalError: a score is not finite.
        """
        seen = self.look_at(features)
        return seen.prediction, seen.patches

    def look_at(self, features: Features) -> Look:
        """What is seen in features that are there already. Raises as `score_patches`."""
        if self.anomaly_map is None:
            raise RuntimeError("the detector is not fitted yet")
        self._check_grid(features)
        if features.tiles != self._tiles:
            raise InputError(f"features of {features.tiles} tiles, but the detector looks at {self._tiles}")
        with full_precision(self.anomaly_map.rows.device):
            if len(self.heads) > 1:
                found = [head.score(features.tile(place)) for place, head in enumerate(self.twins)]
                patches = torch.stack([one for one, _ in found], dim=1)
                own = [scores for _, scores in found if scores is not None]
                return self._joined(patches, torch.stack(own, dim=1) if own else None)
            patches, scores = self.head.score(features.all_tiles())
            if self.tile_grid is None:
                maps = self.anomaly_map(patches)
                scores = image_scores(maps, top_share=self.head.top_share) if scores is None else scores
                check_scores(scores)
                return Look(scores[:, None], maps, patches)
            shape = (len(features), self._tiles)
            return self._joined(patches.unflatten(0, shape), None if scores is None else scores.unflatten(0, shape))

    @torch.inference_mode()
    def try_out(self) -> None:
        """Look at one black image, or one tile, with every head: parts that contradict each other show here.

        Raises:
            InputError: as `score_patches`.
            RuntimeError: tensors of shapes that do not go together.
        """
        if self.anomaly_map is None:
            raise RuntimeError("the detector is not fitted yet")
        black = torch.zeros(1, 3, *self.input_size, dtype=torch.uint8, device=self.backbone.mean.device)
        features = Features.from_pyramid(self.backbone(black), self.image_size)
        self._check_grid(features)
        for head in self.twins:
            patches, scores = head.score(features)
            maps = self.anomaly_map(patches)
            check_scores(image_scores(maps) if scores is None else scores)

    def maps_of(self, patches: Tensor) -> Tensor:
        """The maps [B, H, W] of patch scores as `score_patches` gives them."""
        if self.anomaly_map is None:
            raise RuntimeError("the detector is not fitted yet")
        if self.tile_grid is None:
            maps: Tensor = self.anomaly_map(patches)
            return maps
        return self._joined(patches, None).maps

    def _joined(self, patches: Tensor, scores: Tensor | None) -> Look:
        """What is seen by the tiles' patch scores [B, T, h, w] and, where the head has a rule for them, their scores [B, T]."""
        if self.anomaly_map is None or self.tile_grid is None:
            raise RuntimeError("the detector is not fitted yet")
        maps = patches.new_empty(len(patches), *self.image_size)
        own = patches.new_empty(patches.shape[:2]) if scores is None else scores
        for index, tiles in enumerate(patches):
            of_tiles = self.anomaly_map(tiles)
            maps[index] = self.tile_grid.join(of_tiles)
            if scores is None:
                own[index] = image_scores(of_tiles, top_share=self.head.top_share)
        check_scores(own.flatten(1).sum(dim=1))
        return Look(own, maps, patches)

    def extra_tensors(self) -> dict[str, Tensor]:
        """What an artifact stores beside backbone and heads, by name."""
        return {}

    def import_extra(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `extra_tensors` gave. Raises `KeyError` or `ValueError` for tensors that are not ours."""

    def _check_grid(self, features: Features) -> None:
        grid = features.grids[features.strides[0]]
        if grid != self.head.grid:
            raise InputError(f"features on a grid of {grid}, but the detector was fitted on one of {self.head.grid}")


class _MemoOfPart:
    """What fits of one part of a detector share, apart from those of other parts."""

    def __init__(self, memo: Memo, part: str) -> None:
        self._memo, self._part = memo, f"{part} "

    def load(self, name: str) -> dict[str, Tensor] | None:
        return self._memo.load(self._part + name)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self._memo.save(self._part + name, tensors)

    def lock(self, name: str) -> AbstractContextManager[None]:
        return self._memo.lock(self._part + name)


def context_of_part(context: FitContext, part: str) -> FitContext:
    """What the fit of a part of a detector may know, such as ``tile 3``. Nothing is validated in between: an image's score takes
    all parts."""
    folder = context.checkpoint_dir
    return replace(
        context,
        memo=None if context.memo is None else _MemoOfPart(context.memo, part),
        checkpoint_dir=None if folder is None else folder / part.replace(" ", "-"),
        validate=None,
    )


def check_images(images: Tensor, image_size: Size) -> None:
    """Raise `InputError` unless `images` is uint8 [B, 3, H, W] of the size that the detector was built for."""
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (3, *image_size):
        raise InputError(
            f"images must be uint8 [B, 3, {image_size[0]}, {image_size[1]}], "
            f"not {str(images.dtype).removeprefix('torch.')} {list(images.shape)}; resize them first"
        )


def check_scores(scores: Tensor) -> None:
    """Raise `NumericalError` that names the first image whose score is not finite."""
    if not bool(torch.isfinite(scores).all()):
        first = int((~torch.isfinite(scores)).nonzero()[0])
        raise NumericalError(f"the score of image {first} is not finite; check the image and the detector")
