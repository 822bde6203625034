"""No connection to the hub while something runs offline; afterwards everything is as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

VARIABLE = "HF_HUB_OFFLINE"


class _State:
    lock = threading.Lock()
    depth = 0
    """Blocks that are open, of all threads: the last one to end puts everything back."""
    variable: str | None = None
    constant = False


@contextmanager
def offline_hub(offline: bool) -> Iterator[None]:
    """Keep the hub's client from opening connections, in this process and in those that it starts, until the block ends.

    Args:
        offline: False leaves everything as it is.
    """
    if not offline:
        yield
        return
    with _State.lock:
        if not _State.depth:
            _State.variable, _State.constant = os.environ.get(VARIABLE), constants.HF_HUB_OFFLINE
        _State.depth += 1
        # Worker processes inherit the variable; this process read it when the client was imported.
        os.environ[VARIABLE], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        with _State.lock:
            _State.depth -= 1
            if not _State.depth:
                constants.HF_HUB_OFFLINE = _State.constant
                if _State.variable is None:
                    os.environ.pop(VARIABLE, None)
                else:
                    os.environ[VARIABLE] = _State.variable
