"""Optuna's database storage that waits for a database which is away for a while."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from detectors.errors import InputError
from tracking.patience import Patience, is_lasting

BEHIND_THE_CACHE = ("_create_new_trial", "_get_best_trial_id", "_get_trials", "_set_trial_param")
"""What the cache that Optuna puts before every `RDBStorage` calls of it beside the public methods."""

# It shows the SQL of a query that a lost connection ended, and then tries the lost connection again.
logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)


class PatientStorage(RDBStorage):
    """`RDBStorage` whose every call is tried again while the database cannot be reached.

    A call raises `InputError` where the database did not come back in the time that `patience` gives it.
    """

    patience: Patience = Patience(give_up_seconds=10.0)
    """The driver, which has work to lose, brings more."""
    shown_url: str = "the Optuna database"


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


def patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """A storage's method that is tried again while the database is away."""

    @functools.wraps(method)
    def call(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        def once(tries: int) -> Any:
            try:
                result = method(self, *arguments, **named)
            except UpdateFinishedTrialError:
                if tries == 0 or method.__name__ != "set_trial_state_values":
                    raise
                # The connection broke after the first try was stored.
                return True
            if tries and method.__name__ == "set_trial_state_values" and result is False:
                # The same, of a queued trial that was set running. Nobody else could do it: there is one driver.
                return self.get_trial(arguments[0]).state == TrialState.RUNNING
            return result

        try:
            return self.patience.until_back(once, is_away=is_away, what=self.shown_url)
        except Exception as error:
            if not is_away(error):
                raise
            first = str(getattr(error.__cause__ or error, "orig", error)).strip().splitlines()[0]
            raise InputError(
                f"{self.shown_url} cannot be reached any more ({first}); run the same command again"
            ) from error

    return call


for _name in (*(_name for _name in dir(BaseStorage) if not _name.startswith("_")), *BEHIND_THE_CACHE):
    if callable(_method := getattr(RDBStorage, _name, None)):
        setattr(PatientStorage, _name, patiently(_method))
