"""No connection to the hub while something runs offline; afterwards everything is as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from huggingface_hub import constants

from detectors.while_inside import WhileInside

VARIABLE = "HF_HUB_OFFLINE"


def offline_hub(offline: bool) -> AbstractContextManager[None]:
    """Keep the hub's client from opening connections, in this process and in those that it starts, until the block ends.

    Args:
        offline: False leaves everything as it is.
    """
    return _hub_offline() if offline else nullcontext()


@contextmanager
def _offline() -> Iterator[None]:
    variable, constant = os.environ.get(VARIABLE), constants.HF_HUB_OFFLINE
    # Worker processes inherit the variable; this process read it when the client was imported.
    os.environ[VARIABLE], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant
        if variable is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = variable


_hub_offline = WhileInside(_offline)
