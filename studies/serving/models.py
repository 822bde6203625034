"""Which model is served: the sources that determine it, and the keeper that loads, tests and swaps models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.runtime.artifact import DESCRIPTION, Artifact, is_artifact, load_artifact, read_description
from detectors.runtime.verdicts import given_threshold, judge
from studies.home import Home
from studies.release.locate import REGISTERED, detector_folder, registered
from studies.worker.jobs import PROVISIONAL
from tracking.registry import Registry

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 3600.0
"""Time from the failure of a model to the next try, which doubles up to the second value. A full disk or a store that is away
may recover; a damaged file does not, and each try costs a load."""


class ModelVersion(NamedTuple):
    """A version of a model that can be served."""

    identity: str
    """Differs between any two models."""
    name: str
    number: str
    """Number of a registered version; of a folder, the beginning of its digest, after ``provisional-`` while a search goes on."""


class ModelSource(Protocol):
    """Determines which model is to be served, and provides it."""

    def latest(self) -> ModelVersion:
        """The model that is to be served now; called at every poll.

        Raises:
            InputError: there is none, or it cannot be determined now.
        """

    def fetch(self, version: ModelVersion) -> Path:
        """Folder of the detector.

        Raises:
            InputError: the detector cannot be fetched.
        """


@dataclass(frozen=True)
class FolderSource:
    """A detector's folder. If its content is replaced, the new detector is served."""

    folder: Path
    name: str

    def latest(self) -> ModelVersion:
        """Identified by the content of its description, which includes the digest of its tensors."""
        description = self.folder / DESCRIPTION
        if not description.is_file():
            raise InputError(f"{self.folder}: no detector here ({DESCRIPTION} is missing)")
        digest = file_sha256(description)
        mark = "provisional-" if self._is_provisional() else ""
        return ModelVersion(digest, self.name, f"{mark}{digest[:12]}")

    def _is_provisional(self) -> bool:
        try:
            return bool(read_description(self.folder).provenance.get(PROVISIONAL))
        except InputError:
            # A damaged description is a version too: it is told once, as one that cannot be loaded.
            return False

    def fetch(self, version: ModelVersion) -> Path:
        """The folder itself."""
        return self.folder


@dataclass(frozen=True)
class StudySource:
    """The selected detector of a study. If the study selects a better one, that is served."""

    model: str
    """Name of the study, or ``STUDY/product``."""
    find: Callable[[str], Path]
    """Returns the folder of the detector that is selected now. Raises `InputError` if there is none."""

    def latest(self) -> ModelVersion:
        """Identified by the content of the folder that is selected now."""
        return self._selected().latest()

    def fetch(self, version: ModelVersion) -> Path:
        """The folder itself."""
        return self._selected().fetch(version)

    def _selected(self) -> FolderSource:
        return FolderSource(self.find(self.model), self.model)


@dataclass(frozen=True)
class RegistrySource:
    """A registered model: ``models:/NAME@alias`` or ``models:/NAME/version``."""

    registry: Registry
    name: str
    alias: str

    def latest(self) -> ModelVersion:
        """The version that the alias points to now."""
        version = self.registry.version(self.name, self.alias)
        return ModelVersion(f"{version.name}/{version.version}@{version.created_ms}", version.name, version.version)

    def fetch(self, version: ModelVersion) -> Path:
        """The folder of its detector, which is kept in STUDY_HOME."""
        return self.registry.fetch(self.registry.version(version.name, version.number))


@dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded and has judged an image."""

    version: ModelVersion
    artifact: Artifact
    since: float = field(default_factory=time.time)
    """When it was loaded, in seconds since the epoch."""

    def describe(self) -> dict[str, Any]:
        """The answer of ``/model``."""
        detector = self.artifact.detector
        return {
            "name": self.version.name,
            "version": self.version.number,
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
    """A model that could not be loaded."""

    identity: str
    pause: float
    """Seconds from the failure to the next try."""
    again: float
    """Time of the next try, by the keeper's clock."""


