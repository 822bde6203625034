"""Which model is served: sources that say so, and the keeper that loads, tests and swaps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.runtime.artifact import DESCRIPTION, Artifact, load_artifact
from detectors.runtime.verdicts import judge
from studies.home import Home
from tracking.registry import Registry

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 3600.0
"""From a model's failure to the next try, and to what that doubles: a disk that was full or a store that was away heals, a
damaged file does not, and costs a load each time."""


class Wanted(NamedTuple):
    """A model that is to be served."""

    identity: str
    """Another model, another identity."""
    name: str
    version: str


class ModelSource(Protocol):
    """Says which model is to be served now, and brings it."""

    def wanted(self) -> Wanted:
        """Asked often. Raises `InputError` where there is none, or it cannot be found out now."""

    def fetch(self, wanted: Wanted) -> Path:
        """The detector's folder. Raises `InputError` where it cannot be had."""


@dataclass(frozen=True)
class FolderSource:
    """A detector's folder; one that is replaced is served anew."""

    folder: Path
    name: str

    def wanted(self) -> Wanted:
        """By the content of its description, which holds the digest of its tensors."""
        description = self.folder / DESCRIPTION
        if not description.is_file():
            raise InputError(f"{self.folder}: no detector here ({DESCRIPTION} is missing)")
        digest = file_sha256(description)
        return Wanted(digest, self.name, digest[:12])

    def fetch(self, wanted: Wanted) -> Path:
        """The folder itself."""
        return self.folder


@dataclass(frozen=True)
class StudySource:
    """A study's selected detector, also after the study found a better one."""

    model: str
    """Name of the study, or ``STUDY/product``."""
    find: Callable[[str], Path]
    """Its detector's folder now. Raises `InputError` where there is none."""

    def wanted(self) -> Wanted:
        """By the content of the folder that is selected now."""
        return self._selected().wanted()

    def fetch(self, wanted: Wanted) -> Path:
        """The folder itself."""
        return self._selected().fetch(wanted)

    def _selected(self) -> FolderSource:
        return FolderSource(self.find(self.model), self.model)


@dataclass(frozen=True)
class RegistrySource:
    """``models:/NAME@alias`` or ``models:/NAME/version``."""

    registry: Registry
    name: str
    alias: str

    def wanted(self) -> Wanted:
        """The version that the alias points to now."""
        found = self.registry.version(self.name, self.alias)
        return Wanted(f"{found.name}/{found.version}@{found.created_ms}", found.name, found.version)

    def fetch(self, wanted: Wanted) -> Path:
        """Its detector, kept in STUDY_HOME."""
        return self.registry.fetch(self.registry.version(wanted.name, wanted.version))


@dataclass(frozen=True)
class Loaded:
    """A model at work."""

    wanted: Wanted
    artifact: Artifact
    since: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    def describe(self) -> dict[str, Any]:
        """What ``/model`` answers."""
        detector = self.artifact.detector
        return {
            "name": self.wanted.name,
            "version": self.wanted.version,
            "since": self.since,
            "detector": detector.head.name,
            "settings": detector.head.settings,
            "backbone": str(detector.backbone.spec),
            "layers": list(detector.backbone.strides),
            "image_size": list(detector.image_size),
            "threshold": detector.threshold.to_json() if detector.threshold else None,
            "provenance": dict(self.artifact.provenance),
        }


@dataclass(frozen=True)
class _Failed:
    identity: str
    pause: float
    """Seconds from the failure to the next try."""
    again: float
    """When that is."""


class Keeper:
    """Holds the model that is served. A new one takes its place only after it was loaded and has judged an image."""

    def __init__(
        self,
        source: ModelSource,
        *,
        device: torch.device,
        say: Callable[[str], None] = lambda text: None,
        swapped: Callable[[str], None] = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        say: told of swaps, of models that fail, and when the source is away.
        swapped: told ``swapped`` or ``failed``.
        """
        self._clock = clock
        self._source, self._device, self._say = source, device, say
        self.swapped = swapped
        self._current: Loaded | None = None
        self._failed: _Failed | None = None
        """A model that is not tried at every poll."""
        self._away = False
        self._loading = threading.Lock()

    @property
    def current(self) -> Loaded | None:
        """The model that is served now; None before the first."""
        return self._current

    def start(self) -> Loaded:
        """Load the first model. Raises `InputError` where that fails."""
        with self._loading:
            self._current = self._load(self._source.wanted())
            return self._current

    def check(self) -> bool:
        """Serve another model where another is wanted; whether one was swapped in.

        Never raises: whatever is wrong with the source or a new model, the present one goes on.
        """
        with self._loading:
            try:
                wanted = self._source.wanted()
            except Exception as error:
                if not self._away:
                    self._say(
                        f"cannot find out which model is to be served ({_words(error)}); going on with the present one"
                    )
                self._away = True
                return False
            if self._away:
                self._say("the model's source is back")
            self._away = False
            if self._current and wanted.identity == self._current.wanted.identity:
                return False
            failed = self._failed if self._failed and self._failed.identity == wanted.identity else None
            if failed and self._clock() < failed.again:
                return False
            try:
                self._current = self._load(wanted)
            except Exception as error:
                pause = min(2 * failed.pause, LONGEST_RETRY_SECONDS) if failed else RETRY_SECONDS
                self._failed = _Failed(wanted.identity, pause, self._clock() + pause)
                if not failed:
                    self._say(
                        f"{wanted.name} version {wanted.version} is not served: {_words(error)}; "
                        "going on with the present one"
                    )
                self.swapped("failed")
                return False
            self._failed = None
            self._say(f"now serving {wanted.name} version {wanted.version}")
            self.swapped("swapped")
            return True

    def follow(self, seconds: float) -> Callable[[], None]:
        """`check` that often, in a thread of its own; what is returned ends it, and does not wait for a store that is silent."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(seconds):
                self.check()

        threading.Thread(target=work, name="following", daemon=True).start()
        return ended.set

    def _load(self, wanted: Wanted) -> Loaded:
        artifact = load_artifact(self._source.fetch(wanted), device=self._device)
        height, width = artifact.detector.image_size
        (verdict,) = judge(artifact, [np.full((height, width, 3), 128, np.uint8)])
        if not np.isfinite(verdict.anomaly_map).all():
            raise InputError(f"{wanted.name} version {wanted.version}: its anomaly map is not finite")
        return Loaded(wanted, artifact)


def _words(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, InputError) else f"{type(error).__name__}: {told}".removesuffix(": ")


def find_source(model: str, home: Home, *, open_registry: Callable[[Home], Registry]) -> ModelSource:
    """The source of a MODEL as given on the command line: models:/NAME@alias, a detector's folder, or a study.

    Raises:
        InputError: there is no such model.
    """
    from studies.release.locate import REGISTERED, detector_folder, registered

    if not model.startswith(REGISTERED):
        folder = detector_folder(model)
        return (
            FolderSource(folder, folder.resolve().name) if Path(model).is_dir() else StudySource(model, detector_folder)
        )
    name, alias = registered(model)
    return RegistrySource(open_registry(home), name, alias)
