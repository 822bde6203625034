"""From the `data` section of a study file to checked, split image sets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detectors.data.check import check_dataset
from detectors.data.folder import read_folder
from detectors.data.mvtec import categories, read_mvtec, require_folder
from detectors.data.rendered import RenderSpec, render_dataset
from detectors.data.samples import Dataset, ImageSet
from detectors.data.splits import Protocol, Splits, make_splits
from detectors.errors import InputError
from detectors.files import write_json
from studies.file.config import StudyConfig
from studies.file.sections import DataConfig
from studies.home import Home

DEFAULT_ROOT = Path("datasets") / "MVTecAD"
MAX_EXPERIMENT_NAME = 60
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """One product of a study."""

    category: str
    dataset: Dataset
    splits: Splits


@dataclass(frozen=True)
class StudyImages:
    """All that a study looks at: one product, or several."""

    parts: tuple[Part, ...]

    @property
    def several(self) -> bool:
        """Whether there are several products."""
        return len(self.parts) > 1

    @property
    def protocol(self) -> Protocol:
        """Of every product: they agree."""
        return self.parts[0].splits.protocol

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything; of a single product its splits' own."""
        if not self.several:
            return self.parts[0].splits.digest
        text = "\n".join(f"{part.category}:{part.splits.digest}" for part in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """Of each set: ``train``, or of several products ``screw/train``."""
        return {name: image_set.digest for name, image_set in self.sets()}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each set by type."""
        return {name: image_set.counts for name, image_set in self.sets()}

    def sets(self) -> Iterator[tuple[str, ImageSet]]:
        """Every set with its name."""
        for part in self.parts:
            for image_set in part.splits.sets:
                yield f"{part.category}/{image_set.name}" if self.several else image_set.name, image_set

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
        """Where the images lie."""
        return ", ".join(dict.fromkeys(str(part.dataset.root) for part in self.parts))


def data_root(data: DataConfig) -> Path:
    """The folder of a data set. Raises `InputError` where a data set other than MVTec names none."""
    if isinstance(data.root, Path):
        return data.root.expanduser().absolute()
    if data.dataset != "mvtec":
        raise InputError(f"data.root is missing: say where data set {data.dataset!r} lies, e.g. --set data.root=DIR")
    return Path(os.environ.get("MVTEC_AD_ROOT") or DEFAULT_ROOT).expanduser().absolute()


def products(data: DataConfig) -> list[str]:
    """The products that a study is over, where it is over several. Raises `InputError` where ``all`` finds none."""
    if isinstance(data.category, list):
        return data.category
    root = data_root(data)
    require_folder(root, way_out="`study data fetch mvtec`, or name its folder with --set data.root=DIR")
    found = categories(root)
    if not found:
        raise InputError(f"{root}: no category in it (a folder with train/good)")
    return found


def load(config: StudyConfig, home: Home, *, progress: Progress | None = None) -> StudyImages:
    """Read and split every product of a study.

    Raises:
        InputError: as the readers do, or protocol ``auto`` comes to different ones for different products.
    """
    if not config.data.is_several:
        dataset = open_dataset(config.data, home, progress=progress)
        return StudyImages((Part(dataset.category, dataset, split(dataset, config)),))
    parts = []
    for category in products(config.data):
        dataset = open_dataset(config.data.of(category), home, progress=progress)
        parts.append(Part(category, dataset, split(dataset, config)))
    protocols = {part.splits.protocol: part.category for part in parts}
    if len(protocols) > 1:
        told = ", ".join(f"{protocol} for {category}" for protocol, category in protocols.items())
        raise InputError(f"protocol auto comes to {told}; name one for all products with --set protocol=...")
    return StudyImages(tuple(parts))


def open_dataset(data: DataConfig, home: Home, *, progress: Progress | None = None) -> Dataset:
    """Read one product's folders; a rendered one is drawn on first use. Raises `InputError` as the readers do."""
    category = data.category if isinstance(data.category, str) else None
    if data.dataset == "rendered" and data.root is None:
        spec = RenderSpec()
        root = render_dataset(home.rendered / spec.identity, spec, progress=progress)
        return read_mvtec(root, category or "screw", name="rendered")
    if data.dataset == "folder":
        return read_folder(data_root(data), category=category)
    if category is None:
        raise InputError("data.category is missing: say which product, e.g. --set data.category=screw")
    return read_mvtec(data_root(data), category, name=data.dataset)


def split(dataset: Dataset, config: StudyConfig) -> Splits:
    """The study's splits; protocol ``auto`` takes holdout where there are enough labelled images, else synthetic."""
    size, seed = config.data.size, config.sampler.seed
    if config.protocol != "auto":
        return make_splits(dataset, protocol=config.protocol, image_size=size, seed=seed)
    if dataset.defect_types:
        try:
            return make_splits(dataset, protocol="holdout", image_size=size, seed=seed)
        except InputError:  # too few of them to hold any out
            return make_splits(dataset, protocol="synthetic", image_size=size, seed=seed)
    return make_splits(dataset, protocol="synthetic", image_size=size, seed=seed)


def check_images(dataset: Dataset, splits: Splits, home: Home, *, progress: Progress | None = None) -> list[str]:
    """Decode every image and mask once per content, before anything is computed on them.

    Returns:
        Warnings, one line each.

    Raises:
        InputError: the first image or mask that cannot be used.
    """
    marker = home.root / "checked" / f"{splits.digest}.json"
    if marker.is_file():
        return []
    report = check_dataset(dataset, progress=progress)
    if report.errors:
        first, others = report.errors[0], len(report.errors) - 1
        more = f" (and {others} more: `study data check` lists them)" if others else ""
        raise InputError(f"{first.subject}: {first.message}{more}")
    write_json(marker, {"images": sum(sum(types.values()) for types in splits.counts.values())})
    return [f"{problem.subject}: {problem.message}" for problem in report.warnings]
