"""The service over HTTP: requests in, verdicts out. A request cannot harm anything but itself."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from detectors.data.images import Size, read_image, resize_image
from detectors.errors import InputError, NumericalError
from detectors.runtime.verdicts import Verdict, heat_map
from studies.serving.guard import RequestGuard
from studies.serving.meters import Meters
from studies.serving.models import Keeper, LoadedModel
from studies.serving.page import content_security_policy, page
from studies.serving.scoring import BusyError, Scorer
from studies.serving.settings import Settings
from studies.serving.uploads import Upload, read_uploads, request_body_schema

DECODERS = 2
"""Threads that decode images and draw heat maps."""


SHOWN_SIDE = 1024
"""Longest side of a heat map, in pixels."""


class Prediction(BaseModel):
    """The detector's result for one image."""

    name: str
    """The file name that the client sent, or the number of the image in the request, from 0."""
    score: float
    """Image anomaly score; a larger one is more anomalous."""
    threshold: float | None
    verdict: str | None
    """``good`` or ``defective``; None if the detector has no threshold."""
    normals_below: float | None
    """Share of the held-out good images that have a lower score, from 0 to 1."""
    heatmap: str | None
    """The image with its anomaly map over it, at most 1,024 pixels a side, as base64 of a PNG; None if it was not requested."""


class ModelName(BaseModel):
    """The model that judged the images."""

    name: str
    version: str


class Answer(BaseModel):
    """The answer of ``/predict``: one prediction for each image, in the order of the request."""

    model: ModelName
    predictions: list[Prediction]


def create_app(keeper: Keeper, settings: Settings) -> FastAPI:
    """The service.

    Args:
        keeper: holds the model; it was started already, and the service makes it look for new models.
    """
    meters = Meters()
    keeper.on_swap(meters.swapped)
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
    app.add_middleware(RequestGuard, settings=settings, meters=meters)

    @app.exception_handler(StarletteHTTPException)
    async def answer_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def answer_failure(request: Request, error: Exception) -> JSONResponse:
        # The traceback goes to the log of the server, not to the client.
        return JSONResponse({"error": "the service failed at this request; its log shows why"}, status_code=500)

    def model() -> LoadedModel:
        if keeper.current is None:
            raise HTTPException(503, "no model is loaded yet", headers={"Retry-After": "5"})
        return keeper.current

    async def in_thread(function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(decoders, function, *arguments)

    @app.post("/predict", response_model=Answer, openapi_extra={"requestBody": request_body_schema()})
    async def predict(request: Request) -> Answer:
        """Judge images, sent as multipart files (any field name, ``?heatmap=true`` for heat maps) or as JSON."""
        try:
            async with asyncio.timeout(settings.body_seconds):
                images, heatmap = await read_uploads(request, settings)
        except TimeoutError:
            raise HTTPException(408, f"the request took longer than {settings.body_seconds:g} s to arrive") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected before its request was complete") from None
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
        return Answer(model=ModelName(name=chosen.version.name, version=chosen.version.number), predictions=predictions)

    @app.get("/model")
    async def describe() -> dict[str, Any]:
        """The model that is served."""
        return model().describe()

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Answers whenever the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        """Answers with 200 once a model is loaded and has judged an image, before that with 503."""
        served = model()
        return {"status": "ready", "model": served.version.name, "version": served.version.number}

    @app.get("/metrics")
    async def metrics() -> Response:
        """The counts for Prometheus."""
        text, kind = meters.expose(keeper.current, waiting=scorer.waiting)
        return Response(text, media_type=kind)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page on which people choose or drop images."""
        return HTMLResponse(page(), headers={"Content-Security-Policy": content_security_policy()})

    return app


@dataclass(frozen=True)
class _Decoded:
    small: NDArray[np.uint8]
    """RGB [H, W, 3] at the size that the detector takes."""
    shown: NDArray[np.uint8] | None
    """RGB [h, w, 3], over which the heat map is drawn; None if no heat map is requested."""


def _decode(image: Upload, size: Size, max_pixels: int, heatmap: bool) -> _Decoded:
    """Decode an image and keep it only at a small size, because many images may wait."""
    rgb = read_image(image.data, name=image.name, max_pixels=max_pixels)
    shown = None
    if heatmap:
        reduced = Image.fromarray(rgb)
        reduced.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        shown = np.asarray(reduced)
    return _Decoded(resize_image(rgb, size), shown)


def _prediction(model: LoadedModel, name: str, shown: NDArray[np.uint8] | None, verdict: Verdict) -> Prediction:
    overlay = None
    if shown is not None:
        file = io.BytesIO()
        Image.fromarray(heat_map(model.artifact, shown, verdict)).save(file, format="PNG", compress_level=1)
        overlay = base64.b64encode(file.getvalue()).decode()
    return Prediction(
        name=name,
        score=verdict.score,
        threshold=verdict.threshold,
        verdict=verdict.verdict,
        normals_below=verdict.normals_below,
        heatmap=overlay,
    )
