"""New good images for a retraining: none that the study has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detectors.data.copies import PixelDigests, content_groups, named, pixel_digests
from detectors.data.folder import read_folder
from detectors.data.images import read_image
from detectors.data.near_copies import near_copies, thumbnail
from detectors.data.samples import GOOD, Sample
from detectors.errors import InputError
from studies.file.datasets import Part
from studies.file.known_pixels import known_pixels
from studies.home import Home


@dataclass(frozen=True)
class NewImages:
    """New images of good parts."""

    samples: tuple[Sample, ...] = ()
    contents: tuple[int, ...] = ()
    """A number for the pixels of each image: equal ones are copies."""
    warnings: tuple[str, ...] = ()
    """Images that are nearly the same as one that the study is judged by, a line each."""

    def __len__(self) -> int:
        return len(self.samples)


def read_new_images(folder: Path, part: Part, home: Home) -> NewImages:
    """Read the new images of one product; which pixels a file holds is kept in the home.

    Args:
        part: the study's own images of the product.

    Raises:
        InputError: there are images of defects in the folder, or one with the pixels of an image of the study.
    """
    with known_pixels(home) as known:
        dataset = read_folder(folder, cache=known)
        if dataset.defect_types:
            kinds = ", ".join(dataset.defect_types)
            raise InputError(f"{folder}: contains images of defects ({kinds}); name the folder of the good ones")
        new = [replace(sample, key=f"new/{sample.key}", defect_type=GOOD) for sample in (*dataset.train, *dataset.test)]
        _refuse_known(new, part, known)
        contents = content_groups(new, known)
    return NewImages(tuple(new), tuple(contents), tuple(_nearly_judged_by(new, part)))


def _refuse_known(new: Sequence[Sample], part: Part, known: PixelDigests) -> None:
    """Raise `InputError`, naming both files, if an image has the pixels of one of the study, in whichever set or in none."""
    sets = {sample.file: image_set.name for image_set in part.splits.sets for sample in image_set.samples}
    study = [*part.dataset.test, *part.dataset.train]
    owners: dict[str, Sample] = {}
    for sample, pixels in zip(study, pixel_digests([sample.file for sample in study], known), strict=True):
        if pixels is not None:
            owners.setdefault(pixels, sample)
    contents = pixel_digests([sample.file for sample in new], known)
    twins = [
        (sample, owners[pixels])
        for sample, pixels in zip(new, contents, strict=True)
        if pixels is not None and pixels in owners
    ]
    if not twins:
        return
    sample, twin = twins[0]
    others = f" ({len(twins) - 1} more of the new images are in the study too)" if len(twins) > 1 else ""
    raise InputError(
        f"{sample.file}: is the same image as {twin.file}, {sets.get(twin.file, 'a labelled image')} of the study{others}; "
        "take such images out: what is fitted, held out or tested on may be none of them"
    )


def _nearly_judged_by(new: Sequence[Sample], part: Part) -> list[str]:
    """A line on new images that are nearly the same as one of validation or test, if there are any."""
    judged = [sample for image_set in part.splits.sets[1:] for sample in image_set.samples if sample.recipe is None]
    files = [*(sample.file for sample in judged), *(sample.file for sample in new)]
    pairs = [
        (files[pair.second].name, judged[pair.first].key)
        for pair in near_copies([thumbnail(read_image(file)) for file in files])
        if pair.first < len(judged) <= pair.second
    ]
    if not pairs:
        return []
    return [
        f"{len(pairs)} new images are nearly the same as one that the study is judged by, which flatters the figures: "
        + named([f"{name} ({key})" for name, key in pairs])
    ]
