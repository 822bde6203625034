"""Figures that others published, read from ``published.yaml``, and what keeps a measured trial from being compared to them."""

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
"""Category under which the mean over all 15 categories stands."""

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Part):
    """Images of a category in the official archive."""

    train: int = Field(ge=1)
    test: int = Field(ge=1)


class Source(_Part):
    """Who published figures."""

    name: str
    reference: str
    """arXiv number of a paper, or address of a named re-implementation."""


class Figures(_Part):
    """What was published of one category, each between 0 and 1."""

    image_auroc: Share | None = None
    pixel_auroc: Share | None = None
    pixel_aupro: Share | None = None

    @model_validator(mode="after")
    def _something(self) -> Figures:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("no figure in it")
        return self


class Published(_Part):
    """Figures of one detector in one setting, all of the whole test set."""

    detector: str
    source: str
    setting: str
    """In words, what `params` cannot say."""
    dataset: str = "mvtec"
    params: dict[str, Any] = {}
    """What a trial must agree on to be comparable; `image_size` in pixels, the others as the study file has them."""
    selection: str = ""
    """How the result was chosen, where the test set had a say in it."""
    figures: dict[str, Figures] = Field(min_length=1)
    """Category, or `MEAN` -> figures."""


class Catalogue(_Part):
    """All of ``published.yaml``."""

    datasets: dict[str, dict[str, Counts]]
    sources: dict[str, Source]
    figures: list[Published]

    @model_validator(mode="after")
    def _known_sources(self) -> Catalogue:
        for entry in self.figures:
            if entry.source not in self.sources:
                raise ValueError(f"{entry.detector}: unknown source {entry.source!r}")
        return self

    def of(self, detector: str, dataset: str, category: str) -> list[Published]:
        """What was published of a detector on a category, or at least as a mean over the data set's categories."""
        return [
            entry
            for entry in self.figures
            if entry.detector == detector
            and entry.dataset == dataset
            and (category in entry.figures or (MEAN in entry.figures and category in self.datasets.get(dataset, {})))
        ]


def read_catalogue(path: Path) -> Catalogue:
    """A file of published figures. Raises `InputError` that names the entry where it is no sound one."""
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
    """One thing that keeps a trial from being compared to a published setting."""

    what: str
    """``backbone``, ``split``, another parameter..."""
    theirs: str
    here: str

    def __str__(self) -> str:
        return f"{self.what}: {self.theirs}" + (f", here {self.here}" if self.here else "")


def differing_params(entry: Published, params: Mapping[str, Any]) -> list[Difference]:
    """Each parameter in which a trial, `params` with its `image_size`, differs from a published setting."""
    return [
        Difference(what=name, theirs=_shown(theirs), here=_shown(params.get(name)))
        for name, theirs in entry.params.items()
        if _plain(name, params.get(name)) != theirs
    ]


def _plain(name: str, value: Any) -> Any:
    """A trial's value in the form that `Published.params` has."""
    if name == "image_size" and isinstance(value, list) and len(set(value)) == 1:
        return value[0]
    if name == "backbone" and isinstance(value, str) and "@" not in value:
        # The tag says which of the architecture's pretrained weights they are.
        return value.partition(".")[0]
    return value


def _shown(value: Any) -> str:
    return "none" if value is None else str(encode(value))
