"""A detector's folder as an MLflow model: code, weights, typed request and response, pinned requirements."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from PIL import Image

import detectors
from detectors.head_texts import VARIABLE
from tracking.mlflow_settings import mlflow_settings
from tracking.packing import HEADS, pack_code, pinned
from tracking.pyfunc import ARTIFACT, Response

REQUIREMENTS = (
    "faiss-cpu",
    "FrEIA",
    "huggingface-hub",
    "matplotlib",
    "mlflow",
    "numpy",
    "pillow",
    "portalocker",
    "pydantic",
    "pytorch-lightning",
    "pyyaml",
    "requests",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "urllib3",
    "xxhash",
)
"""What `detectors` and `tracking.pyfunc` import, to be pinned at the versions that are here."""
ANSWER_SECONDS = 600
"""Until a model with other code has loaded and answered."""
ASK = """
import json, sys
import mlflow.pyfunc
requests = json.load(sys.stdin)
answers = mlflow.pyfunc.load_model(sys.argv[1]).predict(requests)
print(json.dumps([answer.model_dump() for answer in answers]))
"""
"""A program that sends a model the requests of its standard input."""

OWN_METADATA = re.compile(r"anomaly_studies-[^/]*\.dist-info|__pycache__")
"""Names in a model's folder of code that say nothing of what runs: our own entry points, and what Python compiled."""


@contextmanager
def packed(detector: Path, *, metadata: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of an MLflow model made of a detector's folder; gone after the block.

    Args:
        metadata: JSON-able; MLflow shows it with the model.
    """
    with tempfile.TemporaryDirectory(prefix="study-model-") as folder:
        code = Path(folder) / "code"
        code.mkdir()
        cargo = pack_code(detector, code)
        if detector.name != ARTIFACT:
            # MLflow names an artifact by its folder.
            detector = Path(shutil.copytree(detector, Path(folder) / ARTIFACT))
        target = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={ARTIFACT: str(detector)} | ({HEADS: str(cargo.heads)} if cargo.heads else {}),
            code_paths=[str(path) for path in cargo.code_paths],
            pip_requirements=pinned([*REQUIREMENTS, *cargo.requirements]),
            input_example=[{"image": example_image(), "return_heatmap": False}],
            metadata=dict(metadata),
        )
        yield target


@mlflow_settings()
def ask(model: Path, requests: Sequence[Mapping[str, Any]]) -> list[Response]:
    """Load a model's folder as MLflow's server does, and send it requests as plain data.

    A model brings its own code. Where that is more than the code that runs here, as in a model of an earlier version, of a
    plug-in or of a head from a file, it answers in a process of its own: in this one Python would go on with the modules and
    heads that are loaded already, whatever the model has packed.

    Raises:
        RuntimeError: the process of a model with other code failed; the message is the last line that it printed.
        Exception: whatever a model with this code raises.
    """
    model = model.absolute()
    plain = [dict(request) for request in requests]
    if brings_code_of_this_version(model):
        with _loading_undone(model):
            return list(mlflow.pyfunc.load_model(str(model)).predict(plain))
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK, str(model)],
        input=json.dumps(plain),
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
        # The text of a head's file has to be the one in the model.
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return [Response.model_validate(answer) for answer in json.loads(done.stdout.splitlines()[-1])]


def brings_code_of_this_version(model: Path) -> bool:
    """Whether a model's folder brings the package `detectors` as it runs here, and no other code."""
    code = model / "code"
    if (model / "artifacts" / HEADS).exists() or not code.is_dir():
        return False
    brought = {path.name for path in code.iterdir() if not OWN_METADATA.fullmatch(path.name)}
    return brought == {"detectors"} and _files(Path(detectors.__file__).parent) == _files(code / "detectors")


def _files(package: Path) -> dict[str, bytes]:
    paths = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def _loading_undone(model: Path) -> Iterator[None]:
    """Take back what MLflow leaves in the process that loads a model: its code on `sys.path`, its file among the modules."""
    before = mlflow.models.model.__mlflow_model__
    try:
        yield
    finally:
        mlflow.models.model.__mlflow_model__ = before
        sys.path = [entry for entry in sys.path if not Path(entry).is_relative_to(model)]
        for name, module in list(sys.modules.items()):
            if name.startswith("code_model_") and Path(module.__file__ or "").is_relative_to(model):
                del sys.modules[name]


def example_image() -> str:
    """A small gray image, PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
