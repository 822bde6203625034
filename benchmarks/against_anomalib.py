"""PaDiM, PatchCore and CFlow here and in Anomalib: same images, weights, size, split, threads and machine, one after the other.

    python benchmarks/against_anomalib.py --anomalib-python ENV/bin/python --out benchmarks/results/against_anomalib.json

Installs nothing. ENV is an environment of its own with `pip install anomalib safetensors`. Needs MVTEC_AD_ROOT (or --data)
with the MVTec AD category; protocol paper: fit to train/good, score the whole test set. Anomalib is run as its users run it
(`Engine.fit`, `Engine.test`, the MVTecAD datamodule), but in its best case: with our EfficientNet-Lite0 weights, the
normalisation that belongs to them instead of ImageNet's, and without the images that it draws of its results.

Fit and test run from image files: decoding and features are in both. Anomalib's fit holds a validation on the test set, which
ours does not have; `fit_ratio` leaves it out. Its AUROC is given as it reports it, and from the raw scores that it ranks before
it normalises and clamps them. Latency: one image of the final size through the whole module, median, on the host.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from detectors import catalog
from detectors.backbones.pyramid import Backbone, build_backbone
from detectors.base import FitContext
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet, Sample
from detectors.data.splits import make_splits
from detectors.detector import Detector
from detectors.scoring.evaluation import evaluate
from detectors.scoring.metrics import auroc

BACKBONE = "tf_efficientnet_lite0"
IMAGE_SIZE = 256
LATENCY_RUNS = 50
SIDE = Path(__file__).with_name("_anomalib_side.py")


@dataclass(frozen=True)
class Case:
    """One detector in the setting that both sides get; what is not named is each side's own default."""

    strides: tuple[int, ...]
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)


CASES = {
    "padim": Case((4, 8, 16), {"n_features": 100}, {"n_features": 100}),
    "patchcore": Case((8, 16), {"coreset_ratio": 0.01}, {"coreset_sampling_ratio": 0.01}),
    "cflow": Case((4, 8, 16), {"epochs": 1}, {}),
}
"""Anomalib's side of CFlow gets its one epoch from the Engine."""


