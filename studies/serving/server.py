"""A model served over HTTP until somebody ends it."""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
from collections.abc import Callable
from contextlib import suppress

import torch
import uvicorn

from detectors.errors import InputError
from detectors.runtime.devices import choose_device
from studies.home import Home
from studies.release.promotion import open_registry
from studies.serving.app import create_app
from studies.serving.models import Keeper, find_source
from studies.serving.protocol import PromptProtocol
from studies.serving.settings import Settings
from tracking.patience import Patience
from tracking.registry import Registry

CONNECTIONS = 256
"""At the same time; more are answered with 503 at once."""
STORE_SECONDS = 5.0
"""How long one poll waits for a registry that is away."""


def run_service(
    model: str,
    home: Home,
    settings: Settings,
    *,
    host: str,
    port: int,
    device: str = "auto",
    threads: int | None = None,
    open_warning: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        model: ``models:/NAME@champion``, a study, or the folder of a detector.
        host: address of this machine to listen on.
        port: 0 takes a free one.
        threads: of the detector; default every core.
        open_warning: said where anybody who reaches the machine may ask.
        say: called with lines for the person.

    Raises:
        InputError: there is no such model, or nobody can listen there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    source = find_source(model, home, open_registry=_open_registry)
    with _listen(host, port) as listening:
        keeper = Keeper(source, device=choose_device(device), say=say)
        loaded = keeper.start()
        actual = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if not _is_loopback(host) and settings.token is None:
            say(open_warning)
        say(
            f"serving {loaded.version.name} version {loaded.version.number} at http://{shown}:{actual} (Ctrl-C ends it)"
        )
        config = uvicorn.Config(
            create_app(keeper, settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=15,
            # By then each request was answered, if only with a 504.
            timeout_graceful_shutdown=math.ceil(settings.body_seconds + settings.request_seconds) + 1,
            http=PromptProtocol,
            ws="none",
            lifespan="on",
        )
        server = uvicorn.Server(config)
        # The server passes the signal on that ended it, once all is answered.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    say("ended at once" if server.force_exit else "ended; every accepted request was answered")


def _open_registry(home: Home) -> Registry:
    return open_registry(home, patience=Patience(give_up_seconds=STORE_SECONDS))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `InputError` where the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        ports = (errno.EADDRINUSE, errno.EACCES)
        hint = "choose another --port" if error.errno in ports else "--host takes an address of this machine"
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror or error}); {hint}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
