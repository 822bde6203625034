"""The service within a test's own process, on a real port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn

from studies.serving.app import create_app
from studies.serving.models import FolderSource, Keeper
from studies.serving.protocol import PromptProtocol
from studies.serving.settings import Settings


def started(folder: Path, name: str = "widgets") -> Keeper:
    """The keeper of a detector's folder."""
    keeper = Keeper(FolderSource(folder, name), device=torch.device("cpu"))
    keeper.start()
    return keeper


@contextmanager
def running(keeper: Keeper, settings: Settings | None = None) -> Iterator[str]:
    """The address of a service, while the block lasts."""
    app = create_app(keeper, settings or Settings())
    # With uvicorn's own setting of the loggers, a test would not see what they say.
    config = uvicorn.Config(app, port=0, log_config=None, http=PromptProtocol, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
