"""Check of a data set before hours are spent on it: every bad file and every trap, in one report."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detectors.data.copies import MAX_READERS, PixelDigests, named, pixel_sha256
from detectors.data.folder import is_mask_folder
from detectors.data.images import open_image, read_mask, to_rgb
from detectors.data.mvtec import MASK_MARK, direct_images, is_good_name, list_images, subfolders
from detectors.data.near_copies import MAX_IMAGES, Thumbnail, near_copies, thumbnail
from detectors.data.samples import Dataset, ImageSet, Sample, file_sha256
from detectors.data.splits import Protocol, make_splits
from detectors.errors import InputError

Severity = Literal["error", "warning"]
MIN_NORMALS = 20
"""Fewer good training images than this are reported."""
INVERTED_SHARE = 0.9
"""A mask that covers more of its image than this is probably inverted."""
MAX_PAIRS = 10
"""Pairs of near copies that are reported each; of the others the number."""
DARK_16_BIT = 32
"""A 16-bit image whose brightest 8-bit level is below this holds 12-bit values or less, and reads as nearly black."""


@dataclass(frozen=True)
class Problem:
    """One thing to mend (``error``: a study would fail or its figures mislead) or to know about (``warning``)."""

    severity: Severity
    subject: str
    """Key of the image, path of the mask within the data set, or the category."""
    message: str


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds and what is wrong with it."""

    dataset: str
    category: str
    root: str
    counts: dict[str, dict[str, int]]
    """Images per part (``train``, ``test``) and type."""
    masks: int
    """Defective images that have a mask."""
    sizes: dict[str, int]
    """Readable images per ``<width> x <height>``, most frequent first."""
    modes: dict[str, int]
    """Readable images per mode (PIL's: ``L``, ``RGB``, ``I;16`` ...), most frequent first."""
    problems: tuple[Problem, ...]
    """Errors first."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that a study would fail at."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems that a study would run with."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may be left."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with ``ok``."""
        return {"ok": self.ok, **asdict(self), "problems": [asdict(problem) for problem in self.problems]}


@dataclass
class _Finding:
    """What reading one image and its mask has shown."""

    size: str | None = None
    mode: str | None = None
    content: str | None = None
    """sha256 of the decoded pixels: a copy is found whatever its format and metadata."""
    file: str | None = None
    """sha256 of the file."""
    thumbnail: Thumbnail | None = None
    problems: list[Problem] = field(default_factory=list)


