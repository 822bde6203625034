"""Training of CFlow-AD's flows on stored features, by a Lightning trainer.

Notation: P positions and C channels of a stride, N training images; a *cell* is one position with a group of n images, of which
the flow sees the n vectors at that position.

An epoch goes through every vector of every stride once, in cells of random positions and groups of images. A step takes
the same share of each stride's cells. On the CPU its work is split evenly over as many threads as torch may use, each of
which computes with one core: products this small gain less from a second core than the two lose by waiting for each other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.utilities.warnings import PossibleUserWarning
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from detectors.base import FitContext
from detectors.cflow import Cflow, seeded
from detectors.coupling import CHUNK, Flow, FlowGradients, FlowPass, Workspace, block_weights, training_loss
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.files import write_bytes
from detectors.working_memory import parts, portion

CELL_IMAGES = 32
"""Images of a cell: as many as make the code's share of the hidden units cheap, as few as make cells differ."""
WARM_UP = 0.05
"""Share of all steps in which the learning rate rises; then it falls along a cosine."""
LARGEST_GRADIENT = 1.0
"""Norm that the gradient of a step is clipped to."""
CHECK_EVERY = 32
"""Steps between looks at the loss: on a GPU, to look is to wait."""
ASK_EVERY = 1.0
"""Seconds between questions whether to stop, within an epoch."""
CHECKPOINT = "training.safetensors"
FORMAT = 1

T = TypeVar("T")


def train(head: Cflow, features: Features, context: FitContext) -> dict[str, float]:
    """Train a head's flows in place; returns the head's diagnostics.

    Raises:
        NumericalError: the loss is no longer finite.
        InputError: `context.checkpoint_dir` cannot be written.
    """
    module = _Training(head, features, context)
    path = context.checkpoint_dir / CHECKPOINT if context.checkpoint_dir else None
    module.checkpoint = _Checkpoint(path, identity=_identity(head, features, context)) if path else None
    module.resume()
    if module.epochs_left:
        with _quiet(), module.crew:
            _fit(_trainer(context.device, module.epochs_left, context.checkpoint_dir), module)
    head.to(context.device)
    module.use_best()
    head.settle(features)
    if module.checkpoint:
        module.checkpoint.remove()
    return {
        "epochs_trained": float(module.epoch),
        "best_epoch": float(module.best.epoch if module.best else module.epoch),
        "train_loss": module.loss,
    }


