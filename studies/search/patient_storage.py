"""Optuna's database storage that waits for a database which is away for a while."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from detectors.errors import InputError
from detectors.while_inside import WhileInside
from studies.search.read_cache import ReadCache
from tracking.patience import Patience, is_lasting

READER_SECONDS = 10.0
"""How long somebody waits who has no work to lose. A driver brings more patience."""
T = TypeVar("T")


class PatientStorage(BaseStorage):
    """An `RDBStorage`, behind the cache that Optuna puts before it, whose every call is tried again while the database is away.

    A call raises `InputError` where the database did not come back in the time that the patience gives it.
    """

    def __init__(
        self, database: RDBStorage, *, patience: Patience | None = None, shown_url: str = "the Optuna database"
    ) -> None:
        """Args: `shown_url` names the database in messages, without a password."""
        self.database = database
        self._cached, self._shown_url = get_storage(database), shown_url
        self._patience = patience or Patience(give_up_seconds=READER_SECONDS)
        self._reads: ReadCache | None = None

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine of the database, for tables beside Optuna's."""
        return self.database.engine

    @contextmanager
    def reads_cached(self) -> Iterator[None]:
        """Within the block, this thread reads each thing once and sees what it writes, until `invalidate` is called.

        For who holds a study's lease, under which nobody else writes: a driver asks the same questions dozens of times a trial.
        """
        before = self._reads
        self._reads = ReadCache()
        try:
            yield
        finally:
            self._reads = before

    def invalidate(self) -> None:
        """Forget what was read in a `reads_cached` block."""
        if self._reads is not None:
            self._reads.forget()

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._write(lambda: self._cached.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self._write(lambda: self._cached.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write(
            lambda: self._cached.set_study_user_attr(study_id, key, value),
            lambda reads, _: reads.forget_attributes("user_attrs", study_id),
        )

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write(
            lambda: self._cached.set_study_system_attr(study_id, key, value),
            lambda reads, _: reads.forget_attributes("system_attrs", study_id),
        )

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._patiently(lambda: self._cached.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._patiently(lambda: self._cached.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._patiently(lambda: self._cached.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            return self._patiently(lambda: self._cached.get_study_user_attrs(study_id))

        return reads.attributes("user_attrs", study_id, read) if (reads := self._own_reads) else read()

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            return self._patiently(lambda: self._cached.get_study_system_attrs(study_id))

        return reads.attributes("system_attrs", study_id, read) if (reads := self._own_reads) else read()

    def get_all_studies(self) -> list[Any]:
        return self._patiently(self._cached.get_all_studies)

    # Trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self._write(
            lambda: self._cached.create_new_trial(study_id, template_trial),
            lambda reads, trial_id: reads.make_trial(study_id, trial_id),
        )

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._write(
            lambda: self._cached.set_trial_param(trial_id, param_name, param_value_internal, distribution),
            lambda reads, _: reads.set_param(trial_id, param_name, param_value_internal, distribution),
        )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As `BaseStorage.set_trial_state_values`; a first try that was stored but not confirmed counts as done."""
        is_repeated = False

        def once() -> bool:
            nonlocal is_repeated
            try:
                is_set = self._cached.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if not is_repeated:
                    raise
                # The connection broke after the first try was stored.
                return True
            finally:
                was_repeated, is_repeated = is_repeated, True
            # The same, of a queued trial that was set running. Nobody else could do it: there is one driver.
            return is_set or (was_repeated and self._cached.get_trial(trial_id).state == TrialState.RUNNING)

        return self._write(once, lambda reads, _: reads.make_stale(trial_id))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._write(
            lambda: self._cached.set_trial_intermediate_value(trial_id, step, intermediate_value),
            lambda reads, _: reads.make_stale(trial_id),
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(
            lambda: self._cached.set_trial_user_attr(trial_id, key, value),
            lambda reads, _: reads.set_attribute(trial_id, "user_attrs", key, value),
        )

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(
            lambda: self._cached.set_trial_system_attr(trial_id, key, value),
            lambda reads, _: reads.set_attribute(trial_id, "system_attrs", key, value),
        )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return reads.trial(trial_id, self._read_trial) if (reads := self._own_reads) else self._read_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        reads = self._own_reads
        if reads is None:
            return self._patiently(lambda: self._cached.get_all_trials(study_id, deepcopy, states))
        trials = reads.trials(
            study_id,
            lambda: self._patiently(lambda: self._cached.get_all_trials(study_id, deepcopy=False)),
            self._read_trial,
        )
        wanted = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(wanted) if deepcopy else wanted

    # Short ways that the cache has, and that would else go through all trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._patiently(lambda: self._cached.get_trial_id_from_study_id_trial_number(study_id, trial_number))

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self._patiently(lambda: self._cached.get_trial_number_from_id(trial_id))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return self._patiently(lambda: self._cached.get_best_trial(study_id))

    def remove_session(self) -> None:
        self._cached.remove_session()

    @property
    def _own_reads(self) -> ReadCache | None:
        """What the calling thread has read, in a `reads_cached` block of its own."""
        return self._reads if self._reads is not None and self._reads.is_readers else None

    def _read_trial(self, trial_id: int) -> FrozenTrial:
        return self._patiently(lambda: self._cached.get_trial(trial_id))

    def _write(self, action: Callable[[], T], follow: Callable[[ReadCache, T], None] | None = None) -> T:
        """Run an action that writes; `follow` brings what was read up to date with what it returned."""
        try:
            written = self._patiently(action)
        except BaseException:
            self.invalidate()  # it may have been stored all the same
            raise
        if (reads := self._own_reads) is not None and follow is not None:
            follow(reads, written)
        else:
            self.invalidate()
        return written

    def _patiently(self, action: Callable[[], T]) -> T:
        try:
            with _without_warnings():
                return self._patience.until_back(lambda tries: action(), is_away=is_away, what=self._shown_url)
        except Exception as error:
            if not is_away(error):
                raise
            first = str(getattr(error.__cause__ or error, "orig", error)).strip().splitlines()[0]
            raise InputError(
                f"{self._shown_url} cannot be reached any more ({first}); run the same command again"
            ) from error


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _errors_alone() -> Iterator[None]:
    # Setting the logger's level would empty what every logger of the process has remembered, which costs a millisecond a call.
    logger = logging.getLogger("optuna.storages._rdb.storage")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


_without_warnings = WhileInside(_errors_alone)
"""Optuna's warnings show the SQL of a query that a lost connection ended; here that query is then tried again."""


def is_away(error: BaseException) -> bool:
    """Whether a database error comes of a connection that is lost, refused or busy."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PoolTimeoutError | PendingRollbackError):
        # The second is how a session tells that it lost its connection in the middle of a transaction.
        return True
    if not isinstance(cause, DBAPIError):
        return False
    # What a server that shuts down says is no operational error to every driver, but the connection is gone.
    connection_lost = isinstance(cause, OperationalError | InterfaceError) or cause.connection_invalidated
    return connection_lost and not is_lasting(str(cause.orig))
