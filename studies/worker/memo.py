"""Results that several fits to the same features share, on disk.

An example is the order of a coreset, which every trial needs that differs in the ratio alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from detectors.files import file_lock, os_errors_as_input_errors

MAX_BYTES = 2 * 2**30
"""Most bytes of all memos together; the least recently used ones are deleted first."""


class FileMemo:
    """A `detectors.base.Memo` in a folder of safetensors files, for one set of features.

    A file that is damaged or was written for other features counts as missing; its content is then computed again.
    """

    def __init__(self, root: Path, *, features: str, max_bytes: int = MAX_BYTES) -> None:
        """Args:
        root: folder of all memos.
        features: all that the features depend on, as one text.
        max_bytes: most bytes of all memos in the folder.
        """
        self.root, self.features, self.max_bytes = root, features, max_bytes

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors that were saved under a name, on the CPU; None if there are none."""
        path = self.path(name)
        try:
            data = path.read_bytes()
            head, _, body = data.partition(b"\n")
            if json.loads(head) != self._head(name, body):
                return None
            os.utime(path)
            return load(body)
        except (OSError, ValueError, SafetensorError, RecursionError):
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors under a name; readers see all of them or none.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        body = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        with os_errors_as_input_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(json.dumps(self._head(name, body)).encode() + b"\n" + body)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        self._evict(keep=path)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Within the block, no other process holds the lock of the same name."""
        with file_lock(self.root / "locks" / f"{self.path(name).stem}.lock"):
            yield

    def path(self, name: str) -> Path:
        """The file in which the tensors of a name are saved."""
        key = hashlib.sha256(f"{self.features}\0{name}".encode()).hexdigest()
        return self.root / f"{key[:32]}.memo"

    def _head(self, name: str, body: bytes) -> dict[str, str]:
        return {"features": self.features, "name": name, "sha256": hashlib.sha256(body).hexdigest()}

    def _evict(self, *, keep: Path) -> None:
        listed = []
        for path in self.root.glob("*.memo"):
            try:
                status = path.stat()
            except FileNotFoundError:  # Another process deleted it.
                continue
            listed.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in listed) - self.max_bytes
        for _, size, path in sorted(listed, key=lambda entry: entry[:2]):
            if excess <= 0:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size
