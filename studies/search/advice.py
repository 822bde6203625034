"""After the search: what would help most, by cheap fits of the selected setting under other conditions, scored on validation.

Half and a quarter of the good images (a learning curve), a larger image size, another detector: each is one fit to a part of
train, compared with the fit of the selected setting to the same part. Test is never looked at. Differences are compared by the
paired bootstrap over the images of validation, as trials are (`studies.search.noise`); one that chance may explain is not
recommended. What needs no fit follows from the study: missing masks or defects, and whether it is ready for a line
(`studies.search.advice_words`).

The fits are bounded by what the trials took. An answer is stored when it is there, so that a driver that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors import catalog
from detectors.backbones.architecture import channels_by_layer, check_takes
from detectors.data.images import Size
from detectors.errors import InputError
from detectors.scoring.evaluation import METRICS
from studies.file.config import metric_of
from studies.file.encoding import Setting
from studies.file.keys import DETECTOR_KEY, IMAGE_SIZE, LOOKS
from studies.file.looks import check_look, input_size, look_of
from studies.file.sizes import written_size
from studies.search import portfolio
from studies.search.answers import ADVICE, COMPARED_ON, SHARES, Advice, Answer, stored_advice
from studies.search.durations import duration
from studies.search.noise import Spread, spread_of
from studies.search.notices import Remark
from studies.search.opened import OpenStudy
from studies.search.outcome import StudyFailedError
from studies.search.refit import Refit
from studies.search.space import DEFAULT_LAYERS
from studies.search.view import StudyView, TrialView
from studies.worker.jobs import ARTIFACTS, Probe, read_result

SCALE, MULTIPLE, LARGEST = 1.5, 32, 1024
"""A larger image size: so many times each side, rounded to a multiple of the coarsest stride; no side exceeds the last."""
LEAST_TRIALS = 6
"""Finished trials of a search that is advised on: there are up to six fits, which are not to take longer than the search."""
MOST_SHARE, LEAST_SECONDS = 0.15, 30.0
"""Time that a fit of advice may take, as a share of what the trials took together, and what it may take in any case."""
QUICK = ("patchcore", "padim", "spade")
"""Detectors that are fitted in seconds."""


@dataclass(frozen=True)
class Question:
    """One fit under another condition."""

    name: str
    probe: Probe
    params: Setting


class Advising:
    """Asks the questions of one study, and stores the answers."""

    def __init__(self, opened: OpenStudy, refit: Refit) -> None:
        """Args: `refit` does one job at a time."""
        self._opened, self._refit = opened, refit
        self._view, self._config = opened.view, opened.config

    def run(self, selected: TrialView | None) -> Advice | None:
        """The answers for the selected trial; None where none is asked. Those that are stored are not asked again.

        Raises:
            InputError: images or weights are not what they were.
            LeaseLostError: another driver has the study.
        """
        if selected is None or not applies(self._view, selected):
            return None
        advice = stored_advice(self._view) or Advice(trial=selected.number)
        if advice.trial != selected.number:
            advice = Advice(trial=selected.number)
        if advice.complete:
            return advice
        asked = questions(self._view, selected, available=list(self._opened.plan.backbones))
        missing = [question for question in asked if question.name not in advice.answers]
        if missing:
            seconds = duration(self._seconds(selected, missing))
            self._opened.notify(Remark(f"what would help most is tried by {len(missing)} fits: about {seconds}"))
        for question in missing:
            answer = self._ask(selected, question)
            if answer is not None:
                advice = advice.model_copy(update={"answers": {**advice.answers, question.name: answer}})
                self._keep(advice)
        advice = advice.model_copy(update={"complete": True})
        self._keep(advice)
        return advice

    def _seconds(self, selected: TrialView, asked: Sequence[Question]) -> float:
        """Roughly what the fits take: features are computed for another image size alone."""
        trials = self._view.trials()
        features = max(
            sum(seconds for name, seconds in trial.outcome.seconds.items() if name.startswith("features"))
            for trial in trials
        )
        resized = sum(question.probe.image_size is not None for question in asked)
        return len(asked) * selected.seconds_of_fit + resized * SCALE**2 * features

    def _keep(self, advice: Advice) -> None:
        self._opened.study.set_user_attr(ADVICE, advice.model_dump(mode="json"))

    def _ask(self, selected: TrialView, question: Question) -> Answer | None:
        """The answer; None where the fit failed, which is told and ends nothing."""
        try:
            self._refit.probe(selected, question.params, question.probe)
        except (StudyFailedError, InputError) as error:
            self._opened.notify(Remark(f"no advice on {question.name}: {error}"))
            return None
        objective = next(iter(self._config.objectives))
        folder = self._view.advice_folder(question.probe.name)
        result = read_result(folder)
        value = result.metrics.get(metric_of(self._config, objective)) if result is not None else None
        if value is None:
            return None
        if question.name.startswith("images"):
            return Answer(value=value)
        seed, base = self._config.sampler.seed, self._view.advice_folder(reference_question().probe.name)
        reference = read_result(base)
        before = reference.metrics.get(metric_of(self._config, objective)) if reference is not None else None
        if before is None:
            return Answer(value=value)
        mine, theirs = (spread_of(one / ARTIFACTS, objective, seed=seed) for one in (folder, base))
        sign = 1.0 if self._config.direction == "maximize" else -1.0
        certain = mine is not None and theirs is not None and is_certain(mine, theirs, sign=sign)
        return Answer(value=value, better_by=sign * (value - before), certain=certain)


def is_certain(mine: Spread, theirs: Spread, *, sign: float) -> bool:
    """Whether one value is better than another in 95 % of the draws of the same images."""
    if mine.images != theirs.images or mine.replicates is None or theirs.replicates is None:
        return False
    return bool(np.quantile(sign * (mine.replicates - theirs.replicates), 0.05) > 0)


def applies(view: StudyView, selected: TrialView) -> bool:
    """Whether fits of advice are made: the study wants them, has validation images of one product, aims at a metric of them, and
    the selected setting is fitted quickly enough."""
    config = view.config
    objective = next(iter(config.objectives))
    if not config.advice or config.data.is_several or config.protocol == "paper" or objective not in METRICS:
        return False
    trials = view.trials()
    finished = sum(trial.state in ("COMPLETE", "PRUNED") for trial in trials)
    if finished < LEAST_TRIALS or config.head_class(selected.detector_name).trained:
        return False
    spent = sum(trial.seconds or 0.0 for trial in trials)
    return (selected.seconds or 0.0) <= max(LEAST_SECONDS, MOST_SHARE * spent)


def reference_question() -> Question:
    """The selected setting on the part of train that other conditions are compared on; its setting is left to the caller."""
    return Question(f"images {COMPARED_ON:g}", Probe(1, COMPARED_ON, name=f"images-{COMPARED_ON:g}"), {})


def questions(view: StudyView, selected: TrialView, *, available: Sequence[str]) -> Iterator[Question]:
    """What is asked of the selected trial; the reference of the others comes before them.

    Args:
        available: backbones whose weights are there.
    """
    config = view.config
    for share in sorted({*SHARES, COMPARED_ON}):
        yield Question(f"images {share:g}", Probe(1, share, name=f"images-{share:g}"), selected.params)
    size = larger(config.data.size)
    # Where the size is searched or fixed for trials, what follows from another one is not a matter of `data.image_size`.
    if size is not None and IMAGE_SIZE not in selected.params and _can_be_looked_at(selected.params, size):
        name = f"{size[0]}x{size[1]}"
        yield Question(f"size {name}", Probe(1, COMPARED_ON, name=f"size-{name}", image_size=size), selected.params)
    for detector in QUICK:
        if detector in config.detectors:
            continue
        for setting in portfolio.first(detector, 1):
            backbone = str(selected.params.get("backbone"))
            if setting.get("backbone") not in available:
                setting = {**setting, "backbone": backbone}
            params = _full_setting(detector, setting, selected.params)
            yield Question(f"detector {detector}", Probe(1, COMPARED_ON, name=f"detector-{detector}"), params)


def _can_be_looked_at(setting: Setting, size: Size) -> bool:
    """Whether a setting's backbone takes images of another size."""
    try:
        seen, tiles = look_of({**setting, IMAGE_SIZE: written_size(size)}, size)
        check_look(seen, tiles)
        check_takes(str(setting["backbone"]), input_size(seen, tiles))
    except InputError:
        return False
    return True


