"""Split protocols: which images a search may see, and which are kept for the final figure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal, get_args

from detectors.data.copies import PixelDigests, Progress, content_groups, named
from detectors.data.images import Size
from detectors.data.mvtec import by_key
from detectors.data.painted_types import PAINTED, PAINTED_V1
from detectors.data.painting.recipe import CELLS, painting
from detectors.data.samples import GOOD, Dataset, ImageSet, Sample
from detectors.data.synthetic_defects import DEFECT_KINDS, DefectRecipe
from detectors.errors import InputError

Protocol = Literal["holdout", "paper", "synthetic"]
"""How a data set is divided; see `make_splits`."""
RECIPES = 2
"""Version of the painted defects, and of the division, of a new study with protocol ``synthetic``."""
MIN_NORMALS_V1 = 10
"""Normals that the first version needs, copies counted once: four are held out, a good and a defective one in each half."""
MIN_NORMALS = 4
"""Normals from which on the second version holds some out: one is for test, and the others are held out in turns."""
ENOUGH_TO_HOLD_OUT, LEAST_HELD_OUT = 100, 30
"""From so many normals on some are held out for good, at least so many; fewer are all held out in turns."""
MOST_FOLDS = 5
"""Turns in which normals are held out; each is a fit of every trial."""
LEAST_PAINTED, LEAST_PAINTED_TEST = 3 * len(CELLS), len(CELLS)
"""Painted images of validation and of test, at least: three and one of each cell."""
PAINTED_IN_SAMPLE = 4
"""Painted images of a validation that nothing is held out for."""
ENOUGH_LABELLED = 40
"""Labelled images of validation, copies counted once, from which on the other half is kept for test; see `make_splits`."""

Groups = list[list[Sample]]
"""Samples by content: those in one list have the same pixels and stay on one side."""


@dataclass(frozen=True)
class Splits:
    """A data set divided for one study; no file is in two of the sets.

    Nor is an image that was saved twice, except with protocol ``paper``; then `notes` says so.

    Raises:
        ValueError: two of the sets share a key or a file.
    """

    protocol: Protocol
    train: ImageSet
    validation: ImageSet | None
    """What a search maximises on; None for protocol ``paper``, which has no search."""
    test: ImageSet
    notes: tuple[str, ...] = ()
    """What a person must know about images that are both labelled and for training, one line each; not in `digest`."""
    copies: int = 0
    """Images of the data set whose pixels another one before them has; not in `digest`."""
    folds: int = 0
    """Turns in which the normals of train are held out: validation is then these normals, and what is painted into each, and is
    scored by detectors that were fitted without them. 0 where validation is held out for good."""
    keeps_test: bool = True
    """Whether `test` is kept from the search. Else it is validation under the name of test, for models to be compared on: all
    labelled images where these are few (`nested`), or few normals, of which nothing is held out (`in_sample`)."""

    def __post_init__(self) -> None:
        owners: dict[object, str] = {}
        apart = (self.train,) if self.in_sample else (self.train, self.test) if self.folds else self.sets
        for image_set in apart:
            for sample in image_set.samples:
                if sample.key in owners:
                    raise ValueError(f"{sample.key} is in {owners[sample.key]} and in {image_set.name}")
                owners[sample.key] = image_set.name
                # A file may be painted into several times, within one set.
                if owners.setdefault(sample.file, image_set.name) != image_set.name:
                    raise ValueError(f"{sample.file} is in {owners[sample.file]} and in {image_set.name}")

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """Train, validation where there is one, and test where it `keeps_test`."""
        test = self.test if self.keeps_test else None
        return tuple(image_set for image_set in (self.train, self.validation, test) if image_set is not None)

    @property
    def unseen(self) -> ImageSet | None:
        """The validation images if a detector that was fitted to all of train has not seen them; None where they are its own."""
        return None if self.folds or self.in_sample else self.validation

    @property
    def nested(self) -> bool:
        """Whether the labelled images are too few to keep any for test, and validation holds all of them. What a search is worth
        is told by a nested estimate (`detectors.scoring.nested`), never by these."""
        return not self.keeps_test and self.protocol == "holdout"

    @property
    def in_sample(self) -> bool:
        """Whether the normals are so few that none is held out: validation shows them and what is painted into them, and no
        figure of a detector, which was fitted to the same images, means anything."""
        return not self.keeps_test and self.protocol == "synthetic"

    def resized(self, size: Size) -> Splits:
        """The same images and painted defects, resized to another height and width in pixels."""
        train, validation, test = (
            None if one is None else replace(one, image_size=size) for one in (self.train, self.validation, self.test)
        )
        assert train is not None
        assert test is not None
        return replace(self, train=train, validation=validation, test=test)

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


def make_splits(
    dataset: Dataset,
    *,
    protocol: Protocol,
    image_size: Size,
    seed: int = 0,
    recipes: int = RECIPES,
    nested_below: int = 0,
    cache: PixelDigests | None = None,
    progress: Progress | None = None,
) -> Splits:
    """Divide a data set; the same images are always divided in the same way.

    - ``holdout``: within each type of the labelled images, ordered by `stable_order`, even ranks are validation and
      odd ranks test. Where fewer than `nested_below` would be validation, all are (`Splits.nested`): half of so few chooses
      badly, and the other half judges as badly. At least two of each label are needed in either case.
    - ``paper``: no validation, every labelled image is test.
    - ``synthetic``: a tenth of the normals is test. Of 100 or more, a fifth (at least 30) is validation and the others are
      train; fewer are all train, and validation holds them out in turns (`Splits.folds`). Every image of validation and test
      counts as good and is painted several times; all kinds of defects, sizes and opacities come equally often
      (`detectors.data.painting`). Labelled images, if any, are not used. Of fewer than `MIN_NORMALS` nothing is held out
      (`Splits.in_sample`). In the first version of recipes a fifth of the normals (at least four) was halved into validation
      and test, and every second image of each half was painted once.

    Copies, which are images with the same decoded pixels, have the rank of the first of them and go where it goes. With
    ``holdout`` a training image that is labelled too is left out of train: there are many normals, few labelled images.
    With ``paper`` nothing is changed. Both are told in `Splits.notes`.

    `seed` chooses the synthetic defects, never which images are held out.

    Args:
        recipes: version of the painted defects and of the division that goes with them, 1 or 2.
        nested_below: copies counted once; 0 keeps a half for test however few there are.
        cache: pixels of files that are known already; see `content_groups`.
        progress: called while other files are decoded.

    Raises:
        InputError: an unknown protocol, an impossible size, too few images for the protocol, or no training image that
            is not labelled too.
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol {protocol!r} is unknown; choose one of {', '.join(get_args(Protocol))}")
    if min(image_size) < 1:
        raise InputError(f"image size {image_size[0]} x {image_size[1]}: height and width need at least 1 pixel")
    samples = [*dataset.train, *(() if protocol == "synthetic" else dataset.test)]
    contents = dict(zip(samples, content_groups(samples, cache, progress=progress), strict=True))
    train: Iterable[Sample] = dataset.train
    validation: Iterable[Sample] = ()
    test: Iterable[Sample] = dataset.test
    notes: tuple[str, ...] = ()
    folds, keeps_test = 0, True
    if protocol == "holdout":
        train, notes = _without_labelled(dataset, contents)
        validation, test = _halves_within_types(dataset.test, contents)
        keeps_test = len({contents[sample] for sample in validation}) >= nested_below
        if not keeps_test:
            validation = test = dataset.test
            _require_two_of_each_label(dataset, contents)
        _require_both_labels(dataset, "validation", validation)
    elif protocol == "synthetic" and recipes == 1:
        train, validation, test = _held_out_with_defects(dataset, contents, seed)
    elif protocol == "synthetic":
        train, validation, test, folds = _painted(dataset, contents, seed, side=min(image_size))
        keeps_test = bool(test)
        test = test or validation
    else:
        notes = _both_trained_and_tested(dataset, contents)
    _require_both_labels(dataset, "test", test)
    return Splits(
        protocol=protocol,
        train=ImageSet("train", by_key(train), image_size),
        validation=None if protocol == "paper" else ImageSet("validation", by_key(validation), image_size),
        test=ImageSet("test", by_key(test), image_size),
        notes=notes,
        copies=len(samples) - len(set(contents.values())),
        folds=folds,
        keeps_test=keeps_test,
    )


