"""Turned and mirrored copies of good images, for detectors that compare patches wherever they lie, and have few to compare with.

A memory bank of a few images lacks what a part looks like when it lies otherwise, and scores a good one that does as if it were
defective. AnomalyDINO (Damm et al., arXiv 2405.14529, section 3.1) therefore adds turned copies of its references, eight turns of
45 degrees. Here the turns are those that move every pixel onto a pixel: half a turn and both mirrorings, and where the images are
square also the quarter turns and what is left of the group. Turns of 45 degrees invent corners and blur, and both would be normal
patches ever after; a quarter turn of an image that is not square has other proportions once it is brought to the common size.

What it costs: patches of a turned part count as good. A part that is aligned by its fixture and lies the wrong way round is then
found worse, which ``turned_copies: false`` avoids. A detector that learns what is normal at each position, such as PaDiM, would
be ruined by images in which every position shows another place of the part, and gets none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from detectors.data.images import open_image
from detectors.data.samples import ImageSet, Sample

FEW = 16
"""Up to so many good images to fit to are few."""
OF_ANY_SHAPE, OF_SQUARES = (2, 4, 6), (1, 2, 3, 4, 5, 6, 7)
"""Turns of images of any shape and of square ones, as `Sample.turn` numbers them."""


@dataclass(frozen=True)
class References:
    """What a detector is fitted to: images, and turned copies of each."""

    image_set: ImageSet
    """The images [N], then the copies of the first, those of the second and so on [N * (1 + copies)]."""
    copies: int = 0
    """Of each image."""
    count: int = 0
    """N; of a set without copies it is not used."""

    def rows(self, images: range | tuple[int, ...] | list[int]) -> list[int]:
        """Indices in `image_set` of some images [n] and then of their copies, in this order."""
        copies = [self.count + image * self.copies + turn for image in images for turn in range(self.copies)]
        return [*images, *copies]


def with_turned_copies(images: ImageSet) -> References:
    """The images with turned copies of each.

    Raises:
        InputError: an image cannot be read.
    """
    turns = OF_SQUARES if _all_square(images) else OF_ANY_SHAPE
    copies = [_turned(sample, turn) for sample in images.samples for turn in turns]
    return References(replace(images, samples=(*images.samples, *copies)), len(turns), len(images))


def _turned(sample: Sample, turn: int) -> Sample:
    return replace(sample, key=f"{sample.key}#turn{turn}", turn=turn)


def _all_square(images: ImageSet) -> bool:
    height, width = images.image_size
    return height == width and all(_is_square(sample) for sample in images.samples)


def _is_square(sample: Sample) -> bool:
    width, height = open_image(sample.file).size
    return width == height
