"""What fits of PatchCore to the same features share by the memo of their context: the covariance of all patches, and the order in
which a coreset picks them, of which every smaller bank takes the beginning."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from detectors.base import FitContext
from detectors.features import Features
from detectors.heads.patchcore.coreset import CoresetOrder, greedy_k_center
from detectors.heads.patchcore.embedding import PatchEmbedding, channel_count
from detectors.heads.patchcore.whitening import mean_and_covariance

ORDER_VERSION = 2
"""Of everything that decides the order of a coreset, and of what is stored; one of another version is not found. Version 1 did
not say how long the work took."""


def mean_and_covariance_of(features: Features, embedding: PatchEmbedding, context: FitContext) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of all patches, float64, on the CPU, for every amount of whitening.

    Args:
        embedding: without whitening.

    Raises:
        NumericalError: the covariance is not finite.
    """
    name = f"covariance v{ORDER_VERSION} {_patches_of(features, embedding)}{_l2(embedding)}"
    began = time.perf_counter()
    stored = context.memo.load(name) if context.memo else None
    channels = channel_count(features)
    if (
        stored is None
        or set(stored) != {"mean", "covariance", "seconds"}
        or stored["covariance"].shape != (channels, channels)
        or stored["seconds"].shape != ()
    ):
        blocks = embedding.blocks(features, context.device)
        mean, covariance = mean_and_covariance((values for _, values in blocks), channels)
        spent = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
        stored = {"mean": mean, "covariance": covariance, "seconds": spent}
        if context.memo:
            context.memo.save(name, stored)
    if context.memo:
        context.count_stored(float(stored["seconds"]) - (time.perf_counter() - began))
    return stored["mean"], stored["covariance"]


def picks_of(
    features: Features,
    embedding: PatchEmbedding,
    context: FitContext,
    size: int,
    *,
    projection: int,
    whitening: float,
) -> tuple[Tensor, dict[str, float]]:
    """Which patches a bank of some size holds.

    Args:
        size: of the bank; there are no more than distinct patches.
        projection: dimension in which they are chosen; 0 for that of the features.
        whitening: amount of it in `embedding`.

    Returns:
        Indices of the patches in the order of their picking, int64, on the CPU; and the figures `coreset_new_picks` and
        `coreset_radius`.
    """
    # Where it would not reduce anything, the features themselves serve.
    projection = projection if projection < channel_count(features) else 0
    seed, figures = context.structural_seed, {"coreset_new_picks": 0.0}
    height, width = features.grids[features.strides[0]]
    patches = height * width * len(features)
    start = int(np.random.default_rng([seed, 1]).integers(patches))
    began = time.perf_counter()

    def select(stored: CoresetOrder | None) -> CoresetOrder:
        work_began = time.perf_counter()
        points = embedding.projected(features, context.device, projection, seed=seed)
        if stored is not None and not stored.belongs_to(points):
            stored = None
        order = greedy_k_center(
            points, size, start=start, order=stored, began=work_began, should_stop=context.should_stop
        )
        figures["coreset_new_picks"] = float(len(order) - (len(stored) if stored else 0))
        return order

    if context.memo is None:
        order = select(None)
    else:
        name = (
            f"coreset v{ORDER_VERSION} {_patches_of(features, embedding)} whitening {whitening!r} projection {projection} "
            f"seed {seed}{_l2(embedding)}"
        )
        with context.memo.lock(name):
            stored = _read_order(context.memo.load(name), points=patches, start=start)
            if stored is not None and (len(stored) >= size or stored.complete):
                order = stored
            else:
                order = select(stored)
                context.memo.save(name, order.to_tensors())
    chosen = min(size, len(order))
    # What a bank of this size costs from nothing, in place of what was spent here: picks of a longer order do not count, nor
    # does the wait for another process that was at work on it.
    if context.memo is not None:
        context.count_stored(float(order.seconds[chosen - 1]) - (time.perf_counter() - began))
    if chosen > 1:
        figures["coreset_radius"] = float(order.distances[chosen - 1])
    return order.picks[:chosen].cpu(), figures


def _patches_of(features: Features, embedding: PatchEmbedding) -> str:
    strides = "+".join(str(stride) for stride in features.strides)
    return f"strides {strides} neighbourhood {embedding.reach}"


def _l2(embedding: PatchEmbedding) -> str:
    """Part of a name; none where nothing is normalised, as earlier versions named it."""
    return " l2" if embedding.normalize else ""


def _read_order(tensors: Mapping[str, Tensor] | None, *, points: int, start: int) -> CoresetOrder | None:
    """A stored order; None where there is none, or one of other points."""
    if tensors is None:
        return None
    try:
        order = CoresetOrder.from_tensors(tensors)
    except (KeyError, ValueError):
        return None
    return order if len(order.bounds) == points and int(order.picks[0]) == start else None
