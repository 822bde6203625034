"""A study that is ready to run: the file, the images, the backbones, and what identifies it when it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from detectors import catalog
from detectors.backbones.pyramid import WeightsIdentity, weights_identity
from detectors.backbones.weights import BackboneSpec, available_backbones, find_weights, weights_folder
from detectors.data.samples import Dataset
from detectors.data.splits import Splits
from detectors.errors import InputError
from studies.file import datasets
from studies.file.checks import MIN_WILCOXON
from studies.file.config import StudyConfig
from studies.file.datasets import StudyImages
from studies.file.keys import DETECTOR_KEY
from studies.home import Home
from studies.search.space import SearchSpace

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done, in all)."""


@dataclass(frozen=True)
class Options:
    """How a study is run here, as opposed to what it is."""

    device: str = "auto"
    jobs: int | Literal["auto"] = 1
    offline: bool = False
    weights_dir: Path | None = None
    remote: bool = False
    """Trials run on other machines, whose devices are not looked for here."""
    ideas: tuple[Mapping[str, Any], ...] = ()
    """A person's own settings, tried before all others."""


@dataclass(frozen=True)
class Plan:
    """Everything a driver needs to know."""

    config: StudyConfig
    home: Home
    options: Options
    device: torch.device
    images: StudyImages
    backbones: dict[str, WeightsIdentity]
    """Of the file, those whose weights are there."""
    dropped: tuple[str, ...]
    """Of the file, those without weights on this machine (``--offline``)."""
    networks: dict[str, WeightsIdentity] = field(default_factory=dict)
    """That detectors start from, with pretrained weights."""
    warnings: tuple[str, ...] = ()
    space: SearchSpace = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", SearchSpace(self.config, backbones=list(self.backbones)))

    @property
    def experiment(self) -> str:
        """MLflow experiment: ``<dataset>/<category>``."""
        return self.images.experiment

    @property
    def dataset(self) -> Dataset:
        """The images of the first product, in most studies the only one."""
        return self.images.parts[0].dataset

    @property
    def splits(self) -> Splits:
        """The sets of the first product."""
        return self.images.parts[0].splits

    def networks_of(self, params: Mapping[str, Any]) -> dict[str, str]:
        """{network that a detector starts from with this setting: sha256 of its weights}.

        A setting that somebody queued for an earlier run of the study may name one that was not looked for now.
        """
        name = params.get(DETECTOR_KEY) or self.config.detectors[0]
        asked = catalog.networks(name, params)
        return {network: self.networks[network].sha256 for network in asked if network in self.networks}

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed study must agree on, part by part, JSON-able."""
        search = {
            name: dimension.model_dump(mode="json", exclude_none=True) for name, dimension in self.config.search.items()
        }
        networks = {name: self.networks[name].sha256 for name in self.config.networks()}
        return ({"networks": networks} if networks else {}) | {
            "detector": self.config.detector,
            "protocol": self.images.protocol,
            "data": self.images.digests,
            "image_size": list(self.config.data.size),
            "search": search,
            "fixed": dict(self.config.fixed),
            # In their order, which is that of Optuna's values; the first one selects.
            "objectives": [[name, way] for name, way in self.config.objectives.items()],
            "seed": self.config.sampler.seed,
        }


def choose_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU. Raises `InputError` for a device this machine does not have."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: give auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(f"device {name!r}: give auto, cpu, cuda or cuda:N")
    if (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return torch.device("cuda", device.index or 0)


def make_plan(config: StudyConfig, home: Home, options: Options, *, progress: Progress | None = None) -> Plan:
    """Read the data, divide it, find the weights; everything that can be wrong with a study is told here.

    Raises:
        InputError: data missing or damaged, no backbone available, impossible space or device.
    """

    def step(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    # On the nodes of a cluster each finds its own.
    device = torch.device("cpu") if options.remote else choose_device(options.device)
    images = datasets.load(config, home, progress=step("rendering images"))
    warnings = []
    for part in images.parts:
        warnings += datasets.check_images(part.dataset, part.splits, home, progress=step("checking images"))
        _check_objectives(config, part.splits)
    if config.pruner.name == "wilcoxon" and len(images.parts) < MIN_WILCOXON:
        raise InputError(
            f"pruner wilcoxon needs at least {MIN_WILCOXON} products, {images.source} has {len(images.parts)}; "
            "take median or none"
        )
    backbones, dropped = _find_backbones(config, options)
    return Plan(
        config=config,
        home=home,
        options=options,
        device=device,
        images=images,
        backbones=backbones,
        dropped=tuple(dropped),
        networks=_find_networks(config, options),
        warnings=tuple(warnings),
    )


def _check_objectives(config: StudyConfig, splits: Splits) -> None:
    """Raise `InputError` where an objective cannot be computed on these images."""
    scored = splits.validation or splits.test
    for metric in config.objectives:
        if metric.startswith("pixel_") and not scored.has_masks:
            raise InputError(
                f"objective {metric} needs a mask for every defective image of {scored.name}; "
                "add masks (`study data check` lists those missing) or take image_auroc"
            )


def _find_backbones(config: StudyConfig, options: Options) -> tuple[dict[str, WeightsIdentity], list[str]]:
    """Identities of those with weights; offline, the names of the others, else these are an error."""
    weights_folder(options.weights_dir)
    found: dict[str, WeightsIdentity] = {}
    dropped: list[str] = []
    for name in config.backbones:
        spec = BackboneSpec.parse(name)
        if find_weights(spec, weights_dir=options.weights_dir, allow_network=not options.offline) is None:
            dropped.append(name)
            continue
        found[name] = weights_identity(name, weights_dir=options.weights_dir, allow_network=not options.offline)
    if not found:
        available = available_backbones(weights_dir=options.weights_dir)
        raise InputError(
            f"none of the study's backbones ({', '.join(config.backbones)}) has weights on this machine; "
            f"available: {', '.join(available) or 'none'}; put weights into --weights-dir, "
            f"leave out --offline, or add NAME@random"
        )
    return found, dropped


def _find_networks(config: StudyConfig, options: Options) -> dict[str, WeightsIdentity]:
    """Raises `InputError` where pretrained weights are missing: it names the network and the way out."""
    return {
        name: weights_identity(name, weights_dir=options.weights_dir, allow_network=not options.offline)
        for name in config.networks((*config.baselines, *options.ideas))
    }


def digest(identity: dict[str, Any]) -> str:
    """sha256 (hex) of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In words, where two identities differ."""
    found = []
    for key in sorted({*stored, *wanted}):
        before, now = stored.get(key), wanted.get(key)
        if before == now:
            continue
        if key == "data" and isinstance(before, dict) and isinstance(now, dict):
            changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
            found.append(f"the images of {', '.join(changed)}")
        elif isinstance(before, dict) and isinstance(now, dict):
            changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
            found += [f"{key}.{name} (was {_shown(before.get(name))}, now {_shown(now.get(name))})" for name in changed]
        else:
            found.append(f"{key} (was {_shown(before)}, now {_shown(now)})")
    return found


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)