class Keeper:
    """Holds the model that is served. A new one replaces it only after it was loaded and has judged an image."""

    def __init__(
        self,
        source: ModelSource,
        *,
        device: torch.device,
        threshold: float | None = None,
        say: Callable[[str], None] = lambda text: None,
        swapped: Callable[[str], None] = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        source: determines the model.
        threshold: in the place of the first model's own; another model has other scores, and runs at its own.
        say: called with a line about each swap, each model that fails, and a source that is away or back.
        swapped: called with ``swapped`` or ``failed`` for each new model.
        clock: seconds, for the time between two tries.
        """
        self._clock, self._threshold = clock, threshold
        self._source, self._device, self._say = source, device, say
        self._listeners = [swapped]
        self._current: LoadedModel | None = None
        self._failed: _Failed | None = None
        """The model that failed last, which is not tried at every poll."""
        self._away = False
        self._loading = threading.Lock()

    @property
    def current(self) -> LoadedModel | None:
        """The model that is served now; None before the first one is loaded."""
        return self._current

    def on_swap(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with ``swapped`` or ``failed`` for each new model, besides the one of the constructor."""
        self._listeners.append(listener)

    def start(self) -> LoadedModel:
        """Load the first model.

        Raises:
            InputError: it cannot be fetched or loaded.
        """
        with self._loading:
            self._current = self._load(self._source.latest())
            if self._threshold is not None:
                artifact = self._current.artifact
                artifact.detector.threshold = given_threshold(artifact, self._threshold)
            return self._current

    def check(self) -> bool:
        """Load the model that is to be served, unless it is served already. Returns whether it was swapped in.

        Never raises: if the source or the new model fails, the present model continues to be served.
        """
        with self._loading:
            try:
                latest = self._source.latest()
            except Exception as error:
                if not self._away:
                    self._say(f"cannot determine which model to serve ({_one_line(error)}); the present one continues")
                self._away = True
                return False
            if self._away:
                self._say("the source of the model answers again")
            self._away = False
            if self._current and latest.identity == self._current.version.identity:
                return False
            failed = self._failed if self._failed and self._failed.identity == latest.identity else None
            if failed and self._clock() < failed.again:
                return False
            try:
                self._current = self._load(latest)
            except Exception as error:
                pause = min(2 * failed.pause, LONGEST_RETRY_SECONDS) if failed else RETRY_SECONDS
                self._failed = _Failed(latest.identity, pause, self._clock() + pause)
                if not failed:
                    self._say(
                        f"{latest.name} version {latest.number} is not served: {_one_line(error)}; "
                        "the present one continues"
                    )
                self._notify("failed")
                return False
            self._failed = None
            self._say(f"now serving {latest.name} version {latest.number}")
            if self._threshold is not None:
                self._say(
                    f"the threshold that was given, {self._threshold:g}, was for the model before; this one has its own"
                )
                self._threshold = None
            self._notify("swapped")
            return True

    def follow(self, seconds: float) -> Callable[[], None]:
        """Call `check` every so many seconds in a thread of its own.

        Returns:
            A function that ends this. It returns at once, also while `check` waits for a store that does not answer.
        """
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(seconds):
                self.check()

        threading.Thread(target=work, name="following", daemon=True).start()
        return ended.set

    def _notify(self, outcome: str) -> None:
        for listener in self._listeners:
            listener(outcome)

    def _load(self, version: ModelVersion) -> LoadedModel:
        """Fetch and load a model and let it judge a grey image."""
        artifact = load_artifact(self._source.fetch(version), device=self._device)
        height, width = artifact.detector.image_size
        (verdict,) = judge(artifact, [np.full((height, width, 3), 128, np.uint8)])
        if not np.isfinite(verdict.anomaly_map).all():
            raise InputError(f"{version.name} version {version.number}: its anomaly map is not finite")
        return LoadedModel(version, artifact)


def _one_line(error: Exception) -> str:
    """The message of an error on one line, after its type if the error was not foreseen."""
    message = " ".join(str(error).split())
    return message if isinstance(error, InputError) else f"{type(error).__name__}: {message}".removesuffix(": ")


def find_source(model: str, home: Home, *, open_registry: Callable[[Home], Registry]) -> ModelSource:
    """The source of a model as the command line names it: ``models:/NAME@alias``, the folder of a detector, or a study.

    Raises:
        InputError: there is no such model.
    """
    if not model.startswith(REGISTERED):
        find = partial(detector_folder, home=home)
        folder = find(model)
        if is_artifact(Path(model)):
            return FolderSource(folder, folder.resolve().name)
        return StudySource(model.rstrip("/"), find)
    name, alias = registered(model)
    return RegistrySource(open_registry(home), name, alias)
