"""Backbone features on disk, which are computed once per image set, size and weights, and memory-mapped by every trial.

Each entry is a folder named by the hash of its key, with ``features.npy`` ([P, C, N], see `detectors.features`) and
``entry.json``. Entries appear by rename and are verified when a process first reads them. If the store outgrows its limit, the
least recently used entries are deleted. One lock per image set and backbone lets one process compute while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.lib.format import open_memmap
from torch import Tensor

from detectors.backbones.pyramid import AnyBackbone, Backbone, Backbones, extraction_batch
from detectors.data.images import RESIZE_RULE, Size
from detectors.data.samples import ImageSet
from detectors.features import Features, merged
from detectors.files import file_lock, os_errors_as_input_errors, write_json
from detectors.precision import full_precision
from detectors.tiles import TileGrid, Tiles

LAYOUT_VERSION = 1
DEFAULT_MAX_BYTES = 20 * 2**30
"""Size to which the store may grow."""
CHUNK_BYTES = 256 * 2**20
"""Bytes of features that are kept in memory before they are written."""

Progress = Callable[[int, int], None]
FeatureFile = np.memmap[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class FeatureKey:
    """All that the features of one entry depend on."""

    data_digest: str
    image_size: Size
    weights_sha256: str
    stride: int
    device_type: str
    """``cpu`` or ``cuda``. Their results differ in the last digits, and a trial must be repeatable exactly. The identity of a
    GPU's features has the precision too: earlier versions computed them in TF32."""

    tiles: Tiles | None = None
    """That images were cut into."""

    @property
    def identity(self) -> dict[str, Any]:
        """All parts of the key, JSON-able."""
        return {
            "layout": LAYOUT_VERSION,
            "data": self.data_digest,
            "image_size": list(self.image_size),
            "resize": RESIZE_RULE,
            "weights": self.weights_sha256,
            "stride": self.stride,
            "device": self.device_type,
            **({} if self.device_type == "cpu" else {"precision": "float32"}),
            **({} if self.tiles is None else {"tiles": [self.tiles.side, self.tiles.overlap]}),
        }

    @property
    def folder(self) -> str:
        """Name of the entry's folder."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """The stored features of one stride."""

    folder: Path
    size_bytes: int
    last_used: float
    """Seconds since the epoch."""


class FeatureStore:
    """Features shared by all trials, studies and processes of one ``STUDY_HOME``."""

    def __init__(self, root: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.root, self.max_bytes = root, max_bytes
        self._verified: set[tuple[str, int, int]] = set()

    def features(
        self,
        image_set: ImageSet,
        backbone: AnyBackbone,
        *,
        device: torch.device,
        tiles: Tiles | None = None,
        progress: Progress | None = None,
    ) -> Features:
        """Features of a set at all strides of the backbone; those that are not stored are computed and stored.

        Args:
            tiles: that the images are cut into.
            progress: called with (images done, images in all) while features are computed.

        Raises:
            InputError: an image cannot be read, the store cannot be written or the disk is full.
        """
        if isinstance(backbone, Backbones):
            # Each by itself, so that a trial with one of them finds what is stored.
            each = [
                self.features(image_set, one, device=device, tiles=tiles, progress=progress) for one in backbone.members
            ]
            return merged(each)
        keys = {stride: self._key(image_set, backbone, stride, device, tiles) for stride in backbone.strides}
        entries = {stride: self._read(key) for stride, key in keys.items()}
        if not all(entries.values()):
            with file_lock(self._lock(next(iter(keys.values())).identity)):
                # Another process may have computed them while this one waited for the lock.
                entries = {stride: entry or self._read(keys[stride]) for stride, entry in entries.items()}
                missing = {stride: keys[stride] for stride, entry in entries.items() if entry is None}
                if missing:
                    self._compute(image_set, backbone, missing, device=device, progress=progress)
                    entries |= {stride: self._read(key) for stride, key in missing.items()}
            self.evict(keep={key.folder for key in keys.values()})
        present = {stride: entry for stride, entry in entries.items() if entry is not None}
        if len(present) < len(keys):
            raise RuntimeError(
                f"features vanished from {self.root} while they were in use; is another program cleaning it?"
            )
        return Features(
            maps={stride: values for stride, (values, _) in present.items()},
            grids={stride: grid for stride, (_, grid) in present.items()},
            image_size=image_set.image_size,
            tiles=1 if tiles is None else len(TileGrid(image_set.image_size, tiles)),
        )

    def holds(
        self,
        image_set: ImageSet,
        *,
        weights_sha256: str,
        strides: Sequence[int],
        device: torch.device,
        tiles: Tiles | None = None,
    ) -> bool:
        """Whether the features of a set are stored for all of the strides."""
        size = image_set.image_size
        keys = [FeatureKey(image_set.digest, size, weights_sha256, s, device.type, tiles) for s in strides]
        return all((self.root / key.folder / "entry.json").is_file() for key in keys)

    def identity_of(
        self, image_set: ImageSet, backbone: AnyBackbone, device: torch.device, tiles: Tiles | None = None
    ) -> str:
        """All that the features of a set depend on except the stride, as one text."""
        identity = self._key(image_set, backbone, 0, device, tiles).identity
        return json.dumps({name: value for name, value in identity.items() if name != "stride"}, sort_keys=True)

    def entries(self) -> list[Entry]:
        """All entries, least recently used first."""
        listed = []
        for description in self.root.glob("*/entry.json"):
            try:
                files = [file.stat().st_size for file in description.parent.iterdir()]
                listed.append(Entry(description.parent, sum(files), description.stat().st_mtime))
            except FileNotFoundError:  # Another process deleted it.
                continue
        return sorted(listed, key=lambda entry: entry.last_used)

    def evict(self, *, keep: Set[str] = frozenset(), max_bytes: int | None = None) -> int:
        """Delete the least recently used entries until the store is within its limit.

        A process that has an entry open can read it to the end.

        Args:
            keep: names of folders that are not deleted.
            max_bytes: the limit; default that of the store.

        Returns:
            The number of bytes that were freed.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        entries = self.entries()
        total, freed = sum(entry.size_bytes for entry in entries), 0
        for entry in entries:
            if total - freed <= limit:
                break
            if entry.folder.name not in keep and self._delete(entry.folder):
                freed += entry.size_bytes
        return freed

    def leftovers(self) -> list[Path]:
        """Unfinished folders of processes that were killed. Computing the same features again removes them too."""
        return sorted(path for path in self.root.glob(".*") if path.is_dir())

    def identity(self, folder: Path) -> dict[str, Any] | None:
        """`FeatureKey.identity` of a stored entry; None for a leftover or a damaged entry."""
        try:
            return dict(json.loads((folder / "entry.json").read_text())["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def discard(self, folder: Path) -> bool:
        """Delete an entry or a leftover. A process that has an entry open can read it to the end.

        Returns:
            Whether it was deleted: not if it is gone already, or may belong to features that are being computed.
        """
        try:
            with self._not_computing(folder), os_errors_as_input_errors(self.root):
                return self._delete(folder)
        except BlockingIOError:
            return False

    def is_computing(self, folder: Path) -> bool:
        """Whether a process is computing features to which an entry or a leftover may belong."""
        try:
            with self._not_computing(folder):
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def _not_computing(self, folder: Path) -> Iterator[None]:
        """Keep other processes from computing the features of a folder. Raises `BlockingIOError` if one does."""
        identity = self.identity(folder)
        # A folder without a readable key may belong to any of the features that are being computed.
        locks = sorted((self.root / "locks").glob("*.lock")) if identity is None else [self._lock(identity)]
        with ExitStack() as held:
            for lock in locks:
                if lock.exists():
                    held.enter_context(file_lock(lock, wait=False))
            yield

    def _lock(self, identity: Mapping[str, Any]) -> Path:
        """The lock of an image set and backbone, whose strides are computed together."""
        shared = {name: value for name, value in identity.items() if name != "stride"}
        return (
            self.root / "locks" / f"{hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:32]}.lock"
        )

    def _key(
        self, image_set: ImageSet, backbone: AnyBackbone, stride: int, device: torch.device, tiles: Tiles | None
    ) -> FeatureKey:
        return FeatureKey(image_set.digest, image_set.image_size, backbone.identity.sha256, stride, device.type, tiles)

    def _read(self, key: FeatureKey) -> tuple[Tensor, Size] | None:
        """Stored features [P, C, N], memory-mapped, and their grid (h, w); None if there are none. A damaged entry is deleted."""
        folder = self.root / key.folder
        description = folder / "entry.json"
        try:
            entry = json.loads(description.read_text())
            height, width = (int(side) for side in entry["grid"])
            # The checksum is verified first, because numpy may raise any error on a damaged header.
            if entry["key"] != key.identity or not self._intact(folder / "features.npy", entry["xxh3"]):
                raise ValueError("damaged entry")
            values = np.load(folder / "features.npy", mmap_mode="c", allow_pickle=False)
            if values.dtype != np.float32 or values.ndim != 3 or height * width != len(values):
                raise ValueError("damaged entry")
            os.utime(description)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, EOFError):
            self._delete(folder)
            return None
        return torch.from_numpy(values), (height, width)

    def _intact(self, path: Path, checksum: str) -> bool:
        """Whether a file has the checksum with which it was written. Each process verifies a file once."""
        status = path.stat()
        seen = (path.parent.name, status.st_ino, status.st_mtime_ns)
        if seen not in self._verified:
            if _checksum(path) != checksum:
                return False
            self._verified.add(seen)
        return True

    def _compute(
        self,
        image_set: ImageSet,
        backbone: Backbone,
        keys: dict[int, FeatureKey],
        *,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        """Run the backbone once over the set and store the features of the strides in `keys`."""
        self.root.mkdir(parents=True, exist_ok=True)
        folders = {stride: self.root / f".{key.folder}.tmp" for stride, key in keys.items()}
        for folder in folders.values():
            # This process holds the lock, so a folder of this name was left by a process that was killed.
            shutil.rmtree(folder, ignore_errors=True)
        try:
            with os_errors_as_input_errors(self.root):
                tiles = next(iter(keys.values())).tiles
                grids = _extract(image_set, backbone, folders, device=device, tiles=tiles, progress=progress)
                for stride, key in keys.items():
                    file = folders[stride] / "features.npy"
                    description = {"key": key.identity, "grid": list(grids[stride]), "xxh3": _checksum(file)}
                    write_json(folders[stride] / "entry.json", description)
                    self._publish(folders[stride], self.root / key.folder)
        finally:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, temporary: Path, target: Path) -> None:
        if target.exists():
            self._delete(target)
        temporary.rename(target)

    def _delete(self, folder: Path) -> bool:
        """Rename an entry, so that no process finds it any more, then delete it. Returns whether it was there."""
        trash = self.root / f".{folder.name}.{uuid.uuid4().hex[:8]}.trash"
        try:
            folder.rename(trash)
        except FileNotFoundError:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True


def _extract(
    image_set: ImageSet,
    backbone: Backbone,
    folders: Mapping[int, Path],
    *,
    device: torch.device,
    tiles: Tiles | None,
    progress: Progress | None,
) -> dict[int, Size]:
    """Run the backbone over a set, in float32 throughout, and write ``features.npy`` of each stride: [P, C, N], or of images that
    are cut into T tiles [P, C, N * T].

    Args:
        folders: {stride: folder, which is created}.

    Returns:
        {stride: grid of its positions (h, w)}.
    """
    backbone.to(device)
    arrays: dict[int, FeatureFile] = {}
    grids: dict[int, Size] = {}
    pending: list[dict[int, Tensor]] = []
    written = done = 0
    batch = extraction_batch(device)
    total = len(image_set) * (1 if tiles is None else len(TileGrid(image_set.image_size, tiles)))
    with torch.inference_mode(), full_precision(device):
        for images in _looked_at(image_set, tiles, batch):
            pyramid = backbone(images.to(device))
            pending.append({stride: pyramid[stride].cpu() for stride in folders})
            done += len(images)
            if not arrays:
                shapes = {stride: tuple(features.shape[1:]) for stride, features in pending[0].items()}
                grids = {stride: (height, width) for stride, (_, height, width) in shapes.items()}
                arrays = {stride: _allocate(folders[stride], shapes[stride], total) for stride in folders}
            if _pending_bytes(pending) >= CHUNK_BYTES or done == total:
                for stride, array in arrays.items():
                    chunk = torch.cat([features[stride] for features in pending]).flatten(2)
                    array[:, :, written:done] = chunk.permute(2, 1, 0).numpy()
                written, pending = done, []
            if progress:
                progress(done * len(image_set) // total, len(image_set))
    for array in arrays.values():
        array.flush()
    return grids


def _looked_at(image_set: ImageSet, tiles: Tiles | None, batch: int) -> Iterator[Tensor]:
    """What the backbone looks at, uint8 [B, 3, h, w] with B up to `batch`: images, or tiles of one image after the other."""
    if tiles is None:
        for start in range(0, len(image_set), batch):
            yield image_set.images(range(start, min(start + batch, len(image_set))))
        return
    grid = TileGrid(image_set.image_size, tiles)
    for index in range(len(image_set)):
        yield from grid.cut(image_set.images([index])).split(batch)


def _allocate(folder: Path, shape: Sequence[int], images: int) -> FeatureFile:
    """A new file of features [P, C, N].

    Its space is allocated on the disk at once: a full disk then raises an error here instead of a signal while it is written.

    Args:
        shape: channels, height and width.
    """
    folder.mkdir()
    path = folder / "features.npy"
    channels, height, width = shape
    array = open_memmap(path, mode="w+", dtype=np.float32, shape=(height * width, channels, images))
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _pending_bytes(pending: list[dict[int, Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for part in pending for tensor in part.values())


def _checksum(path: Path) -> str:
    total = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(4 * 2**20):
            total.update(block)
    return total.hexdigest()
