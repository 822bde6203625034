"""Holding a study: whoever writes to one keeps others away, on this machine by a file and on all by a lease in the database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from detectors.errors import InputError
from detectors.files import file_lock
from studies.home import Home
from studies.search.lease import Lease
from studies.search.patient_storage import PatientStorage


def driver_lock(home: Home, name: str) -> Path:
    """The lock file that a driver holds as long as it runs the study of this name (the one in the study file)."""
    digest = hashlib.sha256(f"{home.storage_url}\0{name}".encode()).hexdigest()
    return home.locks / f"driver-{digest[:16]}.lock"


@contextmanager
def held_study(name: str, home: Home, storage: PatientStorage, *, tell: Callable[[str], None]) -> Iterator[Lease]:
    """Hold a study for the block.

    Args:
        name: the one in the study file.
        tell: hears, in a line each, what is waited for.

    Raises:
        InputError: another driver runs it.
    """
    lease = Lease(storage.engine, name)
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(driver_lock(home, name), wait=False))
        except BlockingIOError as error:
            holder = None
            with suppress(SQLAlchemyError):
                holder = lease.holder()
            raise InputError(
                f"study {name!r} is being run by {holder or 'another process'}; wait for it or stop it"
            ) from error
        held.enter_context(lease.hold(tell))
        yield lease