def stable_order(samples: Iterable[Sample]) -> list[Sample]:
    """Order samples by the sha256 of ``<type>/<file name>``: as good as shuffled, and the same on every machine."""

    def rank(sample: Sample) -> tuple[str, str]:
        name = f"{sample.defect_type}/{PurePosixPath(sample.key).name}"
        return hashlib.sha256(name.encode()).hexdigest(), sample.key

    return sorted(samples, key=rank)


def grouped(order: Iterable[Sample], contents: Mapping[Sample, int]) -> Groups:
    """Samples by content, the groups in the order of their first samples."""
    groups: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in order:
        groups[contents[sample]].append(sample)
    return list(groups.values())


def _twins(dataset: Dataset, contents: Mapping[Sample, int]) -> dict[Sample, Sample]:
    """{training image: the first labelled image with the same pixels}"""
    labelled: dict[int, Sample] = {}
    for sample in dataset.test:
        labelled.setdefault(contents[sample], sample)
    return {sample: labelled[contents[sample]] for sample in dataset.train if contents[sample] in labelled}


def _without_labelled(dataset: Dataset, contents: Mapping[Sample, int]) -> tuple[list[Sample], tuple[str, ...]]:
    """The training images that are not labelled too, and a line about the others."""
    twins = _twins(dataset, contents)
    train = [sample for sample in dataset.train if sample not in twins]
    if not twins:
        return train, ()
    pairs = named([f"{sample.key} ({twin.key})" for sample, twin in twins.items()])
    if not train:
        raise InputError(
            f"{dataset.category}: every good training image is also a labelled one, so that none is left to train on: "
            f"{pairs}; remove the copies from one of the two"
        )
    n = len(twins)
    return train, (
        f"left out of train, having the pixels of a labelled image: {n} of {n + len(train)} images, {pairs}",
    )