def check_dataset(
    dataset: Dataset,
    *,
    protocol: Protocol | None = None,
    cache: PixelDigests | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every image and mask and report all that is wrong; a bad file never ends the check.

    Args:
        protocol: how a study would divide the data set, where that is known. ``paper`` changes nothing about it, so
            images that are there twice are never an error then.
        cache: gets the pixels of every file; see `detectors.data.copies.content_groups`.
        progress: called in the caller's thread with the images done and their total.
    """
    samples = [*dataset.train, *dataset.test]
    findings = _inspect_all(samples, progress)
    known: PixelDigests = {} if cache is None else cache
    known.update({finding.file: finding.content or "" for finding in findings if finding.file is not None})
    problems = [problem for finding in findings for problem in finding.problems]
    problems += _duplicates(dataset, [finding.content for finding in findings], protocol)
    problems += _near_duplicates(dataset, findings)
    problems += _missing_masks(dataset)
    problems += _unused_masks(dataset)
    sizes = _histogram(finding.size for finding in findings)
    problems += _set_problems(dataset, sizes, known, protocol)
    return CheckReport(
        dataset=dataset.name,
        category=dataset.category,
        root=str(dataset.root),
        counts={part: ImageSet(part, members).counts for part, members in _parts(dataset).items()},
        masks=sum(sample.mask_file is not None for sample in dataset.test if sample.label),
        sizes=sizes,
        modes=_histogram(finding.mode for finding in findings),
        problems=tuple(sorted(problems, key=lambda problem: problem.severity != "error")),
    )


def _parts(dataset: Dataset) -> dict[str, tuple[Sample, ...]]:
    return {"train": dataset.train, "test": dataset.test}


def _inspect_all(samples: list[Sample], progress: Callable[[int, int], None] | None) -> list[_Finding]:
    findings: list[_Finding] = []
    # A few threads: PIL decodes without Python's lock, but each holds a whole image in memory.
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        for finding in pool.map(_inspect, samples):
            findings.append(finding)
            if progress is not None:
                progress(len(findings), len(samples))
    return findings


def _inspect(sample: Sample) -> _Finding:
    """Read one image and its mask."""
    finding = _Finding()
    with suppress(InputError):  # what is wrong is found when it is opened
        finding.file = file_sha256(sample.file)
    try:
        image = open_image(sample.file)
        rgb = to_rgb(image)
    except (InputError, OSError) as error:
        finding.problems.append(Problem("error", sample.key, _without_path(error, sample.file)))
        return finding
    finding.size = f"{image.width} x {image.height}"
    finding.mode = image.mode
    finding.content = pixel_sha256(rgb)
    finding.thumbnail = thumbnail(rgb)
    if (rgb == rgb[0, 0]).all():
        finding.problems.append(Problem("warning", sample.key, "all of one colour; is the camera's image missing?"))
    elif image.mode.startswith("I") and rgb.max() < DARK_16_BIT:
        message = "16-bit, but only its lowest bits are used, so it reads as nearly black; stretch it to the full range"
        finding.problems.append(Problem("warning", sample.key, message))
    if sample.mask_file is not None:
        finding.problems.extend(_mask_problems(sample.key, sample.mask_file, rgb))
    return finding


def _mask_problems(key: str, mask_file: Path, rgb: NDArray[np.uint8]) -> Iterator[Problem]:
    try:
        share = read_mask(mask_file, (rgb.shape[0], rgb.shape[1])).mean()
    except (InputError, OSError) as error:
        yield Problem("error", key, f"mask {mask_file.name}: {_without_path(error, mask_file)}")
        return
    if share == 0:
        yield Problem("error", key, f"mask {mask_file.name} marks nothing, yet the image counts as defective")
    elif share > INVERTED_SHARE:
        yield Problem("warning", key, f"mask {mask_file.name} marks {share:.0%} of the image; is it inverted?")


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _duplicates(dataset: Dataset, contents: list[str | None], protocol: Protocol | None) -> Iterator[Problem]:
    """Images with the same pixels, a line for each set of them."""
    samples = [("train", sample) for sample in dataset.train] + [("test", sample) for sample in dataset.test]
    copies: defaultdict[str, list[tuple[str, Sample]]] = defaultdict(list)
    for part_and_sample, content in zip(samples, contents, strict=True):
        if content is not None:
            copies[content].append(part_and_sample)
    for group in copies.values():
        if len(group) < 2:
            continue
        *others, (_, last) = group
        same = f"the same image as {named([sample.key for _, sample in others])}"
        if len({sample.label for _, sample in group}) > 1:
            severity: Severity = "warning" if protocol == "paper" else "error"
            yield Problem(severity, last.key, f"{same}, once good and once defective; remove one")
        elif len({part for part, _ in group}) > 1:
            message = f"{same}: holdout leaves it out of train, paper tests on what it trained on; remove one"
            yield Problem("warning", last.key, message)
        else:
            yield Problem("warning", last.key, same)


def _near_duplicates(dataset: Dataset, findings: list[_Finding]) -> Iterator[Problem]:
    """Pairs of images that differ hardly, those across train and test first."""
    parts = ["train"] * len(dataset.train) + ["test"] * len(dataset.test)
    images: dict[str, tuple[str, Sample, Thumbnail]] = {}  # one for each content: copies are reported as such
    for part, sample, finding in zip(parts, (*dataset.train, *dataset.test), findings, strict=True):
        if finding.content is not None and finding.thumbnail is not None:
            images.setdefault(finding.content, (part, sample, finding.thumbnail))
    distinct = list(images.values())
    pairs = [
        (distinct[pair.first][:2], distinct[pair.second][:2], pair.residual)
        for pair in near_copies([image for _, _, image in distinct])
    ]
    pairs.sort(key=lambda pair: pair[0][0] == pair[1][0])
    for (part, sample), (other_part, other), residual in pairs[:MAX_PAIRS]:
        message = (
            f"in {other_part}, nearly the same image as {sample.key} in {part} (they differ by {residual:.1%} of the "
            "contrast): the same part again? Then keep one"
        )
        yield Problem("warning", other.key, message)
    if len(pairs) > MAX_PAIRS:
        yield Problem("warning", dataset.category, f"{len(pairs) - MAX_PAIRS} more pairs of nearly the same images")
    if len(distinct) > MAX_IMAGES:
        message = f"only the first {MAX_IMAGES} of {len(distinct)} images were looked through for near copies"
        yield Problem("warning", dataset.category, message)


def _missing_masks(dataset: Dataset) -> Iterator[Problem]:
    for defect_type in dataset.defect_types:
        members = [sample for sample in dataset.test if sample.defect_type == defect_type]
        missing = [sample for sample in members if sample.mask_file is None and sample.recipe is None]
        if len(missing) == len(members):
            yield Problem("warning", defect_type, f"none of its {len(members)} images has a mask: no pixel metrics")
        else:
            for sample in missing:
                yield Problem("warning", sample.key, "has no mask: no pixel metrics for the whole set")


def _unused_masks(dataset: Dataset) -> Iterator[Problem]:
    """Masks that belong to no image, and marks in masks of good images."""
    used = {sample.mask_file for sample in dataset.test} | {sample.file for sample in (*dataset.train, *dataset.test)}
    try:
        candidates = [path for path in _mask_files(dataset) if path not in used]
    except InputError as error:
        yield Problem("error", dataset.category, str(error))
        return
    for path in candidates:
        subject = path.relative_to(dataset.root).as_posix()
        if not is_good_name(path.parent.name):
            yield Problem("warning", subject, "a mask that no image uses; is the image missing, or named otherwise?")
            continue
        try:
            image = open_image(path)
            marked = read_mask(path, (image.height, image.width)).any()
        except (InputError, OSError) as error:
            yield Problem("warning", subject, _without_path(error, path))
            continue
        if marked:
            yield Problem("warning", subject, "marks a defect in a good image; it is not used")


def _mask_files(dataset: Dataset) -> Iterator[Path]:
    for folder in subfolders(dataset.root):
        if is_mask_folder(folder):
            yield from list_images(folder)
    for parent in sorted({sample.file.parent for sample in (*dataset.train, *dataset.test)}):
        yield from (path for path in direct_images(parent) if path.stem.endswith(MASK_MARK))


def _set_problems(
    dataset: Dataset, sizes: dict[str, int], known: PixelDigests, protocol: Protocol | None
) -> Iterator[Problem]:
    if len(sizes) > 1:
        most = ", ".join(f"{size} ({count})" for size, count in list(sizes.items())[:3])
        message = f"images of {len(sizes)} sizes, most often {most}; all are stretched to the study's image size"
        yield Problem("warning", dataset.category, message)
    normals = len(dataset.train)
    if normals < MIN_NORMALS:
        message = f"only {normals} good training images; {MIN_NORMALS} or more show what is normal better"
        yield Problem("warning", dataset.category, message)
    if not dataset.test and protocol != "holdout":
        return  # good images alone are no fault
    try:
        make_splits(dataset, protocol="holdout", image_size=(256, 256), cache=known)
    except InputError as error:
        reason = str(error).removeprefix(f"{dataset.category}: ")
        yield Problem("warning", dataset.category, f"protocol holdout is not possible: {reason}")


def _histogram(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())
