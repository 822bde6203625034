"""A folder of good images that none of the study's image sets holds, such as those of another day."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from detectors.data.copies import PixelDigests, pixel_digests
from detectors.data.folder import read_folder
from detectors.data.samples import GOOD, ImageSet
from detectors.data.splits import Splits
from detectors.errors import InputError

DIGEST = " (sha256 "
"""Between folder and digest in `named`."""


FITTED, DIGITS = "new_images", 32
"""Key of a retrained detector's provenance that holds what it was fitted to beside the study's images, and how many digits of the
digest of each image's pixels are kept there."""


def good_images(
    folder: Path, splits: Splits, *, known: PixelDigests | None = None, fitted: Collection[str] = ()
) -> ImageSet:
    """The images of a folder, as a set named ``images``.

    Args:
        splits: the study's image sets; their image size is taken.
        fitted: what else the detector was fitted to, as under `FITTED`.
        known: pixels of files that were decoded before; what is found out is added.

    Raises:
        InputError: no such folder, images of defects in it, or one that a set of the study holds, by its pixels.
    """
    dataset = read_folder(folder)
    if dataset.defect_types:
        raise InputError(
            f"{folder}: contains images of defects ({', '.join(dataset.defect_types)}); name the folder of the good ones"
        )
    samples = [replace(one, key=f"images/{one.key}", defect_type=GOOD) for one in (*dataset.train, *dataset.test)]
    held = [(image_set.name, sample) for image_set in splits.sets for sample in image_set.samples]
    cache: PixelDigests = {} if known is None else known
    contents = pixel_digests([sample.file for _, sample in held], cache)
    owners = {content: owner for content, owner in zip(contents, held, strict=True) if content is not None}
    for sample, content in zip(samples, pixel_digests([one.file for one in samples], cache), strict=True):
        if content is not None and content[:DIGITS] in fitted:
            raise InputError(f"{sample.file}: the detector was fitted to this image; leave it out")
        if content in owners:
            name, twin = owners[content]
            raise InputError(
                f"{sample.file}: shows the same pixels as {twin.file}, which is in {name}; leave it out: a threshold rests on "
                "images that the study does not know"
            )
    return ImageSet("images", tuple(samples), splits.train.image_size)


def named(folder: Path, images: ImageSet) -> str:
    """How a threshold names the images that it rests on: the folder and their digest."""
    return f"{folder}{DIGEST}{images.digest[:16]})"
