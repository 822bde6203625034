"""Names of parameters, as the study file, Optuna's storage and the tables write them."""

from __future__ import annotations

from dataclasses import dataclass

from detectors.errors import InputError

DETECTOR_KEY = "detector"
"""Name under which a study over several detectors draws one of them."""
SHARED_PARAMETERS = ("backbone", "layers")
"""Parameters that every detector has beside its own; they are searched in the same way."""
IMAGE_SIZE = "image_size"
"""A third one, which a trial's setting holds where it is searched, fixed or given; else the size is ``data.image_size``."""
TILES = "tiles"
"""A fourth one; a trial whose setting does not hold it looks at whole images."""
LOOKS = (IMAGE_SIZE, TILES)
DRAWN_FROM_CHOICES = (*SHARED_PARAMETERS, *LOOKS)
"""Parameters beside a detector's own, for which a range makes no sense."""


@dataclass(frozen=True)
class ParameterKey:
    """The name of a parameter, with the detector and the backbone that it belongs to.

    In a study over several detectors, a parameter that stands under a detector's name is written ``padim.n_features``.
    Optuna wants one list of choices under one name, so the layers of a backbone that offers fewer of them than the study
    file lists are stored as ``layers@resnet18``, or ``padim.layers@resnet18``. Backbones may contain ``.`` and ``@``
    (``layers@resnet18.a1_in1k@random:3``), detectors may contain ``.``.

    >>> ParameterKey.parse("padim.layers@resnet18.a1_in1k")
    ParameterKey(name='layers', detector='padim', backbone='resnet18.a1_in1k')
    >>> str(ParameterKey("n_features", detector="padim"))
    'padim.n_features'
    """

    name: str
    """The parameter's plain name, which the detector's constructor takes; without ``.`` and ``@``."""
    detector: str | None = None
    """The detector under whose name the parameter stands; None for a parameter of all detectors of the study."""
    backbone: str | None = None
    """The backbone whose choices differ from those of the others; None where all backbones share them."""

    def __post_init__(self) -> None:
        """Raises `InputError` for parts that could not be read back from the text."""
        if not self.name or "." in self.name or "@" in self.name:
            raise InputError(f"{self.name!r} is not the name of a parameter; give NAME or DETECTOR.NAME")
        if self.detector is not None and (not self.detector or "@" in self.detector):
            raise InputError(f"{self.detector!r} is not the name of a detector that could precede {self.name!r}")
        if self.backbone == "":
            raise InputError(f"{self.name}@: the name of a backbone is missing after @")

    @classmethod
    def parse(cls, text: str) -> ParameterKey:
        """The key that `str` wrote. Raises `InputError` for a text that no key is written as."""
        left, at, backbone = text.partition("@")
        detector, dot, name = left.rpartition(".")
        return cls(name, detector=detector if dot else None, backbone=backbone if at else None)

    def __str__(self) -> str:
        detector = f"{self.detector}." if self.detector is not None else ""
        backbone = f"@{self.backbone}" if self.backbone is not None else ""
        return f"{detector}{self.name}{backbone}"
