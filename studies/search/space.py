"""The search of a study file: Optuna suggests values, and they become the full setting of one trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import optuna

from detectors.backbones.architecture import channels_by_layer, offer
from detectors.errors import InputError
from studies.file.config import StudyConfig
from studies.file.encoding import Setting, decode_layers, encode
from studies.file.keys import DETECTOR_KEY, LOOKS, SHARED_PARAMETERS, ParameterKey
from studies.file.parts import DEFAULT_LAYERS, DetectorPart
from studies.file.reach import (
    check_offered,
    cut,
    drawn_as,
    reachable,
    settled,
    stands_for_itself,
    unreachable,
    upper_bounds,
)
from studies.file.sections import Baseline, Dimension


class SearchSpace:
    """The study file's search over the backbones that this study was created with.

    Of a study over several detectors, each trial first draws the detector. Choices that only some backbones can take (layers
    they do not offer) and bounds that follow from earlier choices (channels) are resolved while suggesting, so that every
    suggestion can be run.
    """

    def __init__(self, config: StudyConfig, *, backbones: Sequence[str]) -> None:
        """Args: `backbones`: those of the file whose weights are there.

        Raises:
            InputError: the search is left with no backbone, or one of them offers none of the layer choices.
        """
        self.config, self.backbones = config, tuple(backbones)
        self._several = len(config.detectors) > 1
        self._parts = {name: _DetectorSpace(part, backbones) for name, part in config.parts.items()}

    @property
    def draws_detector(self) -> bool:
        """Whether the detector is one of Optuna's parameters."""
        return self._several and bool(self.config.search)

    @property
    def no_numbers(self) -> list[str]:
        """Searched parameters that are drawn from a list, or only where another one was drawn; empty where all are numbers.

        A list with a single choice is no search.
        """
        if self.draws_detector:
            return [DETECTOR_KEY]
        return [name for part in self._parts.values() for name in part.choices]

    def suggest(self, trial: optuna.Trial, overrides: Mapping[str, Any] | None = None) -> Setting:
        """Draw a full setting; what `trial` already holds stays.

        Args:
            overrides: values outside the search, e.g. a baseline's; they win over ``fixed``.
        """
        values = dict(overrides or {})
        if not self._several:
            return self._parts[self.config.detectors[0]].suggest(trial, values)
        detector = values.pop(DETECTOR_KEY, None)
        if detector is None:
            detector = str(trial.suggest_categorical(DETECTOR_KEY, self.config.detectors))
        return {DETECTOR_KEY: detector} | self._parts[detector].suggest(trial, values)

    def grid(self) -> Iterator[Baseline]:
        """Every setting of a finite search, as a person would give it, in the order of the file; the last key varies fastest."""
        for detector, part in self._parts.items():
            for setting in part.grid():
                yield {DETECTOR_KEY: detector, **setting} if self._several else setting

    def strides(self, backbone: str) -> list[int]:
        """Every stride that some trial with this backbone may ask for."""
        return sorted({stride for part in self._parts.values() for stride in part.strides(backbone)})

    def check(self, setting: Mapping[str, Any]) -> None:
        """Raise `InputError` for a setting whose backbone has no weights here, or does not offer the setting's layers."""
        self._part_of(setting).check_setting(setting)

    def bounded(self, setting: Mapping[str, Any]) -> dict[str, int]:
        """{parameter: the value that it is cut to} where backbone and layers of a setting allow less than it says.

        Empty where the search draws backbone or layers: what is cut then is seen in the trial.
        """
        return self._part_of(setting).bounded(setting)

    def optuna_params(self, baseline: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split a person's setting into what Optuna is to fix, by its names, and what overrides the file, by plain names.

        Whatever `suggest` gives is accepted, and suggested again.

        Raises:
            InputError: a value that the search does not reach, or a backbone or layers that are not there.
        """
        setting = dict(baseline)
        detector = setting.pop(DETECTOR_KEY, self.config.detectors[0])
        searched, overrides = self._parts[detector].optuna_params(setting)
        if self.draws_detector:
            searched[DETECTOR_KEY] = detector
        elif self._several:
            # Without a search there is nothing that Optuna could draw.
            overrides[DETECTOR_KEY] = detector
        return searched, overrides

    def _part_of(self, setting: Mapping[str, Any]) -> _DetectorSpace:
        return self._parts[str(setting.get(DETECTOR_KEY, self.config.detectors[0]))]

    def describe(self) -> list[tuple[str, str]]:
        """Rows (parameter, values) for a person."""
        if not self._several:
            return self._parts[self.config.detectors[0]].describe()
        rows = [
            (str(ParameterKey(name, detector=detector)), values)
            for detector, part in self._parts.items()
            for name, values in part.describe()
        ]
        return [(DETECTOR_KEY, self.config.detector_label), *rows]


class _DetectorSpace:
    """The search over the settings of one detector. Its methods are those of `SearchSpace`, for settings without detector."""

    def __init__(self, part: DetectorPart, backbones: Sequence[str]) -> None:
        self.part = part
        self._head = part.head
        self._parameters = part.parameters
        defaults = {name: parameter.default for name, parameter in self._parameters.items()}
        self._constants: dict[str, Any] = {"layers": DEFAULT_LAYERS, **defaults, **part.fixed}
        """Values of the parameters that a trial does not draw."""
        known = set(part.backbones)
        self._channels = {name: channels_by_layer(name) for name in backbones if name in known}
        """{backbone: {stride: channels}}"""
        self._check()

    def _check(self) -> None:
        """Raise `InputError` where backbone, layers or a baseline do not go together."""
        dimension = self.part.search.get("backbone")
        if dimension is not None and not self._available(dimension):
            raise InputError(
                "no backbone of search.backbone has weights on this machine; `study weights list` shows them"
            )
        for name in self._channels:
            if not self._layer_choices(name):
                raise InputError(f"backbone {name} offers strides {offer(name)}: none of the layers in the study file")
        fixed = self._constants.get("backbone")
        if fixed is not None and fixed not in self._channels:
            raise InputError(f"no weights on this machine for fixed.backbone {fixed}; `study weights list` shows them")
        for baseline in self.part.baselines:
            if baseline.get("backbone", fixed) in (None, *self._channels):
                try:
                    self.check_setting(baseline)
                except InputError as error:
                    raise InputError(f"baseline {dict(baseline)}: {error}") from None

    def suggest(self, trial: optuna.Trial, overrides: Mapping[str, Any]) -> Setting:
        """As `SearchSpace.suggest`."""
        constants = {**self._constants, **overrides}
        setting: Setting = {"backbone": self._suggest_backbone(trial, constants)}
        setting["layers"] = self._suggest_layers(trial, setting["backbone"], constants)
        for name in LOOKS:
            if (dimension := self.part.search.get(name)) is not None:
                setting[name] = suggest_value(trial, self._name(name), dimension)
            elif name in constants:
                setting[name] = constants[name]
        bounds = self._upper_bounds(setting["backbone"], setting["layers"])
        for name, parameter in self._parameters.items():
            dimension = self.part.search.get(name)
            if dimension is None:
                value = constants[name]
            else:
                value = suggest_value(
                    trial, self._name(name), dimension, wished=overrides.get(name), upper_bound=bounds.get(name)
                )
            setting[name] = cut(parameter.check(value), bounds.get(name))
        return setting

    @property
    def choices(self) -> list[str]:
        """The parameters that are drawn from a list of several."""
        lists = {
            name: {str(choice) for choice in dimension.choices}
            for name, dimension in self.part.search.items()
            if dimension.choices is not None
        }
        if "backbone" in lists:
            lists["backbone"] = set(self._available(self.part.search["backbone"]))
        if "layers" in lists:
            lists["layers"] = {str(layers) for name in self._channels for layers in self._layer_choices(name)}
        return [name for name, values in lists.items() if len(values) > 1]

    def grid(self) -> Iterator[Baseline]:
        """As `SearchSpace.grid`."""
        names = list(self.part.search)
        for values in itertools.product(*(dimension_values(self.part.search[name]) for name in names)):
            setting: Baseline = dict(zip(names, values, strict=True))
            if self._is_offered(setting):
                yield setting

    def _is_offered(self, setting: Mapping[str, Any]) -> bool:
        """Whether the setting's backbone has weights and offers its layers, and no other setting is cut to the same values."""
        backbone = setting.get("backbone", self._constants.get("backbone"))
        layers = setting.get("layers", self._constants["layers"])
        if backbone not in self._channels or layers not in self._layer_choices(backbone):
            return False
        bounds = self._upper_bounds(backbone, layers)
        return all(
            stands_for_itself(dimension, setting[name], bounds[name])
            for name, dimension in self.part.search.items()
            if name in bounds
        )

    def strides(self, backbone: str) -> list[int]:
        """As `SearchSpace.strides`."""
        if backbone not in self._channels:
            return []
        baselines = [layers for base in self.part.baselines if isinstance(layers := base.get("layers"), list)]
        wanted = {stride for layers in (*self._layer_choices(backbone), *baselines) for stride in layers}
        return sorted(wanted & set(self._channels[backbone]))

    def optuna_params(self, baseline: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `SearchSpace.optuna_params`."""
        self.check_setting(baseline)
        bounds = upper_bounds(self.part, baseline)
        searched: dict[str, Any] = {}
        overrides: dict[str, Any] = {}
        for name, value in baseline.items():
            dimension = self.part.search.get(name)
            if dimension is None:
                overrides[name] = value
            elif name == "layers":
                # Whatever backbone is drawn, if the baseline names none.
                named = baseline.get("backbone", self._constants.get("backbone"))
                for backbone in [str(named)] if named else self._channels:
                    if value in self._layer_choices(backbone):
                        searched[self._layers_name(backbone)] = encode(value)
            elif (drawn := drawn_as(dimension, value, bounds.get(name))) is None:
                raise InputError(f"{name}: {unreachable(dimension, value)}")
            elif dimension.choices is None and name in self._moving and name not in bounds:
                # The backbone or the layers that bound it are not drawn yet, and Optuna wants a value within its range.
                overrides[name] = value
            else:
                searched[self._name(name)] = encode(drawn) if dimension.choices is not None else drawn
        return searched, overrides

    def check_setting(self, setting: Mapping[str, Any]) -> None:
        """As `SearchSpace.check`."""
        backbone, layers = (settled(self.part, setting, name) for name in SHARED_PARAMETERS)
        if backbone is not None and backbone not in self._channels:
            raise InputError(f"no weights on this machine for {backbone}; `study weights list` shows them")
        if backbone is not None and layers is not None:
            check_offered(backbone, layers)

    def bounded(self, setting: Mapping[str, Any]) -> dict[str, int]:
        """As `SearchSpace.bounded`."""
        result = {}
        for name, bound in upper_bounds(self.part, setting).items():
            if name in setting and setting[name] > bound:
                dimension = self.part.search.get(name)
                drawn = drawn_as(dimension, setting[name], bound) if dimension is not None else setting[name]
                result[name] = int(cut(drawn, bound))
        return result

    @cached_property
    def _moving(self) -> frozenset[str]:
        """The parameters that backbone and layers bound."""
        return frozenset(
            name
            for backbone, channels in self._channels.items()
            for layers in self._layer_choices(backbone)
            for name in self._head.upper_bounds({stride: channels[stride] for stride in layers})
        )

    def describe(self) -> list[tuple[str, str]]:
        """As `SearchSpace.describe`."""
        looks = [name for name in LOOKS if name in {*self.part.search, *self._constants}]
        return [(name, self._describe(name)) for name in (*SHARED_PARAMETERS, *looks, *self._parameters)]

    def _describe(self, name: str) -> str:
        dimension = self.part.search.get(name)
        if dimension is None:
            value = self._constants.get(name)
            return f"{encode(value)} (fixed)" if value is not None else "by baseline"
        return ", ".join(self._available(dimension)) if name == "backbone" else describe_dimension(dimension)

    def _available(self, dimension: Dimension) -> list[str]:
        """The backbones of a dimension whose weights are there."""
        return [str(choice) for choice in dimension.choices or [] if choice in self._channels]

    def _upper_bounds(self, backbone: str, layers: Sequence[int]) -> Mapping[str, int]:
        """{parameter: its highest value} where the channels of these layers bound it."""
        return self._head.upper_bounds({stride: self._channels[backbone][stride] for stride in layers})

    def _suggest_backbone(self, trial: optuna.Trial, constants: Mapping[str, Any]) -> str:
        dimension = self.part.search.get("backbone")
        if dimension is None:
            return str(constants["backbone"])
        return str(trial.suggest_categorical(self._name("backbone"), self._available(dimension)))

    def _suggest_layers(self, trial: optuna.Trial, backbone: str, constants: Mapping[str, Any]) -> list[int]:
        if "layers" not in self.part.search:
            return list(constants["layers"])
        choices = [encode(choice) for choice in self._layer_choices(backbone)]
        return decode_layers(str(trial.suggest_categorical(self._layers_name(backbone), choices)))

    def _layer_choices(self, backbone: str) -> list[list[int]]:
        """The layers of the search, or the fixed ones, that the backbone offers."""
        dimension = self.part.search.get("layers")
        choices: Sequence[Any] = (dimension.choices or []) if dimension else [self._constants["layers"]]
        return [list(choice) for choice in choices if set(choice) <= set(self._channels[backbone])]

    def _layers_name(self, backbone: str) -> str:
        """Optuna's name of the layers. Optuna wants the same choices under one name: a backbone that offers fewer has its own."""
        choices = self.part.search["layers"].choices or []
        return self._name("layers", backbone=backbone if len(self._layer_choices(backbone)) < len(choices) else None)

    def _name(self, parameter: str, *, backbone: str | None = None) -> str:
        """Optuna's name of a parameter: detectors that search it each in their own range must not share it."""
        detector = self.part.detector if parameter in self.part.detector_only else None
        return str(ParameterKey(parameter, detector=detector, backbone=backbone))


def suggest_value(
    trial: optuna.Trial, name: str, dimension: Dimension, *, wished: Any = None, upper_bound: int | None = None
) -> Any:
    """One value of a dimension; a range is cut at `upper_bound`, and where it lies above that, the bound is the value.

    Args:
        wished: of a range, the value to take, as far as the bound allows it; None draws one.
    """
    if dimension.choices is not None:
        return trial.suggest_categorical(name, [encode(choice) for choice in dimension.choices])
    low, high = reachable(dimension, upper_bound)
    log, step = dimension.log, dimension.step
    if wished is not None:
        low = high = drawn_as(dimension, wished, upper_bound)
        log, step = False, None
    if dimension.int is not None:
        return trial.suggest_int(name, int(low), int(high), log=log, step=int(step or 1))
    return trial.suggest_float(name, low, high, log=log, step=step)


def dimension_values(dimension: Dimension) -> list[Any]:
    """All values of a finite dimension; of a logarithmic int range those nearest to each doubling."""
    if dimension.choices is not None:
        return list(dimension.choices)
    low, high = dimension.bounds
    if dimension.log:
        doublings = max(1, math.ceil(math.log2(high / low)))
        return sorted({round(low * (high / low) ** (step / doublings)) for step in range(doublings + 1)})
    step = dimension.step or 1
    count = math.floor((high - low) / step + 1e-9) + 1
    values = [low + index * step for index in range(count)]
    return [int(value) for value in values] if dimension.int is not None else values


def describe_dimension(dimension: Dimension) -> str:
    """``50 .. 550 (log)`` or ``8+16, 4+8+16``."""
    if dimension.choices is not None:
        return ", ".join(str(encode(choice)) for choice in dimension.choices)
    low, high = dimension.bounds
    scale = " (log)" if dimension.log else f" (step {dimension.step:g})" if dimension.step else ""
    return f"{low:g} .. {high:g}{scale}"
