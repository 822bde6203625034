"""The false-alarm rate that a threshold promises, against what good images show that took no part.

    python benchmarks/false_alarms.py --data ../shared/data --splits 50 --out benchmarks/results/false_alarms.json

For each product and detector, 50 times: draw what a factory has, fit, choose the threshold for 1 % and for 5 % false alarms as
`study run` does, and count on all good images that were not drawn. Drawn are

- MVTec AD screw: 240 of the 361 good images, 20 of them held out as validation, as holdout has it; 121 take no part;
- VisA macaroni1 as a plain folder: 60 of the 200 good images and 15 of the 40 defective ones, divided as `study run --images`
  does: 48 train, 6 validation, 6 test; 140 good images take no part.

"before" is the rule of version 0.2, with at most floor(rate n) alarms among the n good images of validation. "after" is the
conservative quantile of train out of fold and validation. Each promises a rate: (k + 1) / (n + 1) on average, and below an upper
bound with 95 %. A promise holds in a draw if the alarms among the m images are no more than 95 % of such counts would be: the
beta-binomial quantile for m, k + 1, n - k, in which the chance of drawing these m is accounted for. Recall is on the
defective images that took no part (all of screw's; 25 of macaroni's).

EfficientNet-Lite0, strides 8 and 16, the detectors' defaults. So that 50 draws with eleven fits each do not take a day, images
have 128 px, PatchCore's bank is a fifth of its default, and FastFlow and the autoencoder (of features) train for three epochs:
recall is no benchmark of the detectors, it compares the two rules.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import betabinom

from detectors.backbones.bundled import SMALLEST
from detectors.backbones.pyramid import Backbone, build_backbone
from detectors.base import FitContext
from detectors.catalog import head_class
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet, Sample
from detectors.detector import Detector
from detectors.features import Features
from detectors.scoring.operating_point import GoodScores, Threshold, choose_threshold, just_above
from studies.worker.out_of_fold import divide, predictions, twin_predictions

SIZE = (128, 128)
STRIDES = (8, 16)
RATES = (0.01, 0.05)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "padim": {},
    "patchcore": {"coreset_ratio": 0.002},
    "fastflow": {"epochs": 3},
    "autoencoder": {"epochs": 3},
}


@dataclass(frozen=True)
class Draw:
    """What a factory has, by index of all good and of all defective images."""

    train: list[int]
    validation: list[int]
    left_out: list[int]
    """Good images that take no part."""
    defects: list[int]
    """Defective images that take no part."""


@dataclass(frozen=True)
class Product:
    """All images of a product, with their features."""

    name: str
    good: list[Sample]
    features: Features
    """Of all good images, then of all defective ones."""
    defective: int

    def draw(self, seed: int) -> Draw:
        """What is drawn with a seed."""
        generator = np.random.default_rng(seed)
        order = [int(index) for index in generator.permutation(len(self.good))]
        defects = [int(index) for index in generator.permutation(self.defective)]
        if self.name == "screw":
            return Draw(order[20:240], order[:20], order[240:], defects)
        return Draw(order[12:60], order[:6], order[60:], defects[15:])


def main() -> None:
    """Run what is asked for and print a line for each product and detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--products", nargs="+", default=["screw", "macaroni1"], choices=["screw", "macaroni1"])
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--detectors", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    backbone = build_backbone(SMALLEST, STRIDES)
    results, roots = [], {"screw": given.data / "MVTecAD", "macaroni1": given.data / "VisA"}
    for name in given.products:
        product = read_product(name, roots[name], backbone)
        for detector in given.detectors:
            begin = time.perf_counter()
            rows = [row for seed in range(given.splits) for row in one_split(product, detector, backbone, seed)]
            for result in summarised(name, detector, rows):
                results.append(result)
                print(json.dumps(result), flush=True)
            print(f"{name} {detector}: {time.perf_counter() - begin:.0f} s", flush=True)
    if given.out:
        machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        given.out.write_text(json.dumps({"splits": given.splits, **machine, "results": results}, indent=1) + "\n")


