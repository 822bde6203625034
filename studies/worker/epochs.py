"""The figures of a detector that trains over epochs, free of the choice of its epoch.

A training keeps the weights of the epoch with the best validation value. The highest of many values that go up and down is too
good by itself, and a memory bank, which has one value, has no such advantage. So the trial is not judged by it. The validation
images are halved; each half is scored with the epoch that was best on the other half, and the figures of the trial are those of
these scores together. No image has a say in the epoch that it is scored with. The weights that are kept still come from the
epoch that is best on all of validation, for there is no better reason to choose one; only what is said of them changes.

This was decided before any figure of it was looked at. Of the alternatives, taking the last epoch whatever it is worth gives up
detectors that are better before they have trained to the end, and a smoothed curve still reports its own maximum. What is left:
halves choose worse than the whole does, so that the figures are a little low rather than high; and the number of epochs
remains a setting of the search like any other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from detectors.base import Prediction
from detectors.data.images import Size
from detectors.data.samples import ImageSet
from detectors.data.splits import stable_order
from detectors.detector import Detector
from detectors.features import Features
from detectors.files import write_bytes
from detectors.scoring.evaluation import OPERATING_METRICS, single_metric
from detectors.scoring.metrics import UndefinedMetricError
from detectors.scoring.operating_point import GoodScores, PixelSpread, Threshold, choose_threshold
from studies.worker.out_of_fold import at_size

FILE = "crossed.safetensors"
Scores = tuple[Tensor, Tensor]
"""Image scores [n] and patch scores [n, h, w], on the CPU."""


def halves(image_set: ImageSet) -> NDArray[np.int8]:
    """0 or 1 for each image [N]: the good ones are halved and so are the defective, type by type, by a hash of their names.

    What is painted into a good image is on its side.
    """
    half = np.zeros(len(image_set), dtype=np.int8)
    if image_set.painted is not None:
        good = [sample for sample in stable_order(image_set.samples) if not sample.label]
        side = {file: rank % 2 for rank, file in enumerate(dict.fromkeys(sample.file for sample in good))}
        return np.array([side[sample.file] for sample in image_set.samples], dtype=np.int8)
    place = {sample.key: index for index, sample in enumerate(image_set.samples)}
    # By type, and within it as `stable_order` has it: sorting is stable.
    ordered = sorted(stable_order(image_set.samples), key=lambda sample: sample.defect_type)
    for label in (0, 1):
        for rank, sample in enumerate(sample for sample in ordered if sample.label == label):
            half[place[sample.key]] = rank % 2
    return half


class Validation:
    """The first objective on validation, by which a training chooses its epoch and is pruned; higher is better."""

    def __init__(
        self,
        objective: str,
        detector: Detector,
        features: Features,
        image_set: ImageSet,
        *,
        masks: NDArray[np.bool_] | None,
        crossed: CrossedEpochs | None,
        rate: float = 0.01,
        size: Size | None = None,
    ) -> None:
        """Args:
        features: of the images of the set [N].
        masks: those of the images of `ImageSet.with_pixels`, bool [n, H, W], for an objective on pixels.
        size: of the masks, height and width, where it is not the detector's: maps are brought to it before they are measured.
        rate: false-alarm rate of the threshold, for an objective that depends on one.
        crossed: takes note of every epoch; None where no figure is made of them.
        """
        self.objective, self.detector, self.features = objective, detector, features
        self.image_set, self.masks, self.crossed, self.rate = image_set, masks, crossed, rate
        self.size = size or detector.image_size
        self.seconds = 0.0
        """Spent so far."""

    def __call__(self) -> float:
        """The value of the head as it is now."""
        start = time.perf_counter()
        prediction, patches = self.detector.score_patches(self.features)
        prediction = at_size(prediction, self.size)
        value = self._measure(prediction, list(range(len(self.image_set))))
        if self.crossed is not None:
            self.crossed.see(prediction.scores, patches.cpu(), lambda rows: self._measure_if_defined(prediction, rows))
        self.seconds += time.perf_counter() - start
        return value

    def judged(self) -> Prediction | None:
        """What the detector is judged by now that it is fitted; None where it did not train over epochs."""
        if self.crossed is None or self.crossed.is_empty:
            return None
        prediction, patches = self.detector.score_patches(self.features)
        scores, crossed = self.crossed.scores((prediction.scores.cpu(), patches.cpu()))
        return Prediction(scores, self.detector.maps_of(crossed.to(patches.device)).cpu())

    def _measure(self, prediction: Prediction, rows: list[int]) -> float:
        threshold = self._threshold(prediction, rows) if self.objective in OPERATING_METRICS else None
        masks, painted = self.masks, self.image_set.painted
        if masks is not None:
            place = {row: index for index, row in enumerate(self.image_set.with_pixels)}
            rows = [row for row in rows if row in place]
            masks = masks[[place[row] for row in rows]]
        return single_metric(
            self.objective,
            scores=prediction.scores[rows],
            maps=prediction.maps[rows],
            labels=self.image_set.labels[rows],
            masks=masks,
            threshold=threshold,
            painted=None if painted is None else painted.take(rows),
        )

    def _threshold(self, prediction: Prediction, rows: list[int]) -> Threshold:
        """The threshold between two epochs: from the good images among these rows alone."""
        good = [row for row in rows if not self.image_set.labels[row]]
        spread = PixelSpread()
        spread.add(prediction.maps[good])
        scores = GoodScores(prediction.scores[good].numpy(), self.image_set.name)
        return choose_threshold(rule="false_alarm_rate", good=scores, rate=self.rate, pixel=spread.threshold)

    def _measure_if_defined(self, prediction: Prediction, rows: list[int]) -> float:
        try:
            return self._measure(prediction, rows)
        except UndefinedMetricError:
            return math.nan


class CrossedEpochs:
    """For each half of the validation images their scores in the epoch that is best on the other half so far.

    It is kept in a file beside the training's checkpoint: a training that goes on after a crash ends with the same scores.
    """

    def __init__(self, half: NDArray[np.int8], folder: Path, *, identity: str) -> None:
        """Args:
        half: 0 or 1 for each image [N].
        identity: what the training follows from, as text; a file of another one is not read.
        """
        self._rows = [torch.from_numpy(np.flatnonzero(half == side)) for side in (0, 1)]
        self._path, self._identity = folder / FILE, identity
        self._best = [-math.inf, -math.inf]
        self._scores: list[Scores | None] = [None, None]
        self._load()

    @property
    def is_empty(self) -> bool:
        """Whether no epoch was seen: the detector does not train over epochs, or is not validated."""
        return self._scores[0] is None

    def see(self, scores: Tensor, patches: Tensor, value: Callable[[list[int]], float]) -> None:
        """Take note of an epoch.

        Args:
            scores: image scores [N].
            patches: patch scores [N, h, w].
            value: the objective of some of the images, by their indices; higher is better, NaN where they do not define it.
        """
        values = [value(rows.tolist()) for rows in self._rows]
        # A half that defines no value chooses nothing: the last epoch then stands for all, as where nothing is validated.
        better = [side for side in (0, 1) if math.isnan(values[side]) or values[side] > self._best[side]]
        if not better:
            return
        scores, patches = _level(scores.cpu()), _level(patches.cpu())
        for side in better:
            other = self._rows[1 - side]
            self._scores[1 - side] = (scores[other], patches[other])
            if not math.isnan(values[side]):
                self._best[side] = values[side]
        self._save()

    def scores(self, kept: Scores) -> Scores:
        """Image scores [N] and patch scores [N, h, w]: each half in the epoch that was best on the other.

        Epochs have scales of their own. The median and the interquartile range over all images, which are the same in each epoch,
        are brought to those of the epoch that was kept; no label is looked at, and the order within an epoch stays. So a
        threshold of the detector applies.

        Args:
            kept: scores of the same images in the epoch that was kept.
        """
        first, second = self._scores
        if first is None or second is None:
            raise RuntimeError("no epoch was seen")
        total = sum(map(len, self._rows))
        images = torch.empty(total, dtype=torch.float64)
        patches = torch.empty(total, *first[1].shape[1:], dtype=torch.float64)
        for rows, (own_images, own_patches) in zip(self._rows, (first, second), strict=True):
            images[rows], patches[rows] = own_images, own_patches
        return _to_scale_of(kept[0], images), _to_scale_of(kept[1], patches)

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for side, both in enumerate(self._scores):
            if both is not None:
                tensors |= {f"{side}.images": both[0], f"{side}.patches": both[1]}
        state = {"identity": self._identity, "best": self._best}
        write_bytes(self._path, safetensors.torch.save(tensors, {"state": json.dumps(state)}))

    def _load(self) -> None:
        try:
            with safetensors.safe_open(self._path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                if state["identity"] != self._identity:
                    return
                scores = [(file.get_tensor(f"{side}.images"), file.get_tensor(f"{side}.patches")) for side in (0, 1)]
                best = [float(value) for value in state["best"]]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return
        if [len(images) for images, _ in scores] == [len(rows) for rows in self._rows]:
            self._best, self._scores = best, list(scores)


def _level(values: Tensor) -> Tensor:
    """Relative to the median, in interquartile ranges, float64."""
    middle, spread = _scale(values)
    return (values.double() - middle) / spread


def _to_scale_of(kept: Tensor, levelled: Tensor) -> Tensor:
    middle, spread = _scale(kept)
    return (levelled * spread + middle).float()


def _scale(values: Tensor) -> tuple[float, float]:
    """Median and interquartile range; 1 where the latter is nothing."""
    # numpy's quantile, for torch's refuses more than 2**24 values.
    low, middle, high = np.quantile(values.double().cpu().numpy(), (0.25, 0.5, 0.75))
    return float(middle), float(high - low) or 1.0
