"""The images of a request to ``/predict``, as files or as JSON, within the limits of the settings."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from studies.serving.settings import Settings


class JsonRequest(BaseModel):
    """The body of a JSON request to ``/predict``."""

    model_config = ConfigDict(extra="forbid")

    images: list[str] = Field(min_length=1)
    """Image files (PNG, JPEG ...) in base64."""
    heatmap: bool = False
    """Whether to return each image with its anomaly map over it."""


@dataclass(frozen=True)
class Upload:
    """An image file as the client sent it."""

    name: str
    data: bytes


def request_body_schema() -> dict[str, Any]:
    """The request body of ``/predict`` for ``/openapi.json``, which FastAPI cannot derive: `read_uploads` reads it."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {"file": files, "heatmap": {"type": "boolean", "default": False}}}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {**form, "required": ["file"]}},
            "application/json": {"schema": JsonRequest.model_json_schema()},
        },
    }


async def read_uploads(request: Request, settings: Settings) -> tuple[Sequence[Upload], bool]:
    """The images of a request, and whether heat maps are requested.

    Raises:
        HTTPException: 415 for another media type, 413 for too many images, 422 for a body that is not as documented.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        images, heatmap = await asyncio.to_thread(_from_json, await request.body(), most=settings.max_images)
    elif kind == "multipart/form-data":
        limits: dict[str, int] = {"max_files": settings.max_images + 1, "max_fields": 8, "max_part_size": 64 * 1024}
        async with request.form(**limits) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            images = [Upload(_printable(file.filename, number), await file.read()) for number, file in enumerate(files)]
            heatmap_field = str(form.get("heatmap", request.query_params.get("heatmap", "")))
        heatmap = heatmap_field.lower() in ("true", "1", "on", "yes")
    else:
        raise HTTPException(415, "send multipart/form-data with image files, or application/json")
    if not images:
        raise HTTPException(422, "no image in the request")
    if len(images) > settings.max_images:
        raise HTTPException(413, f"{len(images)} images in one request; send at most {settings.max_images}")
    return images, heatmap


def _from_json(body: bytes, *, most: int) -> tuple[list[Upload], bool]:
    """The images of a JSON body, at most `most`, and whether heat maps are requested. Raises `HTTPException` (422)."""
    # Base64 contains neither commas nor brackets. A body with more of them than images is not valid, and parsed into
    # objects it could take a hundred times its size.
    if body.count(b",") > most + 8 or body.count(b"[") + body.count(b"{") > 8:
        raise HTTPException(422, f"images: send a list of at most {most} base64 texts, nothing nested")
    try:
        parsed = JsonRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"{place + ': ' if place else ''}{first['msg']}") from None
    images = []
    for number, text in enumerate(parsed.images):
        try:
            images.append(Upload(str(number), base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            raise HTTPException(422, f"images.{number}: not base64") from None
    return images, parsed.heatmap


def _printable(name: str | None, number: int) -> str:
    """A file name that can be returned to the client: without folders, at most 100 printable letters, else the number."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:100] or str(number)