def larger(size: Size) -> Size | None:
    """The next image size; None where a side would exceed `LARGEST`."""
    grown = tuple(round(side * SCALE / MULTIPLE) * MULTIPLE for side in size)
    return (grown[0], grown[1]) if max(grown) <= LARGEST else None


def _full_setting(detector: str, setting: Mapping[str, Any], selected: Setting) -> Setting:
    """A setting of another detector with all its parameters; values that the layers bound are cut."""
    parameters = catalog.parameters(detector)
    backbone, layers = str(setting["backbone"]), list(setting.get("layers", DEFAULT_LAYERS))
    channels = channels_by_layer(backbone)
    # Of a network without these, those that the selected trial looks at, or its finest.
    own = [layer for layer in selected.get("layers", []) if layer in channels]
    finest = min(channels, key=lambda layer: (layer < 0, abs(layer)))
    layers = [stride for stride in layers if stride in channels] or own or [finest]
    bounds = catalog.head_class(detector).upper_bounds({stride: channels[stride] for stride in layers})
    values = {name: setting.get(name, parameter.default) for name, parameter in parameters.items()}
    values = {name: min(value, bounds[name]) if name in bounds else value for name, value in values.items()}
    smoothing = setting.get("smoothing_sigma", selected.get("smoothing_sigma", 4.0))
    size = {name: selected[name] for name in LOOKS if name in selected}
    return {
        DETECTOR_KEY: detector,
        "backbone": backbone,
        "layers": layers,
        **size,
        **values,
        "smoothing_sigma": smoothing,
    }
