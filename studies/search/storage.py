"""The Optuna storage: which studies there are, and what identifies each."""

from __future__ import annotations

import difflib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from detectors.errors import InputError
from detectors.files import file_lock
from studies.home import Home, prepare_sqlite, sqlite_file
from studies.search.identity import differences
from studies.search.origin import Origin
from studies.search.patient_storage import PatientStorage
from studies.search.plan import Plan
from studies.search.quiet import quiet_optuna
from tracking.addresses import without_password
from tracking.patience import Patience

Direction = Literal["maximize", "minimize"]
HEADER, ENDED = "header", "ended"
"""User attributes of an Optuna study: its `Header`; why its last search ended, empty while one runs or was cut off."""
CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""For PostgreSQL: a machine that is gone without a word is noticed before another driver takes this one for dead."""
PAUSES = (0.1, 0.2, 0.4, 0.8)
"""Seconds between attempts to make the tables of an empty database."""
GENERATION = "#"
"""``padim_screw#2`` is the study that ``--fresh`` started beside ``padim_screw``."""


@dataclass(frozen=True)
class Header:
    """What a study was created with; of these only `config` follows later runs, in what is not part of the identity."""

    uid: str
    name: str
    """Name in the study file."""
    created: float
    """Seconds since the epoch."""
    identity: dict[str, Any]
    config: dict[str, Any]
    backbones: dict[str, dict[str, str]]
    """Weights identity of each backbone that may be tried."""
    dropped: list[str]
    experiment: str
    dataset: str
    counts: dict[str, dict[str, int]]
    splits_digest: str
    origin: dict[str, Any] | None = None
    """What the settings of the last run were made of, as `Origin.to_json` writes it; None in a study of version 0.2 or before."""


_wanted: list[str] = []
"""The version of its tables that this Optuna wants, once it is known."""


@dataclass(frozen=True)
class Stored:
    """A study that is stored, as it stands."""

    name: str
    """``NAME``, or ``NAME#2``."""
    study: optuna.Study
    header: Header
    finished: int
    """Trials that count towards the budget."""
    ended: str
    """Why its last search ended; empty where that was cut off, or is not known."""

    @property
    def origin(self) -> Origin | None:
        """What the settings of the last run were made of; None in a study of version 0.2 or before."""
        return Origin.from_json(self.header.origin) if self.header.origin is not None else None


def open_storage(home: Home, *, patience: Patience | None = None) -> PatientStorage:
    """The Optuna storage, its tables made where they are missing.

    Args:
        patience: for how long a database that is away is waited for, and who hears of it; a few seconds by default.

    Raises:
        InputError: it cannot be opened.
    """
    url = home.storage_url
    prepare_sqlite(url)
    try:
        with file_lock(home.locks / "optuna-migration.lock"):
            database = _open(url)
    except ImportError as error:
        hint = "; pip install 'anomaly-studies[postgres]'" if url.startswith("postgresql") else ""
        raise InputError(f"Optuna storage {without_password(url)}: no driver for this database{hint}") from error
    except (SQLAlchemyError, RuntimeError, ValueError) as error:
        first = without_password(str(error)).strip().splitlines()[0]
        raise InputError(f"Optuna storage {without_password(url)}: {first}; check STUDY_STORAGE") from error
    return PatientStorage(database, patience=patience, shown_url=f"Optuna storage {without_password(url)}")


def _open(url: str) -> RDBStorage:
    options: dict[str, Any] = {"connect_args": {"timeout": 60}}
    if url.startswith("postgresql"):
        options = {"pool_pre_ping": True, "connect_args": CONNECTION}
    elif not sqlite_file(url):
        options = {"pool_pre_ping": True}
    for pause in PAUSES:
        # Other machines may be making the tables in the same moment.
        with suppress(IntegrityError, ProgrammingError):
            return _checked(url, options)
        time.sleep(pause)
    return _checked(url, options)


def _checked(url: str, options: Mapping[str, Any]) -> RDBStorage:
    """A storage whose tables are of the version that this Optuna wants. Raises `RuntimeError` where they are not.

    That version Optuna reads from a dozen scripts, which takes half a second each time; here it is read once.
    """
    database = RDBStorage(url, engine_kwargs=dict(options), skip_compatibility_check=True)
    if not _wanted:
        _wanted.append(database.get_head_version())
    if database.get_current_version() != _wanted[0]:
        database.engine.dispose()
        return RDBStorage(url, engine_kwargs=dict(options))  # says what to do
    return database


def study_names(storage: BaseStorage) -> list[str]:
    """Optuna names of all studies, generations included."""
    return sorted(optuna.get_all_study_names(storage=storage))


def latest(storage: BaseStorage, name: str) -> str | None:
    """The Optuna name of a study's last generation, None where there is none."""
    generations = [known for known in study_names(storage) if known.partition(GENERATION)[0] == name]
    return max(generations, key=_generation, default=None)


def all_studies(storage: BaseStorage) -> Iterator[tuple[optuna.Study, Header]]:
    """All studies, generations included, by name; one that was stopped while it was created is passed over."""
    for name in study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        header = read_header(study)
        if header is not None:
            yield study, header


def find_by_uid(storage: BaseStorage, uid: str) -> tuple[optuna.Study, Header] | None:
    """The study of this uid; None where there is none."""
    return next((pair for pair in all_studies(storage) if pair[1].uid == uid), None)


