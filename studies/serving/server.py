"""Serving a model over HTTP until Ctrl-C or SIGTERM."""

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
from studies.serving.app import create_app
from studies.serving.models import Keeper, find_source
from studies.serving.protocol import PromptProtocol
from studies.serving.settings import Settings
from tracking.patience import Patience
from tracking.registry import Registry

CONNECTIONS = 256
"""Connections at the same time; further ones are answered with 503 at once."""
STORE_SECONDS = 5.0
"""How long one look for a new model waits for a registry that does not answer."""


def run_service(
    model: str,
    home: Home,
    settings: Settings,
    *,
    host: str,
    port: int,
    device: str = "auto",
    threshold: float | None = None,
    threads: int | None = None,
    open_warning: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM; requests that were accepted by then are answered first.

    Args:
        model: ``models:/NAME@champion``, a study, or the folder of a detector.
        host: address of this machine to listen on.
        port: 0 takes a free one.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        threshold: score from which on an image is defective, in the place of that of the model which is served first.
        threads: CPU threads of torch; default one for each core.
        open_warning: line that is printed if `host` is not this machine alone and the service requires no token.
        say: prints a line.

    Raises:
        InputError: there is no such model, or the address cannot be listened on.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    source = find_source(model, home, open_registry=_open_registry)
    with _listen(host, port) as listening:
        keeper = Keeper(source, device=choose_device(device), threshold=threshold, say=say)
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
            # By then every request was answered, some of them with 504.
            timeout_graceful_shutdown=math.ceil(settings.body_seconds + settings.request_seconds) + 1,
            http=PromptProtocol,
            ws="none",
            lifespan="on",
        )
        server = uvicorn.Server(config)
        # When all requests are answered, the server raises the signal that ended it once more.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    say("ended at once" if server.force_exit else "ended; every accepted request was answered")


def _open_registry(home: Home) -> Registry:
    """The registry of a home, which is waited for at most `STORE_SECONDS`."""
    # With the gate and all that it measures, which no other model than a registered one waits for.
    from studies.release.promotion import open_registry

    return open_registry(home, patience=Patience(give_up_seconds=STORE_SECONDS))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `InputError` if the port is taken or the address is not one of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        ports = (errno.EADDRINUSE, errno.EACCES)
        hint = "choose another --port" if error.errno in ports else "--host takes an address of this machine"
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror or error}); {hint}") from error


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
