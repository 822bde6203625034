"""The contract of every detector: parameters, fit context, head, prediction, detector.

Notation: B images, h x w positions of the finest stride, H x W pixels.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from detectors.data.images import Size
from detectors.errors import InputError
from detectors.features import Features

ParameterValue = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One setting of a detector that a study may fix or search."""

    name: str
    kind: Literal["int", "float", "choice"]
    default: ParameterValue
    doc: str
    low: float = float("-inf")
    """Smallest allowed value of a number."""
    high: float = float("inf")
    """Largest allowed value of a number."""
    choices: tuple[ParameterValue, ...] = ()
    """All allowed values of a choice."""
    networks: tuple[ParameterValue, ...] = ()
    """Those of the choices that name a network of timm which starts from pretrained weights."""

    def check(self, value: Any) -> Any:
        """The value in its own type. Raises `InputError` naming the parameter, the value and what would be valid."""
        if self.kind == "choice":
            # True == 1, but the one is not the other.
            if not any(type(value) is type(choice) and value == choice for choice in self.choices):
                allowed = ", ".join(str(choice).lower() for choice in self.choices)
                raise InputError(f"{self.name}: {value!r} is not among {allowed}")
            return value
        wanted = "a whole number" if self.kind == "int" else "a number"
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= 2**53  # NaN, infinity, and whole numbers that no float holds
            or (self.kind == "int" and value != int(value))
        ):
            raise InputError(f"{self.name}: {value!r} is not {wanted}")
        if not self.low <= value <= self.high:
            allowed = f"at least {self.low:g}" if self.high == float("inf") else f"from {self.low:g} to {self.high:g}"
            raise InputError(f"{self.name}: {value:g} is out of range; it must be {allowed}")
        return int(value) if self.kind == "int" else float(value)


DEFAULT_SIGMA = 4.0
SMOOTHING_SIGMA = Parameter(
    "smoothing_sigma",
    "float",
    DEFAULT_SIGMA,
    "Gaussian smoothing of the anomaly map, in pixels of the resized image",
    0.0,
    64.0,
)


PATIENCE = Parameter(
    "patience", "int", 0, "epochs without a better validation value that end training; 0 trains on", 0, 1000
)


TOP_SHARE = Parameter(
    "top_share",
    "float",
    0.0,
    "share of the map's highest pixels whose mean is the image score; 0 takes the highest alone",
    0.0,
    0.5,
)
"""Of heads whose image score is that of the map. AnomalyDINO (arXiv 2405.14529, section 3.2) takes the mean of the highest
hundredth, which one stray position does not decide."""


NORMALIZE = Parameter(
    "normalize",
    "choice",
    "none",
    "l2 divides the features of each position, layer by layer, by their length, so that distances follow the angle alone",
    choices=("none", "l2"),
)


MAX_GRID = 8192
"""Positions along one side of a head's grid: as many as the longest side that an image may have has pixels."""


class Memo(Protocol):
    """Tensors that fits to the very same features share, such as a coreset's order. Whoever makes the context scopes it."""

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was saved under a name; None where nothing was, or it is damaged."""

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name, in place of what is there."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keep other processes from the same name: load, work and save under it, and nothing is done twice."""


@dataclass(frozen=True)
class FitContext:
    """What a fit may know about its surroundings."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    """For everything that may differ between trials (initial weights, batches)."""
    structural_seed: int = 0
    """For what trials share (channel permutation, projection, coreset start)."""
    report: Callable[[int, float], None] = lambda step, value: None
    """Called with (epoch, value of `validate`) as training goes on; epochs count from 1."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked between epochs; True ends the fit early, and nothing that it learned is used."""
    validate: Callable[[], float] | None = None
    """The study's first objective on the validation set with the head as it is now, higher is better; None where there is
    nothing that training may look at. The head must be able to `score` when it is called. The best of several values is too good
    by itself: it serves for choosing, and no figure of the detector is made of it."""
    checkpoint_dir: Path | None = None
    """Where a training keeps what it goes on from after a crash; the same job finds it again."""
    memo: Memo | None = None
    count_stored: Callable[[float], None] = lambda seconds: None
    """Called by a fit that uses finished work, of `memo` or a checkpoint, with the seconds that the work would have taken more
    from scratch than was spent on it now; negative where it was done now and the fit waited for others before."""
    turned_copies: int = 0
    """Copies of each image among the features because the images are few; see `Head.turned_copies`."""
    weights_dir: Path | None = None
    """Where weights are looked for first by a head that starts from pretrained ones, as for `build_backbone`."""


@dataclass(frozen=True)
class Prediction:
    """Scores and maps of B images: raw, never clamped or squashed. Higher is more anomalous."""

    scores: Tensor
    """float32 [B]"""
    maps: Tensor
    """float32 [B, H, W]"""

    def __len__(self) -> int:
        return len(self.scores)


