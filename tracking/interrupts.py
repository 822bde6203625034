"""Ctrl-C and SIGTERM, put off while a store is being written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 3.0
"""How long a signal waits for a store that does not answer."""


class _State:
    depth = 0
    """Blocks that are not to be disturbed, one within the other, in the main thread."""
    waiting: int | None = None
    """The signal that arrived in one."""
    timer: threading.Timer | None = None
    lock = threading.Lock()


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """A signal handler: raises `KeyboardInterrupt`, at once or at the end of the block that is not to be disturbed.

    A second signal does not wait, nor does the first one longer than `GRACE_SECONDS`.
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
    """Make `interrupt` the handler of Ctrl-C, unless that is ignored here, and of SIGTERM."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let the block end before `interrupt` acts upon a signal that arrives in it.

    An exception out of nowhere in the middle of a database's call leaves a connection that reads what was there before, so that
    putting things in order fails too; one within a destructor is lost, and the signal with it.
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
    """To the thread that waits, so that what it waits in comes back."""
    with _State.lock:
        main = threading.main_thread().ident
        if _State.timer is not None and main is not None and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, number)
