"""Backbone features on disk: computed once per image set, size and weights, memory-mapped by every trial.

One folder per entry, named by the hash of its key, holding ``features.npy`` ([P, C, N], see `detectors.features`) and
``entry.json``. Entries appear by rename, are verified when a process first reads them, and go, least recently used first,
when the store outgrows its limit. A lock per image set and backbone lets one process compute while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.lib.format import open_memmap
from torch import Tensor

from detectors.backbones.pyramid import EXTRACTION_BATCH, Backbone
from detectors.data.images import RESIZE_RULE, Size
from detectors.data.samples import ImageSet
from detectors.features import Features
from detectors.files import file_lock, told_plainly, write_json
from detectors.working_memory import portion

LAYOUT_VERSION = 1
DEFAULT_MAX_BYTES = 20 * 2**30
CHUNK_BYTES = 256 * 2**20
"""Features held in memory before they are written out."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureKey:
    """What the features of one entry depend on."""

    data_digest: str
    image_size: Size
    weights_sha256: str
    stride: int
    device_type: str
    """``cpu`` or ``cuda``: their arithmetic differs in the last digits, and a trial must repeat exactly."""

    @property
    def identity(self) -> dict[str, Any]:
        """Every part, JSON-able."""
        return {
            "layout": LAYOUT_VERSION,
            "data": self.data_digest,
            "image_size": list(self.image_size),
            "resize": RESIZE_RULE,
            "weights": self.weights_sha256,
            "stride": self.stride,
            "device": self.device_type,
        }

    @property
    def folder(self) -> str:
        """Folder name of the entry."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """One stored stride, as `FeatureStore.entries` lists it."""

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
        self, image_set: ImageSet, backbone: Backbone, *, device: torch.device, progress: Progress | None = None
    ) -> Features:
        """Features of a set at all strides of the backbone, computed where they are not stored.

        Args:
            progress: called with (images done, images in all) while features are computed; never where they are stored.

        Raises:
            InputError: an image cannot be read, the store cannot be written or the disk is full.
        """
        keys = {stride: self._key(image_set, backbone, stride, device) for stride in backbone.strides}
        found = {stride: self._read(key) for stride, key in keys.items()}
        if not all(found.values()):
            with file_lock(self._lock(next(iter(keys.values())).identity)):
                # Another process may have computed them while this one waited.
                found = {stride: known or self._read(keys[stride]) for stride, known in found.items()}
                missing = {stride: keys[stride] for stride, known in found.items() if known is None}
                if missing:
                    self._compute(image_set, backbone, missing, device=device, progress=progress)
                    found |= {stride: self._read(key) for stride, key in missing.items()}
            self.evict(keep={key.folder for key in keys.values()})
        present = {stride: entry for stride, entry in found.items() if entry is not None}
        if len(present) < len(keys):
            raise RuntimeError(
                f"features vanished from {self.root} while they were in use; is another program cleaning it?"
            )
        return Features(
            maps={stride: values for stride, (values, _) in present.items()},
            grids={stride: grid for stride, (_, grid) in present.items()},
            image_size=image_set.image_size,
        )

    def holds(self, image_set: ImageSet, *, weights_sha256: str, strides: Sequence[int], device: torch.device) -> bool:
        """Whether the features of a set are stored at all the given strides."""
        keys = [FeatureKey(image_set.digest, image_set.image_size, weights_sha256, s, device.type) for s in strides]
        return all((self.root / key.folder / "entry.json").is_file() for key in keys)

    def identity_of(self, image_set: ImageSet, backbone: Backbone, device: torch.device) -> str:
        """Everything that the features of a set depend on, but for the stride, as one text."""
        identity = self._key(image_set, backbone, 0, device).identity
        return json.dumps({name: value for name, value in identity.items() if name != "stride"}, sort_keys=True)

    def entries(self) -> list[Entry]:
        """All entries, least recently used first."""
        listed = []
        for description in self.root.glob("*/entry.json"):
            try:
                files = [file.stat().st_size for file in description.parent.iterdir()]
                listed.append(Entry(description.parent, sum(files), description.stat().st_mtime))
            except FileNotFoundError:  # evicted meanwhile
                continue
        return sorted(listed, key=lambda entry: entry.last_used)

    def evict(self, *, keep: set[str] = frozenset(), max_bytes: int | None = None) -> int:  # type: ignore[assignment]
        """Delete the least recently used entries until the store fits; returns the bytes freed.

        Readers that have an entry open keep it until they are done.
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
        """Half-written folders of processes that were killed; `compute` removes those of its own key."""
        return sorted(path for path in self.root.glob(".*") if path.is_dir())

    def identity(self, folder: Path) -> dict[str, Any] | None:
        """`FeatureKey.identity` of a stored entry; None for a leftover, or a damaged entry."""
        try:
            return dict(json.loads((folder / "entry.json").read_text())["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def discard(self, folder: Path) -> bool:
        """Delete an entry or a leftover; False where it is gone, or may belong to features that are being computed now.

        Readers that have an entry open keep it until they are done.
        """
        try:
            with self._not_in_the_making(folder), told_plainly(self.root):
                return self._delete(folder)
        except BlockingIOError:
            return False

    def is_computing(self, folder: Path) -> bool:
        """Whether a process computes features right now that an entry or a leftover may belong to."""
        try:
            with self._not_in_the_making(folder):
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def _not_in_the_making(self, folder: Path) -> Iterator[None]:
        """Keep other processes from computing the features of a folder. Raises `BlockingIOError` where one does."""
        identity = self.identity(folder)
        # What does not say which features it holds may be any of those in the making.
        locks = sorted((self.root / "locks").glob("*.lock")) if identity is None else [self._lock(identity)]
        with ExitStack() as held:
            for lock in locks:
                if lock.exists():
                    held.enter_context(file_lock(lock, wait=False))
            yield

    def _lock(self, identity: Mapping[str, Any]) -> Path:
        """One lock for all strides of an image set and backbone: they are computed together."""
        shared = {name: value for name, value in identity.items() if name != "stride"}
        return (
            self.root / "locks" / f"{hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:32]}.lock"
        )

    def _key(self, image_set: ImageSet, backbone: Backbone, stride: int, device: torch.device) -> FeatureKey:
        return FeatureKey(image_set.digest, image_set.image_size, backbone.identity.sha256, stride, device.type)

    def _read(self, key: FeatureKey) -> tuple[Tensor, Size] | None:
        """A stored stride, memory-mapped; None where it is not there or damaged (then it is deleted)."""
        folder = self.root / key.folder
        description = folder / "entry.json"
        try:
            entry = json.loads(description.read_text())
            height, width = (int(side) for side in entry["grid"])
            # The checksum first: a damaged header makes numpy raise nearly anything.
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
        """Whether a file has the checksum it was written with; each process reads a file for this once."""
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
        """Run the backbone once over the set and store the strides in `keys`."""
        self.root.mkdir(parents=True, exist_ok=True)
        folders = {stride: self.root / f".{key.folder}.tmp" for stride, key in keys.items()}
        for folder in folders.values():
            # The lock is ours: whatever lies here was left by a killed process.
            shutil.rmtree(folder, ignore_errors=True)
        backbone.to(device)
        arrays: dict[int, np.memmap[Any, np.dtype[np.float32]]] = {}
        pending: list[dict[int, Tensor]] = []
        written = done = 0
        try:
            with told_plainly(self.root), torch.inference_mode():
                batch = portion(EXTRACTION_BATCH)
                for start in range(0, len(image_set), batch):
                    indices = range(start, min(start + batch, len(image_set)))
                    pyramid = backbone(image_set.images(indices).to(device))
                    pending.append({stride: pyramid[stride].cpu() for stride in keys})
                    done = indices.stop
                    if _pending_bytes(pending) >= CHUNK_BYTES or done == len(image_set):
                        if not arrays:
                            grids = {stride: pending[0][stride].shape[1:] for stride in keys}
                            arrays = {s: _allocate(folders[s], grids[s], len(image_set)) for s in keys}
                        for stride, array in arrays.items():
                            chunk = torch.cat([part[stride] for part in pending]).flatten(2)
                            array[:, :, written:done] = chunk.permute(2, 1, 0).numpy()
                        written, pending = done, []
                    if progress:
                        progress(done, len(image_set))
                for stride, key in keys.items():
                    arrays[stride].flush()
                    file = folders[stride] / "features.npy"
                    height, width = grids[stride][1:]
                    description = {"key": key.identity, "grid": [height, width], "xxh3": _checksum(file)}
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
        """Take an entry out of sight in one step, then free its space."""
        trash = self.root / f".{folder.name}.{uuid.uuid4().hex[:8]}.trash"
        try:
            folder.rename(trash)
        except FileNotFoundError:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True


def _allocate(folder: Path, shape: Sequence[int], images: int) -> np.memmap[Any, np.dtype[np.float32]]:
    """A new features file [P, C, N]; the disk is asked for all of its space now, not by a signal in mid-write."""
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
