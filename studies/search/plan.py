"""A study that is ready to run: the file, its images, its backbones and the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from detectors import catalog
from detectors.backbones import hub
from detectors.backbones.pyramid import WeightsIdentity, weights_identity
from detectors.backbones.weights import BackboneSpec, available_backbones, find_weights, licence, weights_folder
from detectors.data.samples import Dataset
from detectors.data.splits import Splits
from detectors.errors import InputError
from detectors.head_texts import HeadCode, keep, look_in
from detectors.runtime.devices import choose_device
from studies.file import datasets
from studies.file.config import StudyConfig
from studies.file.datasets import StudyImages
from studies.file.encoding import encode
from studies.file.few import with_few
from studies.file.keys import DETECTOR_KEY
from studies.file.resolving import not_halved, resolved
from studies.file.sections import Baseline
from studies.home import Home
from studies.search.identity import Identity, study_identity
from studies.search.origin import Origin
from studies.search.samplers import ChosenSampler, choose_sampler
from studies.search.seen_sizes import seen_sizes
from studies.search.space import SearchSpace
from studies.search.warm import Earlier

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how many of its items are done, and how many there are."""


@dataclass(frozen=True)
class Options:
    """How a study is run on this machine, as opposed to what it is."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    jobs: int | Literal["auto"] = 1
    """Trials at the same time; ``auto`` leaves it to the executor."""
    offline: bool = False
    """Open no connection; backbones without weights on this machine are left out."""
    weights_dir: Path | None = None
    """Folder that is searched for weights first."""
    remote: bool = False
    """Trials run on other machines; a device of this one is not needed."""
    left_out: tuple[str, ...] = ()
    """Backbones that a stored study was created without: nothing looks for their weights, least of all in a network."""
    ideas: tuple[Baseline, ...] = ()
    """A person's own settings, tried before all others."""
    earlier: tuple[Earlier, ...] = ()
    """Studies whose winners are tried next."""


@dataclass(frozen=True)
class Plan:
    """A study, checked against this machine: everything that the search needs to know."""

    config: StudyConfig
    home: Home
    options: Options
    device: torch.device
    images: StudyImages
    backbones: dict[str, WeightsIdentity]
    """The backbones of the file whose weights are there, and which weights these are."""
    dropped: tuple[str, ...]
    """The backbones of the file that have no weights on this machine."""
    networks: dict[str, WeightsIdentity] = field(default_factory=dict)
    """The networks that detectors start from, with pretrained weights."""
    warnings: tuple[str, ...] = ()
    """What is doubtful about the images, a line each."""
    resolutions: tuple[str, ...] = ()
    """What the images made of the study file, a line each."""
    origin: Origin | None = None
    """What the settings were made of; None leaves a stored study's as it is."""
    generation: str | None = None
    """``NAME#2``, the stored study that goes on; None for the last one of the name."""
    settles: bool = False
    """No trial is started where the last search has ended: only what becomes of its outcome was changed."""
    standing: str = "new study"
    """Whether the study is new, or how far it is and what is left to do, for a person."""
    remarks: tuple[str, ...] = ()
    """Where the settings came from, a line each."""
    out_of_reach: str = ""
    """The hub's host, where its weights were wanted and it did not answer; empty otherwise."""

    def __post_init__(self) -> None:
        """Raises `InputError` for a search, or an idea, that these backbones do not allow."""
        for idea in self.options.ideas:
            try:
                self.space.check(idea)
            except InputError as error:
                given = ",".join(f"{name}={encode(value)}" for name, value in idea.items())
                raise InputError(f"--enqueue {given}: {error}") from None
        _ = self.space

    @cached_property
    def space(self) -> SearchSpace:
        """The search over these backbones."""
        return SearchSpace(self.config, backbones=list(self.backbones))

    @cached_property
    def sampler(self) -> ChosenSampler:
        """The sampler, that which ``auto`` came to included."""
        return choose_sampler(self.config, self.space)

    @property
    def resolved(self) -> StudyConfig:
        """The study file with the protocol and the sampler that ``auto`` came to."""
        sampler = self.config.sampler.model_copy(update={"name": self.sampler.name})
        return self.config.model_copy(update={"protocol": self.images.protocol, "sampler": sampler})

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
        """The image sets of the first product."""
        return self.images.parts[0].splits

    def networks_of(self, setting: Mapping[str, Any]) -> dict[str, str]:
        """{network that a detector starts from with this setting: sha256 of its weights}.

        A setting that somebody queued for an earlier run of the study may name one that was not looked for now.
        """
        detector = setting.get(DETECTOR_KEY) or self.config.detectors[0]
        names = catalog.networks(self.config.head_class(detector), setting)
        return {name: self.networks[name].sha256 for name in names if name in self.networks}

    @property
    def identity(self) -> Identity:
        """What a resumed study must agree on."""
        return study_identity(self.config, self.images, self.networks)


