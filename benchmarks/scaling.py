"""Cost as work grows: seconds, peak memory and store size against image size and number of good images.

Each point is a process of its own, so that its peak memory is its own: features of good screws (turned copies where there are not
enough) are computed into an empty store, a detector is fitted to them, and one image after the other is scored.

    MVTEC_AD_ROOT=... python benchmarks/scaling.py --out benchmarks/results/scaling.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES, NORMALS = (256, 384, 512, 768, 1024), (80, 160, 320, 640, 1000)
AT_NORMALS, AT_SIZE = 80, 256
SCORED = 8
"""Images that are scored one by one; their median counts."""
SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": {"coreset_ratio": 0.01, "neighbourhood": 0, "whitening": 0.05},
    "padim": {"n_features": 100},
}


def measure(name: str, size: int, normals: int) -> dict[str, float]:
    """One point, in this process."""
    import numpy as np
    import torch

    from detectors.backbones.pyramid import build_backbone
    from detectors.base import FitContext
    from detectors.catalog import head_class
    from detectors.data.mvtec import read_mvtec
    from detectors.data.samples import ImageSet
    from detectors.detector import Detector
    from studies.worker.feature_store import FeatureStore

    samples = read_mvtec(Path(os.environ["MVTEC_AD_ROOT"]), "screw").train
    turned = [replace(sample, key=f"{sample.key}#turn{turn}", turn=turn) for turn in range(1, 8) for sample in samples]
    train = ImageSet("train", tuple([*samples, *turned][:normals]), (size, size))
    backbone = build_backbone("tf_efficientnet_lite0", (8, 16))
    detector = Detector(backbone, head_class(name)(**SETTINGS[name]), image_size=(size, size))
    images = train.images(range(SCORED))
    detector.backbone(images[:1])  # the first pass allocates
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), max_bytes=2**40)
        began = time.perf_counter()
        features = store.features(train, backbone, device=torch.device("cpu"))
        extracted = time.perf_counter()
        detector.fit_features(features, FitContext())
        fitted = time.perf_counter()
        stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        seconds = []
        for image in images:
            start = time.perf_counter()
            detector(image[None])
            seconds.append(time.perf_counter() - start)
    return {
        "extract_seconds": extracted - began,
        "fit_seconds": fitted - extracted,
        "image_ms": 1000 * float(np.median(seconds)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "store_mb": stored / 1e6,
    }


def main() -> None:
    """Measure every point and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--point", nargs=3, metavar=("DETECTOR", "SIZE", "NORMALS"), help="one point, to standard output"
    )
    arguments = parser.parse_args()
    if arguments.point:
        name, size, normals = arguments.point
        print(json.dumps(measure(name, int(size), int(normals))))
        return
    points = [(size, AT_NORMALS) for size in SIZES] + [
        (AT_SIZE, normals) for normals in NORMALS if normals != AT_NORMALS
    ]
    rows = []
    for name in SETTINGS:
        for size, normals in points:
            command = [sys.executable, __file__, "--point", name, str(size), str(normals)]
            done = subprocess.run(command, capture_output=True, text=True)
            figures = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr.strip()[-200:]}
            rows.append({"detector": name, "size": size, "normals": normals, **figures})
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "settings": SETTINGS,
        "backbone": "tf_efficientnet_lite0, strides 8+16",
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
