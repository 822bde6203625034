"""The HTTP side: requests in, verdicts out, nothing a client sends can hurt more than its own request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import io
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detectors.data.images import Size, read_image, resize_image
from detectors.errors import InputError, NumericalError
from detectors.runtime.verdicts import Verdict, heat_map
from studies.serving.meters import Meters
from studies.serving.models import Keeper, Loaded
from studies.serving.page import content_security_policy, page
from studies.serving.scoring import BusyError, Scorer
from studies.serving.settings import Settings

DECODERS = 2
DRAIN_SECONDS = 10.0
SHOWN_SIDE = 1024
"""Pixels of a heat map's longer side."""
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class JsonRequest(BaseModel):
    """``/predict`` as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: list[str] = Field(min_length=1)
    """Image files (PNG, JPEG ...), base64."""
    heatmap: bool = False
    """Whether images with the anomaly map over them are wanted."""


class Prediction(BaseModel):
    """What the detector says of one image."""

    name: str
    """File name that the client gave, or the image's number."""
    score: float
    """Image anomaly score; larger is worse."""
    threshold: float | None
    verdict: str | None
    """``good`` or ``defective``; None where the detector has no threshold."""
    normals_below: float | None
    """Share of the held-out good images that score less, 0 to 1."""
    heatmap: str | None
    """The image, at most 1,024 pixels a side, with its anomaly map over it: PNG, base64; None unless asked for."""


class ModelName(BaseModel):
    """Which model it was."""

    name: str
    version: str


class Answer(BaseModel):
    """``/predict``, of all images in their order."""

    model: ModelName
    predictions: list[Prediction]


@dataclass(frozen=True)
class _Upload:
    name: str
    data: bytes


