"""Which defect is painted into which image: kinds, sizes and opacities, spread evenly over the images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from detectors.data.painting.contents import (
    Content,
    blurred,
    missing,
    pasted,
    scarred,
    shifted,
    stained,
    swapped,
    tinted,
    turned,
)
from detectors.data.painting.shapes import Draw, bar, blob, box, ellipse
from detectors.errors import InputError

VERSION = 2
"""Raised whenever a recipe would paint other pixels, so that stored features of the old ones are not found again."""
KINDS: dict[str, tuple[Draw, Content]] = {
    "pasted": (box, pasted),
    "scar": (bar, scarred),
    "stain": (blob, stained),
    "turned": (ellipse, turned),
    "shifted": (ellipse, shifted),
    "missing": (blob, missing),
    "tint": (ellipse, tinted),
    "blur": (ellipse, blurred),
    "swapped": (box, swapped),
}
"""{kind: its shape and its content}"""
LARGEST_AREA = 0.1
"""Of a defect, as a share of the image."""
FINEST_STRIDE = 8
"""Stride of the finest map that most detectors look at: the smallest defect has the area of one of its positions."""
SIZE_GRADES, OPACITY_GRADES = 4, 2
FAINTEST, FULL_FROM = 0.2, 0.6
"""A faint defect has an opacity from `FAINTEST` to `FULL_FROM`, a full one from there to 1."""


@dataclass(frozen=True)
class Painting:
    """A defect that is painted into a good image. Raises `InputError` for an unknown kind or values out of range."""

    kind: str
    """One of `KINDS`."""
    area: float
    """Share of the image, in (0, 0.5]."""
    opacity: float
    """In (0, 1]."""
    seed: int
    grade: str = ""
    """Band of size and opacity, such as ``2-full``; with `kind` the cell whose images are averaged."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"painted defect {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if not 0 < self.area <= 0.5:
            raise InputError(f"painted defect: area {self.area:g} is out of range; give a share of the image up to 0.5")
        if not 0 < self.opacity <= 1:
            raise InputError(f"painted defect: opacity {self.opacity:g} is out of range; give one above 0, up to 1")
        if self.seed < 0:
            raise InputError(f"painted defect: seed {self.seed} is negative; use 0 or more")

    @property
    def cell(self) -> str:
        """Kind and grade."""
        return f"{self.kind}/{self.grade}"

    @property
    def identity(self) -> str:
        """Text that changes whenever the painted pixels may."""
        return f"{self.kind}:{self.area!r}:{self.opacity!r}:{self.seed}:v{VERSION}"


CELLS: tuple[tuple[str, int, int], ...] = tuple(
    (kind, size, opacity) for size in range(SIZE_GRADES) for opacity in range(OPACITY_GRADES) for kind in KINDS
)
"""Kind, grade of size (0 is the smallest) and of opacity (0 faint, 1 full). Neighbours differ in their kind."""
STEP = 31
"""Cells from one painting to the next: without a common divisor with their number, so that every cell comes in turn, and any few
paintings in a row differ in kind, size and opacity."""


def painting(number: int, *, image: str, side: int, seed: int) -> Painting:
    """The `number`-th painting of an image set; all its cells come equally often.

    Args:
        image: key of the image that is painted into.
        side: shorter side, in pixels, that images are resized to.
        seed: another one gives other sizes, opacities, places and contents of the same cells.
    """
    return _in_cell(*CELLS[number * STEP % len(CELLS)], drawn_from=f"{seed}\0{number}\0{image}", side=side)


def again(before: Painting, *, image: str, side: int, seed: int) -> Painting:
    """Another painting of the same cell, which `painting` made; arguments as there, and `seed` is another one."""
    cell = next(cell for cell in CELLS if (cell[0], _grade(*cell[1:])) == (before.kind, before.grade))
    return _in_cell(*cell, drawn_from=f"again\0{seed}\0{before.seed}\0{image}", side=side)


def _grade(size: int, opacity: int) -> str:
    return f"{size}-{('faint', 'full')[opacity]}"


def _in_cell(kind: str, size: int, opacity: int, *, drawn_from: str, side: int) -> Painting:
    """A painting of a cell; all else follows from a text."""
    digest = hashlib.sha256(drawn_from.encode()).digest()
    in_band, in_opacity = (int.from_bytes(digest[start : start + 4], "big") / 2**32 for start in (0, 4))
    smallest = min((FINEST_STRIDE / side) ** 2, LARGEST_AREA / 2)
    area = smallest * (LARGEST_AREA / smallest) ** ((size + in_band) / SIZE_GRADES)
    low, high = ((FAINTEST, FULL_FROM), (FULL_FROM, 1.0))[opacity]
    return Painting(
        kind=kind,
        area=round(area, 6),
        opacity=round(low + (high - low) * in_opacity, 3),
        seed=int.from_bytes(digest[8:12], "big"),
        grade=_grade(size, opacity),
    )
