"""Optuna's database storage that waits for a database which is away for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tracking.patience import Patience

LASTING = (
    "full",
    "readonly",
    "read-only",
    "malformed",
    "not a database",
    "no such table",
    "password",
    "does not exist",
)
"""Words of errors against which waiting does not help."""


class PatientStorage(RDBStorage):
    """`RDBStorage` whose every call is tried again while the database cannot be reached."""

    patience: Patience = Patience()
    shown_url: str = "the Optuna database"


def is_away(error: BaseException) -> bool:
    """Whether a database error comes of a connection that is lost, refused or busy."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PoolTimeoutError):
        return True
    if not isinstance(cause, OperationalError | InterfaceError | DBAPIError):
        return False
    text = str(cause.orig).lower()
    # What a server that shuts down says is no operational error to every driver, but the connection is gone.
    connection_lost = isinstance(cause, OperationalError | InterfaceError) or cause.connection_invalidated
    return connection_lost and not any(word in text for word in LASTING)


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        def once(tries: int) -> Any:
            try:
                return method(self, *arguments, **named)
            except UpdateFinishedTrialError:
                if tries == 0 or method.__name__ != "set_trial_state_values":
                    raise
                # The connection broke after the first try was stored.
                return True

        return self.patience.until_back(once, is_away=is_away, what=self.shown_url)

    return call


for _name in dir(BaseStorage):
    if not _name.startswith("_") and callable(getattr(RDBStorage, _name)):
        setattr(PatientStorage, _name, _patiently(getattr(RDBStorage, _name)))