class Head(nn.Module, ABC):
    """A model of normal features.

    A subclass has a `name` and its `searchable` parameters, which its constructor takes as keyword arguments. It may do without a
    constructor and read `settings`; where it has one, this names each parameter with the default of `searchable`:

        def __init__(self, *, regularization: float = 0.01) -> None:
            super().__init__()
            self.regularization = float(regularization)

    Both are compared when the class is defined, and every value is checked before the constructor runs. After `fit`, the tensors
    of a head are buffers or parameters, so that ``state_dict`` holds all that was learned. An image's score never depends on the
    other images of its batch.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """The name as its authors write it; that of the study file where it is empty."""
    searchable: ClassVar[tuple[Parameter, ...]]
    trained: ClassVar[bool] = False
    """Whether it learns by gradient, over epochs. A fit then takes long, and two fits do not score on one scale: a threshold
    rests on images that are left out of the one fit, where other heads are fitted again without each part of the images."""
    turned_copies: ClassVar[bool] = False
    """Whether it compares patches wherever they lie, so that turned copies of few images help (`detectors.data.turning`)."""

    _settings: dict[str, ParameterValue]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Compare the constructor with `searchable`. Raises `TypeError` where they disagree."""
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "searchable"):
            _check_constructor(cls)

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Check the settings, before any constructor sees them.

        Raises:
            InputError: a value is of the wrong type or out of range.
            TypeError: a name is unknown.
        """
        head = super().__new__(cls)
        if unknown := settings.keys() - {parameter.name for parameter in cls.searchable}:
            raise TypeError(f"{cls.name} has no setting {', '.join(sorted(unknown))}")
        head._settings = {
            parameter.name: parameter.check(settings.get(parameter.name, parameter.default))
            for parameter in cls.searchable
        }
        return head

    def __init__(self, **settings: ParameterValue) -> None:
        """Args: the `searchable` parameters by name; those that are left out have their defaults.

        Raises:
            InputError: a value is of the wrong type or out of range.
            TypeError: a name is unknown.
        """
        super().__init__()
        self._figures: dict[str, float] = {}

    @classmethod
    def upper_bounds(cls, channels: Mapping[int, int]) -> dict[str, int]:
        """Largest sensible values that depend on the backbone's channels at the chosen strides, {stride: C}."""
        return {}

    @property
    def settings(self) -> dict[str, ParameterValue]:
        """The constructor's keyword arguments, all of them, each in its own type; JSON-able."""
        return dict(self._settings)

    @property
    @abstractmethod
    def grid(self) -> Size:
        """(h, w) of the patch scores; known after `fit`."""

    @abstractmethod
    def fit(self, features: Features, context: FitContext) -> Self:
        """Learn from the normals' features.

        Raises:
            NumericalError: features or the fitted model are not finite.
        """

    @abstractmethod
    def score(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Patch scores [B, h, w] and, where the head has its own rule for them, image scores [B]."""

    @property
    def positional(self) -> bool:
        """Whether what is normal depends on where in the image it is. Of images that are cut into tiles, such a head learns each
        tile by itself; others learn from all tiles together."""
        return False

    @property
    def top_share(self) -> float:
        """Share of the map's highest pixels whose mean is the image score, where `score` gives none; 0 for the highest alone."""
        return float(self._settings[TOP_SHARE.name]) if TOP_SHARE in self.searchable else 0.0

    @property
    def diagnostics(self) -> dict[str, float]:
        """Figures about the fit that a trial logs beside its metrics: of one that trains `epochs_trained`, `best_epoch` (whose
        weights are used) and `train_loss` of the last epoch; of others e.g. an index's recall."""
        return dict(self._figures)

    def export_tensors(self) -> dict[str, Tensor]:
        """What an artifact stores of the fitted head."""
        return dict(self.state_dict())

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `export_tensors` gave. Raises `KeyError` or `ValueError` for tensors that are not ours."""
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def export_module(self, grids: Mapping[int, Size]) -> nn.Module:
        """The fitted head as a graph of plain tensor operations, for `detectors.runtime.export`; on the CPU, with copies of all
        tensors.

        Its ``forward`` takes the backbone's maps in the order of the strides, each float32 [B, C, h, w], and returns what `score`
        returns, up to rounding. It is traced once: B alone may vary, and no step may depend on the values.

        Args:
            grids: {stride: (h, w)} of the maps.

        Raises:
            InputError: this detector has no such form.
        """
        raise InputError(
            f"detector {self.name} cannot be exported yet; `study predict` and `study serve` take it as it is"
        )

    @property
    def export_note(self) -> str:
        """What the export does otherwise than the head, if anything, for the person who wonders about a difference."""
        return ""


def seeded(detector: str, seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of one detector, independent of those for others."""
    digest = hashlib.sha256(f"{detector} {seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_constructor(head: type[Head]) -> None:
    """Raise `TypeError` unless a head's constructor takes its `searchable` parameters by name, with the same defaults."""
    parameters = {parameter.name: parameter for parameter in head.searchable}
    if len(parameters) < len(head.searchable):
        raise TypeError(f"{head.__name__}: two of the searchable parameters have the same name")
    _, *arguments = inspect.signature(head.__init__).parameters.values()
    named = {one.name: one for one in arguments if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    takes_all = any(one.kind is one.VAR_KEYWORD for one in arguments)
    if missing := [] if takes_all else [name for name in parameters if name not in named]:
        raise TypeError(f"{head.__name__}.__init__ does not take the searchable {', '.join(missing)}")
    for name, argument in named.items():
        if name not in parameters:
            raise TypeError(f"{head.__name__}.__init__ takes {name}, which is not among the searchable parameters")
        if argument.kind is not argument.KEYWORD_ONLY:
            raise TypeError(f"{head.__name__}.__init__ takes {name} by position; put it behind a *")
        default = parameters[name].default
        if argument.default != default or type(argument.default) is not type(default):
            raise TypeError(
                f"{head.__name__}.__init__ has {name}={argument.default!r} where searchable has the default {default!r}"
            )
