"""From the `data` section of a study file to checked, split image sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from detectors.data.check import check_dataset
from detectors.data.folder import read_folder
from detectors.data.mvtec import read_mvtec
from detectors.data.rendered import RenderSpec, render_dataset
from detectors.data.samples import Dataset
from detectors.data.splits import Splits, make_splits
from detectors.errors import InputError
from detectors.files import write_json
from studies.config import DataConfig, StudyConfig
from studies.home import Home

DEFAULT_ROOT = Path("datasets") / "MVTecAD"
Progress = Callable[[int, int], None]


def data_root(data: DataConfig) -> Path:
    """The folder of a data set. Raises `InputError` where a data set other than MVTec names none."""
    if data.root is not None:
        return data.root.expanduser().absolute()
    if data.dataset != "mvtec":
        raise InputError(f"data.root is missing: say where data set {data.dataset!r} lies, e.g. --set data.root=DIR")
    return Path(os.environ.get("MVTEC_AD_ROOT") or DEFAULT_ROOT).expanduser().absolute()


def open_dataset(data: DataConfig, home: Home, *, progress: Progress | None = None) -> Dataset:
    """Read a data set's folders; a rendered one is drawn on first use. Raises `InputError` as the readers do."""
    if data.dataset == "rendered" and data.root is None:
        spec = RenderSpec()
        root = render_dataset(home.rendered / spec.identity, spec, progress=progress)
        return read_mvtec(root, data.category or "screw", name="rendered")
    if data.dataset == "folder":
        return read_folder(data_root(data), category=data.category)
    if data.category is None:
        raise InputError("data.category is missing: say which product, e.g. --set data.category=screw")
    return read_mvtec(data_root(data), data.category, name=data.dataset)


def split(dataset: Dataset, config: StudyConfig) -> Splits:
    """The study's splits; protocol ``auto`` takes holdout where there are enough labelled pictures, else synthetic."""
    size, seed = config.data.size, config.sampler.seed
    if config.protocol != "auto":
        return make_splits(dataset, protocol=config.protocol, image_size=size, seed=seed)
    if dataset.defect_types:
        try:
            return make_splits(dataset, protocol="holdout", image_size=size, seed=seed)
        except InputError:  # too few of them to hold any out
            return make_splits(dataset, protocol="synthetic", image_size=size, seed=seed)
    return make_splits(dataset, protocol="synthetic", image_size=size, seed=seed)


def check_pictures(dataset: Dataset, splits: Splits, home: Home, *, progress: Progress | None = None) -> list[str]:
    """Decode every picture and mask once per content, before anything is computed on them.

    Returns:
        Warnings, one line each.

    Raises:
        InputError: the first picture or mask that cannot be used.
    """
    marker = home.root / "checked" / f"{splits.digest}.json"
    if marker.is_file():
        return []
    report = check_dataset(dataset, progress=progress)
    if report.errors:
        first, others = report.errors[0], len(report.errors) - 1
        more = f" (and {others} more: `study data check` lists them)" if others else ""
        raise InputError(f"{first.subject}: {first.message}{more}")
    write_json(marker, {"pictures": sum(sum(types.values()) for types in splits.counts.values())})
    return [f"{problem.subject}: {problem.message}" for problem in report.warnings]
