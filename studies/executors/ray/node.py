"""What runs on the nodes of a Ray cluster: the check of a node, a job, and the mailbox between jobs and driver.

A node that sees the driver's ``STUDY_HOME`` works in it. Any other has a home of its own: ``STUDY_HOME`` there, else
``~/.cache/anomaly-studies``. Features stay in it; a job's folder and its ledger lines go back to the driver.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectors.errors import InputError
from detectors.head_texts import keep_text, look_in
from detectors.own_version import own_version
from studies.executors.failure import describe, kind_of
from studies.executors.process import Runner, perform
from studies.executors.ray.parcels import pack
from studies.home import Home
from studies.worker.jobs import CHECKPOINTS, Done, Event, Job, Lost
from studies.worker.ledger import ledger_texts

TELL_SECONDS = 30.0
"""How long a job waits for the mailbox before it goes on without."""
STALE_SECONDS = 7 * 24 * 3600.0
"""Age at which the checkpoints of a job that never came back are removed from a node."""
SHARED = ("checked", "features", "heads", "locks", "memos", "rendered")
"""Folders of a node's home that all its jobs share."""


@dataclass(frozen=True)
class Begun:
    """A job has a process."""

    pid: int


@dataclass(frozen=True)
class Orders:
    """What a node must know of its driver."""

    beacon: str
    """A file in the driver's home."""
    secret: str
    """Its content: a node that reads it there shares that home."""
    data_root: str | None
    """Where the driver finds its data set; a node's own MVTEC_AD_ROOT wins."""
    weights: str | None
    """STUDY_WEIGHTS of the driver; taken where it exists on the node, unless that has its own."""
    version: str = field(default_factory=own_version)

    heads: Mapping[str, bytes] = field(default_factory=dict)
    """{sha256: text} of the files that the study's detectors came from."""

    def keep_heads(self, home: Home) -> None:
        """Put the driver's heads where the jobs of this node look for them."""
        look_in(home.heads)
        for sha256, text in self.heads.items():
            keep_text(sha256, text, home.heads)

    def share_home(self) -> bool:
        """Whether this node sees the driver's home."""
        try:
            return Path(self.beacon).read_text() == self.secret
        except (OSError, ValueError):
            return False

    def prepare(self, job: Job) -> Job:
        """Set what this process lacks of the driver's environment; the job with the weights that are here."""
        if self.data_root is not None:
            os.environ.setdefault("MVTEC_AD_ROOT", self.data_root)
        if self.weights is not None and Path(self.weights).is_dir():
            os.environ.setdefault("STUDY_WEIGHTS", self.weights)
        if job.weights_dir is not None and not Path(job.weights_dir).is_dir():
            # Those found elsewhere have to be the same: their digest is compared.
            job = replace(job, weights_dir=None)
        return job


@dataclass(frozen=True)
class Returned:
    """What a job's task gives back to the driver."""

    end: Done | Lost
    files: Mapping[str, bytes] | None = None
    """The job's folder, where the node does not share the driver's home."""
    ledger: tuple[str, ...] = ()
    """Scorings on test that are on record on the node alone."""


class Mailbox:
    """An asynchronous actor: events go to the driver, stop orders to the jobs. Each job has a token."""

    def __init__(self) -> None:
        self._mail: list[tuple[str, Event | Begun]] = []
        self._stopped: set[str] = set()
        self._news = asyncio.Event()

    async def tell(self, token: str, message: Event | Begun) -> None:
        """From a job, which waits until it is here: its events thus keep their order and all precede its end."""
        self._mail.append((token, message))
        self._news.set()

    async def is_stopped(self, token: str) -> bool:
        """Asked by a job."""
        return token in self._stopped

    async def stop(self, token: str) -> None:
        """From the driver."""
        self._stopped.add(token)

    async def take(self, seconds: float) -> list[tuple[str, Event | Begun]]:
        """All mail, by the driver; waits for the first."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()
        mail, self._mail = self._mail, []
        return mail

    async def wake(self) -> None:
        """Let a `take` under way return."""
        self._news.set()


class _MailboxClient:
    """A job's side of the mailbox. A mailbox out of reach costs events, never the job."""

    def __init__(self, mailbox: Any, token: str) -> None:
        import ray  # an extra, which the driver imports with settings of its own

        self._ray, self._mailbox, self._token = ray, mailbox, token

    def tell(self, message: Event | Begun) -> None:
        """Returns when the message has arrived."""
        self._answer(self._mailbox.tell.remote(self._token, message))

    def is_stopped(self) -> bool:
        """Whether the driver has asked this job to stop."""
        return bool(self._answer(self._mailbox.is_stopped.remote(self._token)))

    def _answer(self, reference: Any) -> Any:
        # A worker that waits in ray.get lends its cores to whoever is next in line, and they would not come back.
        with suppress(self._ray.exceptions.RayError, TimeoutError):
            return reference.future().result(TELL_SECONDS)
        return None


