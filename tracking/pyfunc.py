"""The detector as MLflow serves it. MLflow runs this file (models from code): no pickle; weights are a safetensors artifact.

`mlflow.pyfunc.load_model("models:/padim_screw@champion").predict([{"image": "<base64>"}])`

A program that has loaded the model may also give ``{"image": Path("part.png")}``, a PIL image or a numpy array. No such object
can arrive over HTTP: a request's JSON, CSV or Parquet holds texts, numbers and lists, and a text is base64, never a path. So
nobody who may send requests can have files of the server read, or learn which ones there are.
"""

# Without `annotations` from __future__: MLflow reads the types of `predict` to check each request.
import base64
import binascii
import io
from pathlib import Path
from typing import Annotated, Any

import mlflow
import numpy as np
import yaml
from mlflow.pyfunc import PythonModel
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from detectors.data.images import read_image
from detectors.errors import InputError
from detectors.head_texts import look_in
from detectors.runtime.artifact import Artifact, load_artifact
from detectors.runtime.inputs import as_rgb
from detectors.runtime.verdicts import heat_map, judge

ARTIFACT = "detector"
"""Name of the detector's folder among the model's artifacts."""
HEADS = "heads"
"""Name of the artifact that holds the text of the head's file, where the head came from one."""
META = "registered_model_meta"
"""File in which MLflow notes which version of which model a folder is."""
MAX_IMAGES = 64
"""Images in one request."""
MAX_BASE64 = 64 * 2**20
"""Letters of one image."""


def _accept_object(value: Any, check_text: ValidatorFunctionWrapHandler) -> Any:
    """Let an image through that a program in this process holds; everything else has to be a text."""
    return value if isinstance(value, Path | Image.Image | np.ndarray) else check_text(value)


class Request(BaseModel):
    """One image."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, Field(max_length=MAX_BASE64), WrapValidator(_accept_object)]
    """An image file (PNG, JPEG ...), base64. Within this process also a `Path`, a PIL image, uint8 [H, W, 3] in RGB order, or
    uint8 [H, W] in gray."""
    return_heatmap: bool = False


class Response(BaseModel):
    """What the detector says of it."""

    model_config = ConfigDict(protected_namespaces=())

    score: float
    """Image anomaly score; larger is worse."""
    threshold: float | None = None
    verdict: str | None = None
    """``good`` or ``defective``; None where the detector has no threshold."""
    normals_below: float | None = None
    """Share of the held-out good images that score less, 0 to 1."""
    heatmap: str | None = None
    """The image with its anomaly map over it: PNG, base64; None unless asked for."""
    model_version: str | None = None
    """``<name>/<version>`` in the registry; None for a model that was not loaded from there."""


class ServedDetector(PythonModel):
    """Loads the detector once and judges images."""

    def load_context(self, context: Any) -> None:
        """Called by MLflow when the model is loaded."""
        folder = Path(context.artifacts[ARTIFACT])
        if HEADS in context.artifacts:
            # As this file and the folder code, part of the model, which whoever loads it here has chosen to run.
            look_in(Path(context.artifacts[HEADS]))
        self._artifact: Artifact = load_artifact(folder)
        self._version = registered_version(folder)

    def predict(self, model_input: list[Request]) -> list[Response]:  # type: ignore[override]
        """Judge images.

        Raises:
            InputError: too many of them, no base64, no image that can be read, an array of another dtype or shape.
        """
        if len(model_input) > MAX_IMAGES:
            raise InputError(f"{len(model_input)} images in one request; send at most {MAX_IMAGES}")
        images = [_decode(request.image, number) for number, request in enumerate(model_input)]
        verdicts = judge(self._artifact, images)
        return [
            Response(
                score=verdict.score,
                threshold=verdict.threshold,
                verdict=verdict.verdict,
                normals_below=verdict.normals_below,
                heatmap=_png(heat_map(self._artifact, rgb, verdict)) if request.return_heatmap else None,
                model_version=self._version,
            )
            for request, rgb, verdict in zip(model_input, images, verdicts, strict=True)
        ]


def registered_version(folder: Path) -> str | None:
    """``<name>/<version>``, which MLflow leaves above the artifacts of a model that it fetched from the registry."""
    for parent in folder.parents[:3]:
        meta = parent / META
        if meta.is_file():
            registered = yaml.safe_load(meta.read_text(encoding="utf-8"))
            return f"{registered['model_name']}/{registered['model_version']}"
    return None


def _decode(image: Any, number: int) -> Any:
    """One image as uint8 [H, W, 3]; of a text, the file that it encodes."""
    if not isinstance(image, str):
        return as_rgb(image, name=f"image {number}")
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"image {number}: not base64") from None
    return read_image(data, name=f"image {number}")


def _png(rgb: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG", compress_level=4)
    return base64.b64encode(file.getvalue()).decode()


mlflow.models.set_model(ServedDetector())
