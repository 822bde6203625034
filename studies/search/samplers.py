"""Optuna's samplers and pruners as a study file asks for them, and the seeds that follow from the study's."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any, NamedTuple

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from studies.file.config import StudyConfig
from studies.search.space import SearchSpace

EPOCHS = "epochs"
"""What every detector that trains calls the length of its training."""
GP_TRIALS = 100
"""Budget up to which ``auto`` takes the Gaussian process. Optuna recommends such a process for 10 to 100 trials, TPE for 100 to
1000; its cost grows with the cube of the trials: a suggestion over five parameters takes 1 s after 100 trials, 4 s after 200."""


class ChosenSampler(NamedTuple):
    """A sampler by name, and why it was chosen where the study file leaves that open."""

    name: str
    reason: str = ""


def choose_sampler(config: StudyConfig, space: SearchSpace) -> ChosenSampler:
    """The sampler that the study file names; for ``auto`` the one that suits the search, its objectives and its budget.

    With several objectives ``auto`` is TPE: over 40 trials NSGA-II, whose generations need hundreds, does no better than chance,
    and the hypervolume that the Gaussian process improves takes it several seconds a suggestion.
    """
    if config.sampler.name != "auto":
        return ChosenSampler(config.sampler.name)
    trials = config.budget.trials
    if not config.search:
        return ChosenSampler("tpe", "nothing is searched")
    if no_numbers := space.no_numbers:
        return ChosenSampler("tpe", f"choices are no numbers: {', '.join(no_numbers)}")
    if len(config.objectives) > 1:
        return ChosenSampler("tpe", "there are several objectives")
    if config.pruner.name != "none":
        return ChosenSampler("tpe", "a Gaussian process learns nothing from trainings that the pruner ended")
    if trials > GP_TRIALS:
        return ChosenSampler("tpe", f"{trials} trials are more than the {GP_TRIALS} that a Gaussian process is for")
    return ChosenSampler("gp", f"every searched parameter is a number, and {trials} trials are few")


def make_sampler(config: StudyConfig, seed: int, at_random: bool = False) -> BaseSampler:
    """The study's sampler with a seed of its own; ``auto`` is to be resolved before, by `choose_sampler`."""
    sampler = config.sampler
    if at_random or sampler.name in ("random", "grid"):
        return RandomSampler(seed=seed)
    if sampler.name == "gp":
        return GPSampler(seed=seed, n_startup_trials=sampler.startup)
    if sampler.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=sampler.population)
    return TPESampler(seed=seed, n_startup_trials=sampler.startup, constant_liar=True)


def make_pruner(config: StudyConfig) -> BasePruner:
    """The study's pruner; a step is an epoch, and in a study over several products a product."""
    pruner = config.pruner
    if pruner.name == "median":
        return MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=pruner.min_epochs)
    if pruner.name == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=pruner.p_value, n_startup_steps=pruner.min_epochs)
    if pruner.name == "hyperband":
        return HyperbandPruner(
            min_resource=pruner.min_epochs,
            max_resource=max(most_epochs(config), pruner.min_epochs),
            reduction_factor=pruner.reduction_factor,
        )
    return NopPruner()


def most_epochs(config: StudyConfig) -> int:
    """The longest training that the study allows, in epochs; 1 where no detector trains."""
    longest = 1
    for name in config.detectors:
        part = config.for_detector(name)
        parameter = part.parameters.get(EPOCHS)
        if parameter is None:
            continue
        dimension = part.search.get(EPOCHS)
        lengths: list[Any] = [part.fixed.get(EPOCHS, parameter.default)]
        if dimension is not None:
            lengths = list(dimension.choices or dimension.bounds)
        lengths += [baseline[EPOCHS] for baseline in part.baselines if EPOCHS in baseline]
        longest = max(longest, *(int(epochs) for epochs in lengths))
    return longest


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """A seed below 2^32 for one purpose and trial: independent of every other, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:4], "big")
