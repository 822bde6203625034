"""Several backbones in one detector: each has a head of its own, and an image's score is the mean of theirs on one scale.

The scores of two backbones have different units, and which one is larger says nothing. They are brought to one scale by what they
say of good images that they have not seen: the normals are halved, each half is scored by heads fitted to the other one, and
mean and standard deviation of these scores are taken off. No test image and no label has a say in it. PatchCore's paper averages
members too (arXiv 2106.08265, section 4.4.1).
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
from detectors.features import Features, merged
from detectors.tiles import Tiles

LEAST = 4
"""Good images with different features from which on members can be put on one scale."""
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
        first = self._members[0]
        self.backbone, self.head = backbone, head  # type: ignore[assignment]
        self.image_size, self.smoothing_sigma = image_size, smoothing_sigma
        self.tiles, self.tile_grid = tiles, first.tile_grid
        self.threshold = self.anomaly_map = None
        self.heads = nn.ModuleList(twin for member in self._members for twin in member.twins)
        self.register_buffer("scales", torch.tensor([[0.0, 1.0]] * len(heads), dtype=torch.float64), persistent=False)
        self.eval()

    @property
    def _members(self) -> list[Detector]:
        return [member for member in self.members if isinstance(member, Detector)]

    def fit_features(self, features: Features, context: FitContext) -> Detector:
        """Fit every member, and put their scores on one scale.

        Raises:
            InputError: fewer than `LEAST` different normals.
            NumericalError: features, or a fitted model, that are not finite.
        """
        if not len(features):
            raise InputError("no normal images to fit to; give at least one")
        halves = _halves(features)
        scales = []
        for place, member in enumerate(self._members):
            own = features.member(place)
            scales.append(self._scale(member, own, halves, context_of_part(context, f"member {place}")))
            member.fit_features(own, context_of_part(context, f"member {place}"))
        self.scales = torch.tensor(scales, dtype=torch.float64, device=context.device)
        self.eval().requires_grad_(False)
        return self

    def finish_fit(self) -> None:
        """Make what follows from fitted heads."""
        for member in self._members:
            member.finish_fit()
        self.eval().requires_grad_(False)

    def _scale(
        self, member: Detector, features: Features, halves: Sequence[Sequence[int]], context: FitContext
    ) -> tuple[float, float]:
        """Mean and deviation of a member's scores of normals, each by a twin that was fitted to the other half."""
        found = []
        for place, (fitted, held_out) in enumerate((halves, halves[::-1])):
            twin = Detector(
                member.backbone,
                type(member.head)(**member.head.settings),
                image_size=self.image_size,
                smoothing_sigma=self.smoothing_sigma,
                tiles=self.tiles,
            )
            twin.fit_features(features.take(fitted), context_of_part(context, f"half {place}"))
            found.append(twin.to(context.device).score_features(features.take(held_out)).scores.double().cpu())
        scores = torch.cat(found)
        mean = float(scores.mean())
        # Normals that all score alike leave the unit as it is.
        return mean, float(scores.std()) or 1.0

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Features of uint8 [N, 3, H, W] images, of all members."""
        return merged([member.extract(images) for member in self._members])

    def try_out(self) -> None:
        """As `Detector.try_out`, of every member."""
        for member in self._members:
            member.try_out()

    def look(self, images: Tensor) -> Look:
        """What is seen in images, uint8 [B, 3, H, W]. Raises as `Detector.look`."""
        return self._mean([member.look(images) for member in self._members])

    def look_at(self, features: Features) -> Look:
        """What is seen in features of all members. Raises as `Detector.look_at`."""
        return self._mean([member.look_at(features.member(place)) for place, member in enumerate(self._members)])

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


def _halves(features: Features) -> tuple[list[int], list[int]]:
    """Indices of the normals in two halves; images with the very same features are in the same one."""
    first = features.maps[features.strides[0]]
    columns = first.unflatten(2, (-1, features.tiles)).sum(dim=(0, 1, 3), dtype=torch.float64).tolist()
    sides: dict[float, int] = {}
    parts: tuple[list[int], list[int]] = ([], [])
    for index, value in enumerate(columns):
        parts[sides.setdefault(value, len(sides) % 2)].append(index)
    if len(sides) < LEAST:
        raise InputError(
            f"{len(sides)} different good images are too few for several backbones at once: their scores cannot be put on one "
            f"scale; give at least {LEAST}, or take one backbone"
        )
    return parts
