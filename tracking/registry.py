"""The model registry: versions made once, aliases that never dangle, every deed on record.

A registered model has the aliases ``challenger`` (the newest candidate), ``champion`` (in production) and ``previous`` (the
champion before). MLflow moves one alias at a time and has no transaction. So the state that is to be reached is written down
first, as the tag `PENDING` of the registered model; whoever comes next, after a crash, brings the aliases there. A promotion
is decided once its goal is written, and only then.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from tracking.audit import Action, Audit, AuditLine
from tracking.model import packed
from tracking.patience import Patience
from tracking.pyfunc import ARTIFACT, META
from tracking.store import default_store, errors_told_plainly, is_away, open_client, origin_tags

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
PENDING = "promotion.pending"
DEED = "audit."
"""Beginning of the registered model's tags that repeat the audit lines."""
SOURCE = "source.key"
"""Tag of a version and of its logged model: what it was made of. Never two versions for one source."""
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
    """The same for the same detector, different for any other."""
    folder: Path
    run_id: str
    """Run that it came from."""
    description: str
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """On test; linked to the logged model."""
    dataset: tuple[str, str] | None = None
    """Name and digest of the images that the metrics speak of."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_ms: int
    run_id: str
    description: str

    @property
    def uri(self) -> str:
        """For MLflow."""
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class Registry:
    """The registered models of one MLflow store."""

    def __init__(
        self,
        tracking_uri: str,
        *,
        audit: Path,
        cache: Path,
        lock_folder: Path | None = None,
        patience: Patience | None = None,
        artifacts: Path | None = None,
    ) -> None:
        """Args:
            audit: the file that keeps the record; see `tracking.audit`.
            cache: folder for detectors that were fetched from the store.
            lock_folder: where a local store's first migration is guarded against other processes.
            patience: for how long a store that is away is waited for, and who hears of it.
            artifacts: where the artifacts of a local store are now; see `tracking.moved`.

        Raises:
            InputError: the store cannot be reached or opened.
        """
        self.tracking_uri, self.audit, self._cache = tracking_uri, Audit(audit), cache
        self._patience = patience or Patience()
        self._client: MlflowClient = open_client(tracking_uri, lock_folder=lock_folder, artifacts=artifacts)

    # --- reading

    def names(self) -> list[str]:
        """All registered models."""
        return self._patiently(lambda: [model.name for model in self._pages(self._client.search_registered_models)])

    def versions(self, name: str) -> list[Version]:
        """Newest first; empty where there is no such model."""
        return self._patiently(lambda: self._versions(name))

    def version(self, name: str, wanted: str) -> Version:
        """The version with an alias or number. Raises `InputError` naming what there is."""
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "none yet"
            raise InputError(f"no registered model {name!r}; there are: {known}. `study promote` makes one")
        for version in versions:
            if wanted in (version.version, *version.aliases):
                return version
        there = ", ".join(
            f"{version.version}{f' ({alias})' if (alias := ', '.join(version.aliases)) else ''}" for version in versions
        )
        raise InputError(f"model {name!r} has no {wanted!r}; versions: {there}")

    def find(self, name: str, alias: str) -> Version | None:
        """The version that an alias points to."""
        return next((version for version in self.versions(name) if alias in version.aliases), None)

    def fetch(self, version: Version) -> Path:
        """Folder of a version's detector, here. Raises as `fetch_model`."""
        folder = self.fetch_model(version) / "artifacts" / ARTIFACT
        if not is_artifact(folder):
            raise InputError(f"{version}: holds no detector of anomaly-studies")
        return folder

    def fetch_model(self, version: Version) -> Path:
        """Folder of a version's MLflow model, here; fetched once and kept.

        Raises:
            InputError: the store does not answer, or the version's files are gone.
        """
        mark = sha256(f"{version.tags.get(SOURCE)}@{version.created_ms}".encode()).hexdigest()[:12]
        folder = self._cache / f"{version.name}-{version.version}-{mark}"
        if not (folder / "MLmodel").is_file():
            self._patiently(lambda: self._download(version, folder))
        return folder

    def run_of_trial(self, experiment: str, uid: str, number: int) -> str:
        """Run id of a trial. Raises `InputError` where MLflow does not have it."""
        found = self._patiently(lambda: self._find_run(experiment, f"{uid}/{number}"))
        if found is None:
            raise InputError(
                f"the MLflow experiment {experiment!r} has no run of trial {number}; `study run` makes it again"
            )
        return found

    # --- writing: always under the caller's lock for the model

    def register(self, name: str, source: Source) -> Version:
        """The version of a source, made where there is none yet, with the alias ``challenger``."""
        self.settle(name)
        made = self._patiently(lambda: self._register(name, source))
        version = self.version(name, made)
        self._record(version, "registered", key=_birth(version), details={SOURCE: source.key})
        if CHAMPION not in version.aliases:
            self._set_alias(name, CHALLENGER, version.version)
        return self.version(name, version.version)

    def copy(self, version: Version, name: str) -> Version:
        """The same model as a version of another registered model, with the alias ``challenger`` there."""
        self.settle(name)

        def make() -> str:
            self._make_model(name)
            found = self._with_source(name, version.tags[SOURCE])
            if found is not None:
                return found
            made = self._client.copy_model_version(version.uri, name)
            self._client.set_model_version_tag(name, made.version, "copied.from", f"{version.name}/{version.version}")
            return str(made.version)

        made = self._patiently(make)
        copied = self.version(name, made)
        details = {"copied from": f"{version.name}/{version.version}", SOURCE: version.tags[SOURCE]}
        self._record(copied, "registered", key=_birth(copied), details=details)
        if CHAMPION not in copied.aliases:
            self._set_alias(name, CHALLENGER, copied.version)
        return self.version(name, copied.version)

    def promote(self, version: Version, *, details: Mapping[str, Any]) -> Version:
        """Make a version the champion, and the champion ``previous``; nothing where it is champion already."""
        self.settle(version.name)
        champion = self.find(version.name, CHAMPION)
        if champion is not None and champion.version == version.version:
            return champion
        goal = {CHAMPION: version.version, PREVIOUS: champion.version if champion else None}
        self._move(version, "promoted", goal, before=champion, details=details)
        return self.version(version.name, version.version)

    def roll_back(self, name: str, *, reason: str = "") -> tuple[Version, Version]:
        """Swap champion and previous. Returns the champion now and the one before.

        Raises:
            InputError: there is nothing to go back to.
        """
        self.settle(name)
        champion, previous = self.version(name, CHAMPION), self.find(name, PREVIOUS)
        if previous is None:
            raise InputError(f"model {name!r}: version {champion.version} has no champion before it to go back to")
        goal = {CHAMPION: previous.version, PREVIOUS: champion.version}
        self._move(previous, "rolled back", goal, before=champion, details={"reason": reason} if reason else {})
        return self.version(name, CHAMPION), self.version(name, PREVIOUS)

    def refuse(self, version: Version, *, details: Mapping[str, Any]) -> None:
        """Put on record that the gate refused a version."""
        self._record(version, "refused", key=uuid.uuid4().hex, details=details)

    def settle(self, name: str) -> bool:
        """Finish what a process that died had begun. Returns whether there was anything."""
        tags = self._patiently(lambda: self._tags(name))
        if PENDING not in tags:
            return False
        self._reach(name, json.loads(tags[PENDING]))
        return True

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags on a version."""

        def write() -> None:
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, version.version, key, value)

        self._patiently(write)

    def add_files(self, run_id: str, folder: Path, place: str) -> None:
        """Add a folder's files to the artifacts of a run."""
        self._patiently(lambda: self._client.log_artifacts(run_id, str(folder), artifact_path=place))

    def faults(self, name: str) -> list[str]:
        """What is wrong with the record of a model, in words."""
        tags = self._patiently(lambda: self._tags(name))
        known = {}
        for key, value in tags.items():
            if key.startswith(DEED):
                line = json.loads(value)
                known[line["id"]] = f"{line['action']} version {line['version']} of {name} ({line['time']})"
        return self.audit.faults(known)

    # --- how

    def _download(self, version: Version, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
            # MLflow looks up models:/ addresses in the store that is set for the whole process, not in ours.
            place = self._client.get_model_version_download_uri(version.name, version.version)
            found = download_artifacts(artifact_uri=place, dst_path=temporary, tracking_uri=self.tracking_uri)
            with new_folder(folder) as target:
                shutil.copytree(found, target, dirs_exist_ok=True)
                # As MLflow itself notes which version a folder is.
                meta = {"model_name": version.name, "model_version": version.version}
                (target / META).write_text(yaml.safe_dump(meta), encoding="utf-8")

    def _find_run(self, experiment: str, key: str) -> str | None:
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = self._client.search_runs([found.experiment_id], f"tags.`trial.key` = '{key}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _register(self, name: str, source: Source) -> str:
        self._make_model(name)
        if (found := self._with_source(name, source.key)) is not None:
            return found
        model = self._log_model(name, source)
        made = self._client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=source.run_id,
            tags={**origin_tags(), **source.tags, SOURCE: source.key},
            description=source.description,
            model_id=model.model_id,
        )
        return str(made.version)

    def _log_model(self, name: str, source: Source) -> LoggedModel:
        """The logged model of a source: found, or made; one that a dying process left unfinished is filled anew."""
        run = self._client.get_run(source.run_id)
        experiment = run.info.experiment_id
        found = self._client.search_logged_models([experiment], filter_string=f"tags.`{SOURCE}` = '{source.key}'")
        if ready := [model for model in found if str(model.status) == "READY"]:
            return ready[0]
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                experiment, name=name, source_run_id=source.run_id, tags={**source.tags, SOURCE: source.key}
            )
        )
        with (
            default_store(self.tracking_uri),
            packed(source.folder, metadata={SOURCE: source.key, **source.tags}) as folder,
        ):
            self._client.log_model_artifacts(model.model_id, str(folder))
        end = run.info.end_time or run.info.start_time
        name_of_data, digest = source.dataset or (None, None)
        for key, value in source.metrics.items():
            # With the time of the run's own metrics: repeated, they are stored once.
            self._client.log_metric(
                source.run_id,
                key,
                value,
                end,
                0,
                model_id=model.model_id,
                dataset_name=name_of_data,
                dataset_digest=digest,
            )
        return self._client.finalize_logged_model(model.model_id, "READY")

    def _make_model(self, name: str) -> None:
        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(name, description=MODEL_NOTE.format(name=name))

    def _with_source(self, name: str, key: str) -> str | None:
        # Asked by name alone: a filter on tags takes no every character that a key may have.
        return next((str(found.version) for found in self._raw_versions(name) if found.tags.get(SOURCE) == key), None)

    def _move(
        self,
        version: Version,
        action: Action,
        goal: Mapping[str, str | None],
        *,
        before: Version | None,
        details: Mapping[str, Any],
    ) -> None:
        line = self._line(version, action, key=uuid.uuid4().hex, before=before, details=details)
        plan = {"aliases": dict(goal), "line": line.model_dump(mode="json")}
        self._patiently(lambda: self._client.set_registered_model_tag(version.name, PENDING, json.dumps(plan)))
        self._reach(version.name, plan)

    def _reach(self, name: str, plan: Mapping[str, Any]) -> None:
        """Bring the aliases to where a plan wants them, in an order in which the champion is always there."""
        aliases, line = plan["aliases"], AuditLine.model_validate(plan["line"])
        for alias in (CHAMPION, PREVIOUS):
            if aliases[alias] is not None:
                self._set_alias(name, alias, aliases[alias])
        challenger = self.find(name, CHALLENGER)
        if challenger is not None and challenger.version == aliases[CHAMPION]:
            self._patiently(lambda: self._client.delete_registered_model_alias(name, CHALLENGER))
        self._write(line)
        self._patiently(lambda: self._forget_plan(name))

    def _forget_plan(self, name: str) -> None:
        if PENDING in self._tags(name):
            self._client.delete_registered_model_tag(name, PENDING)

    def _record(self, version: Version, action: Action, *, key: str, details: Mapping[str, Any]) -> None:
        champion = self.find(version.name, CHAMPION)
        self._write(self._line(version, action, key=key, before=champion, details=details))

    def _write(self, line: AuditLine) -> None:
        """Into the file first: what MLflow knows of and the file does not, is a fault."""
        self.audit.append(line)
        text = line.model_dump_json(exclude={"previous", "details"})
        moment = re.sub(r"\D", "", line.time)[:14]
        tag = f"{DEED}{moment}.{sha256(line.id.encode()).hexdigest()[:8]}"
        self._patiently(lambda: self._client.set_registered_model_tag(line.model, tag, text))

    def _line(
        self, version: Version, action: Action, *, key: str, before: Version | None, details: Mapping[str, Any]
    ) -> AuditLine:
        return AuditLine(
            id=key,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            user=origin_tags()["mlflow.user"],
            host=platform.node(),
            model=version.name,
            action=action,
            version=version.version,
            before=before.version if before else None,
            details=dict(details),
        )

    def _set_alias(self, name: str, alias: str, version: str) -> None:
        self._patiently(lambda: self._client.set_registered_model_alias(name, alias, version))

    def _tags(self, name: str) -> dict[str, str]:
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
                version=str(found.version),
                aliases=tuple(sorted(alias for alias, at in aliases.items() if str(at) == str(found.version))),
                tags=dict(found.tags),
                created_ms=int(found.creation_timestamp),
                run_id=found.run_id or "",
                description=found.description or "",
            )
            for found in self._raw_versions(name)
        ]
        return sorted(versions, key=lambda version: -int(version.version))

    def _raw_versions(self, name: str) -> Iterator[ModelVersion]:
        quoted = name.replace("'", "''")
        return self._pages(self._client.search_model_versions, filter_string=f"name='{quoted}'")

    def _pages(self, search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = search(**arguments, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _patiently(self, action: Callable[[], T]) -> T:
        with errors_told_plainly(self.tracking_uri):
            return self._patience.until_back(
                lambda tries: action(), is_away=is_away, what=f"MLflow store {without_password(self.tracking_uri)}"
            )


def _birth(version: Version) -> str:
    """Id of the deed of making a version: in another database, a version of the same number is another one."""
    return f"registered {version.name}/{version.version}@{version.created_ms}"