def make_plan(config: StudyConfig, home: Home, options: Options, *, progress: Progress | None = None) -> Plan:
    """Read the images, divide them into sets, find the weights: whatever can be wrong with a study is reported before it runs.

    Raises:
        InputError: data missing or damaged, no backbone available, impossible space or device.
    """

    def step(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    _keep_heads(config, home)
    # Each node of a cluster chooses its own.
    device = torch.device("cpu") if options.remote else choose_device(options.device)
    images = datasets.load(config, home, progress=step("reading images"))
    config, resolutions = resolved(config, images.protocol)
    config, certainty = with_few(config, images.parts[0].splits) if not images.several else (config, ())
    resolutions += certainty
    if images.nested and not config.nested:
        resolutions += (not_halved(images.parts[0].splits.counts["validation"]),)
    warnings = datasets.check(images, config, home, progress=step("checking images"))
    out_of_reach = "" if options.offline or not _absent(config, options) or hub.is_reachable() else hub.hub_name()
    if out_of_reach:
        # What is here will do: nobody has to know of an option to be offline.
        options = replace(options, offline=True)
    backbones, dropped = _find_backbones(config, options, progress)
    resolutions += seen_sizes(config, backbones, options.ideas)
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
        resolutions=resolutions,
        out_of_reach=out_of_reach,
    )


def _absent(config: StudyConfig, options: Options) -> list[str]:
    """The backbones of a study that may be fetched, and have no weights on this machine."""
    wanted = [name for name in config.backbones if name not in options.left_out]
    return [name for name in wanted if find_weights(BackboneSpec.parse(name), weights_dir=options.weights_dir) is None]


def _keep_heads(config: StudyConfig, home: Home) -> None:
    """Keep the files that detectors came from, for workers and for later commands."""
    look_in(home.heads)
    for record in config.heads.values():
        keep(HeadCode.from_json(record.model_dump()), home.heads)


def _find_backbones(
    config: StudyConfig, options: Options, progress: Progress | None
) -> tuple[dict[str, WeightsIdentity], list[str]]:
    """The backbones that have weights, and the names of those that have none.

    Raises:
        InputError: no backbone of the study has weights.
    """
    weights_folder(options.weights_dir)  # raises where it names no folder
    identities: dict[str, WeightsIdentity] = {}
    dropped: list[str] = []
    for name in config.backbones:
        spec = BackboneSpec.parse(name)
        found = None
        if name not in options.left_out:
            found = find_weights(spec, weights_dir=options.weights_dir, allow_network=not options.offline)
        if found is None:
            dropped.append(name)
            continue
        if found.origin == "hub" and progress is not None:
            progress(f"fetching {name} (licence: {licence(spec)})", 0, 0)
        identities[name] = weights_identity(name, weights_dir=options.weights_dir, allow_network=not options.offline)
    if not identities:
        available = available_backbones(weights_dir=options.weights_dir)
        raise InputError(
            f"none of the study's backbones ({', '.join(config.backbones)}) has weights on this machine; "
            f"available: {', '.join(available) or 'none'}; put weights into --weights-dir, "
            f"leave out --offline, or add NAME@random"
        )
    return identities, dropped


def _find_networks(config: StudyConfig, options: Options) -> dict[str, WeightsIdentity]:
    """The networks that detectors start from. Raises `InputError` that names a network without weights and the way out."""
    return {
        name: weights_identity(name, weights_dir=options.weights_dir, allow_network=not options.offline)
        for name in config.networks((*config.baselines, *options.ideas))
    }
