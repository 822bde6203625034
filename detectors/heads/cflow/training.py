"""Training of CFlow-AD's flows on stored features, by a Lightning trainer.

Notation: P positions and C channels of a stride, N training images; a *cell* is one position with a group of n images, of which
the flow sees the n vectors at that position.

An epoch goes through every vector of every stride once, in cells of random positions and groups of images. A step takes
the same share of each stride's cells. On the CPU its work is split evenly over as many threads as torch may use, each of
which computes with one core: products this small gain less from a second core than the two lose by waiting for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from detectors.base import FitContext
from detectors.features import Features
from detectors.flows.coupling import Flow
from detectors.flows.head import FlowHead
from detectors.flows.passes import CHUNK, FlowGradients, FlowPass, Workspace, block_weights, training_loss
from detectors.training import Training
from detectors.working_memory import parts, portion

CELL_IMAGES = 32
"""Images of a cell: as many as make the code's share of the hidden units cheap, as few as make cells differ."""

T = TypeVar("T")


class Cells(NamedTuple):
    """Cells of one stride, n images each."""

    positions: Tensor
    """int64 [cells]"""
    first: Tensor
    """The first image of each, int64 [cells]."""
    images: int
    """n; they follow each other, so that a cell's n values of one channel are one piece of memory."""

    def part(self, index: int, parts: int) -> Cells:
        """One of several parts of the same length, or nearly so."""
        first, last = (len(self.positions) * (index + step) // parts for step in (0, 1))
        return Cells(self.positions[first:last], self.first[first:last], self.images)

    def chunks(self) -> Iterator[Cells]:
        """Parts of at most `CHUNK` vectors."""
        length = max(1, CHUNK // self.images)
        for start in range(0, len(self.positions), length):
            chunk = slice(start, start + length)
            yield Cells(self.positions[chunk], self.first[chunk], self.images)

    def gather(self, values: Tensor) -> Tensor:
        """Their vectors [C, cells, n] out of [P, C, N]."""
        _, channels, total = values.shape
        # Every run of n values, wherever it starts: one index per run, not one per value.
        runs = values.as_strided((values.numel() - self.images + 1, self.images), (1, 1))
        at = torch.arange(channels, device=values.device)[:, None] + self.positions * channels
        at = at.mul_(total).add_(self.first)
        return runs.index_select(0, at.flatten()).view(channels, -1, self.images)


def draw_cells(positions: int, images: int, generator: torch.Generator) -> Cells:
    """All cells of one stride in random order; where n does not divide N, some images are seen twice."""
    groups = _groups(images)
    length = -(-images // groups)
    first = (torch.arange(groups) * length).clamp_max(images - length)
    cells = torch.randperm(positions * groups, generator=generator)
    return Cells(cells // groups, first[cells % groups], length)


def _groups(images: int) -> int:
    """Groups that N images fall into."""
    return -(-images // CELL_IMAGES)


def steps_of_an_epoch(positions: Sequence[int], images: int, *, fibre_batch: int) -> int:
    """As many as `fibre_batch` says, given the strides' P, but each with a cell of every stride at least."""
    wanted = round(sum(positions) * images / fibre_batch)
    return max(1, min(wanted, min(positions) * _groups(images)))


class CflowTraining(Training):
    """The flows of a head and their data."""

    head: FlowHead[Flow]

    def __init__(
        self,
        head: FlowHead[Flow],
        features: Features,
        context: FitContext,
        *,
        fibre_batch: int,
        epochs: int,
        learning_rate: float,
        patience: int,
        settle: Callable[[Features], None],
    ) -> None:
        """Args:
        fibre_batch: vectors, of all strides together, in a step.
        settle: makes the head ready to score, from the features of the normals and its weights as they are now.
        """
        values = _on_device(features, context.device)
        super().__init__(
            head,
            head.flow_modules,
            features,
            context,
            steps=steps_of_an_epoch([len(one) for one in values.values()], len(features), fibre_batch=fibre_batch),
            epochs=epochs,
            learning_rate=learning_rate,
            patience=patience,
        )
        self.values, self._settle_head = values, settle
        self.threads = SingleCoreThreads(torch.get_num_threads() if context.device.type == "cpu" else 1)

    def at_work(self) -> SingleCoreThreads:
        return self.threads

    def begin_epoch(self) -> None:
        self.threads.begin()
        self.cells = {}
        for stride, values in self.values.items():
            cells = draw_cells(len(values), len(self.features), self.generator(str(stride)))
            self.cells[stride] = Cells(cells.positions.to(values.device), cells.first.to(values.device), cells.images)

    def end_epoch(self) -> None:
        self.threads.rest()

    def step(self, index: int) -> Tensor:
        cells = {stride: all_cells.part(index, self.steps) for stride, all_cells in self.cells.items()}
        loss = self._gradients_by_hand(cells) if self.device.type == "cpu" else self._gradients_by_autograd(cells)
        self.update()
        return loss / len(self.values)

    def settle(self) -> None:
        self._settle_head(self.features)

    def _gradients_by_hand(self, cells: dict[int, Cells]) -> Tensor:
        """Fill in the gradients of the strides' mean losses; returns the sum of these losses."""
        flows = self.head.flows
        blocks = [(stride, index) for stride, flow in flows.items() for index in range(len(flow.blocks))]
        weights = self.threads.each(lambda block: block_weights(flows[block[0]], block[1]), blocks)
        passes = {
            stride: FlowPass(
                flow, [one for (of_stride, _), one in zip(blocks, weights, strict=True) if of_stride == stride]
            )
            for stride, flow in flows.items()
        }

        def work(worker: int) -> Tensor:
            loss = torch.zeros(())
            for stride, step_cells in cells.items():
                weight = 1 / (len(step_cells.positions) * step_cells.images)
                gradients, workspace = self.threads.gradients(worker, stride, flows[stride])
                gradients.zero_()
                for chunk in step_cells.part(worker, self.threads.size).chunks():
                    vectors = chunk.gather(self.values[stride])
                    loss += weight * passes[stride].add_gradients(
                        vectors, chunk.positions, weight=weight, gradients=gradients, workspace=workspace
                    )
            return loss

        losses = self.threads.run(work)
        for stride, flow in flows.items():
            total, *others = (self.threads.gradients(worker, stride, flow)[0] for worker in range(self.threads.size))
            for other in others:
                total.add_(other)
        self.threads.each(lambda block: self.threads.gradients(0, block[0], flows[block[0]])[0].store(block[1]), blocks)
        return torch.stack(losses).sum()

    def _gradients_by_autograd(self, cells: dict[int, Cells]) -> Tensor:
        """The same, under the trainer's precision; in several pieces where memory is short."""
        flows = self.head.flows
        total = torch.zeros((), device=self.device)
        self.zero_grad()
        pieces = min(parts(), *(len(whole.positions) for whole in cells.values()))
        for index in range(pieces):
            loss = torch.zeros((), device=self.device)
            for stride, whole in cells.items():
                piece = whole.part(index, pieces)
                vectors = piece.gather(self.values[stride]).to(self.device).permute(1, 2, 0).flatten(0, 1)
                positions = piece.positions.to(self.device).repeat_interleave(piece.images)
                losses = training_loss(flows[stride].log_likelihood(vectors, positions), flows[stride].channels)
                loss = loss + losses.sum() / (len(whole.positions) * whole.images)
            self.manual_backward(loss)
            total += loss.detach()
        return total


class SingleCoreThreads:
    """Threads that compute with one core each; the calling thread is the first of them.

    Between `begin` and `rest` torch uses one thread per operation, otherwise as many as before.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool: ThreadPoolExecutor | None = None
        self._buffers: dict[tuple[int, int], tuple[FlowGradients, Workspace]] = {}

    def __enter__(self) -> SingleCoreThreads:
        if self.size > 1:
            self._pool = ThreadPoolExecutor(self.size - 1, "cflow")
            together = Barrier(self.size - 1)

            def set_up() -> None:
                torch.set_num_threads(1)
                together.wait()  # or one thread would do this twice and another never

            for done in [self._pool.submit(set_up) for _ in range(self.size - 1)]:
                done.result()
            self.rest()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown()
            self.rest()

    def begin(self) -> None:
        """Before many steps."""
        if self.size > 1:
            torch.set_num_threads(1)

    def rest(self) -> None:
        """Before work that is not divided among the threads."""
        if self.size > 1:
            torch.set_num_threads(self.size)

    def run(self, work: Callable[[int], T]) -> list[T]:
        """The results of all workers, in their order."""
        others: list[Future[T]] = []
        if self._pool:
            others = [self._pool.submit(work, worker) for worker in range(1, self.size)]
        return [work(0), *(other.result() for other in others)]

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results of many small pieces of work, in their order."""
        parts = self.run(lambda worker: [work(item) for item in items[worker :: self.size]])
        return [parts[index % self.size][index // self.size] for index in range(len(items))]

    def gradients(self, worker: int, stride: int, flow: Flow) -> tuple[FlowGradients, Workspace]:
        """A worker's own, for one stride."""
        key = worker, stride
        if key not in self._buffers:
            self._buffers[key] = FlowGradients(flow), Workspace(flow.mean)
        return self._buffers[key]


def _on_device(features: Features, device: torch.device) -> dict[int, Tensor]:
    """The maps, on the GPU as far as half its free memory holds them."""
    if device.type != "cuda":
        return {stride: features.maps[stride].contiguous() for stride in features.strides}
    room = portion(torch.cuda.mem_get_info(device)[0] // 2)
    placed = {}
    for stride in features.strides:
        values = features.maps[stride].contiguous()
        size = values.numel() * values.element_size()
        if values.device != device and size <= room:
            values, room = values.to(device), room - size
        placed[stride] = values
    return placed
