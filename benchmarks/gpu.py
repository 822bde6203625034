"""Every detector on a GPU beside the CPU of the same machine: whether the scores agree, and what each part takes.

    python benchmarks/gpu.py --data SCREW --out benchmarks/results/gpu.json

SCREW holds ``train/good`` and ``test/TYPE`` with MVTec AD's screws. Nothing but `detectors` and what it imports is needed: no
Optuna, no MLflow, no network. Per detector, with one seed and few epochs: seconds to extract features, to fit and to score;
milliseconds for one image and for a batch; image AUROC on both devices; the largest difference of a score to the CPU's, and the
largest that allowing TF32 in the process makes, both relative to the spread of the scores; peak memory of the fit. A detector
that fails is a line that says so, and the exit code is 1. The first detector's extraction includes the start of CUDA.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.catalog import head_class
from detectors.data.images import read_image, resize_image
from detectors.detector import Detector
from detectors.scoring.metrics import auroc

CPU = torch.device("cpu")
SIZE = (256, 256)
BACKBONE = "tf_efficientnet_lite0"
DETECTORS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "padim": (BACKBONE, (4, 8, 16), {"n_features": 100}),
    "patchcore": (BACKBONE, (8, 16), {"coreset_ratio": 0.01, "whitening": 0.05, "neighbourhood": 0}),
    "spade": (BACKBONE, (8, 16), {}),
    "cflow": (BACKBONE, (8, 16), {"epochs": 2}),
    "fastflow": (BACKBONE, (16,), {"epochs": 3}),
    "vae": ("pixels", (4,), {"epochs": 3}),
    "autoencoder": ("pixels", (4,), {"epochs": 3}),
    "ganomaly": ("pixels", (4,), {"epochs": 3}),
    "cutpaste": ("pixels", (1,), {"network": BACKBONE, "epochs": 1, "batch": 8}),
}
"""{detector: backbone, strides, settings}; all else is as by default."""
BATCH = 16
LARGE_BATCH = 32


def load(files: list[Path]) -> Tensor:
    """uint8 [N, 3, H, W]."""
    arrays = [resize_image(read_image(file), SIZE) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def screws(data: Path, *, train: int, test: int) -> tuple[Tensor, Tensor, list[int]]:
    """Normals, test images of all types in even steps, and the labels of these (1: defective)."""
    normals = sorted((data / "train" / "good").iterdir())[:train]
    labelled = [
        (file, int(kind.name != "good"))
        for kind in sorted((data / "test").iterdir())
        for file in sorted(kind.iterdir())
    ]
    labelled = labelled[:: max(1, len(labelled) // test)]
    return load(normals), load([file for file, _ in labelled]), [label for _, label in labelled]


def seconds(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """What the work takes with everything that it left to the device, and what it returns."""
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, result


def milliseconds(detector: Detector, images: Tensor, device: torch.device, *, repeats: int) -> float:
    """Median from images on the device to scores on the host, after three calls that do not count."""
    images, taken = images.to(device), []
    for _ in range(repeats + 3):
        taken.append(seconds(device, lambda: detector(images).scores.cpu())[0])
    return 1000 * float(np.median(taken[3:]))


def score(detector: Detector, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([detector(batch.to(device)).scores.cpu() for batch in images.split(BATCH)])


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """As a program around the detectors may have it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def measure(name: str, train: Tensor, test: Tensor, labels: list[int], device: torch.device) -> dict[str, Any]:
    """One row of the table. Raises whatever the detector raises."""
    backbone, strides, settings = DETECTORS[name]
    detector = Detector(build_backbone(backbone, strides), head_class(name)(**settings), image_size=SIZE)
    detector.backbone.to(device)
    extract_s, features = seconds(device, lambda: detector.extract(train.to(device)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        context = FitContext(device=device, checkpoint_dir=Path(folder))
        fit_s, _ = seconds(device, lambda: detector.fit_features(features, context))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    detector.to(device)
    score_s, there = seconds(device, lambda: score(detector, test, device))
    with tf32_allowed():
        loose = score(detector, test, device)
    row = {
        "detector": name,
        "extract_s": extract_s,
        "fit_s": fit_s,
        "fit_peak_mb": peak and peak / 1e6,
        "score_s": score_s,
        "one_image_ms": milliseconds(detector, test[:1], device, repeats=50),
        "batch_ms": milliseconds(detector, test[:LARGE_BATCH], device, repeats=10),
    }
    detector.to(CPU)
    here = score(detector, test, CPU)
    spread = float(here.std())
    return row | {
        "auroc": auroc(there, labels),
        "auroc_on_cpu": auroc(here, labels),
        "difference_to_cpu": float((there - here).abs().max()) / spread,
        "difference_with_tf32_allowed": float((there - loose).abs().max()) / spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/good and test/TYPE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--detectors", default=",".join(DETECTORS), help="names, with commas")
    parser.add_argument("--train", type=int, default=160, help="good images to fit")
    parser.add_argument("--test", type=int, default=80, help="images to score, at least")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if unknown := [name for name in arguments.detectors.split(",") if name not in DETECTORS]:
        parser.error(f"no detector {', '.join(unknown)}; there are {', '.join(DETECTORS)}")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu tries the script without one")
    for folder in (arguments.data / "train" / "good", arguments.data / "test"):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder; --data holds train/good and test/TYPE")
    train, test, labels = screws(arguments.data, train=arguments.train, test=arguments.test)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {version('torch')}: {len(train)} good images fitted, {len(test)} scored", flush=True)
    rows: list[dict[str, Any]] = []
    for detector in arguments.detectors.split(","):
        try:
            rows.append(measure(detector, train, test, labels, device))
        except Exception as error:  # the others are measured all the same
            rows.append({"detector": detector, "failed": f"{type(error).__name__}: {error}"})
        print(json.dumps(rows[-1], default=float), flush=True)
        gc.collect()
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"device": name, "machine": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "images": {"fitted": len(train), "scored": len(test), "size": list(SIZE)},
        "runs": rows,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
