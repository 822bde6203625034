"""The detector as MLflow serves it. MLflow runs this file (models from code): no pickle; weights are a safetensors artifact.

`mlflow.pyfunc.load_model("models:/padim_screw@champion").predict([{"image": "<base64>"}])`
"""

# Without `annotations` from __future__: MLflow reads the types of `predict` to check each request.
import base64
import binascii
import io
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.pyfunc import PythonModel
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from detectors.data.images import read_image
from detectors.errors import InputError
from detectors.head_files import look_in
from detectors.runtime.artifact import Artifact, load_artifact
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


class Request(BaseModel):
    """One image."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(max_length=MAX_BASE64)
    """An image file (PNG, JPEG ...), base64."""
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
            InputError: too many of them, no base64, or no image that can be read.
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
            found = yaml.safe_load(meta.read_text(encoding="utf-8"))
            return f"{found['model_name']}/{found['model_version']}"
    return None


def _decode(text: str, number: int) -> Any:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"image {number}: not base64") from None
    return read_image(data, name=f"image {number}")


def _png(rgb: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG", compress_level=4)
    return base64.b64encode(file.getvalue()).decode()


mlflow.models.set_model(ServedDetector())
