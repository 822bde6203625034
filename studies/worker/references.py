"""What a detector of a study is fitted to: the good images, and turned copies of them where these are few."""

from __future__ import annotations

from detectors.base import Head
from detectors.data.samples import ImageSet
from detectors.data.turning import FEW, References, with_turned_copies
from studies.file.config import StudyConfig


def references(images: ImageSet, head: type[Head], config: StudyConfig) -> References:
    """The images, with turned copies where the head takes some and they are few, or the study file wants them.

    Studies of before there were any, which have no version of recipes, or the first, go on without.

    Raises:
        InputError: an image cannot be read.
    """
    wanted = config.turned_copies
    if wanted is None:
        wanted = (config.recipes or 1) > 1 and len(images) <= FEW
    return with_turned_copies(images) if wanted and head.turned_copies else References(images)