def _both_trained_and_tested(dataset: Dataset, contents: Mapping[Sample, int]) -> tuple[str, ...]:
    twins = _twins(dataset, contents)
    if not twins:
        return ()
    pairs = named([f"{twin.key} ({sample.key})" for sample, twin in twins.items()])
    return (
        "protocol paper keeps the data set's own division, though there are images in it that are both trained and "
        f"tested on and flatter its figures: {len(set(twins.values()))} of {len(dataset.test)} labelled images, {pairs}",
    )


def _halves_within_types(
    samples: Iterable[Sample], contents: Mapping[Sample, int]
) -> tuple[list[Sample], list[Sample]]:
    by_type: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in stable_order(samples):
        by_type[sample.defect_type].append(sample)
    halves: tuple[list[Sample], list[Sample]] = ([], [])
    side_of: dict[int, int] = {}  # of a content; one that two types share goes where the first of them has it
    for members in by_type.values():
        rank = 0
        for group in grouped(members, contents):
            content = contents[group[0]]
            if content not in side_of:
                side_of[content] = rank % 2
                rank += 1
            halves[side_of[content]].extend(group)
    return halves


def _require_two_of_each_label(dataset: Dataset, contents: Mapping[Sample, int]) -> None:
    """Raise `InputError` where an image cannot be left out without leaving none of its label."""
    for label, name in ((0, "good"), (1, "defective")):
        there = len({contents[sample] for sample in dataset.test if sample.label == label})
        name = name if dataset.test else "labelled"
        if there < 2:
            raise InputError(
                f"{dataset.category}: protocol holdout needs at least two labelled images of each kind, copies counted once; "
                f"there {'is' if there == 1 else 'are'} {there or 'no'} {name}; add some, or use protocol synthetic, which "
                "needs good ones only"
            )


