"""``study serve``: a detector over HTTP."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from studies.home import Home
    from tracking.registry import Registry

TOKEN = "STUDY_SERVE_TOKEN"  # noqa: S105 - the variable's name
CONNECTIONS = 256
"""At the same time; more are answered with 503 at once."""
MISSING = "the service needs FastAPI: pip install 'anomaly-studies[serve]'"
STORE_SECONDS = 5.0
"""How long one poll waits for a registry that is away."""


def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, a study, or the folder of a detector.")],
    host: Annotated[
        str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 lets everybody in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    poll: Annotated[float, typer.Option(help="Seconds between looks at which model to serve.", min=0.1)] = 10.0,
    max_body: Annotated[float, typer.Option(help="MB of one request.", min=0.001)] = 32.0,
    max_images: Annotated[int, typer.Option(help="Images in one request.", min=1)] = 16,
    max_megapixels: Annotated[float, typer.Option(help="Of one image.", min=0.01)] = 40.0,
    max_waiting: Annotated[int, typer.Option(help="Images that may wait; more get a 503.", min=1)] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.", min=1)] = 60.0,
    threads: Annotated[
        int | None,
        typer.Option(help="Of the detector; every core unless given, e.g. where a container may use less.", min=1),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients must send; else ${TOKEN}.")
    ] = None,
) -> None:
    """Judge images over HTTP with a model that may change under way; a page for people is at /."""
    # Read when torch is imported: idle threads that spin would starve those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from detectors.errors import InputError
    from studies.home import Home
    from studies.show import tables

    try:
        import torch
        import uvicorn

        from studies.serving.app import create_app
    except ImportError as error:
        raise InputError(f"{MISSING} ({error.name} is missing)") from error
    from detectors.runtime.devices import choose_device
    from studies.serving.models import Keeper, find_source
    from studies.serving.protocol import PromptProtocol
    from studies.serving.settings import Settings

    console = tables.console(stderr=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    settings = Settings(
        max_body_bytes=int(max_body * 1e6),
        max_images=max_images,
        max_pixels=int(max_megapixels * 1e6),
        max_waiting=max(max_waiting, max_images),
        request_seconds=timeout,
        body_seconds=min(30.0, timeout),
        poll_seconds=poll,
        token=_token(token_file),
    )
    if threads is not None:
        torch.set_num_threads(threads)
    source = find_source(model, Home.from_environment(), open_registry=_open_registry)
    with _listen(host, port) as listening:
        keeper = Keeper(source, device=choose_device(device), say=say)
        loaded = keeper.start()
        actual = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if not _is_loopback(host) and settings.token is None:
            say(f"warning: {host} lets everybody who reaches this machine ask; set {TOKEN}, or bind to 127.0.0.1")
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


def _token(path: Path | None) -> str | None:
    """From a file or the environment: a command line can be read by everybody on the machine."""
    from detectors.errors import InputError

    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no token can be read there ({error})") from error
    if not found:
        raise InputError(f"{path}: holds no token; put one line into it")
    return found


def _open_registry(home: Home) -> Registry:
    from studies.release.promotion import open_registry
    from tracking.patience import Patience

    return open_registry(home, patience=Patience(give_up_seconds=STORE_SECONDS))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `InputError` where the port is taken or the address is not this machine's."""
    from detectors.errors import InputError

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
