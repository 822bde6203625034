"""What a detector of a study is fitted to: the good images, and turned copies of them where these are few."""

from __future__ import annotations

from detectors.base import Head
from detectors.data.samples import ImageSet
from detectors.data.turning import FEW, References, with_turned_copies
from studies.file.config import StudyConfig


def references(images: ImageSet, head: Head, config: StudyConfig, *, of: int | None = None) -> References:
    """The images, with turned copies where the head takes some and they are few, or the study file wants them.

    Studies of before there were any, which have no version of recipes, or the first, go on without.

    Args:
        head: of the setting, fitted or not.
        of: number of images that these are a part of, which decides whether they are few: a fit to a part is compared with one to
            all. None where these are all.

    Raises:
        InputError: an image cannot be read.
    """
    wanted = config.turned_copies
    if wanted is None:
        wanted = (config.recipes or 1) > 1 and (len(images) if of is None else of) <= FEW
    # One that depends on the position would learn other places of the part at each.
    takes_them = head.turned_copies and not head.positional
    return with_turned_copies(images) if wanted and takes_them else References(images)