def _held_out_with_defects(
    dataset: Dataset, contents: Mapping[Sample, int], seed: int
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    order = _enough(dataset, contents, MIN_NORMALS_V1)
    n_held_out = max(4, len(order) // 5)
    held_out, train = order[:n_held_out], order[n_held_out:]
    return (
        [sample for group in train for sample in group],
        _with_defects(held_out[0::2], seed),
        _with_defects(held_out[1::2], seed),
    )


def _enough(dataset: Dataset, contents: Mapping[Sample, int], least: int) -> Groups:
    """The normals by content, in the stable order. Raises `InputError` for fewer contents than `least`."""
    order = grouped(stable_order(dataset.train), contents)
    if len(order) < least:
        copies = f" without copies ({len(dataset.train)} with them)" if len(order) < len(dataset.train) else ""
        raise InputError(
            f"{dataset.category}: protocol synthetic needs at least {least} good training images, "
            f"there are {len(order)}{copies}; add some"
        )
    return order


def _painted(
    dataset: Dataset, contents: Mapping[Sample, int], seed: int, *, side: int
) -> tuple[list[Sample], list[Sample], list[Sample], int]:
    """Train, validation and test of the second version of recipes, and the number of folds; no test of too few normals."""
    order = _enough(dataset, contents, 1)
    if len(order) < MIN_NORMALS:
        # As many as show that the detector works.
        painted = _painted_several_times(order, seed, least=PAINTED_IN_SAMPLE, side=side, part="validation")
        return [sample for group in order for sample in group], painted, [], 0
    n_test = max(1, len(order) // 10)
    test, rest = order[:n_test], order[n_test:]
    painted_test = _painted_several_times(test, seed, least=LEAST_PAINTED_TEST, side=side, part="test")
    if len(order) >= ENOUGH_TO_HOLD_OUT:
        n_held_out = max(LEAST_HELD_OUT, len(order) // 5)
        held_out, kept = rest[:n_held_out], rest[n_held_out:]
        validation = _painted_several_times(held_out, seed, least=LEAST_PAINTED, side=side, part="validation")
        return [sample for group in kept for sample in group], validation, painted_test, 0
    folds = min(MOST_FOLDS, len(rest))
    turns = [[replace(sample, fold=place % folds + 1) for sample in group] for place, group in enumerate(rest)]
    validation = _painted_several_times(turns, seed, least=LEAST_PAINTED, side=side, part="validation")
    return [sample for group in turns for sample in group], validation, painted_test, folds


def _painted_several_times(normals: Groups, seed: int, *, least: int, side: int, part: str) -> list[Sample]:
    """The normals, and each first of its copies painted as often as any other, `least` times in all or more."""
    times = -(-least // len(normals))
    samples = [sample for group in normals for sample in group]
    for place, group in enumerate(normals):
        sample = group[0]
        for turn in range(times):
            # Turn by turn through all images, so that a cell is not bound to an image.
            number = turn * len(normals) + place
            recipe = painting(number, image=f"{part}/{sample.key}", side=side, seed=seed)
            painted = replace(
                sample,
                key=f"{sample.key}#{turn + 1}-{recipe.kind}",
                defect_type=f"{PAINTED}{recipe.kind}",
                recipe=recipe,
            )
            samples.append(painted)
    return samples


def _with_defects(normals: Groups, seed: int) -> list[Sample]:
    """Every second normal, with its copies, as samples with a synthetic defect, of each kind in turn."""
    painted = [
        _with_defect(sample, DEFECT_KINDS[index % len(DEFECT_KINDS)], seed)
        for index, group in enumerate(normals[1::2])
        for sample in group
    ]
    return [sample for group in normals[0::2] for sample in group] + painted


def _with_defect(sample: Sample, kind: str, seed: int) -> Sample:
    recipe_seed = int.from_bytes(hashlib.sha256(f"{seed}\0{sample.key}".encode()).digest()[:4], "big")
    return replace(
        sample,
        key=f"{sample.key}#{kind}",
        defect_type=f"{PAINTED_V1}{kind}",
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
