"""Waiting for a database or server that cannot be reached for a while, as during its restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tracking.interrupts import undisturbed

T = TypeVar("T")
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 5.0
"""Pause after the first failure, which doubles up to the second value."""
SILENT_SECONDS = 1.0
"""A wait that ends earlier, as for a lock between two writers, is not reported."""
TELL_EVERY_SECONDS = 15.0
"""Time between two reports of the same wait."""

LASTING = (
    "disk is full",
    "does not exist",
    "malformed",
    "no space left",
    "no such table",
    "not a database",
    "password",
    "read-only",
    "readonly",
)
"""Parts of the messages of errors that do not go away by waiting."""


@dataclass
class Patience:
    """How long to wait for a store, and how to report it.

    ``Patience().until_back(action, is_away=..., what="...")`` runs `action` until it succeeds, with growing pauses.
    """

    give_up_seconds: float = 600.0
    """Longest wait, after which the last error is raised."""
    tell: Callable[[str], None] = lambda text: None
    """Called with a sentence soon after a wait begins, then every `TELL_EVERY_SECONDS`, and when the wait is over."""
    may_go_on: Callable[[], None] = lambda: None
    """Called before each further try. An exception that it raises ends the wait."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @contextmanager
    def guarded(self, may_go_on: Callable[[], None]) -> Iterator[None]:
        """Within the block, `may_go_on` is called before each further try."""
        before, self.may_go_on = self.may_go_on, may_go_on
        try:
            yield
        finally:
            self.may_go_on = before

    @contextmanager
    def shortened(self, give_up_seconds: float) -> Iterator[None]:
        """Within the block, wait for so many seconds at most."""
        before, self.give_up_seconds = self.give_up_seconds, min(self.give_up_seconds, give_up_seconds)
        try:
            yield
        finally:
            self.give_up_seconds = before

    def until_back(self, action: Callable[[int], T], *, is_away: Callable[[BaseException], bool], what: str) -> T:
        """The result of `action`, which is repeated until it succeeds.

        Ctrl-C and SIGTERM end the wait, but do not interrupt `action`.

        Args:
            action: called with the number of the try, from 0.
            is_away: whether to try again after an exception.
            what: what cannot be reached, as the report names it: ``MLflow server http://...``.

        Raises:
            Exception: the last one of `action`, if `is_away` rejects it or the time is up.
        """
        begin, last_report, pause, tries = self.clock(), float("-inf"), FIRST_WAIT_SECONDS, 0
        while True:
            try:
                with undisturbed():
                    if tries:
                        self.may_go_on()
                    result = action(tries)
            except Exception as error:
                waited = self.clock() - begin
                if not is_away(error) or waited + pause > self.give_up_seconds:
                    raise
                if waited + pause >= SILENT_SECONDS and waited - last_report >= TELL_EVERY_SECONDS:
                    left = self.give_up_seconds - waited
                    self.tell(f"{what} does not answer; waiting for it, for up to {left:.0f} s; nothing is lost")
                    last_report = waited
                self.sleep(pause)
                pause, tries = min(2 * pause, LONGEST_WAIT_SECONDS), tries + 1
            else:
                if last_report >= 0:
                    self.tell(f"{what} is back after {self.clock() - begin:.0f} s")
                return result


def is_lasting(message: str) -> bool:
    """Whether an error of a database does not go away by waiting, such as a full disk or a wrong password."""
    text = message.lower()
    return any(word in text for word in LASTING)
