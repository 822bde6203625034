"""Split protocols: which images a search may see, and which are kept for the final figure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal, get_args

from detectors.data.images import Size
from detectors.data.mvtec import by_key
from detectors.data.samples import GOOD, Dataset, ImageSet, Sample
from detectors.data.synthetic_defects import DEFECT_KINDS, DefectRecipe
from detectors.errors import InputError

Protocol = Literal["holdout", "paper", "synthetic"]
"""How a data set is divided; see `make_splits`."""
MIN_SYNTHETIC_NORMALS = 10
"""Normals that protocol ``synthetic`` needs: four are held out, so that each half has a good and a defective one."""


@dataclass(frozen=True)
class Splits:
    """A data set divided for one study; no image is in two of the sets.

    Raises:
        ValueError: two of the sets share a key or a file.
    """

    protocol: Protocol
    train: ImageSet
    validation: ImageSet | None
    """What a search maximises on; None for protocol ``paper``, which has no search."""
    test: ImageSet

    def __post_init__(self) -> None:
        owners: dict[object, str] = {}
        for image_set in self.sets:
            for sample in image_set.samples:
                for mark in (sample.key, sample.file):
                    if mark in owners:
                        raise ValueError(f"{mark} is in {owners[mark]} and in {image_set.name}")
                    owners[mark] = image_set.name

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """Train, validation where there is one, and test."""
        return tuple(image_set for image_set in (self.train, self.validation, self.test) if image_set is not None)

    @property
    def search_sets(self) -> tuple[ImageSet, ImageSet]:
        """Train and validation: all that a trial may see. Raises `InputError` for protocol ``paper``."""
        if self.validation is None:
            raise InputError(f"protocol {self.protocol} has no validation set to search on; use holdout or synthetic")
        return self.train, self.validation

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over the protocol and the digests of the sets."""
        parts = [self.protocol, *(f"{image_set.name}:{image_set.digest}" for image_set in self.sets)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per set and type, e.g. ``{"train": {"good": 320}, ...}``."""
        return {image_set.name: image_set.counts for image_set in self.sets}


def make_splits(dataset: Dataset, *, protocol: Protocol, image_size: Size, seed: int = 0) -> Splits:
    """Divide a data set; the same images are always divided in the same way.

    - ``holdout``: within each type of the labelled images, ordered by `stable_order`, even ranks are validation and
      odd ranks test.
    - ``paper``: no validation, every labelled image is test.
    - ``synthetic``: 20 % of the normals (at least four) are held out and halved into validation and test; every second
      image of each half gets a synthetic defect. Labelled images, if any, are not used.

    `seed` chooses the synthetic defects, never which images are held out.

    Raises:
        InputError: an unknown protocol, an impossible size, too few images for the protocol.
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol {protocol!r} is unknown; choose one of {', '.join(get_args(Protocol))}")
    if min(image_size) < 1:
        raise InputError(f"image size {image_size[0]} x {image_size[1]}: height and width need at least 1 pixel")
    train: Iterable[Sample] = dataset.train
    validation: Iterable[Sample] = ()
    test: Iterable[Sample] = dataset.test
    if protocol == "holdout":
        validation, test = _halves_within_types(dataset.test)
        _require_both_labels(dataset, "validation", validation)
    elif protocol == "synthetic":
        train, validation, test = _held_out_with_defects(dataset, seed)
    _require_both_labels(dataset, "test", test)
    return Splits(
        protocol=protocol,
        train=ImageSet("train", by_key(train), image_size),
        validation=None if protocol == "paper" else ImageSet("validation", by_key(validation), image_size),
        test=ImageSet("test", by_key(test), image_size),
    )


def stable_order(samples: Iterable[Sample]) -> list[Sample]:
    """Order samples by the sha256 of ``<type>/<file name>``: as good as shuffled, and the same on every machine."""

    def rank(sample: Sample) -> tuple[str, str]:
        name = f"{sample.defect_type}/{PurePosixPath(sample.key).name}"
        return hashlib.sha256(name.encode()).hexdigest(), sample.key

    return sorted(samples, key=rank)


def _halves_within_types(samples: Iterable[Sample]) -> tuple[list[Sample], list[Sample]]:
    by_type: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in stable_order(samples):
        by_type[sample.defect_type].append(sample)
    even = [sample for members in by_type.values() for sample in members[0::2]]
    odd = [sample for members in by_type.values() for sample in members[1::2]]
    return even, odd


def _held_out_with_defects(dataset: Dataset, seed: int) -> tuple[list[Sample], list[Sample], list[Sample]]:
    if len(dataset.train) < MIN_SYNTHETIC_NORMALS:
        raise InputError(
            f"{dataset.category}: protocol synthetic needs at least {MIN_SYNTHETIC_NORMALS} good training images, "
            f"there are {len(dataset.train)}; add some"
        )
    order = stable_order(dataset.train)
    n_held_out = max(4, len(order) // 5)
    held_out, train = order[:n_held_out], order[n_held_out:]
    return train, _with_defects(held_out[0::2], seed), _with_defects(held_out[1::2], seed)


def _with_defects(normals: list[Sample], seed: int) -> list[Sample]:
    """Every second normal as a sample with a synthetic defect, of each kind in turn."""
    painted = [
        _with_defect(sample, DEFECT_KINDS[index % len(DEFECT_KINDS)], seed)
        for index, sample in enumerate(normals[1::2])
    ]
    return normals[0::2] + painted


def _with_defect(sample: Sample, kind: str, seed: int) -> Sample:
    recipe_seed = int.from_bytes(hashlib.sha256(f"{seed}\0{sample.key}".encode()).digest()[:4], "big")
    return replace(
        sample,
        key=f"{sample.key}#{kind}",
        defect_type=f"synthetic_{kind}",
        recipe=DefectRecipe(kind=kind, seed=recipe_seed),
    )


def _require_both_labels(dataset: Dataset, part: str, samples: Iterable[Sample]) -> None:
    good = [sample.defect_type == GOOD for sample in samples]
    if any(good) and not all(good):
        return
    lacking = "labelled" if not good else "defective" if all(good) else "good"
    raise InputError(
        f"{dataset.category}: no {lacking} images are left for {part}; "
        f"add {lacking} images, or use protocol synthetic, which needs good ones only"
    )
