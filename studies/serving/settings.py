"""The limits of the service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of one service. A request beyond them is answered with 4xx or 503 before it costs memory or time."""

    max_body_bytes: int = 32 * 2**20
    """Bytes of a whole request."""
    max_held_bytes: int = 256 * 2**20
    """Bytes of all requests that are being answered; with more, new requests are turned away with 503."""
    max_images: int = 16
    """Number of images in one request."""
    max_pixels: int = 40_000_000
    """Pixels of one image, which are read from its header before it is decoded."""
    max_waiting: int = 64
    """Number of images that may wait for the detector; more are turned away with 503."""
    body_seconds: float = 30.0
    """How long a client may take to send its request."""
    request_seconds: float = 60.0
    """How long an answer may take after the request has arrived."""
    max_batch: int = 8
    """Number of images that are scored together at most."""
    poll_seconds: float = 10.0
    """Time between two looks for a new model."""
    token: str | None = None
    """Token that clients must send as ``Authorization: Bearer TOKEN``; None admits everybody."""
