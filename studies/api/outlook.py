"""What a study would make of images that were checked: its protocol, what its threshold would rest on, and the command."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectors.data.copies import PixelDigests, content_groups
from detectors.data.samples import Dataset
from detectors.data.splits import RECIPES, Splits
from detectors.errors import InputError
from detectors.scoring.operating_point import normals_needed
from studies.file import datasets, library
from studies.file.config import StudyConfig
from studies.file.own_images import SEARCH_OF_A_FOLDER
from studies.search import threshold_words
from studies.worker.out_of_fold import divide

WHY = {
    "holdout": "one half of the labelled images chooses the setting, the other half is scored once: the figure to quote",
    "synthetic": "settings are ranked on defects that are painted into good images; this says nothing of real defects",
    "paper": "all labelled images are scored, and nothing is searched",
}
NESTED = (
    "the labelled images are few: all of them choose the setting, and what the choice is worth is estimated on folds that did "
    "not choose"
)
IN_SAMPLE = "the good images are so few that none is kept apart: no figure will mean anything"


@dataclass(frozen=True)
class Outlook:
    """What ``study run`` would do."""

    protocol: str
    """Empty where a study cannot be run."""
    why: str
    """What the protocol does with these images."""
    good: int
    """Good images that the threshold would rest on: of train, each scored without it, and those held out."""
    rate: float
    """The false-alarm rate that the threshold is to allow, 0 to 1."""
    command: str
    """What to type next."""
    problem: str = ""
    """Why a study cannot be run; empty where it can."""

    @property
    def supported_rate(self) -> float:
        """The lowest false-alarm rate that the good images support, 0 to 1."""
        return 1 / (self.good + 1)

    @property
    def needed(self) -> int | None:
        """Good images from which on the rate is supported; None where it is, or is 0."""
        needed = normals_needed(self.rate) if self.rate else None
        return needed if needed is not None and needed > self.good else None

    def lines(self) -> list[str]:
        """For a person."""
        if self.problem:
            return [f"a study cannot be run: {self.problem}"]
        images = f"{self.good} good image{'' if self.good == 1 else 's'}"
        percent = threshold_words.percent
        if self.needed is not None:
            basis = (
                f"they support {percent(self.supported_rate)} false alarms; for {percent(self.rate)}, which it is to allow, "
                f"{self.needed} are needed"
            )
        else:
            basis = f"enough for the {percent(self.rate)} false alarms that it is to allow"
        return [
            f"protocol {self.protocol}: {self.why}",
            f"the threshold would rest on {images}: {basis}"
            if self.good
            else "no threshold: no good image is kept apart",
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"supported_rate": self.supported_rate if self.good else None, "needed": self.needed}


def outlook(dataset: Dataset, config: StudyConfig | None, command: str, *, cache: PixelDigests) -> Outlook:
    """What a study would do with a product's images.

    Args:
        config: of the study; None for the one that a folder of images is searched with.
        command: that runs it.
        cache: pixels of files that are known already.
    """
    config = config or library.load(SEARCH_OF_A_FOLDER).model_copy(update={"recipes": RECIPES})
    rate = config.threshold.rate
    try:
        splits = datasets.split(dataset, config, cache=cache)
    except InputError as error:
        return Outlook("", "", 0, rate, command, problem=str(error).removeprefix(f"{dataset.category}: "))
    why = NESTED if splits.nested else IN_SAMPLE if splits.in_sample else WHY[splits.protocol]
    return Outlook(splits.protocol, why, _good(splits, config, cache), rate, command)


def next_command(dataset: Dataset, study: str | None) -> str:
    """The command that runs a study on these images."""
    if study is not None:
        return shlex.join(["study", "run", study])
    return shlex.join(["study", "run", _as_path(dataset.root)])


def _good(splits: Splits, config: StudyConfig, cache: PixelDigests) -> int:
    """Good images that the threshold of a refit rests on; of several detectors the least."""
    held_out = splits.unseen.samples if splits.unseen is not None else ()
    samples = splits.train.samples
    groups = content_groups(samples, cache)
    trained = {config.head_class(name).trained for name in config.detectors}
    parts = [divide(samples, groups, config.threshold.folds, trained=one) for one in trained]
    out_of_fold = min(sum(len(part.held_out) for part in each) for each in parts)
    return out_of_fold + sum(not sample.label for sample in held_out)


def _as_path(folder: Path) -> str:
    """A folder as a word that is no study's name, from the working folder on where it lies in it."""
    absolute = folder.expanduser().absolute()
    shown = str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
    return shown if "/" in shown or shown == "." else f"{shown}/"
