"""What few good images mean for a study: what can be done with them, and how certain it is, said before it is run."""

from __future__ import annotations

from detectors.base import Head
from detectors.data.splits import MIN_NORMALS, Splits
from detectors.data.turning import FEW
from detectors.errors import InputError
from detectors.scoring.operating_point import expected_false_alarm_rate, normals_needed
from studies.file.config import StudyConfig

INSTEAD = "`study run patchcore --images DIR` works with one good image"


def with_few(config: StudyConfig, splits: Splits) -> tuple[StudyConfig, tuple[str, ...]]:
    """The study as few good images allow it, and a line on each thing that they cost; as it is where they are not few.

    Where nothing can be held out there is nothing to search by: the first setting is fitted, once.

    Raises:
        InputError: a detector that learns more from images than so few hold.
    """
    count = len(splits.train)
    if count > FEW or (config.recipes or 1) == 1:
        return config, ()
    heads = {name: config.head_class(name) for name in config.detectors}
    unsuited = {name: head for name, head in heads.items() if not head.turned_copies}
    images = f"{count} good image{'' if count == 1 else 's'}"
    if splits.in_sample:
        for name, head in unsuited.items():
            raise InputError(f"{images} {_are(count)} too few for {name}, which {_learns(head)}; {INSTEAD}")
        budget = config.budget.model_copy(update={"trials": 1})
        line = (
            f"{images}: too few to hold any out, so nothing is searched; the first setting is fitted, its figures say nothing, "
            f"and no threshold can be promised (from {MIN_NORMALS} good images on there are both)"
        )
        changed = {"budget": budget, "rerank": 0, "advice": False}
        return config.model_copy(update=changed), (line, *_copies(config, heads))
    lines = [f"{images}: {_certainty(config, splits)}", *_copies(config, heads)]
    lines += [
        f"{name} {_learns(head)}: {images} {_are(count)} few for that; {INSTEAD}" for name, head in unsuited.items()
    ]
    return config, tuple(lines)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _learns(head: type[Head]) -> str:
    return "learns by gradient" if head.trained else "learns what is normal at each position"


def _certainty(config: StudyConfig, splits: Splits) -> str:
    """What a ranking and a threshold from so few are worth."""
    held_out = 0 if splits.unseen is None else sum(not sample.label for sample in splits.unseen.samples)
    normals, rate = len(splits.train) + held_out, config.threshold.rate
    text = "a ranking of settings from so few is weak"
    if config.threshold.rule == "false_alarm_rate" and (expected := expected_false_alarm_rate(normals, rate)) > rate:
        text += f", and a threshold supports {100 * expected:.0f} % false alarms ({100 * rate:g} % needs {normals_needed(rate)})"
    return text


def _copies(config: StudyConfig, heads: dict[str, type[Head]]) -> list[str]:
    names = [name for name, head in heads.items() if head.turned_copies]
    if not names or config.turned_copies is False:
        return []
    return [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} fitted to turned and mirrored copies too, so that a part "
        "that lies the wrong way round counts as good (turned_copies: false leaves them out)"
    ]
