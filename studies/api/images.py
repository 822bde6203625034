"""Data sets: check one, draw one, fetch one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from detectors.data.check import CheckReport, check_dataset
from detectors.data.copies import PixelDigests
from detectors.data.fetch import SOURCES, Source, fetch
from detectors.data.mvtec import categories, require_folder
from detectors.data.rendered import RenderSpec, render_dataset
from detectors.data.samples import Dataset
from detectors.errors import InputError
from studies.api.outlook import Outlook, next_command, outlook
from studies.file import datasets, own_images
from studies.file.config import StudyConfig
from studies.file.sections import DataConfig
from studies.home import MVTEC_ROOT, Home, home_at

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done, in all)."""


def check_images(
    images: str | Path | None = None,
    *,
    study: str | None = None,
    root: str | Path | None = None,
    category: str | None = None,
    dataset: str | None = None,
    home: str | Path | None = None,
    progress: Progress = lambda name, done, total: None,
) -> list[CheckReport]:
    """Read every image and mask of a data set and say what is wrong.

    Args:
        images: folder of one's own images with ``good/``, and optional folders of defects and masks.
        study: a study that was run, or a study file by name or path, whose data section says which images; or a folder.
        root: folder of a data set of MVTec AD's layout.
        category: one product of it; default all.
        dataset: name of the data set: ``"mvtec"``, ``"rendered"`` or one's own.
        progress: called with what is done, images done, and images in all.

    Returns:
        A report for each product, with ``ok``, ``counts``, ``errors`` and ``warnings``.

    Raises:
        InputError: there is no such folder or study, or the arguments contradict each other.

    >>> import studies
    >>> (report,) = studies.check_images("parts")
    >>> report.ok, report.counts["train"]["good"] > 0
    (True, True)
    """
    return [
        report
        for report, _ in foresee_images(
            images, study=study, root=root, category=category, dataset=dataset, home=home, progress=progress
        )
    ]


def foresee_images(
    images: str | Path | None = None,
    *,
    study: str | None = None,
    root: str | Path | None = None,
    category: str | None = None,
    dataset: str | None = None,
    home: str | Path | None = None,
    progress: Progress = lambda name, done, total: None,
) -> list[tuple[CheckReport, Outlook | None]]:
    """`check_images`, and what a study would make of each product; None where its images have errors. Arguments are the same."""
    place = home_at(home)
    if study is not None and images is None and own_images.names_a_folder(study):
        study, images = None, study
    config = _config_of(study, place) if study else None
    data = _data_section(config, root=root, category=category, dataset=dataset, images=images)
    protocol = None if config is None or config.protocol == "auto" else config.protocol
    found: list[tuple[CheckReport, Outlook | None]] = []
    for product in _datasets(data, place, progress):
        known: PixelDigests = {}
        report = check_dataset(
            product, protocol=protocol, cache=known, progress=partial(progress, f"checking {product.category}")
        )
        command = next_command(product, study)
        found.append((report, outlook(product, config, command, cache=known) if report.ok else None))
    return found


@dataclass(frozen=True)
class Rendered:
    """A data set that was drawn."""

    root: Path
    folder: Path
    """Of the one product in it."""
    images: int


def render_images(
    root: Path | None = None,
    *,
    seed: int = 0,
    size: int = 320,
    train: int = 80,
    test_good: int = 30,
    per_defect: int = 10,
    home: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rendered:
    """Draw screws with and without defects: a data set for trying things out, with no download.

    Args:
        root: where they go; default a folder in the home.
        seed: another one draws other screws.
        size: height and width in pixels.
        train: good images to train on.
        test_good: good images to test on.
        per_defect: images of each of the five types of defect.

    Raises:
        InputError: numbers that make no data set, or a folder that cannot be written.
    """
    spec = RenderSpec(size=size, train=train, test_good=test_good, per_defect=per_defect, seed=seed)
    root = root.expanduser().absolute() if root else home_at(home).rendered / spec.identity
    return Rendered(root, render_dataset(root, spec, progress=progress), spec.total)


def run_command(rendered: Rendered) -> str:
    """The command that runs a study on rendered images."""
    # A name of its own: the study of the same file on real images stays what it is.
    settings = (
        "name=padim_rendered",
        "data.dataset=rendered",
        f"data.category={rendered.folder.name}",
        f"data.root={rendered.root}",
    )
    words = ["study", "run", "padim_screw", "--offline"]
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])


def data_source(name: str) -> Source:
    """A public data set that can be fetched. Raises `InputError` naming those there are."""
    if name not in SOURCES:
        raise InputError(f"no data set {name!r} to fetch; known: {', '.join(SOURCES)}")
    return SOURCES[name]


def default_root(source: Source) -> Path:
    """Where studies look for a public data set."""
    if source.name == "mvtec":
        return Path(os.environ.get("MVTEC_AD_ROOT") or MVTEC_ROOT)
    return MVTEC_ROOT.parent / source.title.replace(" ", "")


fetch_images = fetch
"""Bring a public data set here: its licence first, its hash verified, resumed where it was stopped."""


def _config_of(study: str, home: Home) -> StudyConfig:
    # Optuna, which nobody waits for who only checks a folder.
    from studies.api.settings import run_settings

    return run_settings(study, {}, home=home).config


def _data_section(
    study: StudyConfig | None,
    *,
    root: str | Path | None,
    category: str | None,
    dataset: str | None,
    images: str | Path | None,
) -> DataConfig:
    """The data section of a study with the arguments over it, or one made of the arguments alone."""
    if images is not None and (study or root or dataset):
        raise InputError("--images names a folder of images by itself; leave out the study, --root and --dataset")
    section: dict[str, Any] = study.data.model_dump(exclude_none=True) if study else {}
    if images is not None:
        section = {"dataset": "folder", "root": images}
    arguments = {"root": root, "category": category, "dataset": dataset}
    section |= {key: value for key, value in arguments.items() if value is not None}
    try:
        return DataConfig.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise InputError(f"--{key} {first['input']!r} is not valid: {first['msg']}") from None


def _datasets(data: DataConfig, home: Home, progress: Progress) -> Iterator[Dataset]:
    """The data set, or where it holds several products and none is named, one for each."""
    if data.dataset == "folder" and isinstance(data.root, Path) and (below := own_images.products_in(data.root)):
        for folder in below:
            yield datasets.open_dataset(data.model_copy(update={"root": folder}), home)
        return
    if data.category or data.dataset == "folder" or (data.dataset == "rendered" and data.root is None):
        yield datasets.open_dataset(data, home, progress=partial(progress, "rendering"))
        return
    root = datasets.data_root(data)
    require_folder(
        root, way_out="name its folder with --root, your own images with --images, or `study data fetch mvtec`"
    )
    known = categories(root)
    if not known:
        raise InputError(
            f"{root}: no category in it (a folder with train/good); are these your own images? Then use --images"
        )
    for category in known:
        yield datasets.open_dataset(data.model_copy(update={"category": category}), home)
