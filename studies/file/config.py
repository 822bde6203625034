"""The study file: what is searched, on which images, for how long. One YAML file is one study."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from detectors import catalog
from detectors.backbones.weights import BackboneSpec
from detectors.data.images import Size
from detectors.errors import InputError
from detectors.scoring.evaluation import METRICS
from studies.file import yaml_file

PARAMETER_VALUE = bool | int | float | str | list[int]
UNION_BRANCHES = ("bool", "int", "float", "str")
SHARED_PARAMETERS = ("backbone", "layers")
"""Searched like a detector's own parameters, but known to every detector."""
STRIDES = ({4, 8, 16, 32}, {1, 2, 4})
"""Of pretrained networks, and of pixels."""
DETECTOR_KEY = "detector"
"""Name under which a study over several detectors draws one of them."""
DEFAULT_LAYERS = [8, 16]
ALL = "all"
"""As a category: every product under the root."""
MIN_WILCOXON = 5
"""Products from which on a Wilcoxon test can tell two settings apart: with fewer its p-value cannot get small."""
COST_METRICS = (
    "fps",
    "latency_ms_p50",
    "latency_ms_p95",
    "throughput",
    "peak_memory_mb",
    "model_size_mb",
    "train_seconds",
)


def parse_duration(value: Any) -> Any:
    """Seconds of ``90``, ``90s``, ``30m``, ``2h`` or ``1h30m``; anything else is left to the validation."""
    if (
        isinstance(value, str)
        and (found := re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", value.strip()))
        and value
    ):
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds
    if isinstance(value, str | bool):
        raise ValueError(f"{value!r} is not a duration; give one such as 90s, 30m or 2h")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, json_schema_extra={"format": "duration"})]


