"""What is known of a set of good and painted images beside their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError


@dataclass(frozen=True)
class PaintedSet:
    """What is known of N images of which some are painted, beside their scores."""

    cells: tuple[str, ...]
    """[N] ``<kind>/<grade>``; empty for a good image."""
    sources: NDArray[np.int64]
    """[N] number of the good image that each was painted into, of a good image its own."""
    folds: NDArray[np.int64]
    """[N] the fold in which each is held out; all alike where none is."""

    def __post_init__(self) -> None:
        if not len(self.cells) == len(self.sources) == len(self.folds):
            raise InputError(
                f"painted set: {len(self.cells)} cells, {len(self.sources)} sources and {len(self.folds)} folds; "
                "give one of each per image"
            )

    @cached_property
    def painted(self) -> NDArray[np.int64]:
        """[P] indices of the painted images."""
        return np.flatnonzero([cell != "" for cell in self.cells])

    @cached_property
    def good(self) -> NDArray[np.int64]:
        """[G] indices of the good images."""
        return np.flatnonzero([cell == "" for cell in self.cells])

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """[P] kind of each painted image."""
        return tuple(self.cells[index].split("/")[0] for index in self.painted)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """[P] weight of each painted image: cells count alike, and the weights add up to 1."""
        cells = [self.cells[index] for index in self.painted]
        names, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (len(names) * counts[place]), dtype=np.float64)

    def take(self, rows: Sequence[int]) -> PaintedSet:
        """The images at these indices."""
        chosen = np.asarray(rows, dtype=np.int64)
        return PaintedSet(tuple(self.cells[row] for row in chosen), self.sources[chosen], self.folds[chosen])
