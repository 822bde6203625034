"""HTTP/1.1 that hangs up on clients who begin a request and do not go on: uvicorn itself would wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From a connection, or the first byte of its next request, to the end of that request's head."""


class PromptProtocol(H11Protocol):
    """uvicorn's, with a limit on the time between requests that a keep-alive limit does not see: some bytes, and then nothing.

    Connections are counted and few; a few hundred that say nothing would keep everybody else out.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to count."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Counts on, or stops with the head of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        # While a request is answered, its own limits hold. Afterwards the rest of its body is no reason to wait either.
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._hang_up is None and not self.transport.is_closing():
            self._hang_up = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None
