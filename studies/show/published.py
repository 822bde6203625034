"""Figures that others published, read from ``published.yaml``, and what keeps a trial from being compared with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from detectors.errors import InputError
from studies.file import yaml_file
from studies.file.encoding import encode

FILE = Path(__file__).with_name("published.yaml")
MEAN = "mean"
"""The name under which the mean over all categories of a data set is stored, in the place of a category."""

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Part):
    """Number of images of a category in the official archive."""

    train: int = Field(ge=1)
    test: int = Field(ge=1)


class Source(_Part):
    """A paper or a re-implementation that published figures."""

    name: str
    reference: str
    """arXiv number of a paper, or web address of a re-implementation."""


class Figures(_Part):
    """The published figures of one category, each from 0 to 1; None if a figure was not published."""

    image_auroc: Share | None = None
    pixel_auroc: Share | None = None
    pixel_aupro: Share | None = None

    @model_validator(mode="after")
    def _something(self) -> Figures:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("no figure in it")
        return self


class Published(_Part):
    """Figures of one detector in one setting, all measured on the whole test set."""

    detector: str
    source: str
    setting: str
    """What `params` cannot express, in words."""
    dataset: str = "mvtec"
    params: dict[str, Any] = {}
    """Parameters in which a trial must agree to be comparable: `image_size` in pixels, all others as in the study file."""
    selection: str = ""
    """How the test set was used to choose this result, as by taking the best epoch; empty if it was not used."""
    figures: dict[str, Figures] = Field(min_length=1)
    """{category or `MEAN`: figures}"""


class Catalogue(_Part):
    """The content of ``published.yaml``."""

    datasets: dict[str, dict[str, Counts]]
    """{data set: {category: number of images}}"""
    sources: dict[str, Source]
    """{key: source}"""
    figures: list[Published]

    @model_validator(mode="after")
    def _known_sources(self) -> Catalogue:
        for entry in self.figures:
            if entry.source not in self.sources:
                raise ValueError(f"{entry.detector}: unknown source {entry.source!r}")
        return self

    def of(self, detector: str, dataset: str, category: str) -> list[Published]:
        """What was published of a detector on a category, or as a mean over all categories of its data set."""
        return [
            entry
            for entry in self.figures
            if entry.detector == detector
            and entry.dataset == dataset
            and (category in entry.figures or (MEAN in entry.figures and category in self.datasets.get(dataset, {})))
        ]


def read_catalogue(path: Path) -> Catalogue:
    """Read a file of published figures.

    Raises:
        InputError: the file is not valid; the message names the entry.
    """
    try:
        return Catalogue.model_validate(yaml_file.read(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The figures that come with this package."""
    return read_catalogue(FILE)


class Difference(_Part):
    """One thing in which a trial differs from a published setting."""

    what: str
    """Name of a parameter, or ``category``, ``images``, ``split`` or ``selection``."""
    theirs: str
    """As published."""
    here: str
    """In the trial; may be empty."""

    def __str__(self) -> str:
        return f"{self.what}: {self.theirs}" + (f", here {self.here}" if self.here else "")


def differing_params(entry: Published, params: Mapping[str, Any]) -> list[Difference]:
    """Each parameter in which a trial differs from a published setting.

    Args:
        params: the parameters of the trial, and its `image_size` as [height, width].
    """
    return [
        Difference(what=name, theirs=_shown(theirs), here=_shown(params.get(name)))
        for name, theirs in entry.params.items()
        if _plain(name, params.get(name)) != theirs
    ]


def _plain(name: str, value: Any) -> Any:
    """A trial's value in the form of `Published.params`: one number for a square size, no tag of weights behind a backbone."""
    if name == "image_size" and isinstance(value, list) and len(set(value)) == 1:
        return value[0]
    if name == "backbone" and isinstance(value, str) and "@" not in value:
        return value.partition(".")[0]
    return value


def _shown(value: Any) -> str:
    return "none" if value is None else str(encode(value))
