"""Greedy k-center against the textbook loop: seconds, and whether the picks are the same.

    python benchmarks/coreset.py --out benchmarks/results/coreset.json

The textbook loop makes one full pass over all points per pick, in torch. By default both run to the end and every pick is
compared. `--textbook-picks N` runs the loop for N picks only and multiplies (its passes all cost the same): figures
that come from this are called extrapolated, and only those N picks are compared. Both sides run by turns on the same machine.

The points are the patch features of the real MVTec AD screw training images (MVTEC_AD_ROOT; EfficientNet-Lite0, 256 px,
strides 8 and 16, 3x3 mean) in a random projection, as PatchCore uses them; without MVTEC_AD_ROOT, random points of the
same number, which the table and the JSON say.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.backbones.pyramid import build_backbone
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import make_splits
from detectors.heads.patchcore.coreset import CoresetOrder, greedy_k_center
from detectors.heads.patchcore.embedding import patch_features
from detectors.heads.patchcore.head import Patchcore
from studies.worker.feature_store import FeatureStore

CPU = torch.device("cpu")
BACKBONE, STRIDES, SIZE = "tf_efficientnet_lite0", (8, 16), (256, 256)
POSITIONS, IMAGES = 1024, 320


def textbook(points: Tensor, *, start: int) -> Iterator[tuple[int, float]]:
    """Picks without end, each with the seconds that it took."""
    nearest = torch.full((len(points),), float("inf"))
    pick = start
    while True:
        begin = time.perf_counter()
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(points - points[pick], dim=1))
        following = int(nearest.argmax())
        yield pick, time.perf_counter() - begin
        pick = following


def screw_patches(root: Path, store: Path) -> Tensor:
    """Patch features of the training images, [points, D]; the backbone runs where the store does not hold its features."""
    train = make_splits(read_mvtec(root, "screw"), protocol="holdout", image_size=SIZE).train
    features = FeatureStore(store).features(train, build_backbone(BACKBONE, STRIDES), device=CPU)
    height, _ = features.grids[STRIDES[0]]
    reach = int(Patchcore().settings["neighbourhood"])
    return (
        patch_features(features, slice(0, height), reach=reach, device=CPU).flatten(0, 1).transpose(1, 2).flatten(0, 1)
    )


def make_points(dimension: int, store: Path) -> tuple[Tensor, str]:
    """float32 [N, dimension] and what they are."""
    generator = torch.Generator().manual_seed(0)
    root = os.environ.get("MVTEC_AD_ROOT")
    if root is None:
        points = torch.randn(POSITIONS * IMAGES, dimension, generator=generator)
        return points, "random Gaussian points, not features (MVTEC_AD_ROOT is not set)"
    patches = screw_patches(Path(root), store)
    matrix = torch.randn(patches.shape[1], dimension, generator=generator) / dimension**0.5
    return patches @ matrix, f"MVTec AD screw, {BACKBONE}, {SIZE[0]} px, strides {STRIDES}, projected"


def shortfall(points: Tensor, order: CoresetOrder, picks: int) -> float:
    """How far, relatively, the worst of the first picks falls short of the largest distance, in float64."""
    values, worst = points.double(), 0.0
    nearest = torch.full((len(points),), float("inf"), dtype=torch.float64)
    for earlier, pick in zip(order.picks[: picks - 1].tolist(), order.picks[1:picks].tolist(), strict=True):
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(values - values[earlier], dim=1))
        worst = max(worst, 1 - float(nearest[pick] / nearest.max()))
    return worst


def measure(points: Tensor, k: int, *, textbook_picks: int | None, repeats: int, checked: int) -> dict[str, Any]:
    """One row of the table: both sides by turns, so that a busy machine slows both, and medians of both."""
    loop, seconds = textbook(points, start=0), []
    passes: list[tuple[int, float]] = []
    measured = min(k, textbook_picks or k)
    for turn in range(repeats):
        begin = time.perf_counter()
        order = greedy_k_center(points, k)
        seconds.append(time.perf_counter() - begin)
        share = measured * (turn + 1) // repeats - len(passes)
        passes += itertools.islice(loop, share)
    measured, ours = min(measured, len(order)), statistics.median(seconds)
    per_pick = [taken for _, taken in passes]
    extrapolated = measured < len(order)
    theirs = statistics.median(per_pick) * len(order) if extrapolated else sum(per_pick)
    pairs = zip(order.picks.tolist(), (pick for pick, _ in passes), strict=False)
    return {
        "points": len(points),
        "dimension": points.shape[1],
        "picks": len(order),
        "seconds": round(ours, 3),
        "all_seconds": [round(value, 3) for value in seconds],
        "textbook_picks_measured": measured,
        "textbook_seconds_per_pick": round(statistics.median(per_pick), 5),
        "textbook_seconds": round(theirs, 1),
        "textbook_extrapolated": extrapolated,
        "ratio": round(theirs / ours, 1),
        "same_picks": sum(found == wanted for found, wanted in pairs),
        "picks_checked_in_float64": min(checked, len(order)),
        "largest_shortfall": shortfall(points, order, min(checked, len(order))),
    }


def show(row: dict[str, Any]) -> None:
    measured = row["textbook_picks_measured"]
    how = f"extrapolated from {measured} picks" if row["textbook_extrapolated"] else "measured"
    print(
        f"{row['points']} x {row['dimension']}, {row['picks']} picks: {row['seconds']:.2f} s; textbook "
        f"{row['textbook_seconds']:.0f} s ({how}), {row['ratio']:.0f} times; {row['same_picks']} of {measured} picks the "
        f"same; float64 shortfall at most {row['largest_shortfall']:.1e} in {row['picks_checked_in_float64']} picks"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, nargs="+", default=[3276])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--textbook-picks", type=int, help="run the textbook loop for this many picks and extrapolate")
    parser.add_argument("--checked", type=int, default=100, help="picks checked in float64, one full pass each")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of ours, between shares of the textbook loop; medians count"
    )
    parser.add_argument("--store", type=Path, help="a feature store to use and fill; else a temporary one")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dimension in arguments.dimensions:
            points, origin = make_points(dimension, arguments.store or Path(folder))
            print(origin)
            for picks in arguments.picks:
                row = measure(
                    points,
                    picks,
                    textbook_picks=arguments.textbook_picks,
                    repeats=arguments.repeats,
                    checked=arguments.checked,
                )
                show(row)
                rows.append({"origin": origin} | row)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "runs": rows,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
