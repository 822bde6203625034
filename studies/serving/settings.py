"""What the service allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of one service; what goes beyond them is answered with a 4xx or 503 and costs next to nothing."""

    max_body_bytes: int = 32 * 2**20
    """Of a whole request."""
    max_held_bytes: int = 256 * 2**20
    """Of all requests that are under way; beyond, new ones are turned away with 503."""
    max_images: int = 16
    """Images in one request."""
    max_pixels: int = 40_000_000
    """Of one image, read from its header before anything is decoded."""
    max_waiting: int = 64
    """Images that may wait for the detector; more are turned away with 503."""
    body_seconds: float = 30.0
    """How long a client may take to send its request."""
    request_seconds: float = 60.0
    """From the whole request to its answer."""
    max_batch: int = 8
    """Images scored at once, where so many wait."""
    poll_seconds: float = 10.0
    """How often it is asked which model is to be served."""
    token: str | None = None
    """What clients must send as ``Authorization: Bearer``; None lets everybody in."""
