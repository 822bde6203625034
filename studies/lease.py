"""Who drives a study: a row in the Optuna database that its driver keeps renewing.

A second driver, on this or any other machine, is refused with who holds the study; where the holder is dead, it takes over.
No two clocks are compared: a holder is alive while the count in its row goes up.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Column, Connection, Float, Integer, MetaData, String, Table, delete, insert, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from detectors.errors import InputError

RENEW_SECONDS = 5.0
DEAD_SECONDS = 20.0
"""A holder on another machine whose count stands still for so long is dead."""

_LEASES = Table(
    "anomaly_studies_leases",
    MetaData(),
    Column("study", String(128), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("host", String(256), nullable=False),
    Column("place", String(320), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("born", Float, nullable=False),
    Column("beat", Integer, nullable=False),
)


@dataclass(frozen=True)
class Holder:
    """A driver, as its row says."""

    id: str
    host: str
    place: str
    """Where its process number means something: a host, or one of its containers."""
    pid: int
    born: float
    """When its process started, seconds since the epoch: a number that is used again is told apart."""
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where it can be looked for."""
        return self.place == _place()

    @property
    def is_running_here(self) -> bool:
        """Whether its process is there."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born) < 1.0
        except psutil.NoSuchProcess:
            return False


class Lease:
    """One study's row. `hold` takes it for as long as the block lasts."""

    def __init__(
        self, engine: Engine, study: str, *, renew_seconds: float = RENEW_SECONDS, dead_seconds: float = DEAD_SECONDS
    ) -> None:
        self._engine, self.study = engine, study
        self._renew_seconds, self._dead_seconds = renew_seconds, dead_seconds
        self._holder = uuid.uuid4().hex
        self._lost = threading.Event()

    @property
    def lost(self) -> bool:
        """Whether another driver took the study over, because this one did not renew its row in time."""
        return self._lost.is_set()

    @contextmanager
    def hold(self, waiting: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Take the lease, renew it in the background, and give it back.

        Args:
            waiting: told in words where it takes a while to find out whether the holder is alive.

        Raises:
            InputError: another driver, which is named, holds it.
        """
        self._take(waiting)
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended,), daemon=True, name=f"lease of {self.study}")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(self._renew_seconds)
            self._give_back()

    def holder(self) -> Holder | None:
        """Who holds the study now; None where nobody does."""
        with self._engine.connect() as connection:
            return self._read(connection)

    def _take(self, waiting: Callable[[str], None]) -> None:
        _LEASES.create(self._engine, checkfirst=True)
        found = self.holder()
        deadline = time.monotonic() + self._dead_seconds
        while found is not None:
            if self._is_dead(found, deadline, waiting):
                if self._replace(found):
                    return
                raise self._refused(self.holder() or found)
            found = self.holder()
        mine = {"study": self.study, "holder": self._holder, **_this_process(), "beat": 0}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(_LEASES).values(mine))
        except IntegrityError as error:
            other = self.holder()
            raise (self._refused(other) if other else InputError(f"study {self.study!r}: try again")) from error

    def _is_dead(self, found: Holder, deadline: float, waiting: Callable[[str], None]) -> bool:
        """Whether a holder is dead; False where it gave the lease back meanwhile. Raises `InputError` where it lives."""
        if found.is_here:
            if found.is_running_here:
                raise self._refused(found)
            return True
        waiting(f"{found} holds study {self.study!r}; finding out whether it still runs")
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._renew_seconds))
            now = self.holder()
            if now is None:
                return False
            if (now.id, now.beat) != (found.id, found.beat):
                raise self._refused(now)
        return True

    def _refused(self, holder: Holder) -> InputError:
        return InputError(f"study {self.study!r} is being run by {holder}; wait for it or stop it")

    def _replace(self, dead: Holder) -> bool:
        """Take over from a dead holder; False where somebody else was faster."""
        mine = {"holder": self._holder, **_this_process(), "beat": 0}
        still = (_LEASES.c.study == self.study) & (_LEASES.c.holder == dead.id) & (_LEASES.c.beat == dead.beat)
        with self._engine.begin() as connection:
            return bool(connection.execute(update(_LEASES).where(still).values(mine)).rowcount)

    def _keep(self, ended: threading.Event) -> None:
        """Renew the row until the end. A database that cannot be reached for a while costs nothing: nobody else can either."""
        mine = (_LEASES.c.study == self.study) & (_LEASES.c.holder == self._holder)
        while not ended.wait(self._renew_seconds):
            try:
                with self._engine.begin() as connection:
                    found = connection.execute(update(_LEASES).where(mine).values(beat=_LEASES.c.beat + 1)).rowcount
            except SQLAlchemyError:
                continue
            if not found:
                self._lost.set()
                return

    def _give_back(self) -> None:
        mine = (_LEASES.c.study == self.study) & (_LEASES.c.holder == self._holder)
        try:
            with self._engine.begin() as connection:
                connection.execute(delete(_LEASES).where(mine))
        except SQLAlchemyError:
            # The next driver finds this process dead.
            return

    def _read(self, connection: Connection) -> Holder | None:
        row = connection.execute(select(_LEASES).where(_LEASES.c.study == self.study)).first()
        return None if row is None else Holder(row.holder, row.host, row.place, row.pid, row.born, row.beat)


def _this_process() -> dict[str, str | int | float]:
    return {
        "host": socket.gethostname(),
        "place": _place(),
        "pid": os.getpid(),
        "born": psutil.Process().create_time(),
    }


def _place() -> str:
    """Containers may share a host name, but not their processes."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
