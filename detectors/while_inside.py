"""A change to the process that lasts as long as any thread needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


class WhileInside:
    """A change to the process that lasts as long as any thread is inside.

    The first thread to enter makes the change, the last one to leave undoes it. Without this, a thread that leaves early would
    undo the change under the others, and the last one would put back what it found: the change itself.

    Example:
        >>> import contextlib, io
        >>> quiet = WhileInside(lambda: contextlib.redirect_stdout(io.StringIO()))
        >>> with quiet():
        ...     print("nobody reads this")
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        """Args: `change` returns a new context manager, which may be entered in one thread and left in another."""
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0
        self._entered: AbstractContextManager[Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._entered is None:
                change = self._change()
                change.__enter__()
                self._entered = change
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                entered = None if self._inside else self._entered
                if entered is not None:
                    self._entered = None
                    entered.__exit__(None, None, None)
