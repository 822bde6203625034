"""The plots of a trial: ROC curve, precision-recall curve, and heat maps with the worst mistakes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from detectors.base import Prediction
from detectors.data.samples import ImageSet
from detectors.runtime.overlays import outline, overlay, save_png, side_by_side
from detectors.scoring.metrics import (
    UndefinedMetricError,
    auroc,
    average_precision,
    f1_max,
    pr_curve_points,
    roc_curve_points,
)

BLUE, ORANGE = "#0072B2", "#D55E00"
"""Two colours of the Okabe-Ito palette, which colour-blind people can distinguish."""


def write_curves(scores: NDArray[np.float32], labels: NDArray[np.int8], folder: Path, *, title: str) -> None:
    """Write ``roc.png`` and ``pr.png``; nothing if all images have the same label.

    Args:
        scores: [N] image scores.
        labels: [N], 0 good, 1 defective.
    """
    try:
        roc, pr = roc_curve_points(scores, labels, limit=500), pr_curve_points(scores, labels, limit=500)
        area, precision = auroc(scores, labels), average_precision(scores, labels)
    except UndefinedMetricError:
        return
    _curve(
        roc,
        folder / "roc.png",
        ("false alarm rate", "detection rate"),
        f"{title}: AUROC {area:.3f}",
        BLUE,
        diagonal=True,
    )
    _curve(pr, folder / "pr.png", ("recall", "precision"), f"{title}: average precision {precision:.3f}", ORANGE)


def _curve(
    points: tuple[NDArray[np.float64], NDArray[np.float64]],
    path: Path,
    axis_names: tuple[str, str],
    title: str,
    colour: str,
    *,
    diagonal: bool = False,
) -> None:
    figure = Figure(figsize=(4, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*points, color=colour, linewidth=2)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def write_heat_maps(
    prediction: Prediction, image_set: ImageSet, folder: Path, *, most: int, threshold: float | None = None
) -> list[Path]:
    """Write images beside their heat maps as PNG files, the worst mistakes first; the outline of the mask is drawn on the image.

    Args:
        prediction: scores [N] and maps [N, H, W] of the set.
        most: largest number of files.
        threshold: score from which on an image counts as defective; default the one with the best F1.

    Returns:
        The files, whose names contain the verdict and the name of the image.
    """
    scores, labels = prediction.scores.numpy(), image_set.labels
    maps = prediction.maps.numpy()
    low, high = colour_range(maps, labels)
    written = []
    for rank, (index, verdict) in enumerate(worst_first(scores, labels, most, threshold=threshold), start=1):
        rgb, mask = image_set.load(index)
        marked = outline(rgb, mask) if mask is not None and mask.any() else rgb
        sheet = side_by_side(marked, overlay(rgb, maps[index], low=low, high=high))
        name = image_set.samples[index].key.replace("/", "-").replace("#", "-").rpartition(".")[0] or f"image-{index}"
        written.append(save_png(sheet, folder / f"{rank:02d}-{verdict}-{name}.png"))
    return written


def colour_range(maps: NDArray[np.float32], labels: NDArray[np.int8]) -> tuple[float, float]:
    """The anomaly values of the first and the last colour of a set's heat maps.

    Args:
        maps: [N, H, W].
        labels: [N], 0 good, 1 defective.
    """
    normal_maps = maps[labels == 0] if (labels == 0).any() else maps
    # Nine of ten pixels of good images lie below the first colour, so that the overlay leaves them as they are. Every 16th
    # pixel is enough to find that value.
    low = float(np.quantile(normal_maps.reshape(-1)[::16], 0.9))
    return low, float(max(np.quantile(maps.reshape(-1)[::16], 0.999), normal_maps.max()))


def worst_first(
    scores: NDArray[np.float32], labels: NDArray[np.int8], most: int, *, threshold: float | None = None
) -> list[tuple[int, str]]:
    """Up to `most` indices of images, each with its verdict: ``miss``, ``false-alarm``, ``hit`` or ``good``.

    Half of them are the defective images with the lowest scores, a third the good images with the highest scores, and the rest
    the defective images with the highest scores. Without a threshold, that of the best F1 is used.
    """
    if threshold is None:
        both = 0 < labels.sum() < len(labels)
        threshold = f1_max(scores, labels)[1] if both else float("inf")
    order = [int(index) for index in np.argsort(scores, kind="stable")]
    defective = [index for index in order if labels[index]]
    good = [index for index in reversed(order) if not labels[index]]
    n_misses, n_alarms = max(1, most // 2), max(1, most // 3)
    chosen = [*defective[:n_misses], *good[:n_alarms], *reversed(defective[n_misses:])][:most]
    verdicts = {(1, False): "miss", (0, True): "false-alarm", (1, True): "hit", (0, False): "good"}
    return [(index, verdicts[int(labels[index]), bool(scores[index] >= threshold)]) for index in chosen]