def create_app(keeper: Keeper, settings: Settings) -> FastAPI:
    """The service of a keeper that was started."""
    meters = Meters()
    keeper.swapped = meters.swapped
    scorer = Scorer(max_waiting=settings.max_waiting, max_batch=settings.max_batch, batched=meters.batched)
    decoders = ThreadPoolExecutor(DECODERS, "decoding")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        scorer.start()
        end_following = keeper.follow(settings.poll_seconds)
        try:
            yield
        finally:
            end_following()
            await scorer.close()
            decoders.shutdown(wait=True)

    app = FastAPI(
        title="anomaly-studies", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    app.add_middleware(_Guard, settings=settings, meters=meters)

    @app.exception_handler(StarletteHTTPException)
    async def told(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # The server's log gets the traceback, the client does not.
        return JSONResponse({"error": "the service failed at this request; its log says why"}, status_code=500)

    def model() -> Loaded:
        if keeper.current is None:
            raise HTTPException(503, "no model is loaded yet", headers={"Retry-After": "5"})
        return keeper.current

    async def in_thread(function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(decoders, function, *arguments)

    @app.post("/predict", response_model=Answer, openapi_extra={"requestBody": _request_body()})
    async def predict(request: Request) -> Answer:
        """Judge images: multipart files (any field name), or JSON as `JsonRequest`; ``?heatmap=true`` for files."""
        try:
            async with asyncio.timeout(settings.body_seconds):
                images, heatmap = await _read(request, settings)
        except TimeoutError:
            raise HTTPException(408, f"the request took longer than {settings.body_seconds:g} s to come in") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client hung up in the midst of its request") from None
        chosen = model()
        try:
            with scorer.room(len(images)):
                async with asyncio.timeout(settings.request_seconds):
                    size = chosen.artifact.detector.image_size
                    decoded = [await in_thread(_decode, image, size, settings.max_pixels, heatmap) for image in images]
                    verdicts = await scorer.score(chosen, [one.small for one in decoded])
                    meters.judged(len(verdicts))
                    predictions = [
                        await in_thread(_prediction, chosen, image.name, one.shown, verdict)
                        for image, one, verdict in zip(images, decoded, verdicts, strict=True)
                    ]
        except TimeoutError:
            raise HTTPException(504, f"not done within {settings.request_seconds:g} s; send fewer images") from None
        except BusyError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from None
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        except NumericalError as error:
            raise HTTPException(500, str(error)) from None
        return Answer(model=ModelName(name=chosen.wanted.name, version=chosen.wanted.version), predictions=predictions)

    @app.get("/model")
    async def describe() -> dict[str, Any]:
        """The model that is served."""
        return model().describe()

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether a model is loaded and has judged an image."""
        found = model()
        return {"status": "ready", "model": found.wanted.name, "version": found.wanted.version}

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        text, kind = meters.expose(keeper.current, waiting=scorer.waiting)
        return Response(text, media_type=kind)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page where a person drops an image."""
        return HTMLResponse(page(), headers={"Content-Security-Policy": content_security_policy()})

    return app


# --- requests


def _request_body() -> dict[str, Any]:
    """For whoever generates a client from ``/openapi.json``: the request is read by hand, so that it is bounded."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {"file": files, "heatmap": {"type": "boolean", "default": False}}}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {**form, "required": ["file"]}},
            "application/json": {"schema": JsonRequest.model_json_schema()},
        },
    }


async def _read(request: Request, settings: Settings) -> tuple[Sequence[_Upload], bool]:
    """The images of a request, as files, and whether heat maps are wanted. Raises `HTTPException`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        images, heatmap = await asyncio.to_thread(_from_json, await request.body(), most=settings.max_images)
    elif kind == "multipart/form-data":
        limits: dict[str, int] = {"max_files": settings.max_images + 1, "max_fields": 8, "max_part_size": 64 * 1024}
        async with request.form(**limits) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            images = [_Upload(_plain(file.filename, number), await file.read()) for number, file in enumerate(files)]
            asked = str(form.get("heatmap", request.query_params.get("heatmap", "")))
        heatmap = asked.lower() in ("true", "1", "on", "yes")
    else:
        raise HTTPException(415, "send multipart/form-data with image files, or application/json")
    if not images:
        raise HTTPException(422, "no image in the request")
    if len(images) > settings.max_images:
        raise HTTPException(413, f"{len(images)} images in one request; send at most {settings.max_images}")
    return images, heatmap


def _from_json(body: bytes, *, most: int) -> tuple[list[_Upload], bool]:
    # Base64 holds neither commas nor brackets: a body with more of them than images is none of ours, and as
    # objects it would take a hundred times its size.
    if body.count(b",") > most + 8 or body.count(b"[") + body.count(b"{") > 8:
        raise HTTPException(422, f"images: a list of base64 texts is wanted, at most {most}; nothing nested")
    try:
        asked = JsonRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"{place + ': ' if place else ''}{first['msg']}") from None
    images = []
    for number, text in enumerate(asked.images):
        try:
            images.append(_Upload(str(number), base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            raise HTTPException(422, f"images.{number}: not base64") from None
    return images, asked.heatmap


def _plain(name: str | None, number: int) -> str:
    """A file name to tell back: never a path, never long, nothing but what can be printed."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:100] or str(number)


@dataclass(frozen=True)
class _Decoded:
    small: NDArray[np.uint8]
    """As the detector wants it."""
    shown: NDArray[np.uint8] | None
    """To draw the heat map over; None where none is wanted."""


def _decode(image: _Upload, size: Size, max_pixels: int, heatmap: bool) -> _Decoded:
    """What is kept of an image is small, however large it comes: many may wait."""
    rgb = read_image(image.data, name=image.name, max_pixels=max_pixels)
    shown = None
    if heatmap:
        reduced = Image.fromarray(rgb)
        reduced.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        shown = np.asarray(reduced)
    return _Decoded(resize_image(rgb, size), shown)


def _prediction(model: Loaded, name: str, shown: NDArray[np.uint8] | None, verdict: Verdict) -> Prediction:
    drawn = None
    if shown is not None:
        file = io.BytesIO()
        Image.fromarray(heat_map(model.artifact, shown, verdict)).save(file, format="PNG", compress_level=1)
        drawn = base64.b64encode(file.getvalue()).decode()
    return Prediction(
        name=name,
        score=verdict.score,
        threshold=verdict.threshold,
        verdict=verdict.verdict,
        normals_below=verdict.normals_below,
        heatmap=drawn,
    )


async def _drain(receive: Receive, budget: int) -> None:
    """Take and forget what a client still sends, up to so many bytes: cut off in its midst, it would not read the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while budget > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                budget -= len(message["body"])


class _Guard:
    """Before everything else: who may ask, how much a request may hold; after it: headers and counts."""

    def __init__(self, app: ASGIApp, *, settings: Settings, meters: Meters) -> None:
        self._app, self._settings, self._meters = app, settings, meters
        self._held = 0
        """Bytes of the requests that are under way."""

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
                raise HTTPException(503, "too much is under way; try again", headers={"Retry-After": "1"})
            if received > limit:
                if message.get("more_body"):
                    await _drain(receive, limit)
                raise HTTPException(413, f"the request holds more than {limit / 1e6:.0f} MB")
            return message

        async def marked(message: Message) -> None:
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
            await (refusal or self._app)(scope, limited, marked)
        finally:
            self._held -= received
            self._meters.answered(scope["path"], code, time.perf_counter() - begin)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> JSONResponse | None:
        token = self._settings.token
        if token is not None and path in ("/predict", "/model", "/metrics"):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + token.encode()):
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
