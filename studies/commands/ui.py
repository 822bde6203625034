"""``study ui``: MLflow's pages, and Optuna Dashboard's where it is installed, until Ctrl-C."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from detectors.errors import InputError
from studies import api
from studies.home import Home, sqlite_file
from studies.upkeep import viewers
from tracking.addresses import without_password

if TYPE_CHECKING:
    from tracking.views import Page

DEFAULT_PORT = 5000
SHOWN = 5
"""Studies whose pages are named, the newest."""


def ui(
    name: Annotated[str | None, typer.Argument(help="Name this study's page alone.")] = None,
    port: Annotated[
        int, typer.Option(help="MLflow's port; a free one is taken where it is in use.", min=1, max=65535)
    ] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 lets everybody in.")
    ] = "127.0.0.1",
) -> None:
    """Look at studies in the browser; Ctrl-C ends it.

    Names MLflow's address, and the page that shows a study's trials, the best first.
    """
    console = Console(soft_wrap=True)
    home = Home.from_environment()
    servers: list[viewers.Server] = []
    pages: Sequence[Page] = ()
    with viewers.ended_by_signals():
        try:
            if home.tracking_uri.startswith(("http://", "https://")):
                console.print(f"MLflow: {without_password(home.tracking_uri)}", markup=False, highlight=False)
                try:
                    pages = _pages(home, name)
                except InputError as error:
                    if name is not None:
                        raise
                    console.print(str(error), style="yellow", markup=False)
                _name_pages(pages, home.tracking_uri, console)
            else:
                _require_database(home)
                pages = _pages(home, name)
                _warn_of_strangers(host, console)
                servers.append(viewers.start_mlflow(home, host, viewers.free_port(host, port, console)))
            if importlib.util.find_spec("optuna_dashboard") is not None:
                servers.append(viewers.start_dashboard(home, host, viewers.free_port(host, port + 1, None)))
            for server in list(servers):
                viewers.await_answer(server, servers, console)
                if server.name == "MLflow":
                    _name_pages(pages, server.address, console)
            if servers:
                console.print("Ctrl-C ends it", style="dim")
            viewers.watch(servers)
        except KeyboardInterrupt:
            # How a person ends a viewer: nothing was cut short.
            console.print("ended")
        finally:
            for number in viewers.ENDING:
                # A second Ctrl-C would leave behind what the first one is about to end.
                signal.signal(number, signal.SIG_IGN)
            viewers.end(servers)


def _pages(home: Home, name: str | None) -> list[Page]:
    """The newest studies' pages and those of several, or one study's. Raises `InputError` where the study asked for has none."""
    pages = api.study_pages(home.tracking_uri, artifacts=home.mlflow_artifacts)
    if name is None:
        return [*pages[:SHOWN], *api.experiment_pages(home.tracking_uri, artifacts=home.mlflow_artifacts)[:SHOWN]]
    matching = [page for page in pages if page.study == name]
    if not matching:
        known = ", ".join(page.study for page in pages) or "none"
        raise InputError(f"MLflow has no page of a study {name!r}, only of: {known}; `study run` makes it")
    return matching


def _name_pages(pages: Sequence[Page], server: str, console: Console) -> None:
    for page in pages:
        console.print(f"  {page.study}: {api.address_of(page, server)}", markup=False, highlight=False)


def _require_database(home: Home) -> None:
    path = sqlite_file(home.tracking_uri)
    if path is not None and not path.is_file():
        raise InputError(f"no studies in {home.root} yet; start one with `study run --demo`, or set STUDY_HOME")


def _warn_of_strangers(host: str, console: Console) -> None:
    if host not in {"127.0.0.1", "::1", "localhost"}:
        console.print(
            "MLflow asks for no password: whoever reaches this machine can read, change and delete every run",
            style="yellow",
        )