def check(job: Job, orders: Orders) -> str | None:
    """What keeps this node from doing such a job, in one line: no or other images or weights, another version."""
    # These bring torch, which takes seconds: the driver imports this module too, and a job's process sets its threads first.
    from detectors.backbones.pyramid import weights_identity
    from studies.file import datasets
    from studies.file.config import validate
    from studies.worker.fitting import check_networks

    try:
        if (here := own_version()) != orders.version:
            return f"anomaly-studies {here} is installed there, and {orders.version} on the driver; install the same"
        job = orders.prepare(job)
        home = Home(Path(job.home) if orders.share_home() else node_home()).prepare()
        orders.keep_heads(home)
        config = validate(job.config, source="the driver's study")
        images = datasets.load(config, home)
        if images.digest != job.splits_digest:
            return f"its images of {images.experiment} are not the driver's; copy those there"
        backbone = job.params["backbone"]
        identity = weights_identity(backbone, weights_dir=Path(job.weights_dir) if job.weights_dir else None)
        if identity.sha256 != job.weights_sha256:
            return f"its weights of {backbone} are not the driver's; copy those there"
        check_networks(job)
    except InputError as error:
        return str(error)
    except Exception as error:
        return describe(error)
    return None


def work(job: Job, orders: Orders, token: str, mailbox: Any, run: Runner | None) -> Returned:
    """Do a job in a process of its own."""
    # Before torch is imported, in a process that ends with the job.
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    client = _MailboxClient(mailbox, token)
    client.tell(Begun(os.getpid()))
    job = orders.prepare(job)
    try:
        if orders.share_home():
            return Returned(perform(job, client.tell, client.is_stopped, run))
        return _work_apart(job, orders, client, run)
    except Exception as error:
        return Returned(Lost(job.number, job.attempt, kind_of(error), describe(error)))


def _work_apart(job: Job, orders: Orders, client: _MailboxClient, run: Runner | None) -> Returned:
    """Do a job in this node's home, where nobody but its own jobs looks."""
    orders.keep_heads(Home(node_home()))
    own = own_home(node_home(), job)
    here = replace(job, home=str(own), folder=str(own / "job"))
    end = perform(here, client.tell, client.is_stopped, run)
    try:
        files = pack(here.path, without=[CHECKPOINTS])
    except InputError as error:
        end, files = Lost(job.number, job.attempt, "bad_input", str(error)), {}
    lines = [text.decode(errors="replace") for text in ledger_texts(Home(own).ledger(job.study_uid))]
    if isinstance(end, Done):
        shutil.rmtree(own, ignore_errors=True)
    return Returned(end, files, tuple(lines))


def node_home() -> Path:
    """Where a node that does not share the driver's home keeps features."""
    return Path(os.environ.get("STUDY_HOME") or Path.home() / ".cache" / "anomaly-studies").absolute()


def own_home(home: Path, job: Job) -> Path:
    """A home for one job, with what all jobs of the node share linked in; of an earlier attempt only checkpoints are left."""
    jobs = home / "jobs"
    own = jobs / f"{job.study_uid}-{hashlib.sha256(job.folder.encode()).hexdigest()[:16]}"
    own.mkdir(parents=True, exist_ok=True)
    os.utime(own)
    for other in jobs.iterdir():
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(other)
    for left in [*own.iterdir(), *(own / "job").glob("*")]:
        if left.is_dir() and not left.is_symlink():
            if left.name not in ("job", CHECKPOINTS):
                shutil.rmtree(left)
        else:
            left.unlink()
    for name in SHARED:
        (home / name).mkdir(exist_ok=True)
        (own / name).symlink_to(home / name, target_is_directory=True)
    return own
