"""Other paintings of the same kinds and grades in the same good images: fresh evidence about settings of detectors."""

from __future__ import annotations

from dataclasses import replace

from detectors.data.painting.recipe import Painting, again
from detectors.data.samples import ImageSet, Sample


def repainted(image_set: ImageSet, *, seed: int) -> ImageSet:
    """The set with every painted defect painted anew: the same kind and grade into the same image, of another size, opacity,
    place and content within them.

    Keys and order stay. What is not painted, or by the first version of recipes, stays as it is; where nothing is painted
    this is the set itself.
    """
    if image_set.painted is None:
        return image_set
    side = min(image_set.image_size)
    return replace(image_set, samples=tuple(_repainted(sample, side, seed) for sample in image_set.samples))


def _repainted(sample: Sample, side: int, seed: int) -> Sample:
    if not isinstance(sample.recipe, Painting):
        return sample
    return replace(sample, recipe=again(sample.recipe, image=sample.key, side=side, seed=seed))
