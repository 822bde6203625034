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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import (
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from detectors.errors import InputError
from tracking.interrupts import undisturbed

RENEW_SECONDS = 5.0
DEAD_SECONDS = 20.0
"""A holder on another machine whose count stands still for so long is dead."""

SAME_SECONDS = 5.0
"""Two processes of one number start further apart than this, and one process's start is never read so wrongly."""

_LEASES = Table(
    "anomaly_studies_leases",
    MetaData(),
    Column("study", String(128), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("host", String(256), nullable=False),
    Column("place", String(320), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("born", Double, nullable=False),
    Column("beat", Integer, nullable=False),
)


@dataclass(frozen=True)
class Holder:
    """A driver, as its row says."""

    id: str
    host: str
    place: str
    """Where its process number means something: a machine since its last start, or one of its containers."""
    pid: int
    born: float
    """When its process started, seconds since the machine did: a number that is used again is told apart."""
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where it can be looked for."""
        return self.place == _place()

    @property
    def is_running_here(self) -> bool:
        """Whether its process is there, and more than a dead one that its parent has not taken note of."""
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(_born(process) - self.born) < SAME_SECONDS
        except psutil.NoSuchProcess:
            return False


class Lease:
    """One study's row. `hold` takes it for as long as the block lasts."""

    def __init__(
        self,
        engine: Engine,
        study: str,
        *,
        what: str | None = None,
        renew_seconds: float = RENEW_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:
        """Args:
        study: what is to be held by one at a time; the row's key.
        what: the same in words; None for a study.
        """
        self._engine, self.study = engine, study
        self._what = what or f"study {study!r}"
        self._renew_seconds, self._dead_seconds = renew_seconds, dead_seconds
        self._holder = uuid.uuid4().hex
        self._lost = threading.Event()

    def is_lost(self) -> bool:
        """Whether another driver took the study over, because this one did not renew its row in time.

        Asks the database: a process that stood still, as in a laptop that slept, has not heard of it yet. While that cannot be
        reached the answer is no, for then nobody else can take the study over.
        """
        if not self._lost.is_set():
            with suppress(SQLAlchemyError):
                holder = self.holder()
                if holder is None or holder.id != self._holder:
                    self._lost.set()
        return self._lost.is_set()

    @contextmanager
    def hold(self, waiting: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Take the lease, renew it in the background, and give it back.

        Args:
            waiting: called with a sentence where it takes a while to find out whether the holder is alive.

        Raises:
            InputError: another driver, which is named, holds it, or the database takes no note of it.
        """
        try:
            self._take(waiting)
        except SQLAlchemyError as error:
            first = str(getattr(error, "orig", error)).strip().splitlines()[0]
            raise InputError(f"{self._what}: cannot note in the database who runs it ({first})") from error
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
        with undisturbed(), self._engine.connect() as connection:
            return self._read(connection)

    def _take(self, waiting: Callable[[str], None]) -> None:
        _make_table(self._engine)
        while True:
            found = self.holder()
            if found is None:
                if self._insert():
                    return
            elif not self._is_dead(found, waiting):
                continue
            elif self._replace(found):
                return
            # Somebody was faster just now, and lives.
            other = self.holder()
            if other is not None:
                raise self._refused(other)

    def _is_dead(self, found: Holder, waiting: Callable[[str], None]) -> bool:
        """Whether a holder is dead; False where it gave the lease back meanwhile. Raises `InputError` where it lives."""
        if found.is_here:
            if found.is_running_here:
                raise self._refused(found)
            return True
        waiting(f"{found} holds {self._what}; finding out whether it still runs")
        deadline = time.monotonic() + self._dead_seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._renew_seconds))
            now = self.holder()
            if now is None:
                return False
            if (now.id, now.beat) != (found.id, found.beat):
                raise self._refused(now)
        return True

    def _refused(self, holder: Holder) -> InputError:
        return InputError(f"{self._what} is being run by {holder}; wait for it or stop it")

    def _insert(self) -> bool:
        """Take the lease where nobody has it; False where somebody else was faster."""
        mine = {"study": self.study, "holder": self._holder, **_this_process(), "beat": 0}
        try:
            with undisturbed(), self._engine.begin() as connection:
                connection.execute(insert(_LEASES).values(mine))
        except IntegrityError:
            return False
        return True

    def _replace(self, dead: Holder) -> bool:
        """Take over from a dead holder; False where somebody else was faster."""
        mine = {"holder": self._holder, **_this_process(), "beat": 0}
        still = (_LEASES.c.study == self.study) & (_LEASES.c.holder == dead.id) & (_LEASES.c.beat == dead.beat)
        with undisturbed(), self._engine.begin() as connection:
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
        # Where that fails, the next driver finds this process dead.
        with undisturbed(), suppress(SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(delete(_LEASES).where(mine))

    def _read(self, connection: Connection) -> Holder | None:
        row = connection.execute(select(_LEASES).where(_LEASES.c.study == self.study)).first()
        return None if row is None else Holder(row.holder, row.host, row.place, row.pid, row.born, row.beat)


def _make_table(engine: Engine) -> None:
    try:
        _LEASES.create(engine, checkfirst=True)
    except SQLAlchemyError:
        # Another driver may have made it in the same moment.
        if not inspect(engine).has_table(_LEASES.name):
            raise


def _this_process() -> dict[str, str | int | float]:
    return {"host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "born": _born(psutil.Process())}


def _born(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: no change of the clock moves it."""
    return process.create_time() - psutil.boot_time()


def _place() -> str:
    """Machines may share a name, and containers that and the kernel, but neither their processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        container = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot, container = f"{uuid.getnode():x}", ""
    return f"{socket.gethostname()} {boot} {container}"
