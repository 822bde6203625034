"""The images of a study: read, divided into image sets, and checked."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detectors.data.check import check_dataset
from detectors.data.copies import PixelDigests
from detectors.data.folder import read_folder
from detectors.data.mvtec import categories, read_mvtec, require_folder
from detectors.data.rendered import RenderSpec, render_dataset
from detectors.data.samples import Dataset, ImageSet
from detectors.data.splits import Protocol, Splits, make_splits
from detectors.errors import InputError
from detectors.files import write_json
from detectors.scoring.evaluation import SEG_F1
from studies.file.checks import MIN_WILCOXON
from studies.file.config import StudyConfig
from studies.file.known_pixels import known_pixels
from studies.file.resolving import nested_below
from studies.file.sections import DataConfig
from studies.home import Home, mvtec_folder

MAX_EXPERIMENT_NAME = 60
"""Characters; the names of more products than fit are shortened to their number and a digest."""
Progress = Callable[[int, int], None]
"""Called with how many images are done, and how many there are."""


@dataclass(frozen=True)
class Part:
    """The images of one product."""

    category: str
    dataset: Dataset
    splits: Splits


@dataclass(frozen=True)
class StudyImages:
    """The images of a study over one product, or several."""

    parts: tuple[Part, ...]

    @property
    def several(self) -> bool:
        """Whether there are several products."""
        return len(self.parts) > 1

    @property
    def protocol(self) -> Protocol:
        """The protocol of every product: they agree."""
        return self.parts[0].splits.protocol

    @property
    def keeps_test(self) -> bool:
        """Whether test images are kept from the search (`Splits.keeps_test`), of every product."""
        return all(part.splits.keeps_test for part in self.parts)

    @property
    def nested(self) -> bool:
        """Whether all labelled images are validated and none is kept for test (`Splits.nested`); of a single product."""
        return self.parts[0].splits.nested

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all images; for a single product the digest of its splits."""
        if not self.several:
            return self.parts[0].splits.digest
        text = "\n".join(f"{part.category}:{part.splits.digest}" for part in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """{image set: sha256 (hex)}; the sets are named ``train``, or with several products ``screw/train``."""
        return {name: image_set.digest for name, image_set in self.sets()}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """{image set: {type of defect: images}}"""
        return {name: image_set.counts for name, image_set in self.sets()}

    def sets(self) -> Iterator[tuple[str, ImageSet]]:
        """Every image set with its name."""
        for part in self.parts:
            for image_set in part.splits.sets:
                yield f"{part.category}/{image_set.name}" if self.several else image_set.name, image_set

    @property
    def copies_remark(self) -> str:
        """A clause on copies among the images, for where these are not those of a stored study; empty without copies."""
        copies = sum(part.splits.copies for part in self.parts)
        if not copies:
            return ""
        are = "1 of them is a copy of another" if copies == 1 else f"{copies} of them are copies of others"
        return f" ({are}: copies now stay in one set, version 0.2 and before divided them between the sets)"

    @property
    def experiment(self) -> str:
        """MLflow experiment: ``<dataset>/<product>``, of several ``<dataset>/screw+carpet``."""
        first = self.parts[0].dataset
        names = "+".join(part.category for part in self.parts) if self.several else first.category
        if len(names) > MAX_EXPERIMENT_NAME:
            names = f"{len(self.parts)}-products-{hashlib.sha256(names.encode()).hexdigest()[:6]}"
        return f"{first.name}/{names}"

    @property
    def source(self) -> str:
        """The folders of the images, separated by commas."""
        return ", ".join(dict.fromkeys(str(part.dataset.root) for part in self.parts))


def data_root(data: DataConfig) -> Path:
    """The absolute path of a data set's folder. Raises `InputError` where a data set other than MVTec names none."""
    if isinstance(data.root, Path):
        return data.root.expanduser().absolute()
    if data.dataset != "mvtec":
        raise InputError(f"data.root is missing: say where data set {data.dataset!r} lies, e.g. --set data.root=DIR")
    return mvtec_folder()


def products(data: DataConfig) -> list[str]:
    """The products of a study over several. Raises `InputError` where the category is ``all`` and there are none."""
    if isinstance(data.category, list):
        return data.category
    root = data_root(data)
    require_folder(root, way_out="`study data fetch mvtec`, or name its folder with --set data.root=DIR")
    names = categories(root)
    if not names:
        raise InputError(f"{root}: no category in it (a folder with train/good)")
    return names


def load(config: StudyConfig, home: Home, *, progress: Progress | None = None) -> StudyImages:
    """Read and split every product of a study; which pixels a file holds is kept in the home.

    Raises:
        InputError: as the readers do, or protocol ``auto`` comes to different ones for different products.
    """
    with known_pixels(home) as known:
        parts = []
        for category in products(config.data) if config.data.is_several else [None]:
            data = config.data if category is None else config.data.of(category)
            dataset = open_dataset(data, home, progress=progress, cache=known)
            parts.append(
                Part(category or dataset.category, dataset, split(dataset, config, cache=known, progress=progress))
            )
    for part in parts if len(parts) > 1 else ():
        if part.splits.in_sample:
            raise InputError(
                f"{part.category}: {len(part.splits.train)} good images are too few in a study of several products; add some, or "
                "run a study of this product alone"
            )
    protocols = {part.splits.protocol: part.category for part in parts}
    if len(protocols) > 1:
        each = ", ".join(f"{protocol} for {category}" for protocol, category in protocols.items())
        raise InputError(f"protocol auto comes to {each}; name one for all products with --set protocol=...")
    return StudyImages(tuple(parts))


def open_dataset(
    data: DataConfig, home: Home, *, progress: Progress | None = None, cache: PixelDigests | None = None
) -> Dataset:
    """Read one product's folders; a rendered one is drawn on first use. Raises `InputError` as the readers do."""
    category = data.category if isinstance(data.category, str) else None
    if data.dataset == "rendered" and data.root is None:
        spec = RenderSpec()
        root = render_dataset(home.rendered / spec.identity, spec, progress=progress)
        return read_mvtec(root, category or "screw", name="rendered")
    if data.dataset == "folder":
        return read_folder(data_root(data), category=category, cache=cache, progress=progress)
    if category is None:
        raise InputError("data.category is missing: say which product, e.g. --set data.category=screw")
    return read_mvtec(data_root(data), category, name=data.dataset)


def split(
    dataset: Dataset, config: StudyConfig, *, cache: PixelDigests | None = None, progress: Progress | None = None
) -> Splits:
    """The study's splits; protocol ``auto`` takes holdout where there are enough labelled images, else synthetic."""

    def divided(protocol: Protocol) -> Splits:
        return make_splits(
            dataset,
            protocol=protocol,
            image_size=config.data.size,
            seed=config.sampler.seed,
            recipes=config.recipes or 1,
            nested_below=nested_below(config),
            cache=known,
            progress=progress,
        )

    known: PixelDigests = {} if cache is None else cache
    if config.protocol != "auto":
        return divided(config.protocol)
    if dataset.defect_types:
        try:
            return divided("holdout")
        except InputError:  # too few of them to hold any out
            return divided("synthetic")
    return divided("synthetic")


def check(images: StudyImages, config: StudyConfig, home: Home, *, progress: Progress | None = None) -> list[str]:
    """Check that a study can be run on its images, before anything is computed on them.

    Returns:
        Warnings, one line each.

    Raises:
        InputError: an image or mask that cannot be used, an objective that needs masks where some are missing, or too few
            products for the pruner.
    """
    warnings = []
    for part in images.parts:
        warnings += _decode(part, home, progress=progress)
        warnings += [f"{part.category}: {note}" for note in part.splits.notes]
        _require_masks(part, config.objectives)
    if config.pruner.name == "wilcoxon" and len(images.parts) < MIN_WILCOXON:
        raise InputError(
            f"pruner wilcoxon needs at least {MIN_WILCOXON} products, {images.source} has {len(images.parts)}; "
            "take median or none"
        )
    return warnings


def _decode(part: Part, home: Home, *, progress: Progress | None) -> list[str]:
    """Decode every image and mask, once for each content. Returns warnings, and raises as `check` does."""
    marker = home.root / "checked" / f"{part.splits.digest}.json"
    if marker.is_file():
        return []
    report = check_dataset(part.dataset, protocol=part.splits.protocol, progress=progress)
    if report.errors:
        first, others = report.errors[0], len(report.errors) - 1
        more = f" (and {others} more: `{check_command(part.dataset)}` lists them)" if others else ""
        raise InputError(f"{first.subject}: {first.message}{more}")
    write_json(marker, {"images": sum(sum(types.values()) for types in part.splits.counts.values())})
    return [f"{problem.subject}: {problem.message}" for problem in report.warnings]


def check_command(dataset: Dataset) -> str:
    """The command that lists what is wrong with a product's images."""
    words = ["study", "data", "check", "--images", str(dataset.root)]
    if dataset.name != "folder":
        words = ["study", "data", "check", "--root", str(dataset.root.parent), "--category", dataset.category]
    return shlex.join(words)


def _require_masks(part: Part, objectives: Iterable[str]) -> None:
    """Raise `InputError` where an objective compares pixels and a defective image has no mask."""
    splits = part.splits
    scored = splits.validation or splits.test
    for metric in objectives:
        if (metric.startswith("pixel_") or metric == SEG_F1) and not scored.has_masks:
            raise InputError(
                f"objective {metric} needs a mask for every defective image of {scored.name}; "
                f"add masks (`{check_command(part.dataset)}` lists those missing) or take image_auroc"
            )
