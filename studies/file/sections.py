"""The sections of the study file, each with its defaults and the checks of its own values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from detectors.data.images import Size
from detectors.errors import InputError
from detectors.scoring.evaluation import LOWER_METRICS, METRICS
from studies.file.messages import check_name
from studies.file.sizes import MOST_SIDE, parse_size

ParameterValue = bool | int | float | str | list[int]
"""What a parameter may be set to; the layers are lists of strides."""
Baseline = dict[str, ParameterValue]
"""A setting that a person gives: some parameters by their plain names, in a study over several detectors also ``detector``."""
ALL = "all"
"""The category that stands for every product under the root."""
COST_METRICS = (
    "fps",
    "latency_ms_p50",
    "latency_ms_p95",
    "throughput",
    "peak_memory_mb",
    "model_size_mb",
    "train_seconds",
)
"""What a detector costs, measured in each trial; METRICS of `detectors.scoring` say how good it is."""


def parse_duration(value: Any) -> Any:
    """Seconds of ``90``, ``90s``, ``30m``, ``2h`` or ``1h30m``. A number is returned as it is, to be validated further.

    Raises:
        ValueError: a text that is no duration.
    """
    pattern = r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?"
    if isinstance(value, str) and value and (match := re.fullmatch(pattern, value.strip())):
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
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
    """The images that are searched on."""

    dataset: str = Field("mvtec", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """``mvtec``, ``rendered`` (screws that are drawn), ``folder`` (a plain folder of images), or your own name for a data set of
    MVTec's layout under `root`."""
    category: str | list[str] | None = None
    """Folder of the product under `root`; a plain folder of images needs none. A list names several products, and ``all`` takes
    every product under `root`: each trial is then fitted to every product by itself, and the objective is their mean."""
    root: Path | dict[str, Path] | None = None
    """Folder of the data set. The default is ``$MVTEC_AD_ROOT``, else ``datasets/MVTecAD``. Several products may have a folder
    each: ``{screw: DIR, carpet: DIR}``."""
    image_size: int | tuple[int, int] = 256
    """Size that images are resized to, in pixels: one number for a square, or [height, width]. With
    ``search: {image_size: {choices: [256, 384, [384, 512]]}}`` each trial has its own; this is then the size at which the pixel
    metrics of all trials are computed."""

    @field_validator("image_size")
    @classmethod
    def _size(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        parse_size(value, most=MOST_SIDE)
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
# Named here, because within the next class `int` and `float` are its keys.


class Dimension(Section):
    """The values that one parameter may take: ``choices``, an ``int`` range or a ``float`` range."""

    choices: list[ParameterValue] | None = Field(None, min_length=1)
    int: IntRange | None = None
    float: FloatRange | None = None
    log: bool = False
    """Draw from the range by its logarithm."""
    step: Step | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [kind for kind in ("choices", "int", "float") if getattr(self, kind) is not None]
        if len(kinds) != 1:
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
        """Lowest and highest value of a range. Raises `ValueError` for choices."""
        bounds = self.int or self.float
        if bounds is None:
            raise ValueError("choices have no bounds")
        return bounds


class SamplerConfig(Section):
    """How the settings of the next trial are chosen."""

    name: Literal["auto", "tpe", "gp", "nsga2", "random", "grid"] = "auto"
    """``auto`` takes ``gp`` where every searched parameter is a number and the trials are at most 100, of one objective and
    without a pruner, and else ``tpe``. ``tpe`` suits most studies. ``gp`` is a Gaussian process, for few and expensive trials.
    ``nsga2`` is for several objectives and some hundred trials. ``random`` draws without regard to earlier trials. ``grid``
    tries every setting of a finite search once, in the order of the file."""
    seed: int = Field(0, ge=0)
    """The same seed proposes the same trials and divides the images in the same way."""
    startup: int = Field(5, ge=1)
    """Trials, baselines included, before ``tpe`` or ``gp`` learn from earlier ones; until then settings are drawn at random."""
    population: int = Field(20, ge=2)
    """Trials in one generation of ``nsga2``."""


class PrunerConfig(Section):
    """Which trainings end early because others did better by the same epoch. Detectors that do not train are not affected."""

    name: Literal["none", "median", "hyperband", "wilcoxon"] = "none"
    """``median`` ends a training that is worse than the median of the others at the same epoch. ``hyperband`` compares
    trainings at several epochs and goes on with the best. ``wilcoxon`` is for studies over five products or more: a setting
    that is worse than the best one on the first products is not tried on the others."""
    min_epochs: int = Field(1, ge=1)
    """Epochs, or products, that every trial gets before it may be ended."""
    reduction_factor: int = Field(3, ge=2, le=10)
    """``hyperband`` goes on with one of so many trainings each time it compares them."""
    startup: int = Field(5, ge=1)
    """Finished trials before ``median`` ends any training."""
    p_value: float = Field(0.1, gt=0, lt=0.5)
    """With a p-value below this, ``wilcoxon`` takes a setting for worse than the best one."""


class BudgetConfig(Section):
    """When the search ends: at the first limit that is reached."""

    trials: int = Field(40, ge=1)
    """Finished trials, those of earlier runs of the same study included."""
    each: int = Field(0, ge=0)
    """In a study over several detectors, the trials that each of them gets, in turns, before the sampler chooses among them."""
    timeout: Duration | None = None
    """Time limit of one `study run`, e.g. ``2h``."""
    stagnation: int | None = Field(None, ge=1)
    """The search ends after so many finished trials in a row that did not improve the first objective; those that miss a
    constraint do not count."""
    goal: float | None = None
    """The search ends at the first trial that meets the constraints and whose first objective is as good as this."""


class ExecutionConfig(Section):
    """How trials are run. It may change when a study is resumed."""

    trial_timeout: Duration = 3600
    """A trial that takes longer is stopped and counts as failed."""
    attempts: int = Field(2, ge=1, le=10)
    """How often a trial is tried whose worker crashed or ran out of memory. A trial that raised an exception is not repeated."""
    failures_in_a_row: int = Field(5, ge=1)
    """The study stops after so many failed trials in a row."""
    gpus_per_trial: float = Field(1.0, gt=0)
    """GPUs of each trial: 0.5 runs two trials on a GPU, 2 gives each trial two."""
    feature_store_gb: float = Field(20, gt=0)
    """Size of the store of computed features in GB (10^9 bytes); what was not used for longest is deleted first."""


class ThresholdConfig(Section):
    """The score from which on an image counts as defective. It may change when a study is resumed."""

    rule: Literal["false_alarm_rate", "f1_max", "cost", "value"] = "false_alarm_rate"
    """``false_alarm_rate`` takes the threshold at which new good images raise an alarm no more often than `rate`. ``f1_max``
    takes the one with the best F1 on the labelled validation images. ``cost`` takes the one at which mistakes are expected to
    cost least. ``value`` takes `value`."""
    rate: float = Field(0.01, ge=0, lt=1)
    """Share of good parts that may raise a false alarm. Where the good images are too few to promise it, the threshold lies above
    all of them, and the rate that they support is told."""
    folds: int | None = Field(None, ge=0, le=50)
    """Parts that the good images of train are divided into, so that the threshold rests on them too: the selected setting is
    fitted again without each part in turn, and scores that part. A detector that trains over epochs leaves one part out of its
    only fit instead. The default is 10 parts of fewer than 1000 images, else 5; 5 for a
    detector that trains. 0 rests on the held-out images alone."""
    images: Path | dict[str, Path] | None = None
    """Folder of good images, such as those of another day, that the threshold rests on instead. Several products may have a
    folder each."""
    value: float | None = Field(None, allow_inf_nan=False)
    """Of rule ``value``: the threshold."""
    cost_miss: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of rule ``cost``: what a missed defect costs, in any unit."""
    cost_alarm: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of rule ``cost``: what a false alarm costs, in the same unit."""
    share_defective: float | None = Field(None, gt=0, lt=1)
    """Of rule ``cost``: the share of defective parts on the line."""

    @model_validator(mode="after")
    def _complete(self) -> ThresholdConfig:
        wanted = {"value": ("value",), "cost": ("cost_miss", "cost_alarm", "share_defective")}
        for rule, names in wanted.items():
            for name in names:
                if self.rule == rule and getattr(self, name) is None:
                    raise ValueError(f"rule {rule} needs {name}")
                if self.rule != rule and getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to rule {rule}, not to {self.rule}")
        return self

    @classmethod
    def checked(cls, raw: Mapping[str, Any]) -> ThresholdConfig:
        """A section from its plain form. Raises `InputError` that names the key, the value and what would be valid."""
        try:
            return cls.model_validate({name: value for name, value in raw.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(("threshold", *map(str, first["loc"])))
            raise InputError(f"{name}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}") from error

    def folder_of(self, category: str) -> Path | None:
        """The absolute folder of `images` for a product; None where none is given."""
        folder = self.images.get(category) if isinstance(self.images, dict) else self.images
        return folder.expanduser().absolute() if folder is not None else None


class GateConfig(Section):
    """What a model must meet to become the champion. It may change when a study is resumed."""

    epsilon: float = Field(0.005, ge=0, le=1)
    """How far the image AUROC may lie below the champion's."""
    floor: dict[str, float] = {"test/image_auroc": 0.7, "test/image_recall": 0.1}
    """Metrics on the test images, and the least value that each must reach. A model that finds less than one defect in ten at its
    threshold is not run on a line; `study threshold` shows which threshold finds more."""
    ceiling: dict[str, float] = {}
    """Rates on the test images that a model may not exceed: ``{false_alarm_rate: 0.05}`` at its own threshold."""
    recall_drop: float | None = Field(0.05, ge=0, le=1)
    """How far the share of defects that a model finds at its own threshold may lie below the champion's. A smaller loss is
    refused, too, if chance does not explain it. ``null`` compares no recall, for those who trade it for fewer false alarms; set
    a `floor` for ``image_recall`` then."""
    false_alarm_rise: float | None = Field(0.05, ge=0, le=1)
    """How far the share of good images that raise an alarm may lie above the champion's; else as `recall_drop`."""
    latency_ms_p95: float | None = Field(None, gt=0)
    """Upper limit of the time, in milliseconds, within which 95 % of single images are scored."""
    model_size_mb: float | None = Field(None, gt=0)
    """Upper limit of the size of all tensors in MB (10^6 bytes)."""
    per_defect_drop: float = Field(0.1, ge=0, le=1)
    """How far the AUROC of any type of defect may lie below the champion's."""

    @field_validator("floor")
    @classmethod
    def _known_floors(cls, value: dict[str, float]) -> dict[str, float]:
        for name, floor in value.items():
            check_name(name.removeprefix("test/"), tuple(METRICS), "metric")
            if not 0 <= floor <= 1:
                raise ValueError(f"{name}: {floor:g} is no value that it can have; give one from 0 to 1")
        return {f"test/{name.removeprefix('test/')}": floor for name, floor in value.items()}

    @field_validator("ceiling")
    @classmethod
    def _known_ceilings(cls, value: dict[str, float]) -> dict[str, float]:
        for name, ceiling in value.items():
            check_name(name.removeprefix("test/"), LOWER_METRICS, "rate")
            if not 0 <= ceiling <= 1:
                raise ValueError(f"{name}: {ceiling:g} is no value that it can have; give one from 0 to 1")
        return {f"test/{name.removeprefix('test/')}": ceiling for name, ceiling in value.items()}


def _check_condition(value: str) -> str:
    if not re.fullmatch(r"\s*(>=|<=)\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*", value):
        raise ValueError(f"{value!r} is not a condition; give one such as '>= 10' or '<= 50'")
    return value


Condition = Annotated[str, BeforeValidator(lambda value: _check_condition(str(value)))]


class HeadFile(Section):
    """The file that a detector's head came from, where it is no package's: filled in when a study file is read."""

    file: str
    """Name of the file."""
    class_name: str
    """The head in it."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of its text."""
