"""What a file says of the detector in it, and the digest by which a change of these words is noticed.

A description is a JSON object. Its field ``sha256`` is the digest of all other fields: whoever edits one of them, or a disk that
damages one, is noticed when the detector is read. The digest is no signature: whoever computes it anew after an edit is not
noticed. What keeps such people out is who may write to the place.

Descriptions of format 1 (versions 0.1 and 0.2) have no digest. They are still read; `Description.is_sealed` tells them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from detectors.base import SMOOTHING_SIGMA
from detectors.data.images import RESIZE_RULE
from detectors.errors import InputError
from detectors.head_texts import SHA256, HeadCode
from detectors.runtime.plausibility import check_normal_scores, check_threshold
from detectors.scoring.operating_point import Threshold
from detectors.tiles import LEAST_SIDE, MOST_SIDE, TileGrid, Tiles

FORMAT = 2
"""2 has a digest over the description; 1 has none."""
DIGEST = "sha256"
"""Name of the field that holds it."""
MAX_DESCRIPTION_BYTES = 16 * 2**20
MAX_PIXELS = 2**24
"""Of an image that a detector takes: 4096 x 4096, four times what a study file may ask for."""
MAX_STRIDES = 16
MAX_BLOCKS = 1024
"""Of a vision transformer, whose blocks are counted down from -1."""
Side = Annotated[int, Field(ge=1, le=8192)]


class Weights(BaseModel):
    """Identity of the backbone's weights, as `detectors.backbones.pyramid.WeightsIdentity`."""

    model_config = ConfigDict(extra="forbid")
    name: str
    tag: str
    sha256: str
    origin: str


class Code(BaseModel):
    """A head's file, as `detectors.head_texts.HeadCode`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    file: str
    class_name: str
    sha256: str = Field(pattern=SHA256.pattern)


class StoredTiles(BaseModel):
    """How images are cut, as `detectors.tiles.Tiles`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    side: int = Field(ge=LEAST_SIDE, le=MOST_SIDE)
    overlap: int = Field(ge=0, le=MOST_SIDE)


class Description(BaseModel):
    """What a file says of the detector in it; ``detector.json`` holds this alone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    optional: ClassVar[tuple[str, ...]] = ("code", "tiles")
    """Fields that are left out of the JSON where they are empty."""
    format: int = Field(ge=1, le=FORMAT)
    detector: str
    settings: dict[str, bool | int | float | str]
    backbone: str = Field(max_length=1024)
    strides: list[int] = Field(min_length=1, max_length=MAX_STRIDES)
    weights: Weights
    image_size: tuple[Side, Side] = Field(strict=False)
    resize_rule: str
    smoothing_sigma: float = Field(ge=0, le=SMOOTHING_SIGMA.high)
    threshold: dict[str, Any] | None
    normal_scores: list[float]
    provenance: dict[str, Any]
    tensors_sha256: str
    code: Code | None = None
    """The file that the head came from, where that is no package's; left out of the JSON otherwise."""
    tiles: StoredTiles | None = None
    """That images are cut into; left out of the JSON of a detector that looks at whole ones."""
    sha256: str | None = None
    """Of all other fields, hex, see `digest_of`; None in format 1, and before `to_json` has computed it."""

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        """Values that contradict each other. Raises `ValueError`."""
        height, width = self.image_size
        if height * width > MAX_PIXELS:
            raise ValueError(f"image_size: {height} x {width} pixels are more than a detector takes ({MAX_PIXELS})")
        if 0 in self.strides or min(self.strides) < -MAX_BLOCKS or max(self.strides) > max(self.image_size):
            raise ValueError(f"strides: {self.strides} are no strides of an image of {height} x {width} pixels")
        if self.tiles is not None:
            try:
                TileGrid(self.image_size, Tiles(self.tiles.side, self.tiles.overlap))
            except InputError as error:
                raise ValueError(str(error)) from error
        check_normal_scores(self.normal_scores)
        if self.threshold is not None:
            try:
                threshold = Threshold.from_json(self.threshold)
            except InputError as error:
                raise ValueError(str(error)) from error
            check_threshold(threshold, np.asarray(self.normal_scores))
        return self

    @property
    def head_code(self) -> HeadCode | None:
        """`code` as a plain record."""
        return HeadCode(self.code.file, self.code.class_name, self.code.sha256) if self.code else None

    @property
    def cut(self) -> Tiles | None:
        """`tiles` as a plain record."""
        return Tiles(self.tiles.side, self.tiles.overlap) if self.tiles else None

    @property
    def is_sealed(self) -> bool:
        """Whether a digest covers the description; not so in those of version 0.1 and 0.2."""
        return self.sha256 is not None

    def to_json(self) -> str:
        """What `parse_description` reads back, in the newest format with its digest."""
        # What only some have is left out elsewhere, so that earlier versions read what they can run.
        absent = {name for name in type(self).optional if not getattr(self, name)}
        data = self.model_dump(mode="json", exclude={DIGEST, *absent})
        data["format"] = FORMAT
        return json.dumps(data | {DIGEST: digest_of(data)}, allow_nan=False, separators=(",", ":"))


AnyDescription = TypeVar("AnyDescription", bound=Description)


def digest_of(data: Mapping[str, Any]) -> str:
    """SHA-256 of a description's fields but the digest itself, hex.

    Of their JSON with sorted keys and without spaces, in ASCII; numbers as Python writes them.
    """
    fields = {key: value for key, value in data.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_description(text: str | bytes, *, place: Path, kind: type[AnyDescription]) -> AnyDescription:
    """Read a description. Raises `InputError` that names the place where it was changed, is damaged or of a newer version."""
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise InputError(f"{place}: too large to be a detector's description")
    try:
        raw = json.loads(text, object_pairs_hook=distinct_keys, parse_constant=_no_constant)
        _check_digest(raw, place)
        description = kind.model_validate(raw)
    except InputError:
        raise
    except ValidationError as error:
        raise InputError(f"{place}: damaged: {first_fault(error)}") from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers with thousands of digits
        raise InputError(f"{place}: not JSON ({error})") from error
    if description.resize_rule != RESIZE_RULE:
        raise InputError(
            f"{place}: unknown resize rule {description.resize_rule!r}; this version knows {RESIZE_RULE!r}"
        )
    return description


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, with the field that it is about."""
    first = error.errors()[0]
    where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`. Raises `ValueError` for a key that is there twice: readers differ in which one counts."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!r} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check_digest(raw: Any, place: Path) -> None:
    """Raise `InputError` where the fields are not those that the digest was computed of."""
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        return  # its form is refused next, in better words
    if raw["format"] > FORMAT:
        raise InputError(f"{place}: written by a newer version (format {raw['format']}); update anomaly-studies")
    if raw["format"] < FORMAT and DIGEST not in raw:
        return
    if raw.get(DIGEST) is None:
        raise InputError(f"{place}: changed since it was written ({DIGEST} is missing); restore or refit the detector")
    if raw[DIGEST] != digest_of(raw):
        raise InputError(
            f"{place}: changed since it was written ({DIGEST} of the description differs); restore or refit the detector"
        )