def load_study(storage: BaseStorage, name: str) -> tuple[optuna.Study, Header]:
    """A study that exists, by name (the last generation) or by ``NAME#N``. Raises `InputError` listing those there are."""
    names = study_names(storage)
    name = name.rstrip("/")  # a folder of images, as the shell completes it
    generation = name.removesuffix(f"{GENERATION}1") if GENERATION in name else latest(storage, name)
    if generation is None or generation not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no study {name!r} was run here; {hint}there are: {', '.join(names) or 'none yet'}")
    study = optuna.load_study(study_name=generation, storage=storage)
    header = read_header(study)
    if header is None:
        raise InputError(f"study {generation!r} was stopped while it was created; run it again")
    return study, header


def look_up(home: Home, name: str) -> Stored | None:
    """A stored study by name (the last generation) or by ``NAME#N``; None where there is none. Makes no database file.

    Raises:
        InputError: the storage cannot be opened.
    """
    path = sqlite_file(home.storage_url)
    if path is not None and not path.is_file():
        return None
    storage = open_storage(home)
    try:
        known = name.removesuffix(f"{GENERATION}1") if GENERATION in name else latest(storage, name)
        if known is None or known not in study_names(storage):
            return None
        study = optuna.load_study(study_name=known, storage=storage)
        header = read_header(study)
        if header is None:
            return None
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return Stored(known, study, header, len(finished), ended(study))
    finally:
        storage.engine.dispose()


def stored_names(home: Home) -> list[str]:
    """Names of all stored studies, generations included. Makes no database file, and raises as `look_up` does."""
    path = sqlite_file(home.storage_url)
    if path is not None and not path.is_file():
        return []
    storage = open_storage(home)
    try:
        return study_names(storage)
    finally:
        storage.engine.dispose()


def ended(study: optuna.Study) -> str:
    """Why a study's last search ended; empty while one runs, and where it was cut off or is not known."""
    return str(study.user_attrs.get(ENDED, ""))


def create_or_resume(storage: BaseStorage, plan: Plan, *, fresh: bool) -> tuple[optuna.Study, Header, bool]:
    """The study that a plan belongs to: the generation that it names, else the last one.

    Returns:
        Study, header, and whether it is new.

    Raises:
        InputError: it was created with another identity, or with weights that are not here any more.
    """
    known = latest(storage, plan.config.name)
    if plan.generation is not None and not fresh:
        known = plan.generation
    elif known is None:
        known = plan.config.name
    elif fresh and read_header(optuna.load_study(study_name=known, storage=storage)) is not None:
        known = f"{plan.config.name}{GENERATION}{_generation(known) + 1}"
    directions = list(plan.config.objectives.values())
    study = _create(storage, known, directions)
    header = read_header(study)
    if header is None:
        if [direction.name.lower() for direction in study.directions] != directions:
            # Stopped while it was created, and the objectives were edited since: nothing was tried in it yet.
            optuna.delete_study(study_name=known, storage=storage)
            study = _create(storage, known, directions)
        header = _new_header(plan)
        study.set_user_attr(HEADER, asdict(header))
        return study, header, True
    check_same_study(known, header, plan)
    config = _resolved_config(plan)
    origin = plan.origin.to_json() if plan.origin is not None else header.origin
    if (header.config, header.origin) != (config, origin):
        header = replace(header, config=config, origin=origin)
        study.set_user_attr(HEADER, asdict(header))
    return study, header, False


def check_same_study(known: str, header: Header, plan: Plan) -> None:
    """Raise `InputError` where a stored study was created with another identity than a plan's, or with weights that are gone."""
    changed = differences(header.identity, plan.identity)
    if changed:
        remark = plan.images.copies_remark if any(line.startswith("the images of") for line in changed) else ""
        raise InputError(
            f"study {known!r} was created differently: {'; '.join(changed)}{remark}. "
            "Undo the change to go on with it, or start a new one beside it with --fresh"
        )
    for name, identity in header.backbones.items():
        here = plan.backbones.get(name)
        if here is None and name not in plan.config.backbones:
            raise InputError(
                f"study {known!r} was created with backbone {name}, which the study file names no more; "
                "put it back, or start a new study with --fresh"
            )
        if here is None:
            raise InputError(
                f"study {known!r} uses backbone {name}, whose weights are not on this machine any more; --fresh"
            )
        if here.sha256 != identity["sha256"]:
            raise InputError(
                f"study {known!r} was created with other weights of {name} "
                f"({identity['sha256'][:12]}, now {here.sha256[:12]}); restore them, or --fresh"
            )


def read_header(study: optuna.Study) -> Header | None:
    """A study's header, None where it was stopped before that was written."""
    stored = study.user_attrs.get(HEADER)
    return Header(**stored) if stored else None


def _new_header(plan: Plan) -> Header:
    return Header(
        uid=uuid.uuid4().hex[:12],
        name=plan.config.name,
        created=time.time(),
        identity=json.loads(json.dumps(plan.identity)),
        config=_resolved_config(plan),
        backbones={name: identity.to_json() for name, identity in plan.backbones.items()},
        dropped=list(plan.dropped),
        experiment=plan.experiment,
        dataset=plan.images.source,
        counts=plan.images.counts,
        splits_digest=plan.images.digest,
        origin=json.loads(json.dumps(plan.origin.to_json())) if plan.origin is not None else None,
    )


def _resolved_config(plan: Plan) -> dict[str, Any]:
    """The study file with the protocol and the sampler that ``auto`` came to, as the storage gives it back."""
    config: dict[str, Any] = json.loads(json.dumps(plan.resolved.to_json()))
    return config


def _create(storage: BaseStorage, name: str, directions: Sequence[Direction]) -> optuna.Study:
    try:
        with quiet_optuna():
            return optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    except (DuplicatedStudyError, ValueError) as error:
        raise InputError(f"study {name!r}: {error}") from error


def _generation(name: str) -> int:
    number = name.partition(GENERATION)[2]
    return int(number) if number.isdigit() else 1
