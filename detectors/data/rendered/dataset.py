"""The data set made of rendered images: how many of which kind, and their files in MVTec AD's layout."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.data.rendered.damage import DEFECT_KINDS
from detectors.data.rendered.image import RENDERER_VERSION, check_image, is_integer, render_screw
from detectors.errors import InputError

CATEGORY = "screw"
_LICENSE = """These images are rendered, not photographed: anomaly-studies computed every one of them.
They show no real product and contain no part of any other data set.

To the extent possible under law, all copyright and related rights are waived: CC0 1.0 Universal,
https://creativecommons.org/publicdomain/zero/1.0/
"""
_RECORD = "rendered.json"
_ABANDONED_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class RenderSpec:
    """How many images of which size. Raises `InputError` for what cannot be rendered."""

    size: int = 320
    """Height and width in pixels, 64 to 2048."""
    train: int = 80
    test_good: int = 30
    per_defect: int = 10
    """Images of each of `DEFECT_KINDS`."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_image(self.size, self.seed)
        for name in ("train", "test_good", "per_defect"):
            count = getattr(self, name)
            if not is_integer(count) or count < 1:
                raise InputError(f"rendered screws: {name} is {count!r}; ask for a whole number, 1 or more")

    @property
    def identity(self) -> str:
        """16 hex digits that change whenever the rendered images may."""
        text = json.dumps({"version": RENDERER_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def total(self) -> int:
        """Images in all, without masks."""
        return self.train + self.test_good + self.per_defect * len(DEFECT_KINDS)


class _Planned(NamedTuple):
    """One image to render and where it goes."""

    folder: str
    stem: str
    defect: str | None
    seed: int

    @property
    def image(self) -> str:
        return f"{self.folder}/{self.stem}.png"

    @property
    def mask(self) -> str | None:
        return f"ground_truth/{self.defect}/{self.stem}_mask.png" if self.defect else None


def render_dataset(root: Path, spec: RenderSpec, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Render `root/screw` in MVTec AD's layout and return that folder; at once where it is there already.

    `progress` is called with (images done, images in all). The folder appears complete or not at all, whoever else
    renders there at the same time.

    Raises:
        InputError: `root/screw` holds other images, or lacks some of its own; `root` cannot be written.
    """
    folder = root / CATEGORY
    if folder.exists() and not _is_empty(folder):
        _check_finished(folder, spec)
        return folder
    partial = root / f".{CATEGORY}-{uuid.uuid4().hex}.partial"
    try:
        _sweep(root)
        partial.mkdir(parents=True)
        _write(partial, spec, progress)
        try:
            partial.rename(folder)
        except OSError:
            # Somebody else was faster: theirs is as good as ours, or this says what is wrong with it.
            if not folder.exists():
                raise
            _check_finished(folder, spec)
    except OSError as error:
        raise InputError(
            f"{root}: rendered screws cannot be written there ({error.strerror}); choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _sweep(root: Path) -> None:
    """Remove what renderings left behind that were killed more than `_ABANDONED_SECONDS` ago."""
    for partial in root.glob(f".{CATEGORY}-*.partial"):
        # Another process may finish and rename its own at any moment.
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _plan(spec: RenderSpec) -> Iterator[_Planned]:
    """Every image of the data set; more of them leave the first ones as they are."""
    groups: list[tuple[str, str | None, int]] = [("train/good", None, spec.train), ("test/good", None, spec.test_good)]
    groups += [(f"test/{kind}", kind, spec.per_defect) for kind in DEFECT_KINDS]
    for folder, defect, count in groups:
        for index in range(count):
            entropy = np.random.SeedSequence([spec.seed, index, *folder.encode()])
            seed = int(entropy.generate_state(1, np.uint64)[0])
            yield _Planned(folder, f"{index:03d}", defect, seed)


def _write(folder: Path, spec: RenderSpec, progress: Callable[[int, int], None] | None) -> None:
    for done, planned in enumerate(_plan(spec), start=1):
        image, mask = render_screw(seed=planned.seed, size=spec.size, defect=planned.defect)
        _save(image, folder / planned.image)
        if planned.mask:
            _save(mask.astype(np.uint8) * np.uint8(255), folder / planned.mask)
        if progress is not None:
            progress(done, spec.total)
    (folder / "license.txt").write_text(_LICENSE, encoding="utf-8")
    record = {"renderer_version": RENDERER_VERSION, "identity": spec.identity, "spec": asdict(spec)}
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _save(gray: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gray).save(path)


def _check_finished(folder: Path, spec: RenderSpec) -> None:
    """Raise `InputError` unless the folder holds just what `spec` asks for."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        identity = record["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}: holds something else than rendered screws (no readable {_RECORD}); choose another folder"
        ) from None
    if identity != spec.identity:
        raise InputError(
            f"{folder}: holds another rendering ({record.get('spec')}, version {record.get('renderer_version')}) "
            f"than asked for ({asdict(spec)}, version {RENDERER_VERSION}); delete it or choose another folder"
        )
    wanted = [name for planned in _plan(spec) for name in (planned.image, planned.mask) if name]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of its files are gone, the first {missing[0]}; delete the folder to render it again"
        )
