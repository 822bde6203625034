"""Waiting for a database or server that is away for a while, as when it is restarted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tracking.interrupts import undisturbed

T = TypeVar("T")
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 5.0
SILENT_SECONDS = 1.0
"""What is over by then, such as a lock that two writers met at, is nobody's business."""
TELL_EVERY_SECONDS = 15.0

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
"""Words of a database's errors against which waiting does not help."""


@dataclass
class Patience:
    """How long to wait, and whom to tell meanwhile.

    ``Patience().until_back(action, is_away=..., what="...")`` runs `action` until it succeeds, with growing pauses.
    """

    give_up_seconds: float = 600.0
    tell: Callable[[str], None] = lambda text: None
    """Told in words, soon after the start and then now and again, what is waited for, and when it is back."""
    may_go_on: Callable[[], None] = lambda: None
    """Called before each further try; what it raises ends the waiting."""
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
        """The result of `action`, which is called with the number of the try, from 0.

        Ctrl-C and SIGTERM end the waiting, but not `action` in its midst.

        Args:
            is_away: whether an exception means that waiting may help; any other ends it at once.
            what: what is away, for the person: ``MLflow server http://...``.

        Raises:
            Exception: the last one of `action`, when the time is up or it is none that waiting helps against.
        """
        begin, told, pause, tries = self.clock(), float("-inf"), FIRST_WAIT_SECONDS, 0
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
                if waited + pause >= SILENT_SECONDS and waited - told >= TELL_EVERY_SECONDS:
                    left = self.give_up_seconds - waited
                    self.tell(f"{what} does not answer; waiting for it, for up to {left:.0f} s; nothing is lost")
                    told = waited
                self.sleep(pause)
                pause, tries = min(2 * pause, LONGEST_WAIT_SECONDS), tries + 1
            else:
                if told >= 0:
                    self.tell(f"{what} is back after {self.clock() - begin:.0f} s")
                return result


def is_lasting(message: str) -> bool:
    """Whether a database's error is one that waiting does not help against: a full disk, a wrong password, no such table."""
    text = message.lower()
    return any(word in text for word in LASTING)
