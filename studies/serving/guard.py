"""The layer around the service: the token, the limits on the size of requests, security headers and counts."""

from __future__ import annotations

import asyncio
import hmac
import time
from contextlib import suppress

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studies.serving.meters import Meters
from studies.serving.settings import Settings

DRAIN_SECONDS = 10.0
"""Longest time for which the rest of a refused request is read."""


HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
"""Headers of every answer."""


async def _drain(receive: Receive, budget: int) -> None:
    """Read and drop the rest of a request, at most `budget` bytes.

    A client whose connection ends while it is still sending would not read the answer.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while budget > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                budget -= len(message["body"])


class RequestGuard:
    """ASGI middleware: checks the token and the size of each request, adds headers to the answer and counts it."""

    def __init__(self, app: ASGIApp, *, settings: Settings, meters: Meters) -> None:
        self._app, self._settings, self._meters = app, settings, meters
        self._held = 0
        """Bytes of all requests that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, received, code = time.perf_counter(), 0, 500
        limit = self._settings.max_body_bytes

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._held += len(message.get("body", b""))
            if self._held > self._settings.max_held_bytes:
                raise HTTPException(
                    503, "the service is busy with other requests; try again", headers={"Retry-After": "1"}
                )
            if received > limit:
                if message.get("more_body"):
                    await _drain(receive, limit)
                raise HTTPException(413, f"the request holds more than {limit / 1e6:.0f} MB")
            return message

        async def with_headers(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS.items()]
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await _drain(receive, 2 * limit)
        try:
            await (refusal or self._app)(scope, limited, with_headers)
        finally:
            self._held -= received
            self._meters.answered(scope["path"], code, time.perf_counter() - begin)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """The answer to a request that is refused by its headers alone; None if it may go on."""
        token = self._settings.token
        if token is not None and path in ("/predict", "/model", "/metrics"):
            authorization = headers.get(b"authorization", b"")
            if not hmac.compare_digest(authorization, b"Bearer " + token.encode()):
                return JSONResponse(
                    {"error": "send the service's token as Authorization: Bearer"},
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
        declared, limit = headers.get(b"content-length", b"0"), self._settings.max_body_bytes
        if not declared.isdigit() or int(declared) > limit:
            return JSONResponse(
                {"error": f"the request holds more than {limit / 1e6:.0f} MB"},
                status_code=413,
                headers={"Connection": "close"},
            )
        return None