def choose(samples: Sequence[Sample], most: int | None) -> tuple[Sample, ...]:
    """All, or `most` of them spread evenly, so that every type of a test set stays in."""
    if most is None or most >= len(samples):
        return tuple(samples)
    return tuple(samples[index * len(samples) // most] for index in range(most))


def copy_images(sets: Sequence[ImageSet], root: Path, category: str) -> None:
    """The same images in MVTec's layout for Anomalib's datamodule, which passes over links."""
    for image_set in sets:
        for sample in image_set.samples:
            copies = {root / category / sample.key: sample.file}
            if sample.mask_file is not None:
                copies[root / category / "ground_truth" / sample.defect_type / sample.mask_file.name] = sample.mask_file
            for copy, source in copies.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


def check_same_weights(backbone: Backbone, theirs: Mapping[str, float]) -> None:
    """Raise `RuntimeError` unless both backbones answer the same to the same normalised image."""
    probe = torch.linspace(-1, 1, 3 * IMAGE_SIZE**2).view(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        features = dict(zip(backbone.strides, backbone.model(probe), strict=True))
    for stride, mean in theirs.items():
        ours = float(features[int(stride)].abs().mean())
        if abs(ours - mean) > 1e-4 * abs(ours):
            raise RuntimeError(f"the backbones differ at stride {stride}: mean {ours:.6f} here, {mean:.6f} there")


def run_ours(name: str, case: Case, train: ImageSet, test: ImageSet, seed: int) -> dict[str, Any]:
    """Our side, through the public API, from image files."""
    settings = {parameter.name: parameter.default for parameter in catalog.head_class(name).searchable} | case.ours
    torch.manual_seed(seed)
    detector = Detector(
        build_backbone(BACKBONE, case.strides),
        catalog.head_class(name)(**settings),
        image_size=(IMAGE_SIZE, IMAGE_SIZE),
    )
    start = time.perf_counter()
    detector.fit(train.images(), FitContext(seed=seed, structural_seed=seed))
    fit = time.perf_counter() - start
    start = time.perf_counter()
    prediction = detector.score_features(detector.extract(test.images()))
    evaluation = evaluate(
        scores=prediction.scores,
        maps=prediction.maps,
        labels=test.labels,
        masks=test.masks(),
        defect_types=test.defect_types,
    )
    seconds = time.perf_counter() - start
    image = test.images([0])
    return {
        "fit_seconds": fit,
        "test_seconds": seconds,
        "latency_ms": latency(detector, image),
        "image_auroc": evaluation.metrics["image_auroc"],
        "metrics": evaluation.metrics,
        "settings": settings,
    }


@torch.inference_mode()
def latency(detector: Detector, image: torch.Tensor) -> float:
    """Median milliseconds of one image."""
    seconds = []
    for index in range(LATENCY_RUNS + 5):
        start = time.perf_counter()
        detector(image)
        if index >= 5:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def run_theirs(python: Path, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Anomalib's side in its own process. Raises `RuntimeError` with the end of its output where that fails."""
    task_file, result_file = folder / "task.json", folder / "result.json"
    task_file.write_text(json.dumps(task))
    result_file.unlink(missing_ok=True)
    done = subprocess.run(
        [python, SIDE, task_file, result_file],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": str(task["threads"]), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode or not result_file.is_file():
        raise RuntimeError(f"{python} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


def with_auroc(theirs: dict[str, Any]) -> dict[str, Any]:
    """Anomalib's result with the AUROC of its raw scores in place of these."""
    raw = auroc(torch.tensor(theirs["scores"], dtype=torch.float64).numpy(), torch.tensor(theirs["labels"]).numpy())
    kept = {
        name: value for name, value in theirs.items() if name not in ("scores", "labels", "versions", "feature_means")
    }
    return {
        **kept,
        "image_auroc": raw,
        "fit_without_validation_seconds": theirs["fit_seconds"] - theirs["validation_seconds"],
    }


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median over the repetitions of every plain number."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs) for name in names}


def summarise(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of both sides and how many times longer Anomalib takes."""
    there, here = medians(theirs), medians(ours)
    return {
        "anomalib": there,
        "ours": here,
        "fit_ratio": there["fit_without_validation_seconds"] / here["fit_seconds"],
        "fit_ratio_with_its_validation": there["fit_seconds"] / here["fit_seconds"],
        "test_ratio": there["test_seconds"] / here["test_seconds"],
        "latency_ratio": there["latency_ms"] / here["latency_ms"],
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The medians as Markdown."""
    lines = [
        "| detector | fit s (Anomalib, here, ratio) | test s | one image ms | image AUROC, raw scores |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        summary = result["summary"]
        there, here = summary["anomalib"], summary["ours"]
        cells = [
            f"{there['fit_without_validation_seconds']:.1f}, {here['fit_seconds']:.1f}, {summary['fit_ratio']:.1f}x",
            f"{there['test_seconds']:.1f}, {here['test_seconds']:.1f}, {summary['test_ratio']:.1f}x",
            f"{there['latency_ms']:.0f}, {here['latency_ms']:.0f}, {summary['latency_ratio']:.1f}x",
            f"{there['image_auroc']:.3f}, {here['image_auroc']:.3f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(threads: int) -> dict[str, Any]:
    """Where this runs."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "system": platform.platform()}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anomalib-python", type=Path, required=True, help="Python of the environment with Anomalib")
    parser.add_argument("--data", type=Path, help="folder of MVTec AD; default MVTEC_AD_ROOT")
    parser.add_argument("--category", default="screw")
    parser.add_argument("--detectors", default=",".join(CASES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each side, alternating; medians are compared")
    parser.add_argument("--limit-train", type=int, metavar="N", help="N normals only, to try the script out")
    parser.add_argument("--limit-test", type=int, metavar="N", help="N test images only, of all types")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="Anomalib's loader processes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    arguments.detectors = [name.strip() for name in arguments.detectors.split(",") if name.strip()]
    if unknown := [name for name in arguments.detectors if name not in CASES]:
        parser.error(f"unknown detector {unknown[0]}; known: {', '.join(CASES)}")
    arguments.data = arguments.data or (Path(os.environ["MVTEC_AD_ROOT"]) if os.environ.get("MVTEC_AD_ROOT") else None)
    if arguments.data is None:
        parser.error("give --data, or set MVTEC_AD_ROOT")
    return arguments


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; returns what `--out` stores."""
    torch.set_num_threads(arguments.threads)
    splits = make_splits(
        read_mvtec(arguments.data, arguments.category), protocol="paper", image_size=(IMAGE_SIZE, IMAGE_SIZE)
    )
    train = ImageSet("train", choose(splits.train.samples, arguments.limit_train), splits.train.image_size)
    test = ImageSet("test", choose(splits.test.samples, arguments.limit_test), splits.test.image_size)
    root = folder / "MVTecAD"
    copy_images([train, test], root, arguments.category)
    whole = build_backbone(BACKBONE, [4, 8, 16, 32])
    weights = folder / "backbone.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in whole.model.state_dict().items()}, weights)
    results: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    for name in arguments.detectors:
        if name not in catalog.built_in_names():
            print(
                f"{name}: not among this version's detectors ({', '.join(catalog.built_in_names())}); left out",
                file=sys.stderr,
            )
            continue
        case = CASES[name]
        task = {
            "detector": name,
            "settings": case.theirs,
            "strides": case.strides,
            "backbone": BACKBONE,
            "weights": str(weights),
            "mean": (whole.mean.flatten() / 255).tolist(),
            "std": (whole.std.flatten() / 255).tolist(),
            "root": str(root),
            "category": arguments.category,
            "image_size": IMAGE_SIZE,
            "batch": 32,
            "workers": arguments.workers,
            "threads": arguments.threads,
            "seed": arguments.seed,
            "latency_runs": LATENCY_RUNS,
        }
        theirs, ours = [], []
        for _ in range(arguments.repeat):
            print(f"{name}: Anomalib ...", file=sys.stderr, flush=True)
            found = run_theirs(arguments.anomalib_python, task, folder)
            check_same_weights(whole, found["feature_means"])
            if len(found["labels"]) != len(test) or sum(found["labels"]) != int(test.labels.sum()):
                raise RuntimeError(
                    f"Anomalib scored {len(found['labels'])} images, not the {len(test)} of the test set"
                )
            versions["anomalib"] = found["versions"]
            theirs.append(with_auroc(found))
            print(f"{name}: here ...", file=sys.stderr, flush=True)
            ours.append(run_ours(name, case, train, test, arguments.seed))
        results[name] = {
            "strides": case.strides,
            "settings": {"anomalib": case.theirs, "ours": case.ours},
            "runs": {"anomalib": theirs, "ours": ours},
            "summary": summarise(theirs, ours),
        }
    packages = ("anomaly-studies", "torch", "torchvision", "timm", "numpy")
    versions["ours"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(arguments.threads),
        "versions": versions,
        "data": {"category": arguments.category, "train": len(train), "test": test.counts, "image_size": IMAGE_SIZE},
        "backbone": whole.identity.to_json(),
        "loader_processes": arguments.workers,
        "seed": arguments.seed,
        "results": results,
    }


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(arguments, Path(folder))
    print(table(found["results"]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
