"""The search for nearest neighbours in PatchCore's bank: exact, or in an inverted file.

Notation: M patch features of D channels in the bank, Q queries, L lists of an inverted file.

A faiss index on a CPU, a matrix product elsewhere, finds who is nearest, and one more than asked; the distances are then measured
by direct differences. |a|^2 - 2ab + |b|^2 cancels, and its rounding depends on how many patches are measured together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.precision import full_precision
from detectors.working_memory import portion

PRODUCT_BYTES = 16 * 2**20
"""One block of distances between patches and the bank."""
EXTRA = 1
"""Neighbours measured beyond those asked for: rounding in the search then seldom decides between two that lie equally far."""
RECALL = 0.99
"""Share of the true neighbours that an inverted file has to find; it looks into as many lists as that takes."""
SAMPLE = 2048
"""Training patches on which this is measured."""


@dataclass(frozen=True)
class InvertedFile:
    """The bank's patches in lists, by their nearest centroid."""

    centroids: Tensor
    """float32 [L, D], relative to the bank's mean"""
    probes: int
    """Lists that a search looks into."""


class BankSearch:
    """Who is nearest in a bank [M, D], and how far. The bank may be of half precision; it is measured in float32."""

    def __init__(self, bank: Tensor, inverted_file: InvertedFile | None = None) -> None:
        """Args: `inverted_file` to search in, on a CPU; without it, and elsewhere, the search is exact."""
        self.bank, self.device = bank, bank.device
        # Less is lost to rounding around the mean than around an origin that lies far away.
        self.mean = bank.float().mean(dim=0)
        self.probes = self.lists = 0
        centred = bank.float() - self.mean
        if bank.device.type != "cpu":
            self.centred = centred
        elif inverted_file is None:
            self.index = _flat_index(centred, half=bank.dtype == torch.float16)
        else:
            self.index = _inverted_index(centred, inverted_file)
            self.probes, self.lists = inverted_file.probes, len(inverted_file.centroids)

    def neighbours(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Distances and indices of the k nearest, or of all where the bank is smaller; [Q, D] -> [Q, k] each, ascending."""
        k = min(k, len(self.bank))
        candidates = self.candidates(queries, min(k + EXTRA, len(self.bank)))
        distances = measured(self.bank, queries, candidates)
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, :k], candidates.gather(1, order)[:, :k]

    def candidates(self, queries: Tensor, k: int) -> Tensor:
        """Indices of the k nearest of each query, up to rounding, [Q, D] -> int64 [Q, k]; any where a query is not finite."""
        centred = queries - self.mean
        if self.device.type != "cpu":
            return nearest_by_products(centred, self.centred, k)
        with _faiss() as faiss:
            indices = torch.from_numpy(self.index.search(centred.numpy(), k)[1])
            probes = self.probes
            # Lists may hold fewer than k patches together: those queries look into more of them.
            while probes < self.lists and len(short := (indices < 0).any(dim=1).nonzero().flatten()):
                probes = min(2 * probes, self.lists)
                wider = faiss.SearchParametersIVF(nprobe=probes)
                indices[short] = torch.from_numpy(self.index.search(centred[short].numpy(), k, params=wider)[1])
        return indices.clamp_min_(0)


def fit_inverted_file(bank: Tensor, sample: Tensor, *, k: int, seed: int) -> tuple[InvertedFile, float]:
    """Sort a bank [M, D] into lists, and look into as many of them as `RECALL` takes; both tensors lie on the CPU.

    Args:
        sample: patches [Q, D] on which the share of true neighbours is measured.
        k: neighbours that have to be found.
        seed: of k-means.

    Returns:
        The lists, and the share of the sample's neighbours that they find.
    """
    centroids = _centroids(bank, seed=seed)
    k = min(k, len(bank))
    exact = BankSearch(bank).candidates(sample, k)
    probes = 1
    while True:
        inverted_file = InvertedFile(centroids, probes)
        indices = BankSearch(bank, inverted_file).candidates(sample, k)
        recall = float((indices[:, :, None] == exact[:, None, :]).any(dim=1).float().mean())
        if recall >= RECALL or probes == len(centroids):
            return inverted_file, recall
        probes = min(2 * probes, len(centroids))


def measured(bank: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """How far each query [Q, D] lies from its candidates, int64 [Q, k], by direct differences; float32 [Q, k]."""
    distances = torch.empty(candidates.shape, device=queries.device)
    length = max(1, portion(PRODUCT_BYTES) // (4 * candidates.shape[1] * queries.shape[1]))
    for part in (slice(first, first + length) for first in range(0, len(queries), length)):
        there = bank.index_select(0, candidates[part].flatten()).unflatten(0, candidates[part].shape).float()
        distances[part] = torch.linalg.vector_norm(there.sub_(queries[part, None]), dim=2)
    return distances


def products(queries: Tensor, bank: Tensor, squares: Tensor) -> Tensor:
    """|b|^2 - 2 q b, which orders a bank [M, D] by distance from each query [Q, D]; [Q, M]."""
    return torch.addmm(squares, queries, bank.T, alpha=-2)


def nearest_by_products(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Indices of the k nearest of each query by |b|^2 - 2 q b, nearest first; [Q, D], [M, D] -> int64 [Q, k]."""
    squares = bank.square().sum(dim=1)
    length = max(1, portion(PRODUCT_BYTES) // (4 * len(bank)))
    with full_precision(bank.device):
        parts = [products(part, bank, squares).topk(k, dim=1, largest=False).indices for part in queries.split(length)]
    return torch.cat(parts)


@contextmanager
def _faiss() -> Iterator[Any]:
    """The library, held to the threads that torch was given; imported late, as only a search needs it."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def _flat_index(bank: Tensor, *, half: bool = False) -> Any:
    """Exact search in a bank [M, D]; `half` keeps it in half precision."""
    with _faiss() as faiss:
        if half:
            index = faiss.IndexScalarQuantizer(bank.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
        else:
            index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank.numpy())
        return index


def _inverted_index(bank: Tensor, lists: InvertedFile) -> Any:
    """Search in the lists of the nearest centroids alone, of a bank [M, D]."""
    quantizer = _flat_index(lists.centroids)
    with _faiss() as faiss:
        index = faiss.IndexIVFFlat(quantizer, bank.shape[1], len(lists.centroids), faiss.METRIC_L2)
        index.is_trained = True  # the centroids are there already
        index.nprobe = lists.probes
        index.add(bank.numpy())
        return index


def _centroids(bank: Tensor, *, seed: int) -> Tensor:
    """k-means of a bank around its mean, [L, D]: about 4 sqrt(M) lists, as faiss's guide advises, none of them tiny."""
    count = max(1, min(round(4 * math.sqrt(len(bank))), len(bank) // 32))
    with _faiss() as faiss:
        kmeans = faiss.Kmeans(bank.shape[1], count, niter=10, seed=seed % 2**31, min_points_per_centroid=1)
        kmeans.train((bank - bank.mean(dim=0)).numpy())
        return torch.from_numpy(kmeans.centroids.copy())
