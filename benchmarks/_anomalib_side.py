"""Anomalib's half of `against_anomalib.py`: run by the Python of an environment in which Anomalib is installed.

    PYTHON _anomalib_side.py TASK.json RESULT.json

Takes one detector through `Engine.fit` and `Engine.test`, then measures a single image through the whole module and collects
the raw scores. Imports nothing of ours.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Cflow, Padim, Patchcore
from anomalib.models.components.feature_extractors import TimmFeatureExtractor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, seed_everything
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

MODELS = {"padim": Padim, "patchcore": Patchcore, "cflow": Cflow}


class ValidationClock(Callback):
    """Seconds that `Engine.fit` spends on validation, which Anomalib does on the test set.

    From the epoch's start on: at that of the validation itself PaDiM and PatchCore still fit what they gathered.
    """

    def __init__(self) -> None:
        self.seconds, self._start = 0.0, 0.0

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds += time.perf_counter() - self._start


def layer_names(backbone: str, strides: list[int]) -> list[str]:
    """timm's names of the deepest layers at these strides, as Anomalib asks for them."""
    info = timm.create_model(backbone, pretrained=False, features_only=True).feature_info
    names = dict(zip(info.reduction(), info.module_name(), strict=True))
    return [names[stride] for stride in strides]


def build(task: dict[str, Any]) -> nn.Module:
    """The detector with our weights in its backbone."""
    size = (task["image_size"], task["image_size"])
    transform = Compose([Resize(size, antialias=True), Normalize(mean=task["mean"], std=task["std"])])
    model = MODELS[task["detector"]](
        backbone=task["backbone"],
        layers=layer_names(task["backbone"], task["strides"]),
        pre_trained=False,
        pre_processor=PreProcessor(transform=transform),
        # Images of its results would be written during the test, which ours does not do either.
        visualizer=False,
        **task["settings"],
    )
    weights = load_file(task["weights"])
    extractors = [module for module in model.modules() if isinstance(module, TimmFeatureExtractor)]
    if not extractors:
        raise RuntimeError("found no backbone to load the weights into")
    for extractor in extractors:
        own = extractor.feature_extractor.state_dict()
        extractor.feature_extractor.load_state_dict({name: weights[name] for name in own}, strict=True)
    return model


@torch.inference_mode()
def feature_means(model: nn.Module, strides: list[int], probe: Tensor) -> dict[str, float]:
    """Mean magnitude of the features of a normalised image by stride: ours have to agree."""
    extractor = next(module for module in model.modules() if isinstance(module, TimmFeatureExtractor))
    features = extractor.feature_extractor.eval()(probe)
    return {str(stride): float(values.abs().mean()) for stride, values in zip(strides, features, strict=True)}


@torch.inference_mode()
def latency(model: nn.Module, side: int, runs: int) -> float:
    """Median milliseconds of one image of the final size, from 0..1 pixels to scores and map on the host."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    seconds = []
    for index in range(runs + 5):
        start = time.perf_counter()
        model(image)
        if index >= 5:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


@torch.inference_mode()
def raw_scores(model: nn.Module, data: MVTecAD) -> tuple[list[float], list[int]]:
    """Image scores as the model gives them, before they are normalised or clamped, and labels."""
    scores: list[float] = []
    labels: list[int] = []
    for batch in data.test_dataloader():
        prediction = model.model(model.pre_processor.transform(batch.image))
        score = prediction.pred_score
        if score is None:
            score = prediction.anomaly_map.flatten(1).amax(dim=1)
        scores += score.flatten().double().tolist()
        labels += batch.gt_label.flatten().int().tolist()
    return scores, labels


def run(task: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(task["threads"])
    seed_everything(task["seed"])
    data = MVTecAD(
        root=task["root"],
        category=task["category"],
        train_batch_size=task["batch"],
        eval_batch_size=task["batch"],
        num_workers=task["workers"],
        seed=task["seed"],
    )
    model = build(task)
    probe = torch.linspace(-1, 1, 3 * task["image_size"] ** 2).view(1, 3, task["image_size"], task["image_size"])
    means = feature_means(model, task["strides"], probe)
    clock = ValidationClock()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            callbacks=[clock],
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            enable_progress_bar=False,
        )
        start = time.perf_counter()
        engine.fit(model=model, datamodule=data)
        fit = time.perf_counter() - start
        start = time.perf_counter()
        reported = engine.test(model=model, datamodule=data)[0]
        test = time.perf_counter() - start
    model.eval()
    scores, labels = raw_scores(model, data)
    packages = ("anomalib", "torch", "torchvision", "timm", "lightning", "FrEIA")
    return {
        "fit_seconds": fit,
        "validation_seconds": clock.seconds,
        "test_seconds": test,
        "latency_ms": latency(model, task["image_size"], task["latency_runs"]),
        "reported": {name: float(value) for name, value in reported.items()},
        "scores": scores,
        "labels": labels,
        "feature_means": means,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run(task)))


if __name__ == "__main__":
    main()
