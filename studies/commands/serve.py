"""``study serve``: a detector over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from detectors.errors import InputError
from studies.home import Home
from studies.serving.settings import Settings
from studies.show import tables

TOKEN = "STUDY_SERVE_TOKEN"  # noqa: S105 - the variable's name
MISSING = "the service needs FastAPI: pip install 'anomaly-studies[serve]'"


def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, a study, or the folder of a detector.")],
    host: Annotated[
        str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 lets everybody in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score from which on an image is defective, for this run and for the model at its start."),
    ] = None,
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
    try:
        # An extra, and what says so where it is missing; torch takes seconds besides.
        from studies.serving.server import run_service
    except ImportError as error:
        raise InputError(f"{MISSING} ({error.name} is missing)") from error
    console = tables.console(stderr=True)
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
    run_service(
        model,
        Home.from_environment(),
        settings,
        host=host,
        port=port,
        device=device,
        threshold=threshold,
        threads=threads,
        open_warning=f"warning: everybody who can reach {host} may use this service; set {TOKEN}, or listen on 127.0.0.1",
        say=lambda text: console.print(text, markup=False, highlight=False),
    )


def _token(path: Path | None) -> str | None:
    """From a file or the environment: a command line can be read by everybody on the machine."""
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no token can be read there ({error})") from error
    if not token:
        raise InputError(f"{path}: holds no token; put one line into it")
    return token