def read_product(name: str, root: Path, backbone: Backbone) -> Product:
    """All images of a product with their features."""
    dataset = read_mvtec(root, name, name="mvtec")
    good = [*dataset.train, *(sample for sample in dataset.test if not sample.label)]
    defective = [sample for sample in dataset.test if sample.label]
    images = ImageSet("all", (*good, *defective), SIZE)
    parts = [backbone(images.images(range(start, min(start + 16, len(images))))) for start in range(0, len(images), 16)]
    pyramid = {stride: torch.cat([part[stride].detach() for part in parts]) for stride in backbone.strides}
    return Product(name, good, Features.from_pyramid(pyramid, SIZE), len(defective))


def one_split(product: Product, name: str, backbone: Backbone, seed: int) -> Iterator[dict[str, Any]]:
    """Both rules at each rate on one draw: what they promise and what is found."""
    draw = product.draw(seed)
    trained = head_class(name).trained

    def fit(features: Features, number: int = 0) -> Detector:
        torch.manual_seed(seed)
        head = head_class(name)(**SETTINGS[name])
        return Detector(backbone, head, image_size=SIZE).fit_features(features, FitContext(seed=seed))

    def scores(detector: Detector, indices: list[int]) -> NDArray[np.float64]:
        parts = [block.scores.numpy() for block in predictions(detector, product.features, indices)]
        return np.concatenate(parts).astype(np.float64)

    samples = [product.good[index] for index in draw.train]
    features = product.features.take(draw.train)
    parts = divide(samples, list(range(len(samples))), None, trained=trained)
    whole = fit(features)
    kept = fit(features.take(parts[0].fitted)) if trained else whole
    if trained:
        out_of_fold = scores(kept, [draw.train[index] for index in parts[0].held_out])
    else:
        blocks = [block.scores.numpy() for _, block in twin_predictions(features, parts, fit)]
        out_of_fold = np.concatenate(blocks).astype(np.float64)
    defects = [len(product.good) + index for index in draw.defects]
    for rate in RATES:
        held_out = scores(whole, draw.validation)
        allowed = math.floor(rate * len(held_out) + 1e-9)
        value = just_above(float(np.sort(held_out)[len(held_out) - 1 - allowed]), held_out)
        before = Threshold(value, "false_alarm_rate", "validation", len(held_out), rate=rate,
                           expected_rate=(allowed + 1) / (len(held_out) + 1))  # fmt: skip
        known = GoodScores(np.concatenate([out_of_fold, scores(kept, draw.validation)]), "good", (), len(out_of_fold))
        after = choose_threshold(rule="false_alarm_rate", good=known, rate=rate)
        for rule, detector, threshold in (("before", whole, before), ("after", kept, after)):
            yield judged(rule, rate, threshold, scores(detector, draw.left_out), scores(detector, defects)) | {
                "seed": seed
            }


def judged(
    rule: str, rate: float, threshold: Threshold, left_out: NDArray[np.float64], defects: NDArray[np.float64]
) -> dict[str, Any]:
    """What a threshold promised, and what is found on the images that took no part."""
    alarms, m = int(np.count_nonzero(left_out >= threshold.value)), len(left_out)
    k, n = threshold.alarms or 0, threshold.normals
    return {
        "rule": rule,
        "rate": rate,
        "supported": threshold.supports_rate,
        "expected": threshold.expected_rate,
        "upper": threshold.largest_rate,
        "found": alarms / m,
        "holds": alarms <= int(betabinom(m, k + 1, n - k).ppf(0.95)),
        "below_upper": alarms / m <= (threshold.largest_rate or 0.0),
        "recall": float(np.mean(defects >= threshold.value)),
    }


def summarised(product: str, detector: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over the draws, for each rule and rate."""
    for rate in RATES:
        for rule in ("before", "after"):
            chosen = [row for row in rows if (row["rule"], row["rate"]) == (rule, rate)]
            means = {
                name: round(float(np.mean([row[name] for row in chosen])), 4)
                for name in ("expected", "upper", "found", "holds", "below_upper", "recall")
            }
            yield {
                "product": product,
                "detector": detector,
                "rate": rate,
                "rule": rule,
                "supported": all(row["supported"] for row in chosen),
                **means,
                "found_largest": round(max(row["found"] for row in chosen), 4),
                "recall_std": round(float(np.std([row["recall"] for row in chosen])), 4),
            }


if __name__ == "__main__":
    main()
