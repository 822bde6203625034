"""The study file: what is searched, on which images, for how long. One YAML file is one study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from detectors import catalog
from detectors.base import Head
from detectors.errors import InputError
from detectors.head_files import find_head
from detectors.head_texts import HeadCode
from detectors.scoring.evaluation import LOWER_METRICS, METRICS, OPERATING_METRICS
from studies.file import checks
from studies.file.keys import DETECTOR_KEY, ParameterKey
from studies.file.looks import with_looks_written
from studies.file.messages import check_name, first_problem, located
from studies.file.parts import DetectorPart, divide
from studies.file.sections import (
    COST_METRICS,
    Baseline,
    BudgetConfig,
    Condition,
    DataConfig,
    Dimension,
    ExecutionConfig,
    GateConfig,
    HeadFile,
    ParameterValue,
    PrunerConfig,
    SamplerConfig,
    Section,
    ThresholdConfig,
)

STORED = "stored"
"""Of the validation's context: the study comes from a store, where it was put by `StudyConfig.to_json`."""


class StudyConfig(Section):
    """A whole study file, validated: its sections, and what they say about each detector."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Name of the study: letters, digits, ``_``, ``.`` and ``-``."""
    detector: str | list[str]
    """A detector, or a list of which each trial takes one. With a list, parameters of one detector stand under its name in
    `search` and `fixed` (``padim: {n_features: ...}``); those that stand there directly are for all detectors."""
    data: DataConfig = DataConfig()
    protocol: Literal["holdout", "paper", "synthetic", "auto"] = "holdout"
    """``holdout`` searches on half of the labelled images and scores the selected setting on the other half; few are not halved
    (`nested`). ``paper`` scores all of them and allows no search. ``synthetic`` searches on painted defects and needs no labelled
    one. ``auto`` takes holdout where there are labelled defects, else synthetic."""
    nested: bool | None = None
    """With ``holdout``, whether all labelled images choose and none is kept for test; what the choice is worth is then told by a
    nested estimate, in which no image has a say in what it is judged by. By default where half of them would be fewer than 40
    (copies counted once), in a study of one product that aims at whole images or costs. ``false`` keeps half for test."""
    turned_copies: bool | None = None
    """Whether detectors that compare patches wherever they lie (patchcore, spade) are fitted to turned and mirrored copies of the
    good images too. By default where these are 16 or fewer. ``false`` where a part that lies the wrong way round is a defect."""
    search: dict[str, Dimension] = Field({})
    """Parameters that each trial draws."""
    fixed: dict[str, ParameterValue] = Field({})
    """Parameters that all trials share."""
    objectives: dict[str, Literal["maximize", "minimize"]] = Field({"image_auroc": "maximize"}, min_length=1)
    """Metrics, and whether more or less of each is better. With several, the first one selects, and every trial that no other
    trial beats in all of them is marked."""
    constraints: dict[str, Condition] = Field({})
    """Metrics with a limit such as ``">= 10"``. A trial that misses one is never selected."""
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    budget: BudgetConfig = BudgetConfig()
    execution: ExecutionConfig = ExecutionConfig()
    threshold: ThresholdConfig = ThresholdConfig()
    gate: GateConfig = GateConfig()
    baselines: list[Baseline] = Field([])
    """Settings that are tried first."""
    seeds: int = Field(1, ge=1, le=20)
    """The selected setting is fitted and scored on the test images with so many seeds; the detector of the first is kept."""
    recipes: Literal[1, 2] | None = None
    """Version of the painted defects of protocol ``synthetic``; filled in when a study is created. Studies of version 0.2 and
    before have none and go on with the first."""
    advice: bool = True
    """Whether the run ends with what would help most: a few cheap fits of the selected setting to fewer images and to larger
    ones, and of other quick detectors. It may change when a study is resumed."""
    rerank: int = Field(5, ge=0, le=20)
    """So many of the best settings are fitted again, on other parts of train, and compared by the mean over all their fits before
    one is selected. 0 compares the trials alone, as is done where it would take more than a quarter of the search's time. It may
    change when a study is resumed."""
    heads: dict[str, HeadFile] = Field({})
    """Which file, class and sha256 each detector given as FILE.py:CLASS came from; filled in when a study file is read."""

    @classmethod
    def from_store(cls, raw: Mapping[str, Any]) -> StudyConfig:
        """A study that was validated when it was stored: its detectors are not looked up, and none of their code is run."""
        return cls.model_validate(raw, context={STORED: True})

    @model_validator(mode="before")
    @classmethod
    def _known_heads(cls, raw: Any, info: ValidationInfo) -> Any:
        """Make known what a worker needs; the files themselves are read by `studies.file.library` alone."""
        if not _is_stored(info) and isinstance(raw, dict) and isinstance(raw.get("heads"), dict):
            for name, record in raw["heads"].items():
                code = HeadCode.from_json(record)
                if (actual := find_head(code).name) != name:
                    raise InputError(f"heads.{name}: {code.class_name} of {code.file} is the detector {actual!r}")
        return raw

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, raw: Any) -> Any:
        """``padim: {n_features: ...}`` within ``search`` or ``fixed`` becomes ``padim.n_features: ...``. Sizes and tiles are
        written alike."""
        if not isinstance(raw, dict):
            return raw
        if isinstance(raw.get("detector"), list):
            raw = raw | {
                section: _flat(section, raw[section], raw["detector"])
                for section in ("search", "fixed")
                if isinstance(raw.get(section), dict)
            }
        return with_looks_written(raw)

    @field_validator("detector", mode="before")
    @classmethod
    def _known_detector(cls, value: Any, info: ValidationInfo) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{value!r} is neither a detector nor a list of them")
        if len(set(names)) < len(names):
            raise ValueError("the same detector is listed twice")
        for name in [] if _is_stored(info) else names:
            catalog.head_class(name)
        return names if len(names) > 1 else names[0]

    @field_validator("objectives", "constraints")
    @classmethod
    def _known_metrics(cls, value: dict[str, str]) -> dict[str, str]:
        for metric in value:
            check_name(metric, (*METRICS, *LOWER_METRICS, *COST_METRICS), "metric")
        return value

    @model_validator(mode="after")
    def _sections_agree(self, info: ValidationInfo) -> StudyConfig:
        if _is_stored(info):
            return self
        if self.protocol == "paper" and self.search:
            raise ValueError(
                "protocol paper scores the whole test set, so nothing may be searched on it; "
                "use holdout, or an empty search with baselines"
            )
        if self.threshold.images is not None and self.data.is_several != isinstance(self.threshold.images, dict):
            wanted = "a folder for each product" if self.data.is_several else "one folder"
            raise ValueError(f"threshold.images: give {wanted}")
        checks.check_pruner(self.pruner, self.data, objectives=len(self.objectives))
        self.check_baselines(self.baselines)
        return self

    def check_baselines(self, baselines: Sequence[Baseline]) -> None:
        """The search and the fixed values are sound together with these baselines in the place of the file's.

        Raises:
            ValueError: the message names the key, the value and what would be valid.
        """
        grid = self.sampler.name == "grid"
        if len(self.detectors) == 1:
            checks.check_part(self._divided(baselines)[self.detectors[0]], grid=grid)
            return
        heads = {name: self.head_class(name) for name in self.detectors}
        checks.check_ownership(heads, list(self.search), list(self.fixed), baselines)
        for name, part in self._divided(baselines).items():
            with located(name):
                checks.check_part(part, grid=grid)

    def misfit(self, setting: Baseline) -> str:
        """Why a setting lies outside of this study, in words; empty where it does not.

        Args:
            setting: with its ``detector`` where the study is over several.
        """
        detector = setting.get(DETECTOR_KEY, self.detectors[0])
        if detector not in self.detectors:
            return f"its detector is {detector}, and this study is over {self.detector_label}"
        part = self.for_detector(str(detector))
        try:
            checks.check_baseline(part, setting)
            checks.check_layers(part, setting)
        except ValueError as error:
            return str(error)
        return ""

    def _divided(self, baselines: Sequence[Baseline]) -> dict[str, DetectorPart]:
        codes = {name: HeadCode.from_json(record.model_dump()) for name, record in self.heads.items()}
        return divide(self.detectors, self.search, self.fixed, baselines, codes)

    def head_class(self, detector: str) -> type[Head]:
        """The head of a detector: of the very text that `heads` names, else what `detectors.catalog.head_class` finds.

        Raises:
            InputError: the head is not known here.
        """
        if (record := self.heads.get(detector)) is not None:
            return find_head(HeadCode.from_json(record.model_dump()))
        return catalog.head_class(detector)

    @property
    def detectors(self) -> list[str]:
        """All detectors that the study is over."""
        return [self.detector] if isinstance(self.detector, str) else list(self.detector)

    @property
    def detector_label(self) -> str:
        """All detectors for a person: ``padim, patchcore``."""
        return ", ".join(self.detectors)

    @property
    def parts(self) -> dict[str, DetectorPart]:
        """What the study says about each of its detectors, by their names."""
        return self._divided(self.baselines)

    def for_detector(self, name: str) -> DetectorPart:
        """What the study says about one of its detectors. Raises `KeyError` for one that it is not over."""
        return self.parts[name]

    @property
    def backbones(self) -> list[str]:
        """Every backbone that the study may use, in the order of the file."""
        return list(dict.fromkeys(name for part in self.parts.values() for name in part.backbones))

    def networks(self, settings: Iterable[Mapping[str, Any]] = ()) -> list[str]:
        """Every network whose pretrained weights a trial of the search may start from, or one of these settings.

        Args:
            settings: in a study over several detectors, one that names none counts for each.
        """
        settings = list(settings)
        names: list[str] = []
        for detector, part in self.parts.items():
            names += part.networks([one for one in settings if one.get(DETECTOR_KEY, detector) == detector])
        return list(dict.fromkeys(names))

    @property
    def aims_at_operating_point(self) -> bool:
        """Whether an objective or a constraint depends on the threshold, so that each trial must have a sound one."""
        return any(name in OPERATING_METRICS for name in (*self.objectives, *self.constraints))

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Of the first objective."""
        return next(iter(self.objectives.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary that `validate` reads back."""
        exclude = None if self.heads else {"heads"}
        return self.model_dump(mode="json", exclude_none=True, exclude=exclude)


def _is_stored(info: ValidationInfo) -> bool:
    return bool((info.context or {}).get(STORED))


def metric_of(config: StudyConfig, objective: str) -> str:
    """The name under which a trial's result holds an objective or constraint: ``val/image_auroc``, ``fps``."""
    if objective in COST_METRICS:
        return objective
    return f"{'test' if config.protocol == 'paper' else 'val'}/{objective}"


def _flat(section: str, entries: Mapping[Any, Any], detectors: Sequence[Any]) -> dict[Any, Any]:
    """A section's entries, without the mappings that stand under a detector's name."""
    flat: dict[Any, Any] = {}
    for name, value in entries.items():
        if name in detectors and isinstance(value, dict):
            with located(f"{section}.{name}"):
                flat |= {str(ParameterKey(str(parameter), detector=name)): inner for parameter, inner in value.items()}
        else:
            flat[name] = value
    return flat


def validate(raw: Any, *, source: str) -> StudyConfig:
    """A study from its plain form.

    Args:
        source: where it comes from, a path for instance; it begins every message.

    Raises:
        InputError: the message names source, key, value and what would be valid.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{source}: a study file is a mapping with name, detector, data, search ...")
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{source}: {first_problem(error, StudyConfig)}") from None
