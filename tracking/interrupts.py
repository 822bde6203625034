"""Ctrl-C and SIGTERM, postponed while a store is being written.

Signals belong to the process, and so does the state here. Only a program's entry point calls `handle_interrupts`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 3.0
"""Longest time for which a signal is postponed."""


class _State:
    depth = 0
    """Number of nested `undisturbed` blocks in which the main thread is."""
    waiting: int | None = None
    """Number of the signal that arrived within them; None if none did."""
    timer: threading.Timer | None = None
    """Sends the signal again after `GRACE_SECONDS`."""
    lock = threading.Lock()


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """A signal handler that raises `KeyboardInterrupt`, at once or at the end of the outermost `undisturbed` block.

    A second signal is not postponed, and the first one by `GRACE_SECONDS` at most.
    """
    if _State.depth and _State.waiting is None:
        _State.waiting = number
        _State.timer = threading.Timer(GRACE_SECONDS, _send_again, [number])
        _State.timer.daemon = True
        _State.timer.start()
        return
    _State.waiting = None
    raise KeyboardInterrupt


def handle_interrupts() -> None:
    """Make `interrupt` the handler of SIGTERM, and of Ctrl-C unless the process ignores it."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Postpone `KeyboardInterrupt` from a signal that arrives within the block to the end of the block.

    If it were raised in the middle of a call of a database, the connection would be left with an open transaction and later
    calls would read old data. If it were raised within a destructor, Python would drop it. Has no effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.depth += 1
    try:
        yield
    finally:
        try:
            _stop_timer()
        finally:
            _State.depth -= 1
        if _State.depth == 0 and _State.waiting is not None:
            _State.waiting = None
            raise KeyboardInterrupt


def _stop_timer() -> None:
    if _State.timer is None or _State.depth > 1:
        return
    with _State.lock:
        _State.timer.cancel()
        _State.timer = None


def _send_again(number: int) -> None:
    """Send the signal to the main thread again, so that the system call in which it waits returns."""
    with _State.lock:
        main = threading.main_thread().ident
        if _State.timer is not None and main is not None and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, number)
