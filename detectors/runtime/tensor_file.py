"""The file of a detector's tensors, in the format of safetensors, as somebody else may have made it.

The header, which lists the tensors, is read and checked against the file before any of them takes memory.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.runtime.description import distinct_keys

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_SIDE = 2**31 - 1
"""Of one dimension of a tensor."""
LENGTH_BYTES = 8
"""The file begins with the header's length, little-endian."""
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Of one element, by safetensors' name of its type."""

Shape = tuple[int, ...]


class _Entry(BaseModel):
    """One tensor as the header lists it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    dtype: str
    shape: list[int] = Field(max_length=MAX_DIMENSIONS)
    data_offsets: tuple[int, int] = Field(strict=False)


_ENTRIES = TypeAdapter(dict[str, _Entry])


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file. Raises `OSError` where the system refuses."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # safetensors reports the operating system's error number in words only.
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


def read_shapes(path: Path, sha256: str) -> dict[str, Shape]:
    """{name: shape} of the tensors in a file, of which the header alone is kept in memory.

    Args:
        sha256: of the whole file.

    Raises:
        InputError: the file is not there, was changed, or its header claims what the file does not hold.
    """
    try:
        if file_sha256(path) != sha256:
            raise InputError(f"{path}: changed since the detector was saved (sha256 differs); restore or refit it")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 0 < length <= min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise InputError(f"{path}: not readable (a header of {length} bytes in a file of {size})")
            header = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: not readable ({error})") from error
    try:
        listed = json.loads(header, object_pairs_hook=distinct_keys)
        if isinstance(listed, dict):
            listed.pop("__metadata__", None)
        entries = _ENTRIES.validate_python(listed)
    except ValidationError as error:
        raise InputError(f"{path}: not readable (header: {error.errors()[0]['msg']})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable (header: {error})") from error
    if fault := _fault(entries, size - LENGTH_BYTES - length):
        raise InputError(f"{path}: not readable ({fault})")
    return {name: tuple(entry.shape) for name, entry in entries.items()}


def _fault(entries: Mapping[str, _Entry], held: int) -> str | None:
    """Why a header does not fit the bytes behind it, of which the file holds so many; None where it does."""
    if len(entries) > MAX_TENSORS:
        return f"{len(entries)} tensors are more than a detector has"
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        label = f"tensor {name[:80]!r}"
        if entry.dtype not in BYTES:
            return f"{label} is of the unknown type {entry.dtype[:20]!r}"
        if not all(0 <= side <= MAX_SIDE for side in entry.shape):
            return f"{label} has the shape {entry.shape}"
        first, last = entry.data_offsets
        if last - first != math.prod(entry.shape) * BYTES[entry.dtype]:
            return f"{label} of shape {entry.shape} cannot lie in {last - first} bytes"
        if first != end:
            return f"{label} begins at byte {first}, not {end}"
        end = last
    return None if end == held else f"the tensors take {end} bytes, and the file holds {held}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that `read_shapes` has checked, on the CPU. Raises `InputError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable ({error})") from error
