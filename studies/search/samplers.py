"""Optuna's samplers and pruners as a study file asks for them, and the seeds that follow from the study's."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from studies.file.config import StudyConfig

EPOCHS = "epochs"
"""What every detector that trains calls the length of its training."""


def make_sampler(config: StudyConfig, seed: int, at_random: bool = False) -> BaseSampler:
    """The study's sampler with a seed of its own."""
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
