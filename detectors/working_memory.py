"""How much the detectors work on at one time: less of it where memory ran out. What comes out stays the same, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_halvings: ContextVar[int] = ContextVar("halvings", default=0)


@contextmanager
def halved(times: int) -> Iterator[None]:
    """Within this context of this thread, every `portion` is so many times halved.

    Raises:
        ValueError: `times` is negative.
    """
    if times < 0:
        raise ValueError(f"memory cannot be halved {times} times")
    token = _halvings.set(times)
    try:
        yield
    finally:
        _halvings.reset(token)


def portion(size: int) -> int:
    """What may be worked on at one time, in any unit: `size` where memory is plenty, at least 1."""
    return max(1, size >> _halvings.get())


def parts() -> int:
    """Into how many pieces to cut what is otherwise done in one: 1 where memory is plenty."""
    return 1 << _halvings.get()
