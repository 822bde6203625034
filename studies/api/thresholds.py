"""The threshold of a finished detector: what others would catch and stop, and setting it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectors.errors import InputError
from detectors.runtime.devices import choose_device
from studies.home import Home, home_at
from studies.release.locate import REGISTERED, open_home, open_view, registered
from studies.release.promotion import TRIAL, Promoter, Promotion, open_registry
from studies.release.threshold import (
    ProductThreshold,
    ThresholdChange,
    look,
    look_at_version,
    section_of,
    set_for_study,
    set_for_version,
)
from studies.search.view import StudyView, TrialView
from tracking.patience import Patience

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Thresholds:
    """Thresholds as they are, and what came of setting them; a study over several products has one for each."""

    name: str
    """The study or model."""
    products: list[ProductThreshold]
    changes: list[ThresholdChange]
    """Empty where nothing was asked for."""
    promotion: Promotion | None = None
    """What the gate said of the new version of a registered model; None for a study."""
    provisional: bool = False
    """Whether the detector is one that a search left on its way."""


def threshold(
    name: str,
    *,
    rate: float | None = None,
    value: float | None = None,
    cost_miss: float | None = None,
    cost_alarm: float | None = None,
    share_defective: float | None = None,
    images: str | Path | None = None,
    device: str = "auto",
    home: str | Path | None = None,
    progress: Progress = lambda text: None,
) -> Thresholds:
    """Look at the threshold of a study's selected detector, or of a registered model, and set another; nothing is scored on test.

    Without `rate`, `value`, costs or `images` it only looks.

    Args:
        name: a study, ``STUDY/product``, or ``models:/NAME@alias``. Of a registered model a new version is made, which goes
            through the gate.
        rate: false-alarm rate to allow, at least 0 and below 1.
        value: the threshold itself.
        cost_miss: what a missed defect costs, in any unit; with `cost_alarm` and `share_defective`.
        cost_alarm: what a false alarm costs, in the same unit.
        share_defective: share of defective parts on the line, between 0 and 1.
        images: folder of good images that the threshold rests on instead, such as those of another day.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:N"``, where images are to be scored.
        home: where studies are kept; default ``STUDY_HOME`` or ``./outputs``.
        progress: called with a line for each step.

    Raises:
        InputError: no saved detector; options that contradict each other; too few images for such a threshold; the study is
            being run.

    >>> import studies
    >>> found = studies.threshold("tiny", device="cpu")
    >>> len(found.products[0].rows), found.changes
    (7, [])
    """
    place, storage = open_home(home_at(home))
    asked = _Asked(rate, value, cost_miss, cost_alarm, share_defective, _absolute(images))
    if name.startswith(REGISTERED):
        registry = open_registry(place, patience=Patience(tell=progress))
        promoter = Promoter(place, storage, registry, device=device, tell=progress)
        return _of_version(name, promoter, asked)
    return _of_study(name, place, asked, device=device, progress=progress)


@dataclass(frozen=True)
class _Asked:
    """What a person asks for; arguments of `section_of`."""

    rate: float | None
    value: float | None
    cost_miss: float | None
    cost_alarm: float | None
    share_defective: float | None
    images: Path | None


def _of_study(name: str, place: Home, asked: _Asked, *, device: str, progress: Progress) -> Thresholds:
    study, _, product = name.partition("/")
    view = open_view(study, place)
    trial = _with_detector(view, study, product)
    section = section_of(**vars(asked), present=view.threshold_section(trial.number, product))
    if section is not None and isinstance(section.images, Path) and set(trial.detectors) != {""} and not product:
        raise InputError("--images: the good images of one product; name it as STUDY/product")
    where, one = choose_device(device), product or None
    changes: list[ThresholdChange] = []
    if section is not None:
        reread = asked.images is not None
        changes = set_for_study(view, trial, section, one, device=where, reread=reread, tell=progress)
    view = open_view(study, place)
    trial = _with_detector(view, study, product)
    return Thresholds(name, look(view, trial, one, device=where), changes, provisional=trial.provisional)


def _of_version(name: str, promoter: Promoter, asked: _Asked) -> Thresholds:
    model, alias = registered(name)
    version = promoter.registry.version(model, alias)
    view, product = promoter.study_of(version)
    number = int(version.tags.get(TRIAL, -1))
    # The images that its own threshold rests on are those that were kept with it.
    present = view.threshold_section(number, product).model_copy(update={"images": None})
    section = section_of(**vars(asked), present=present)
    if section is None:
        return Thresholds(name, [look_at_version(promoter, version)], [])
    change, promotion = set_for_version(promoter, version, section)
    shown = look_at_version(promoter, version if promotion.version is None else promotion.version)
    return Thresholds(name, [shown], [change], promotion)


def _with_detector(view: StudyView, study: str, product: str) -> TrialView:
    trial = view.usable()
    if trial is None:
        raise InputError(f"study {study!r} has no saved detector yet; run it to its end first: `study run {study}`")
    if product and product not in trial.detectors:
        known = ", ".join(f"{study}/{name}" for name in trial.detectors if name) or study
        raise InputError(f"'{study}/{product}' is no detector; there are: {known}")
    return trial


def _absolute(images: str | Path | None) -> Path | None:
    return Path(images).expanduser().absolute() if images is not None else None
