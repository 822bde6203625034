"""What a study file says about one of its detectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from detectors import catalog
from detectors.base import Head, Parameter
from detectors.head_files import find_head
from detectors.head_texts import HeadCode
from studies.file.keys import DETECTOR_KEY, ParameterKey
from studies.file.sections import Baseline, Dimension, ParameterValue

Value = TypeVar("Value")
DEFAULT_LAYERS = [8, 16]
"""Strides of a study that says nothing of layers."""


@dataclass(frozen=True)
class DetectorPart:
    """The search, the fixed values and the baselines of one detector, under the parameters' plain names."""

    detector: str
    search: Mapping[str, Dimension]
    fixed: Mapping[str, ParameterValue]
    baselines: Sequence[Baseline]
    detector_only: frozenset[str] = field(default=frozenset())
    """The parameters that the file gives for this detector alone, under its name."""
    code: HeadCode | None = None
    """Of which text its head is; None for a package's."""

    @property
    def head(self) -> type[Head]:
        """The detector's head. Raises `InputError` where it is not known here."""
        return catalog.head_class(self.detector) if self.code is None else find_head(self.code)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The detector's settings by name, those shared by all detectors included. Raises `InputError` as `head` does."""
        return catalog.parameters_of(self.head)

    @property
    def backbones(self) -> list[str]:
        """Every backbone that the detector may use, in the order of the file."""
        dimension = self.search.get("backbone")
        searched = (dimension.choices or []) if dimension else []
        settings = [setting for setting in (self.fixed, *self.baselines) if "backbone" in setting]
        return list(dict.fromkeys(map(str, [*searched, *(setting["backbone"] for setting in settings)])))

    def networks(self, settings: Iterable[Mapping[str, Any]] = ()) -> list[str]:
        """Every network whose pretrained weights a trial of the search may start from, or one of these settings."""
        names: list[str] = []
        for parameter in self.parameters.values():
            dimension = self.search.get(parameter.name)
            values = dimension.choices if dimension else [self.fixed.get(parameter.name, parameter.default)]
            extra = [setting[parameter.name] for setting in settings if parameter.name in setting]
            names += [str(value) for value in (*(values or []), *extra) if value in parameter.networks]
        return list(dict.fromkeys(names))


def divide(
    detectors: Sequence[str],
    search: Mapping[str, Dimension],
    fixed: Mapping[str, ParameterValue],
    baselines: Sequence[Baseline],
    codes: Mapping[str, HeadCode],
) -> dict[str, DetectorPart]:
    """The parts of a study by detector.

    In a study over several detectors, what stands under a detector's name wins over what is for all of them, and a baseline
    belongs to the detector that it names. A study over one detector has one part, with everything.

    Args:
        codes: of which texts the heads are that come from files.
    """
    if len(detectors) == 1:
        detector = detectors[0]
        return {detector: DetectorPart(detector, search, fixed, baselines, code=codes.get(detector))}
    searched = {ParameterKey.parse(text): dimension for text, dimension in search.items()}
    constant = {ParameterKey.parse(text): value for text, value in fixed.items()}
    parts = {}
    for detector in detectors:
        detector_only = frozenset(key.name for key in (*searched, *constant) if key.detector == detector)
        parts[detector] = DetectorPart(
            detector,
            _part_of(searched, detector, detector_only),
            _part_of(constant, detector, detector_only),
            [baseline for baseline in baselines if baseline[DETECTOR_KEY] == detector],
            detector_only,
            codes.get(detector),
        )
    return parts


def _part_of(section: Mapping[ParameterKey, Value], detector: str, detector_only: frozenset[str]) -> dict[str, Value]:
    """One detector's entries of a section by plain name: those for all detectors, then those under its own name."""
    shared = {
        key.name: value for key, value in section.items() if key.detector is None and key.name not in detector_only
    }
    return shared | {key.name: value for key, value in section.items() if key.detector == detector}
