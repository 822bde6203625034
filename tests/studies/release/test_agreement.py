"""One model, five ways to ask it, the same real images: the same scores."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
import uvicorn

from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.catalog import built_in_names, head_class
from detectors.data.images import read_image, resize_image
from detectors.detector import Detector
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.runtime.export import export_detector
from detectors.runtime.exported import load_exported
from detectors.runtime.verdicts import judge
from detectors.tiles import Tiles
from studies.serving.app import create_app
from studies.serving.models import FolderSource, Keeper
from studies.serving.settings import Settings
from tracking.model import ask, packed

SIZE = (256, 256)
SETTINGS = {
    "padim": {"n_features": 100},
    "patchcore": {"coreset_ratio": 0.01, "neighbourhood": 0},
    "cflow": {"coupling_blocks": 2, "condition_dimension": 32, "epochs": 1},
    **{name: {"epochs": 2} for name in ("fastflow", "cutpaste", "autoencoder", "vae", "ganomaly")},
}
"""Nobody asks how good they are, so that the trained ones are trained little."""
TOLERANCE = 1e-4


TILES = Tiles(144, 16)
"""Four of an image."""


@pytest.mark.parametrize(
    ("name", "tiles"),
    [*((name, None) for name in built_in_names()), ("patchcore", TILES), ("padim", TILES)],
    ids=lambda value: value if isinstance(value, str) else "tiles" if value else "whole",
)
def test_every_way_to_ask_gives_the_same_scores(
    real_data: Path, tmp_path: Path, name: str, tiles: Tiles | None
) -> None:
    screw = real_data / "MVTecAD" / "screw"
    fitted_on = sorted((screw / "train" / "good").glob("*.png"))[:16]
    asked = [sorted((screw / "test" / kind).glob("*.png"))[0] for kind in ("good", "scratch_neck", "thread_top")]
    images = torch.stack([torch.from_numpy(resize_image(read_image(path), SIZE).copy()) for path in fitted_on])
    backbone = build_backbone("tf_efficientnet_lite0", (8, 16))
    head = head_class(name)(**SETTINGS.get(name, {}))
    detector = Detector(backbone, head, image_size=SIZE, smoothing_sigma=4.0, tiles=tiles)
    detector.fit(images.permute(0, 3, 1, 2).contiguous(), FitContext())
    artifact = Artifact(detector)
    folder = save_artifact(artifact, tmp_path / "detector")
    found = {"in memory": [verdict.score for verdict in judge(artifact, [read_image(path) for path in asked])]}

    found["saved and loaded"] = [
        verdict.score for verdict in judge(load_artifact(folder), [read_image(path) for path in asked])
    ]
    with packed(folder, metadata={}) as model:
        requests_ = [{"image": base64.b64encode(path.read_bytes()).decode()} for path in asked]
        found["MLflow pyfunc"] = [answer.score for answer in ask(model, requests_)]
    found["HTTP"] = over_http(folder, asked)
    inputs = torch.cat([artifact.resize(read_image(path)) for path in asked])
    export_detector(artifact, tmp_path / "model.onnx", "onnx", images=inputs)
    runtime = load_exported(tmp_path / "model.onnx")
    found["ONNX"] = [verdict.score for verdict in judge(runtime, [read_image(path) for path in asked])]
    wanted = np.array(found.pop("in memory"))
    for way, scores in found.items():
        gap = float(np.abs(np.array(scores) - wanted).max() / np.abs(wanted).max())
        assert gap <= TOLERANCE, f"{way}: {gap:.1e}"


def over_http(folder: Path, asked: list[Path]) -> list[float]:
    keeper = Keeper(FolderSource(folder, "screws"), device=torch.device("cpu"))
    keeper.start()
    server = uvicorn.Server(uvicorn.Config(create_app(keeper, Settings()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        files = [("file", (path.name, path.read_bytes())) for path in asked]
        answer = requests.post(f"http://127.0.0.1:{port}/predict", files=files, timeout=120)
        assert answer.status_code == 200, answer.text
        return [one["score"] for one in answer.json()["predictions"]]
    finally:
        server.should_exit = True
        thread.join()
