"""Registered models in an MLflow store: their versions, and the files of those."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from detectors.errors import InputError
from detectors.files import new_folder
from detectors.runtime.artifact import is_artifact
from tracking.addresses import without_password
from tracking.model import packed
from tracking.patience import Patience
from tracking.pyfunc import ARTIFACT, META
from tracking.store import default_store, is_away, open_client, origin_tags, store_calls

SOURCE = "source.key"
"""Tag of a version and of its logged model: the key of its source. No two versions of a model have the same source."""
MODEL_NOTE = """Detectors that compete for one place. The alias **champion** is the one in production, **challenger** the newest
candidate, **previous** the champion before.

    study predict models:/{name}@champion IMAGE...
    study serve models:/{name}@champion
    study rollback {name}     # champion and previous change places
"""
"""Description of a new registered model."""

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A saved detector that is to become a version."""

    key: str
    """Identifies the detector: equal for the same detector, different for any other."""
    folder: Path
    run_id: str
    """The run that made it."""
    description: str
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics on test, which are linked to the logged model."""
    dataset: tuple[str, str] | None = None
    """Name and digest of the images on which the metrics were measured."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    """Name of the registered model."""
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_ms: int
    """Milliseconds since the epoch."""
    run_id: str
    description: str

    @property
    def uri(self) -> str:
        """Address for MLflow: ``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class RegisteredModels:
    """The registered models of one MLflow store.

    A store that does not answer is waited for, as its `Patience` says. Methods that begin with an underscore make single calls of
    MLflow's client; subclasses use them within `_patiently`.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        cache: Path,
        lock_folder: Path | None = None,
        patience: Patience | None = None,
        artifacts: Path | None = None,
    ) -> None:
        """Args:
            cache: folder for detectors that are fetched from the store.
            lock_folder: folder of a lock that keeps processes from creating a local store at the same time.
            patience: how long to wait for the store, and how to report it; default as `Patience()`.
            artifacts: where the artifacts of a local store are now; see `tracking.moved`.

        Raises:
            InputError: the store cannot be reached or opened.
        """
        self.tracking_uri, self._cache = tracking_uri, cache
        self._patience = patience or Patience()
        self._client: MlflowClient = open_client(tracking_uri, lock_folder=lock_folder, artifacts=artifacts)

    def names(self) -> list[str]:
        """Names of all registered models."""
        return self._patiently(lambda: [model.name for model in self._pages(self._client.search_registered_models)])

    def versions(self, name: str) -> list[Version]:
        """Versions of a model, the newest first; empty if there is no such model."""
        return self._patiently(lambda: self._versions(name))

    def version(self, name: str, number_or_alias: str) -> Version:
        """A version by its number or an alias.

        Raises:
            InputError: there is none; the message lists those that there are.
        """
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "none yet"
            raise InputError(f"no registered model {name!r}; there are: {known}. `study promote` makes one")
        for version in versions:
            if number_or_alias in (version.version, *version.aliases):
                return version
        listed = ", ".join(
            f"{version.version}{f' ({alias})' if (alias := ', '.join(version.aliases)) else ''}" for version in versions
        )
        raise InputError(f"model {name!r} has no {number_or_alias!r}; versions: {listed}")

    def find(self, name: str, alias: str) -> Version | None:
        """The version that an alias points to; None if there is none."""
        return next((version for version in self.versions(name) if alias in version.aliases), None)

    def fetch(self, version: Version) -> Path:
        """Local folder of a version's detector.

        Raises:
            InputError: the store does not answer, or the version holds no detector.
        """
        folder = self.fetch_model(version) / "artifacts" / ARTIFACT
        if not is_artifact(folder):
            raise InputError(f"{version}: holds no detector of anomaly-studies")
        return folder

    def fetch_model(self, version: Version) -> Path:
        """Local folder of a version's MLflow model, which is fetched once and kept.

        Raises:
            InputError: the store does not answer, or the version's files are gone.
        """
        mark = sha256(f"{version.tags.get(SOURCE)}@{version.created_ms}".encode()).hexdigest()[:12]
        folder = self._cache / f"{version.name}-{version.version}-{mark}"
        if not (folder / "MLmodel").is_file():
            self._patiently(lambda: self._download(version, folder))
        return folder

    def run_of_trial(self, experiment: str, uid: str, number: int) -> str:
        """Run id of a trial.

        Args:
            uid: of the study.

        Raises:
            InputError: MLflow has no run of the trial.
        """
        run_id = self._patiently(lambda: self._find_run(experiment, f"{uid}/{number}"))
        if run_id is None:
            raise InputError(
                f"the MLflow experiment {experiment!r} has no run of trial {number}; `study run` makes it again"
            )
        return run_id

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""

        def write() -> None:
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, version.version, key, value)

        self._patiently(write)

    def add_files(self, run_id: str, folder: Path, place: str) -> None:
        """Store the files of a folder among the artifacts of a run, at the path `place`."""
        self._patiently(lambda: self._client.log_artifacts(run_id, str(folder), artifact_path=place))

    # --- single calls

    def _add_version(self, name: str, source: Source) -> str:
        """Number of the version of a source, which is made if there is none."""
        self._add_model(name)
        if (number := self._number_of(name, source.key)) is not None:
            return number
        model = self._log_model(name, source)
        version = self._client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=source.run_id,
            tags={**origin_tags(), **source.tags, SOURCE: source.key},
            description=source.description,
            model_id=model.model_id,
        )
        return str(version.version)

    def _copy_version(self, version: Version, name: str) -> str:
        """Number of the copy of a version in another model, which is made if there is none."""
        self._add_model(name)
        if (number := self._number_of(name, version.tags[SOURCE])) is not None:
            return number
        copy = self._client.copy_model_version(version.uri, name)
        self._client.set_model_version_tag(name, copy.version, "copied.from", f"{version.name}/{version.version}")
        return str(copy.version)

    def _log_model(self, name: str, source: Source) -> LoggedModel:
        """The logged model of a source, which is made if there is none; an unfinished one of a killed process is filled."""
        run = self._client.get_run(source.run_id)
        experiment = run.info.experiment_id
        models = self._client.search_logged_models([experiment], filter_string=f"tags.`{SOURCE}` = '{source.key}'")
        if ready := [model for model in models if str(model.status) == "READY"]:
            return ready[0]
        with (
            default_store(self.tracking_uri),
            packed(source.folder, metadata={SOURCE: source.key, **source.tags}) as folder,
        ):
            # A detector that cannot be packed leaves nothing in the store.
            model = (
                models[0]
                if models
                else self._client.create_logged_model(
                    experiment, name=name, source_run_id=source.run_id, tags={**source.tags, SOURCE: source.key}
                )
            )
            self._client.log_model_artifacts(model.model_id, str(folder))
        # Metrics get the time of the run's own ones, so that MLflow stores them once if they are written again.
        end = run.info.end_time or run.info.start_time
        dataset, digest = source.dataset or (None, None)
        for key, value in source.metrics.items():
            self._client.log_metric(
                source.run_id,
                key,
                value,
                end,
                0,
                model_id=model.model_id,
                dataset_name=dataset,
                dataset_digest=digest,
            )
        return self._client.finalize_logged_model(model.model_id, "READY")

    def _add_model(self, name: str) -> None:
        """Make a registered model, unless there is one."""
        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(name, description=MODEL_NOTE.format(name=name))

    def _number_of(self, name: str, key: str) -> str | None:
        """Number of the version with a source; None if there is none."""
        # Versions are searched by name alone, because a filter on tags does not accept every character of a key.
        versions = self._raw_versions(name)
        return next((str(version.version) for version in versions if version.tags.get(SOURCE) == key), None)

    def _download(self, version: Version, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
            # MLflow resolves models:/ addresses in the store that is set for the whole process, which may be another one.
            address = self._client.get_model_version_download_uri(version.name, version.version)
            model = download_artifacts(artifact_uri=address, dst_path=temporary, tracking_uri=self.tracking_uri)
            with new_folder(folder) as target:
                shutil.copytree(model, target, dirs_exist_ok=True)
                # MLflow itself notes in this way which version a folder is.
                meta = {"model_name": version.name, "model_version": version.version}
                (target / META).write_text(yaml.safe_dump(meta), encoding="utf-8")

    def _find_run(self, experiment: str, key: str) -> str | None:
        known = self._client.get_experiment_by_name(experiment)
        if known is None:
            return None
        runs = self._client.search_runs([known.experiment_id], f"tags.`trial.key` = '{key}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _tags(self, name: str) -> dict[str, str]:
        """Tags of a registered model; empty if there is no such model."""
        try:
            return dict(self._client.get_registered_model(name).tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    def _versions(self, name: str) -> list[Version]:
        try:
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return []
        versions = [
            Version(
                name=name,
                version=str(raw.version),
                aliases=tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(raw.version))),
                tags=dict(raw.tags),
                created_ms=int(raw.creation_timestamp),
                run_id=raw.run_id or "",
                description=raw.description or "",
            )
            for raw in self._raw_versions(name)
        ]
        return sorted(versions, key=lambda version: -int(version.version))

    def _raw_versions(self, name: str) -> Iterator[ModelVersion]:
        quoted = name.replace("'", "''")
        return self._pages(self._client.search_model_versions, filter_string=f"name='{quoted}'")

    def _pages(self, search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
        """All results of a search that returns them page by page."""
        token: str | None = None
        while True:
            page = search(**arguments, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _patiently(self, action: Callable[[], T]) -> T:
        """Run an action that may be repeated until the store answers. Raises `InputError` if it does not in time."""
        with store_calls(self.tracking_uri):
            return self._patience.until_back(
                lambda tries: action(), is_away=is_away, what=f"MLflow store {without_password(self.tracking_uri)}"
            )
