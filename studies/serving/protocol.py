"""HTTP/1.1 for uvicorn with a limit on the time of a request's head, for which uvicorn itself would wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Longest time from a new connection, or from the first byte of its next request, to the end of the request's head."""


class PromptProtocol(H11Protocol):
    """uvicorn's protocol, which closes connections on which a request begins and does not go on.

    The number of connections is limited: a few hundred silent ones would keep everybody else out, and a limit on keep-alive does
    not close them.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Let the timer run on, or stop it once the head of a request is complete."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        # While a request is being answered, its own limits apply. After the answer, the rest of its body has to arrive in time.
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._hang_up is None and not self.transport.is_closing():
            self._hang_up = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None
