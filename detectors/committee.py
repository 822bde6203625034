"""Several backbones in one detector: each has a head of its own, and an image's score is the mean of theirs on one scale.

The scores of two backbones have different units, and which one is larger says nothing. They are brought to one scale by what they
say of good images that they have not seen: the normals are halved (of fewer than four each is left out in turn), each half is
scored by heads fitted to the other one, and mean and standard deviation of these scores are taken off. No test image and no label
has a say in it. PatchCore's paper averages members too (arXiv 2106.08265, section 4.4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectors.backbones.pyramid import Backbone, Backbones
from detectors.base import DEFAULT_SIGMA, FitContext, Head
from detectors.data.images import Size
from detectors.detector import Detector, Look, context_of_part
from detectors.errors import InputError
from detectors.features import ROUNDING, Features, merged
from detectors.tiles import Tiles

LEAST, LEAST_HALVED = 2, 4
"""Different good images from which on members can be put on one scale, by leaving out each in turn, and by halves."""
SCALES = "scales"
"""Name of the tensor of an artifact that holds them."""


def make_detector(
    backbone: Backbone | Backbones,
    head: Head,
    *,
    image_size: Size,
    smoothing_sigma: float = DEFAULT_SIGMA,
    tiles: Tiles | None = None,
) -> Detector:
    """A detector on one backbone or several, not fitted yet. Raises `InputError` as `Committee` does."""
    kind = Committee if isinstance(backbone, Backbones) else Detector
    return kind(backbone, head, image_size=image_size, smoothing_sigma=smoothing_sigma, tiles=tiles)  # type: ignore[arg-type]


Part = tuple[list[int], list[int]]
"""Indices of the images that are fitted, and of those that are scored."""


class Committee(Detector):
    """A detector of M members, each on a backbone of its own.

    Its features are those of all members, its maps the mean of theirs, on the scale of the scores.
    """

    scales: Tensor
    """float64 [M, 2]: mean and standard deviation of each member's scores of good images that it had not seen."""

    def __init__(
        self,
        backbone: Backbones,
        head: Head,
        *,
        image_size: Size,
        smoothing_sigma: float = DEFAULT_SIGMA,
        tiles: Tiles | None = None,
    ) -> None:
        """Args: `head` is the first member's; the others have its settings.

        Raises:
            InputError: a head that trains: two trainings do not score on one scale, and take long.
        """
        if head.trained:
            raise InputError(f"several backbones at once are for detectors that do not train; {head.name} trains")
        nn.Module.__init__(self)
        heads = [head, *(type(head)(**head.settings) for _ in backbone.members[1:])]
        self.members = nn.ModuleList(
            Detector(one, of_one, image_size=image_size, smoothing_sigma=smoothing_sigma, tiles=tiles)
            for one, of_one in zip(backbone.members, heads, strict=True)
        )
        first = self.each[0]
        self.backbone, self.head = backbone, head  # type: ignore[assignment]
        self.image_size, self.smoothing_sigma = image_size, smoothing_sigma
        self.tiles, self.tile_grid = tiles, first.tile_grid
        self.threshold = self.anomaly_map = None
        self.heads = nn.ModuleList(twin for member in self.each for twin in member.twins)
        self.register_buffer("scales", torch.tensor([[0.0, 1.0]] * len(heads), dtype=torch.float64), persistent=False)
        self.eval()

    @property
    def each(self) -> list[Detector]:
        """The members."""
        return [member for member in self.members if isinstance(member, Detector)]

    def fit_features(self, features: Features, context: FitContext) -> Detector:
        """Fit every member, and put their scores on one scale.

        Raises:
            InputError: a single normal, and copies of it.
            NumericalError: features, or a fitted model, that are not finite.
        """
        if not len(features):
            raise InputError("no normal images to fit to; give at least one")
        parts = _parts(features, copies=context.turned_copies)
        scales = []
        for place, member in enumerate(self.each):
            own = features.member(place)
            scales.append(self._scale(member, own, parts, context_of_part(context, f"member {place}")))
            member.fit_features(own, context_of_part(context, f"member {place}"))
        self.scales = torch.tensor(scales, dtype=torch.float64, device=context.device)
        self.eval().requires_grad_(False)
        return self

    def finish_fit(self) -> None:
        """Make what follows from fitted heads."""
        for member in self.each:
            member.finish_fit()
        self.eval().requires_grad_(False)

    def _scale(
        self, member: Detector, features: Features, parts: Sequence[Part], context: FitContext
    ) -> tuple[float, float]:
        """Mean and deviation of a member's scores of normals, each by a twin that was fitted without it."""
        found = []
        for place, (fitted, held_out) in enumerate(parts):
            twin = member.unfitted()
            twin.fit_features(features.take(fitted), context_of_part(context, f"part {place} of {len(parts)}"))
            found.append(twin.to(context.device).score_features(features.take(held_out)).scores.double().cpu())
        scores = torch.cat(found)
        mean, deviation = float(scores.mean()), float(scores.std())
        # Normals that all score alike, up to rounding, leave the unit as it is: nothing is divided by next to nothing.
        return mean, deviation if deviation > ROUNDING * abs(mean) else 1.0

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Features of uint8 [N, 3, H, W] images, of all members."""
        return merged([member.extract(images) for member in self.each])

    def try_out(self) -> None:
        """As `Detector.try_out`, of every member."""
        for member in self.each:
            member.try_out()

    def look(self, images: Tensor) -> Look:
        """What is seen in images, uint8 [B, 3, H, W]. Raises as `Detector.look`."""
        return self._mean([member.look(images) for member in self.each])

    def look_at(self, features: Features) -> Look:
        """What is seen in features of all members. Raises as `Detector.look_at`."""
        return self._mean([member.look_at(features.member(place)) for place, member in enumerate(self.each)])

    def _mean(self, looks: Sequence[Look]) -> Look:
        """The mean of what the members see, on one scale, tile by tile; with the first one's patch scores."""
        scores, maps = torch.zeros_like(looks[0].scores), torch.zeros_like(looks[0].maps)
        for one, (mean, deviation) in zip(looks, self.scales.tolist(), strict=True):
            scores += (one.scores - mean) / (deviation * len(looks))
            maps += (one.maps - mean) / (deviation * len(looks))
        return Look(scores, maps, looks[0].patches)

    def extra_tensors(self) -> dict[str, Tensor]:
        """What an artifact stores beside backbones and heads."""
        return {SCALES: self.scales}

    def import_extra(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `extra_tensors` gave. Raises `KeyError` or `ValueError` for tensors that are not ours."""
        scales = tensors[SCALES]
        sound = scales.shape == self.scales.shape and scales.dtype == torch.float64
        if not sound or not bool(torch.isfinite(scales).all() and (scales[:, 1] > 0).all()):
            raise ValueError(f"scales {list(scales.shape)} are not those of {len(self.members)} members")
        self.scales = scales


def _parts(features: Features, *, copies: int) -> list[Part]:
    """How the normals are divided: each part is scored by what was fitted without it.

    Images with the very same features, and turned copies of one image, are in the same part; copies are not scored.

    Args:
        copies: of each image, which come after all images: those of the first, those of the second and so on.
    """
    images = len(features) // (1 + copies)
    first = features.maps[features.strides[0]][:, :, : images * features.tiles]
    columns = first.unflatten(2, (-1, features.tiles)).sum(dim=(0, 1, 3), dtype=torch.float64).tolist()
    numbers: dict[float, int] = {}
    groups = [numbers.setdefault(value, len(numbers)) for value in columns]
    if len(numbers) < LEAST:
        raise InputError(
            "one good image is too little for several backbones at once: their scores cannot be put on one scale; give another "
            "one, or take one backbone"
        )
    count = 2 if len(numbers) >= LEAST_HALVED else len(numbers)
    parts = []
    for part in range(count):
        held_out = [index for index in range(images) if groups[index] % count == part]
        others = [index for index in range(images) if groups[index] % count != part]
        turned = [images + index * copies + turn for index in others for turn in range(copies)]
        parts.append((others + turned, held_out))
    return parts
