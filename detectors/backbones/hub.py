"""Whether the hub, from which weights are fetched, can be reached: asked once and quickly."""

from __future__ import annotations

import queue
import threading
from urllib.parse import urlsplit

import requests

KNOCK_SECONDS = 4.0
"""For an answer of the hub. Its own client would try each backbone for half a minute before it reported anything."""

REFUSED = (401, 403, 407)
"""Answers of a proxy that lets nothing through."""


def hub_name() -> str:
    """The hub's host, for a person."""
    return urlsplit(_address()).hostname or _address()


def is_reachable(*, seconds: float = KNOCK_SECONDS) -> bool:
    """Whether the hub answers within some seconds; False where its client is told to open no connection."""
    from huggingface_hub import constants  # reads the environment when it is imported

    if constants.HF_HUB_OFFLINE:
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def knock() -> None:
        try:
            # Through the proxy that the environment names, which may answer for a hub that it does not let through.
            answer = requests.head(_address(), timeout=seconds, allow_redirects=False)
        except (requests.RequestException, OSError, ValueError):
            answers.put(False)
        else:
            answers.put(answer.status_code < 500 and answer.status_code not in REFUSED)

    # A look-up of the name has no time limit of its own.
    threading.Thread(target=knock, name="hub", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


def _address() -> str:
    from huggingface_hub import constants  # reads the environment when it is imported

    return constants.ENDPOINT
