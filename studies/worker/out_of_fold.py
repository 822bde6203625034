"""Scores of training images by detectors that were fitted without them: what a threshold rests on beside the held-out images.

Heads that count (`Head.trained` is False) are fitted once more for each of K folds, without it, and score it. Heads that train
leave one part in K out of their only fit, and score it with the very detector that is kept: a second training would take as long
as the first, and the scores of two trainings are not on one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.base import Prediction
from detectors.data.images import Size
from detectors.data.samples import Sample
from detectors.data.splits import stable_order
from detectors.detector import Detector
from detectors.features import Features
from detectors.scoring.anomaly_map import resampled

FEW, FOLDS_OF_FEW, FOLDS = 1000, 10, 5
"""Of fewer images than `FEW` more folds. A twin scores new images the higher the fewer it has seen: a Mahalanobis distance in p
dimensions from n images is about sqrt((n - 1) / (n - p - 2)) times too large. For 100 dimensions and four fifths of 220 images
that is an eighth more than for all 220, for nine tenths a twentieth."""
LEAST, LEAST_TRAINED = 4, 20
"""Images with different contents from which on there are folds: every twin still has three images, every training sixteen."""
SCORED_AT_ONCE = 64
"""Images whose maps are held at a time."""
MAP_PIXELS = 2**26
"""Of all maps in memory, 256 MB: a thousand of 256 x 256 pixels, or four of 4096 x 4096."""


@dataclass(frozen=True)
class Part:
    """One part of the training images, by index: `held_out` is scored by a detector that was fitted to `fitted`."""

    fitted: tuple[int, ...]
    held_out: tuple[int, ...]


def divide(samples: Sequence[Sample], groups: Sequence[int], wanted: int | None, *, trained: bool) -> list[Part]:
    """The parts of the training images; all folds, or for a head that trains the one part that it leaves out.

    Args:
        samples: the images [N].
        groups: a number for the content of each [N]: copies lie in one fold.
        wanted: number of folds; None for the default, 0 for none.

    Returns:
        No part where there are too few images or none is wanted.
    """
    contents = len(set(groups))
    if wanted is None:
        wanted = FOLDS_OF_FEW if contents < FEW and not trained else FOLDS
    folds = min(wanted, contents)
    if folds < 2 or contents < (LEAST_TRAINED if trained else LEAST):
        return []
    fold = _folds(samples, groups, folds)
    parts = [
        Part(tuple(map(int, np.flatnonzero(fold != one))), tuple(map(int, np.flatnonzero(fold == one))))
        for one in range(folds)
    ]
    return parts[:1] if trained else parts


def at_size(prediction: Prediction, size: Size) -> Prediction:
    """A prediction on the CPU, its maps at a size, [B, *size]: that of the study, at which pixels of all its trials count."""
    scores, maps = prediction.scores.cpu(), prediction.maps.cpu()
    return Prediction(scores, maps if maps.shape[1:] == size else resampled(maps, size))


def maps_at_once(detector: Detector) -> int:
    """How many images' maps may be in memory at a time, at least one."""
    height, width = detector.image_size
    return max(1, MAP_PIXELS // (height * width))


def predictions(detector: Detector, features: Features, images: Sequence[int]) -> Iterator[Prediction]:
    """Predictions of some images, on the CPU, some at a time."""
    length = min(SCORED_AT_ONCE, maps_at_once(detector))
    for start in range(0, len(images), length):
        block = detector.score_features(features.take(images[start : start + length]))
        yield Prediction(scores=block.scores.cpu(), maps=block.maps.cpu())


def twin_predictions(
    features: Features, parts: Sequence[Part], fit: Callable[[Features, int], Detector]
) -> Iterator[tuple[tuple[int, ...], Prediction]]:
    """Indices and predictions of every image by the twin that was fitted without it.

    Args:
        features: of all training images.
        fit: makes a detector of the same setting, fitted to the features of fold number k's other images.
    """
    for number, part in enumerate(parts):
        twin = fit(features.take(part.fitted), number)
        done = 0
        for prediction in predictions(twin, features, part.held_out):
            yield part.held_out[done : done + len(prediction)], prediction
            done += len(prediction)


def _folds(samples: Sequence[Sample], groups: Sequence[int], folds: int) -> NDArray[np.int64]:
    """The fold of each image [N]: groups in the stable order of their first image, each to the smallest fold."""
    position = {sample.key: index for index, sample in enumerate(samples)}
    members: dict[int, list[int]] = {}
    for sample in stable_order(samples):
        index = position[sample.key]
        members.setdefault(groups[index], []).append(index)
    fold, sizes = np.empty(len(samples), dtype=np.int64), [0] * folds
    for group in members.values():
        smallest = sizes.index(min(sizes))
        fold[group] = smallest
        sizes[smallest] += len(group)
    return fold