class _Best(NamedTuple):
    """The epoch with the best validation value so far."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


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


def learning_rate(step: int, steps: int, *, largest: float) -> float:
    """Of a step, counted from 0: linear warm-up, then a cosine down to nothing."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return largest * (step + 1) / warm_up
    return 0.5 * largest * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class _Training(pl.LightningModule):
    """The flows of a head, their data and what has become of them so far."""

    epoch: int
    """Epochs that are done."""
    loss: float
    """Mean over the strides and the last epoch."""
    best: _Best | None

    def __init__(self, head: Cflow, features: Features, context: FitContext) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.head, self.context = head, context
        self.features = features
        self.values = _on_device(features, context.device)
        self.checkpoint: _Checkpoint | None = None
        self.crew = _Crew(torch.get_num_threads() if context.device.type == "cpu" else 1)
        self.steps = steps_of_an_epoch(
            [len(values) for values in self.values.values()], len(features), fibre_batch=head.fibre_batch
        )
        self.weights = dict(head.named_parameters())
        self.epoch, self.loss, self.best = 0, float("nan"), None
        self.ended = self.stopped = False
        self._asked = 0.0
        self._moments: dict[str, Tensor] = {}

    @property
    def epochs_left(self) -> int:
        return 0 if self.ended else self.head.epochs - self.epoch

    # --- what Lightning calls

    def train_dataloader(self) -> DataLoader[int]:
        """The numbers of an epoch's steps; `training_step` takes the cells from where they are."""
        return DataLoader(range(self.steps), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.weights.values(), lr=self.head.learning_rate, fused=True)

    def on_train_start(self) -> None:
        if self._moments:
            self._restore_moments(self._adam)
            self._moments = {}

    def on_train_epoch_start(self) -> None:
        self.crew.begin()
        self._loss = torch.zeros((), device=self.device)
        self.cells = {}
        for stride, values in self.values.items():
            cells = draw_cells(len(values), len(self.features), seeded(self.context.seed, f"{stride} {self.epoch + 1}"))
            self.cells[stride] = Cells(cells.positions.to(values.device), cells.first.to(values.device), cells.images)

    def on_train_batch_start(self, batch: int, batch_idx: int) -> int | None:
        if time.monotonic() - self._asked < ASK_EVERY:
            return None
        self.stopped = self.context.should_stop()
        self._asked = time.monotonic()
        return -1 if self.stopped else None

    def training_step(self, batch: int) -> None:
        cells = {stride: all_cells.part(batch, self.steps) for stride, all_cells in self.cells.items()}
        for group in self._adam.param_groups:
            group["lr"] = learning_rate(
                self.epoch * self.steps + batch, self.head.epochs * self.steps, largest=self.head.learning_rate
            )
        loss = self._gradients_by_hand(cells) if self.device.type == "cpu" else self._gradients_by_autograd(cells)
        self._loss += loss
        if (batch + 1) % CHECK_EVERY == 0:
            self._check_finite()
        clip_grad_norm_(self.weights.values(), LARGEST_GRADIENT)
        self.optimizers().step()  # type: ignore[union-attr]

    def on_train_epoch_end(self) -> None:
        self.crew.rest()
        if self.stopped:
            self._end()
            return
        self._check_finite()
        self.loss = float(self._loss) / (self.steps * len(self.values))
        self.epoch += 1
        if self.context.validate is not None:
            self._validate(self.context.validate)
        if self.checkpoint:
            self.checkpoint.save(self._state(), self._progress())
        if self.epochs_left and (self._out_of_patience() or self.context.should_stop()):
            self._end()

    # --- one step

    def _gradients_by_hand(self, cells: dict[int, Cells]) -> Tensor:
        """Fill in the gradients of the strides' mean losses; returns the sum of these losses."""
        flows = self.head.flows
        blocks = [(stride, index) for stride, flow in flows.items() for index in range(len(flow.blocks))]
        weights = self.crew.each(lambda block: block_weights(flows[block[0]], block[1]), blocks)
        passes = {
            stride: FlowPass(flow, [found for (own, _), found in zip(blocks, weights, strict=True) if own == stride])
            for stride, flow in flows.items()
        }

        def work(worker: int) -> Tensor:
            loss = torch.zeros(())
            for stride, own in cells.items():
                weight = 1 / (len(own.positions) * own.images)
                gradients, workspace = self.crew.gradients(worker, stride, flows[stride])
                gradients.zero_()
                for chunk in own.part(worker, self.crew.size).chunks():
                    vectors = chunk.gather(self.values[stride])
                    loss += weight * passes[stride].add_gradients(
                        vectors, chunk.positions, weight=weight, gradients=gradients, workspace=workspace
                    )
            return loss

        losses = self.crew.run(work)
        for stride, flow in flows.items():
            total, *others = (self.crew.gradients(worker, stride, flow)[0] for worker in range(self.crew.size))
            for other in others:
                total.add_(other)
        self.crew.each(lambda block: self.crew.gradients(0, block[0], flows[block[0]])[0].store(block[1]), blocks)
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
                own = whole.part(index, pieces)
                vectors = own.gather(self.values[stride]).to(self.device).permute(1, 2, 0).flatten(0, 1)
                positions = own.positions.to(self.device).repeat_interleave(own.images)
                losses = training_loss(flows[stride].log_likelihood(vectors, positions), flows[stride].channels)
                loss = loss + losses.sum() / (len(whole.positions) * whole.images)
            self.manual_backward(loss)
            total += loss.detach()
        return total

    def _check_finite(self) -> None:
        if not bool(torch.isfinite(self._loss)):
            raise NumericalError(
                f"cflow: the training loss is not finite in epoch {self.epoch + 1} at "
                f"learning_rate={self.head.learning_rate:g}; lower it"
            )

    # --- between epochs

    def _validate(self, validate: Callable[[], float]) -> None:
        self.head.settle(self.features)
        value = validate()
        self.context.report(self.epoch, value)
        if self.best is None or value > self.best.value or math.isnan(self.best.value):
            weights = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
            self.best = _Best(self.epoch, value, weights)

    def _out_of_patience(self) -> bool:
        return bool(self.head.patience and self.best and self.epoch - self.best.epoch >= self.head.patience)

    def _end(self) -> None:
        self.ended = True
        self.trainer.should_stop = True

    @torch.no_grad()
    def use_best(self) -> None:
        """Put the best epoch's weights in place; those of the last where there is no validation."""
        if self.best:
            for name, parameter in self.weights.items():
                parameter.copy_(self.best.weights[name])

    # --- going on after a crash

    @torch.no_grad()
    def resume(self) -> None:
        """Go on from the checkpoint, where there is one that fits."""
        found = self.checkpoint.load() if self.checkpoint else None
        if found is None:
            return
        tensors, progress = found
        for name, parameter in self.weights.items():
            parameter.copy_(tensors[f"weights.{name}"])
        self._moments = {name: value for name, value in tensors.items() if name.startswith("adam.")}
        self.epoch, self.loss = progress["epoch"], progress["loss"]
        if progress["best"]:
            weights = {name: tensors[f"best.{name}"].to(parameter.device) for name, parameter in self.weights.items()}
            epoch, value = progress["best"]
            self.best = _Best(epoch, value, weights)
        self.ended = self._out_of_patience()

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {f"weights.{name}": parameter for name, parameter in self.weights.items()}
        for name, parameter in self.weights.items():
            state |= {f"adam.{key}.{name}": value for key, value in self._adam.state[parameter].items()}
        if self.best:
            state |= {f"best.{name}": value for name, value in self.best.weights.items()}
        return state

    def _progress(self) -> dict[str, Any]:
        best = self.best and (self.best.epoch, self.best.value)
        return {"epoch": self.epoch, "loss": self.loss, "best": best}

    def _restore_moments(self, optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in self.weights.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {key: self._moments[f"adam.{key}.{name}"].to(parameter.device) for key in keys}

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.optimizers(use_pl_optimizer=False)  # type: ignore[return-value]


class _Crew:
    """Threads that compute with one core each; the calling thread is the first of them.

    Between `begin` and `rest` torch uses one thread per operation, otherwise as many as before.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._threads: ThreadPoolExecutor | None = None
        self._buffers: dict[tuple[int, int], tuple[FlowGradients, Workspace]] = {}

    def __enter__(self) -> _Crew:
        if self.size > 1:
            self._threads = ThreadPoolExecutor(self.size - 1, "cflow")
            together = Barrier(self.size - 1)

            def set_up() -> None:
                torch.set_num_threads(1)
                together.wait()  # or one thread would do this twice and another never

            for done in [self._threads.submit(set_up) for _ in range(self.size - 1)]:
                done.result()
            self.rest()
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads:
            self._threads.shutdown()
            self.rest()

    def begin(self) -> None:
        """Before many steps."""
        if self.size > 1:
            torch.set_num_threads(1)

    def rest(self) -> None:
        """Before work that is not divided among the crew."""
        if self.size > 1:
            torch.set_num_threads(self.size)

    def run(self, work: Callable[[int], T]) -> list[T]:
        """The results of all workers, in their order."""
        others: list[Future[T]] = []
        if self._threads:
            others = [self._threads.submit(work, worker) for worker in range(1, self.size)]
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


class _Checkpoint:
    """A training's state on disk: one file, replaced in one step."""

    def __init__(self, path: Path, *, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Raises `InputError` where the disk is full or the folder not ours to write into."""
        on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        # NaN is not JSON, but Python writes and reads it.
        metadata = {"identity": self.identity, "progress": json.dumps(progress)}
        write_bytes(self.path, safetensors.torch.save(on_cpu, metadata))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved by the same training; None where there is nothing, or it is damaged or another's."""
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != self.identity:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["progress"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError):
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _identity(head: Cflow, features: Features, context: FitContext) -> str:
    """Digest of all that a training follows from: settings, seed, features."""
    shapes = {stride: [*features.grids[stride], *features.maps[stride].shape] for stride in features.strides}
    known = [FORMAT, head.settings, context.seed, shapes, context.validate is not None]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for flow in head.flows.values():
        for statistic in (flow.mean, flow.deviation):
            digest.update(statistic.cpu().numpy().tobytes())
    return digest.hexdigest()


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


def _trainer(device: torch.device, epochs: int, folder: Path | None) -> pl.Trainer:
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    index = device.index if device.index is not None else 0
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1 if device.type == "cpu" else [index],
        precision="bf16-mixed" if half else "32-true",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _fit(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Run a trainer; an interrupt stays one, where Lightning turns it into an exit."""
    try:
        trainer.fit(module)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's greetings and its advice on data loaders to itself."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    logger_levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        for logger, level in zip(loggers, logger_levels, strict=True):
            logger.setLevel(level)