class Section(BaseModel):
    """A part of the study file: unknown keys are refused."""

    # What stands below a key is its description in `studies.file.reference`.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Which images."""

    dataset: str = Field("mvtec", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """``mvtec``, ``rendered``, ``folder``, or your own name for a data set of MVTec's layout under `root`."""
    category: str | list[str] | None = None
    """Folder of the product under `root`; a plain folder needs none. With a list, or ``all`` that lie under `root`, every
    trial is fitted to each product by itself, and the objective is the mean over them."""
    root: Path | dict[str, Path] | None = None
    """Folder of the data set; default ``$MVTEC_AD_ROOT``, else ``datasets/MVTecAD``. Of several products, one for each."""
    image_size: int | tuple[int, int] = 256
    """Pixels that images are resized to: one side, or [height, width]."""

    @field_validator("image_size")
    @classmethod
    def _size(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        for side in (value,) if isinstance(value, int) else value:
            if not 32 <= side <= 2048:
                raise ValueError(f"a side of {side} pixels is out of range; give 32 to 2048")
        return value

    @model_validator(mode="after")
    def _products(self) -> DataConfig:
        if isinstance(self.category, list):
            if not self.category or len(set(self.category)) < len(self.category):
                raise ValueError("category: give each product once, and at least one")
            if self.dataset == "folder":
                raise ValueError(
                    "category: a plain folder is one product; for several give a data set of MVTec's layout"
                )
        if isinstance(self.root, dict):
            listed = self.category if isinstance(self.category, list) else []
            if set(self.root) != set(listed):
                raise ValueError("root: with a folder for each product, name the same products under category")
        return self

    @property
    def is_several(self) -> bool:
        """Whether the study is over several products."""
        return isinstance(self.category, list) or self.category == ALL

    def of(self, category: str) -> DataConfig:
        """The section for one of several products."""
        root = self.root[category] if isinstance(self.root, dict) else self.root
        return self.model_copy(update={"category": category, "root": root})

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


IntRange = tuple[int, int]
FloatRange = tuple[float, float]
Step = Annotated[float, Field(gt=0)]
# Named here, for within the next class `int` and `float` are its keys.


class Dimension(Section):
    """The values that one parameter may take: ``choices``, an ``int`` range or a ``float`` range."""

    choices: list[PARAMETER_VALUE] | None = Field(None, min_length=1)
    int: IntRange | None = None
    float: FloatRange | None = None
    log: bool = False
    """Draw from the range by its logarithm."""
    step: Step | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [kind for kind in ("choices", "int", "float") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of choices, int, float")
        if self.choices is not None:
            if self.log or self.step:
                raise ValueError("log and step belong to a range, not to choices")
            if len({str(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError("the same choice is given twice")
            return self
        low, high = self.bounds
        if not low <= high:
            raise ValueError(f"the range [{low:g}, {high:g}] is empty; give the lower bound first")
        if self.log and (low <= 0 or self.step):
            raise ValueError("log needs a lower bound above 0 and no step")
        if self.int is not None and self.step is not None and not self.step.is_integer():
            raise ValueError(f"step {self.step:g} is not a whole number, which an int range needs")
        return self

    @property
    def bounds(self) -> FloatRange:
        """Lowest and highest value of a range."""
        found = self.int or self.float
        if found is None:
            raise ValueError("choices have no bounds")
        return found


class SamplerConfig(Section):
    """How the next configuration is chosen."""

    name: Literal["tpe", "gp", "nsga2", "random", "grid"] = "tpe"
    """``tpe`` suits most; ``nsga2`` several objectives; ``gp`` is a Gaussian process, for few and dear trials; ``grid`` tries
    every setting of a finite search once, in the order of the file."""
    seed: int = Field(0, ge=0)
    """The same seed proposes the same trials, and splits and samples alike."""
    startup: int = Field(5, ge=1)
    """Trials before TPE or GP model anything; drawn at random, baselines included."""
    population: int = Field(20, ge=2)
    """Trials of one generation of NSGA-II."""


class PrunerConfig(Section):
    """Which trainings end early because others did better by the same epoch; only detectors that train are affected."""

    name: Literal["none", "median", "hyperband", "wilcoxon"] = "none"
    """``wilcoxon`` is for studies over several products, from five on: a setting that is worse than the best on the first
    products is not tried on the others."""
    min_epochs: int = Field(1, ge=1)
    """Epochs, or products, that every trial gets."""
    reduction_factor: int = Field(3, ge=2, le=10)
    """Hyperband: of so many trainings, one goes on at each rung."""
    startup: int = Field(5, ge=1)
    """Median: finished trials before anything is pruned."""
    p_value: float = Field(0.1, gt=0, lt=0.5)
    """Wilcoxon: below it a trial counts as worse than the best one."""


class BudgetConfig(Section):
    """When the search ends; the first limit reached counts."""

    trials: int = Field(40, ge=1)
    """Finished trials in all, over every resumption."""
    each: int = Field(0, ge=0)
    """Trials that each detector of a study over several gets, in turns, before the sampler chooses among them."""
    timeout: Duration | None = None
    """Of one `study run`, e.g. ``2h``."""
    stagnation: int | None = Field(None, ge=1)
    """Stop after so many finished trials without a better first objective."""
    goal: float | None = None
    """Stop at the first trial that meets the constraints and whose first objective is as good as this."""


class ExecutionConfig(Section):
    """How trials are run; not part of the study's identity."""

    trial_timeout: Duration = 3600
    """A trial that takes longer is stopped and counts as failed."""
    attempts: int = Field(2, ge=1, le=10)
    """Tries for a trial whose worker crashed or ran out of memory; an exception is never tried again."""
    failures_in_a_row: int = Field(5, ge=1)
    """The study stops after so many failed trials in a row."""
    gpus_per_trial: float = Field(1.0, gt=0)
    """0.5 puts two trials on a GPU, 2 gives each trial two."""
    feature_store_gb: float = Field(20, gt=0)
    """Least recently used features go when the store outgrows this."""


class ThresholdConfig(Section):
    """From which score on an image counts as defective."""

    rule: Literal["false_alarm_rate", "f1_max"] = "false_alarm_rate"
    """``f1_max`` takes the threshold with the best F1 on the labelled validation images."""
    rate: float = Field(0.01, ge=0, lt=1)
    """Share of held-out normals that may raise an alarm."""


class GateConfig(Section):
    """What a model must meet to become the champion; not part of the study's identity."""

    epsilon: float = Field(0.005, ge=0, le=1)
    """The image AUROC may be at most so much below the champion's."""
    floor: dict[str, float] = {"test/image_auroc": 0.7}
    """Metrics on test, and the least that each must reach."""
    latency_ms_p95: float | None = Field(None, gt=0)
    """Milliseconds that 95 % of single images may take at most."""
    model_size_mb: float | None = Field(None, gt=0)
    """MB (10^6 bytes) of all tensors at most."""
    per_defect_drop: float = Field(0.1, ge=0, le=1)
    """The AUROC of any type of defect may fall at most so much below the champion's."""

    @field_validator("floor")
    @classmethod
    def _known_floors(cls, value: dict[str, float]) -> dict[str, float]:
        for name, floor in value.items():
            _check_name(name.removeprefix("test/"), tuple(METRICS), "metric")
            if not 0 <= floor <= 1:
                raise ValueError(f"{name}: {floor:g} is no value that it can have; give one from 0 to 1")
        return {f"test/{name.removeprefix('test/')}": floor for name, floor in value.items()}


def _check_condition(value: str) -> str:
    if not re.fullmatch(r"\s*(>=|<=)\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*", value):
        raise ValueError(f"{value!r} is not a condition; give one such as '>= 10' or '<= 50'")
    return value


Condition = Annotated[str, BeforeValidator(lambda value: _check_condition(str(value)))]


class StudyConfig(Section):
    """A whole study file, validated. `load` reads one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Letters, digits, ``_``, ``.`` and ``-``; the study goes by it everywhere."""
    detector: str | list[str]
    """One, or a list, of which each trial takes one: what belongs to a detector alone then stands under its name in
    `search` and `fixed` (``padim: {n_features: ...}``), what lies beside these is for all of them."""
    data: DataConfig = DataConfig()
    protocol: Literal["holdout", "paper", "synthetic", "auto"] = "holdout"
    """``holdout`` searches on half of the labelled images and scores the other half once; ``paper`` scores all of them and
    forbids a search; ``synthetic`` needs no labelled defect; ``auto`` takes holdout where there are labelled defects, else
    synthetic."""
    search: dict[str, Dimension] = {}
    """Parameters that each trial draws."""
    fixed: dict[str, PARAMETER_VALUE] = {}
    """Parameters that all trials share."""
    objectives: dict[str, Literal["maximize", "minimize"]] = Field({"image_auroc": "maximize"}, min_length=1)
    """Metrics; with several, trials that no other one beats are marked, and the first one selects."""
    constraints: dict[str, Condition] = {}
    """Metrics with a bound such as ``">= 10"``; a trial that misses one is never selected."""
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    budget: BudgetConfig = BudgetConfig()
    execution: ExecutionConfig = ExecutionConfig()
    threshold: ThresholdConfig = ThresholdConfig()
    gate: GateConfig = GateConfig()
    baselines: list[dict[str, PARAMETER_VALUE]] = []
    """Configurations that are tried first."""
    seeds: int = Field(1, ge=1, le=20)
    """The selected configuration is fitted and scored on test with so many seeds; the first is the one that is kept."""

    @model_validator(mode="before")
    @classmethod
    def _groups(cls, raw: Any) -> Any:
        """``padim: {n_features: ...}`` within a section becomes ``padim.n_features: ...``."""
        if not isinstance(raw, dict) or not isinstance(raw.get("detector"), list):
            return raw
        return raw | {
            section: _ungrouped(raw[section], raw["detector"])
            for section in ("search", "fixed")
            if isinstance(raw.get(section), dict)
        }

    @field_validator("detector", mode="before")
    @classmethod
    def _known_detector(cls, value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{value!r} is neither a detector nor a list of them")
        if len(set(names)) < len(names):
            raise ValueError("the same detector is listed twice")
        for name in names:
            catalog.head_class(name)
        return names if len(names) > 1 else names[0]

    @field_validator("objectives", "constraints")
    @classmethod
    def _known_metrics(cls, value: dict[str, str]) -> dict[str, str]:
        for metric in value:
            _check_name(metric, (*METRICS, *COST_METRICS), "metric")
        return value

    @model_validator(mode="after")
    def _parameters(self) -> StudyConfig:
        if self.protocol == "paper" and self.search:
            raise ValueError(
                "protocol paper scores the whole test set, so nothing may be searched on it; "
                "use holdout, or an empty search with baselines"
            )
        if self.pruner.name != "none" and len(self.objectives) > 1:
            raise ValueError(
                f"pruner {self.pruner.name} needs a single objective, for it compares one value per epoch; "
                "make the others constraints, or set pruner.name: none"
            )
        self._check_pruner()
        if isinstance(self.detector, str):
            self._check_parameters(self.detector)
            if self.sampler.name == "grid":
                self._check_grid()
            return self
        self._check_groups()
        for name in self.detectors:
            try:
                self.for_detector(name)
            except ValidationError as error:
                raise ValueError(f"{name}: {_first_problem(error)}") from None
        return self

    def _check_pruner(self) -> None:
        """Each pruner compares what it is made for."""
        several, name = self.data.is_several, self.pruner.name
        if name == "hyperband" and several:
            raise ValueError(
                "pruner hyperband compares epochs, but in a study over several products a step is a product; "
                "take wilcoxon, median or none"
            )
        if name == "wilcoxon":
            listed = self.data.category if isinstance(self.data.category, list) else None
            if not several or (listed is not None and len(listed) < MIN_WILCOXON):
                raise ValueError(
                    f"pruner wilcoxon needs a study over at least {MIN_WILCOXON} products (data.category); "
                    "take median or none"
                )

    def _check_parameters(self, detector: str) -> None:
        """Everything of a study over one detector."""
        if both := set(self.search) & set(self.fixed):
            raise ValueError(f"{sorted(both)[0]} is both searched and fixed; keep one")
        for name, dimension in self.search.items():
            _check_dimension(detector, name, dimension)
        for name, value in self.fixed.items():
            _in_place(f"fixed.{name}", lambda name=name, value=value: check_value(detector, name, value))
        in_each_trial = not self.search and all("backbone" in base for base in self.baselines)
        if "backbone" not in {*self.search, *self.fixed} and not in_each_trial:
            raise ValueError("no backbone: give search.backbone or fixed.backbone")
        if not self.search and not self.baselines:
            raise ValueError("nothing to try: give a search, or baselines")
        for index, baseline in enumerate(self.baselines):
            for name, value in baseline.items():
                _in_place(f"baselines.{index}", lambda name=name, value=value: self._check_baseline(name, value))

    def _check_grid(self) -> None:
        """A grid is finite."""
        for name, dimension in self.search.items():
            if dimension.float is not None and dimension.step is None:
                raise ValueError(
                    f"search.{name}: sampler grid needs choices, an int range or a float range with a step"
                )

    def _check_baseline(self, name: str, value: Any) -> None:
        if name == DETECTOR_KEY:
            if value != self.detector:
                raise ValueError(f"detector: this study is of {self.detector}, not of {value!r}")
            return
        check_value(str(self.detector), name, value)
        dimension = self.search.get(name)
        if dimension is None:
            return
        if dimension.choices is not None and value not in dimension.choices:
            raise ValueError(f"{name}: {value!r} is not among the choices {dimension.choices}")
        if dimension.choices is None and not dimension.bounds[0] <= value <= dimension.bounds[1]:
            raise ValueError(f"{name}: {value!r} is outside the range {list(dimension.bounds)}")

    def _check_groups(self) -> None:
        """In a study over several detectors: what is whose."""
        if not self.search and not self.baselines:
            raise ValueError("nothing to try: give a search, or baselines")
        common = [*SHARED_PARAMETERS]
        common += [name for name in catalog.parameters(self.detectors[0]) if self._known_to_all(name)]
        for section, names in (("search", self.search), ("fixed", self.fixed)):
            for name in names:
                group, dot, own = name.rpartition(".")
                if dot and group not in self.detectors:
                    raise ValueError(f"{section}.{name}: this study is over {', '.join(self.detectors)}")
                if not dot and own not in common:
                    raise ValueError(
                        f"{section}.{name}: not a parameter of every detector; give it under a detector's name "
                        f"({section}.{self.detectors[0]}.{name}). For all of them: {', '.join(common)}"
                    )
        for index, baseline in enumerate(self.baselines):
            if baseline.get(DETECTOR_KEY) not in self.detectors:
                raise ValueError(f"baselines.{index}: say which detector: one of {', '.join(self.detectors)}")

    def _known_to_all(self, name: str) -> bool:
        return all(name in catalog.parameters(detector) for detector in self.detectors)

    @property
    def detectors(self) -> list[str]:
        """All detectors that the study is over."""
        return [self.detector] if isinstance(self.detector, str) else list(self.detector)

    @property
    def detector_label(self) -> str:
        """All detectors for a person: ``padim, patchcore``."""
        return ", ".join(self.detectors)

    def for_detector(self, name: str) -> StudyConfig:
        """The part of the study that is about one of its detectors: what stands under its name wins over what is for all.

        Raises:
            ValueError: that part is no sound study (only before this one was validated).
        """
        if isinstance(self.detector, str):
            return self
        own = {*_own(self.search, name), *_own(self.fixed, name)}
        return StudyConfig.model_validate(
            {field: getattr(self, field) for field in type(self).model_fields}
            | {
                "detector": name,
                "search": {k: v for k, v in self.search.items() if "." not in k and k not in own}
                | _own(self.search, name),
                "fixed": {k: v for k, v in self.fixed.items() if "." not in k and k not in own}
                | _own(self.fixed, name),
                "baselines": [base for base in self.baselines if base[DETECTOR_KEY] == name],
            }
        )

    def belongs_to(self, detector: str, name: str) -> bool:
        """Whether a parameter stands under the detector's name, in a study over several."""
        return f"{detector}.{name}" in {*self.search, *self.fixed}

    @property
    def backbones(self) -> list[str]:
        """Every backbone that the study may use, in the order of the file."""
        if isinstance(self.detector, list):
            return list(dict.fromkeys(one for name in self.detectors for one in self.for_detector(name).backbones))
        dimension = self.search.get("backbone")
        searched = [str(choice) for choice in dimension.choices or []] if dimension else []
        fixed = [str(self.fixed["backbone"])] if "backbone" in self.fixed else []
        return list(
            dict.fromkeys([*searched, *fixed, *(str(b["backbone"]) for b in self.baselines if "backbone" in b)])
        )

    def networks(self, settings: Iterable[Mapping[str, Any]] = ()) -> list[str]:
        """Every network whose pretrained weights a trial of the search may start from, or one of these settings."""
        found: list[str] = []
        for name in self.detectors:
            part = self.for_detector(name)
            own = [setting for setting in settings if setting.get(DETECTOR_KEY, name) == name]
            for parameter in catalog.parameters(name).values():
                searched = part.search.get(parameter.name)
                usual = searched.choices if searched else [part.fixed.get(parameter.name, parameter.default)]
                given = [setting[parameter.name] for setting in own if parameter.name in setting]
                found += [str(value) for value in (*(usual or []), *given) if value in parameter.networks]
        return list(dict.fromkeys(found))

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Of the first objective."""
        return next(iter(self.objectives.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary that `validate` reads back."""
        return self.model_dump(mode="json", exclude_none=True)


def metric_of(config: StudyConfig, objective: str) -> str:
    """The name under which a trial's result holds an objective or constraint."""
    if objective in COST_METRICS:
        return objective
    return f"{'test' if config.protocol == 'paper' else 'val'}/{objective}"


def _ungrouped(section: dict[str, Any], detectors: list[Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in section.items():
        if name in detectors and isinstance(value, dict):
            flat |= {f"{name}.{own}": inner for own, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _own(section: dict[str, Any], detector: str) -> dict[str, Any]:
    """What stands under a detector's name, without that name."""
    prefix = f"{detector}."
    return {name.removeprefix(prefix): value for name, value in section.items() if name.startswith(prefix)}


def check_value(detector: str, name: str, value: Any) -> Any:
    """A parameter's value, checked. Raises `InputError` naming the parameter, the value and what would be valid."""
    if name == "backbone":
        if not isinstance(value, str):
            raise InputError(f"backbone: {value!r} is not a name")
        BackboneSpec.parse(value)
        return value
    if name == "layers":
        if (
            not isinstance(value, list)
            or not all(isinstance(s, int) and not isinstance(s, bool) for s in value)
            or not value
        ):
            raise InputError(f"layers: {value!r} is not a list of strides, e.g. [8, 16]")
        if value != sorted(set(value)) or not any(set(value) <= strides for strides in STRIDES):
            raise InputError(
                f"layers: {value!r}: give distinct ascending strides out of 4, 8, 16, 32 (of pixels 1, 2, 4)"
            )
        return value
    known = catalog.parameters(detector)
    _check_name(name, (*SHARED_PARAMETERS, *known), f"parameter of {detector}")
    return known[name].check(value)


def _check_dimension(detector: str, name: str, dimension: Dimension) -> None:
    where = f"search.{name}"
    _in_place(
        where,
        lambda: _check_name(name, (*SHARED_PARAMETERS, *catalog.parameters(detector)), f"parameter of {detector}"),
    )
    if dimension.choices is not None:
        for choice in dimension.choices:
            _in_place(f"{where}.choices", lambda choice=choice: check_value(detector, name, choice))
        return
    if name in SHARED_PARAMETERS:
        raise ValueError(f"{where}: give choices; a range makes no sense here")
    kind = catalog.parameters(detector)[name].kind
    if kind == "choice":
        raise ValueError(f"{where}: {name} is no number; give choices")
    if kind == "int" and dimension.int is None:
        raise ValueError(f"{where}: {name} is a whole number; give int: [low, high]")
    for bound in dimension.bounds:
        _in_place(where, lambda bound=bound: check_value(detector, name, bound))


def _check_name(name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")


def _in_place(where: str, check: Any) -> None:
    """Run a check; what it refuses is told with its place in the file."""
    try:
        check()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def validate(raw: Any, *, source: str) -> StudyConfig:
    """A study from its plain form. Raises `InputError` that names source, key, value and what would be valid."""
    if not isinstance(raw, dict):
        raise InputError(f"{source}: a study file is a mapping with name, detector, data, search ...")
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first error of pydantic in our words; unknown keys come first, for they explain the rest."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = _place(first["loc"])
    # A value that fits no branch of a union is told once, by the branch that got furthest into it.
    same = [problem for problem in problems if _place(problem["loc"])[: len(place)] == place]
    deepest = max(len(_place(problem["loc"])) for problem in same)
    same = [problem for problem in same if len(_place(problem["loc"])) == deepest]
    first, place = same[0], _place(same[0]["loc"])
    key = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        message = f"unknown key {key!r}; {hint}known here: {', '.join(known)}"
    elif first["type"] == "missing":
        message = f"{key} is missing"
    elif first["type"] == "value_error":
        message = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    else:
        wanted = dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in same)
        wish = f"give {' or '.join(wanted)}" if len(wanted) > 1 else first["msg"]
        message = f"{key}: {reprlib.repr(first['input'])} is not valid: {wish}"
    more = len({problem["loc"] for problem in problems if problem["type"] == first["type"]}) - 1
    return message + (f" (and {more} more)" if more > 0 and first["type"] == "extra_forbidden" else "")


def _place(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The keys that lead to an error; pydantic adds the branch of a union, which means nothing to a person."""
    # In search.<parameter>.int and .float these words are keys.
    keys = loc[:3] if loc[:1] == ("search",) else loc[:1]
    return keys + tuple(part for part in loc[len(keys) :] if not (part in UNION_BRANCHES or "[" in str(part)))


def _keys_at(path: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = StudyConfig
    for part in path:
        found = model.model_fields.get(str(part))
        annotation = found.annotation if found else Dimension if "search" in path else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return sorted(model.model_fields)


def packaged_configs() -> Path:
    """Folder of the study files that come with the package: inside the wheel, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def config_names() -> list[str]:
    """Names of the studies that `find` knows: in ``./configs`` and in the package."""
    folders = [Path("configs"), packaged_configs()]
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def find(name: str) -> Path:
    """The study file of a name or path. Raises `InputError` that lists the names there are."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{path}: no such study file")
        return path
    for folder in (Path("configs"), packaged_configs()):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = config_names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"no study {name!r}; {hint}known: {', '.join(known) or 'none'} (or give a path to a .yaml file)")


def override(raw: Any, settings: Sequence[str]) -> Any:
    """Apply ``KEY=VALUE`` overrides, dotted keys and YAML values, to a study's plain form.

    Raises:
        InputError: an override without ``=``, or a key that leads through a value.
    """
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: give KEY=VALUE, e.g. --set data.image_size=320")
        parts = key.split(".")
        target = raw
        for part in parts[:-1]:
            if not isinstance(target.setdefault(part, {}), dict):
                raise InputError(f"--set {setting}: {part!r} is a value, not a section")
            target = target[part]
        target[parts[-1]] = yaml_file.parse(value, name=f"--set {key}")
    return raw


def load(name: str, settings: Sequence[str] = ()) -> StudyConfig:
    """Read and validate a study file by name or path, with overrides. Raises `InputError`."""
    path = find(name)
    raw = yaml_file.read(path)
    if settings and not isinstance(raw, dict):
        raise InputError(f"{path}: a study file is a mapping with name, detector, data, search ...")
    source = f"{path}" + (" with --set" if settings else "")
    return validate(override(raw, settings), source=source)


def parse_idea(text: str, config: StudyConfig) -> dict[str, Any]:
    """A person's setting, ``backbone=resnet18,layers=8+16,n_features=100``, as a baseline of the study.

    Raises:
        InputError: not of that form, an unknown parameter, or a value outside the search.
    """
    idea: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise InputError(f"--enqueue {text}: give KEY=VALUE,..., e.g. n_features=100,layers=8+16")
        if name in idea:
            raise InputError(f"--enqueue {text}: {name} is given twice")
        parsed = yaml_file.parse(value, name=f"--enqueue {name}")
        if name == "layers":
            strides = value.split("+")
            parsed = [int(stride) for stride in strides] if all(map(str.isdigit, strides)) else value
        idea[name] = parsed
    try:
        StudyConfig.model_validate(config.to_json() | {"baselines": [idea]})
    except ValidationError as error:
        raise InputError(f"--enqueue {text}: {_first_problem(error)}") from None
    return idea
