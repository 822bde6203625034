"""Times for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as ``40 s``, ``3 min`` or ``2 h 05 min``."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
