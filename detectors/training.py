"""Training of a head on stored features by a Lightning trainer: epochs, schedule, validation, and going on after a crash.

A head that trains subclasses `Training`, which says what an epoch and a step are; the rest is the same for all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.utilities.warnings import PossibleUserWarning
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from detectors.base import FitContext, Head, seeded, with_prefix
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.files import write_bytes
from detectors.process_state import warning_filters_restored
from detectors.while_inside import WhileInside
from detectors.working_memory import parts

WARM_UP = 0.05
"""Share of all steps in which the learning rate rises; then it falls along a cosine."""
LARGEST_GRADIENT = 1.0
"""Norm that the gradient of a step is clipped to."""
CHECK_EVERY = 32
"""Steps between looks at the loss: on a GPU, to look is to wait."""
ASK_EVERY = 1.0
"""Seconds between questions whether to stop, within an epoch."""
CHECKPOINT = "training.safetensors"
FORMAT = 2


def learning_rate(step: int, steps: int, *, largest: float) -> float:
    """Of a step, counted from 0: linear warm-up, then a cosine down to nothing."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return largest * (step + 1) / warm_up
    return 0.5 * largest * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Best(NamedTuple):
    """The epoch with the best validation value so far. The value chose the epoch and is too good for a figure of the detector;
    whoever gives `validate` judges it otherwise, as `studies.worker.epochs` does."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


class Training(pl.LightningModule):
    """A head, what it is trained on, and what has become of it so far.

    A subclass says how many `steps` an epoch has, and gives `begin_epoch`, `step` and `settle`. What it draws at random follows
    from the seed and `epoch` alone, so that a training that goes on after a crash ends where it would have ended.
    """

    epoch: int
    """Epochs that are done."""
    loss: float
    """Mean over the steps of the last epoch."""
    best: Best | None
    seconds: float
    """Of the epochs that are done, without validation."""

    def __init__(
        self,
        head: Head,
        model: nn.Module,
        features: Features,
        context: FitContext,
        *,
        steps: int,
        epochs: int,
        learning_rate: float,
        patience: int = 0,
    ) -> None:
        """Args:
        model: the part of the head that is trained; it lies on `context.device`.
        steps: of an epoch.
        learning_rate: the largest.
        patience: epochs without a better validation value that end the training; 0 trains on.
        """
        super().__init__()
        self.automatic_optimization = False
        self.head, self.model, self.features, self.context = head, model, features, context
        self.steps, self.epochs, self.largest_rate, self.patience = steps, epochs, learning_rate, patience
        self.epoch, self.loss, self.best, self.seconds = 0, float("nan"), None, 0.0
        self.ended = self.stopped = False
        self._asked_at = 0.0
        self._resumed: dict[str, Tensor] = {}
        path = context.checkpoint_dir / CHECKPOINT if context.checkpoint_dir else None
        self._checkpoint = Checkpoint(path, identity=self._identity()) if path else None

    # --- what a subclass gives

    @abstractmethod
    def begin_epoch(self) -> None:
        """Draw what `step` goes through; `epoch` counts those before."""

    @abstractmethod
    def step(self, index: int) -> Tensor:
        """Fill in the gradients of one step of the epoch, and `update`; returns the loss, detached."""

    @abstractmethod
    def settle(self) -> None:
        """Make the head ready to score with the weights as they are now, in eval mode."""

    def configure_optimizers(self) -> Any:
        """Adam over all of the model; as Lightning asks for it."""
        return torch.optim.Adam(self.model.parameters(), lr=self.largest_rate, fused=True)

    def at_work(self) -> AbstractContextManager[Any]:
        """Held while the epochs run."""
        return nullcontext()

    def end_epoch(self) -> None:
        """After the last step of an epoch."""

    # --- what a subclass and its head use

    def train_head(self) -> dict[str, float]:
        """Train, take the best epoch's weights, settle; returns `epochs_trained`, `best_epoch` and `train_loss`.

        Raises:
            NumericalError: the loss is no longer finite.
            InputError: `context.checkpoint_dir` cannot be written.
        """
        self._resume()
        if self.epochs_left:
            with _quiet(), self.at_work():
                _fit(_trainer(self.context.device, self.epochs_left, self.context.checkpoint_dir), self)
        self.head.to(self.context.device)
        if self.best:
            self.model.load_state_dict(self.best.weights)
        self.eval()
        self.settle()
        if self._checkpoint:
            self._checkpoint.remove()
        return {
            "epochs_trained": float(self.epoch),
            "best_epoch": float(self.best.epoch if self.best else self.epoch),
            "train_loss": self.loss,
        }

    @property
    def epochs_left(self) -> int:
        return 0 if self.ended else self.epochs - self.epoch

    def generator(self, purpose: str) -> torch.Generator:
        """For one purpose in the epoch that runs now."""
        return seeded(self.head.name, self.context.seed, f"{purpose} {self.epoch + 1}")

    def minimise(self, loss: Tensor) -> Tensor:
        """One step down a loss's gradient; returns it, detached."""
        self.zero_grad()
        self.manual_backward(loss)
        self.update()
        return loss.detach()

    def update(self, number: int = 0) -> None:
        """Clip the gradients of an optimizer's parameters and take its step."""
        optimizer = self.trainer.optimizers[number]
        clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], LARGEST_GRADIENT)
        wrapped: Any = self.optimizers()
        (wrapped[number] if isinstance(wrapped, list) else wrapped).step()

    # --- what Lightning calls

    def train_dataloader(self) -> DataLoader[int]:
        """The numbers of an epoch's steps; `step` takes what it needs from where it is."""
        # With a generator of its own, or it would draw from torch's, which other threads may be drawing from.
        return DataLoader(range(self.steps), batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        if self._resumed:
            self._restore_optimizers()
            self._resumed = {}

    def on_train_epoch_start(self) -> None:
        self._epoch_began = time.perf_counter()
        self._loss = torch.zeros((), device=self.device)
        self.begin_epoch()

    def on_train_batch_start(self, batch: int, batch_idx: int) -> int | None:
        if time.monotonic() - self._asked_at < ASK_EVERY:
            return None
        self.stopped = self.context.should_stop()
        self._asked_at = time.monotonic()
        return -1 if self.stopped else None

    def training_step(self, batch: int) -> None:
        rate = learning_rate(self.epoch * self.steps + batch, self.epochs * self.steps, largest=self.largest_rate)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self._loss += self.step(batch)
        if (batch + 1) % CHECK_EVERY == 0:
            self._check_finite()

    def on_train_epoch_end(self) -> None:
        self.end_epoch()
        if self.stopped:
            self._end()
            return
        self._check_finite()
        self.loss = float(self._loss) / self.steps
        self.epoch += 1
        self.seconds += time.perf_counter() - self._epoch_began
        if self.context.validate is not None:
            self._validate(self.context.validate)
        if self._checkpoint:
            self._checkpoint.save(self._state(), self._progress())
        if self.epochs_left and (self._out_of_patience() or self.context.should_stop()):
            self._end()

    # --- between epochs

    def _validate(self, validate: Callable[[], float]) -> None:
        self.eval()
        self.settle()
        value = validate()
        self.train()
        self.context.report(self.epoch, value)
        if self.best is None or value > self.best.value or math.isnan(self.best.value):
            weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            self.best = Best(self.epoch, value, weights)

    def _check_finite(self) -> None:
        if not bool(torch.isfinite(self._loss)):
            raise NumericalError(
                f"{self.head.name}: the training loss is not finite in epoch {self.epoch + 1} at "
                f"learning_rate={self.largest_rate:g}; lower it"
            )

    def _out_of_patience(self) -> bool:
        return bool(self.patience and self.best and self.epoch - self.best.epoch >= self.patience)

    def _end(self) -> None:
        self.ended = True
        self.trainer.should_stop = True

    # --- going on after a crash

    def _identity(self) -> str:
        """Digest of all that a training follows from: settings, seed, features, and what the head took from them beforehand."""
        features, context = self.features, self.context
        shapes = {stride: [*features.grids[stride], *features.maps[stride].shape] for stride in features.strides}
        identity = [FORMAT, self.head.name, self.head.settings, context.seed, shapes, context.validate is not None]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _resume(self) -> None:
        """Go on from the checkpoint, where there is one that fits."""
        stored = self._checkpoint.load() if self._checkpoint else None
        if stored is None:
            return
        tensors, progress = stored
        self.model.load_state_dict(with_prefix(tensors, "weights."))
        self._resumed = with_prefix(tensors, "optimizer.")
        self.epoch, self.loss = progress["epoch"], progress["loss"]
        if progress["best"]:
            epoch, value = progress["best"]
            self.best = Best(epoch, value, with_prefix(tensors, "best."))
        self.seconds = float(progress.get("seconds", 0.0))  # absent from those that an earlier version left
        self.context.count_stored(self.seconds)
        self.ended = self._out_of_patience()

    def _state(self) -> dict[str, Tensor]:
        state = {f"weights.{name}": value for name, value in self.model.state_dict().items()}
        if self.best:
            state |= {f"best.{name}": value for name, value in self.best.weights.items()}
        for optimizer, name, parameter in self._optimized():
            state |= {f"optimizer.{name}|{key}": value for key, value in optimizer.state[parameter].items()}
        return state

    def _progress(self) -> dict[str, Any]:
        best = self.best and (self.best.epoch, self.best.value)
        return {"epoch": self.epoch, "loss": self.loss, "best": best, "seconds": self.seconds}

    def _restore_optimizers(self) -> None:
        for optimizer, name, parameter in self._optimized():
            state = with_prefix(self._resumed, f"{name}|")
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}

    def _optimized(self) -> Iterator[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
        """Every parameter with its optimizer and its name in the model."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield optimizer, names[parameter], parameter


class ImageTraining(Training):
    """An epoch goes through all images once, in batches of nearly the same length and random order.

    A subclass gives `loss_of`; a batch is cut into pieces where memory is short.
    """

    def __init__(
        self, head: Head, model: nn.Module, features: Features, context: FitContext, *, batch_size: int, **schedule: Any
    ) -> None:
        """Args: `schedule` as `epochs`, `learning_rate` and `patience` of `Training`."""
        super().__init__(head, model, features, context, steps=-(-len(features) // batch_size), **schedule)

    @abstractmethod
    def loss_of(self, images: Tensor, first: int) -> Tensor:
        """Mean loss of some images, by their indices, the first of which has this number in the batch."""

    def begin_epoch(self) -> None:
        order = torch.randperm(len(self.features), generator=self.generator("order"))
        self.batches = order.to(self.features.device).tensor_split(self.steps)

    def pieces(self, index: int) -> Sequence[Tensor]:
        """The images of a batch, in as many pieces as memory makes necessary."""
        batch = self.batches[index]
        return batch.tensor_split(min(parts(), len(batch)))

    def step(self, index: int) -> Tensor:
        total, first, images = torch.zeros((), device=self.device), 0, len(self.batches[index])
        self.zero_grad()
        for piece in self.pieces(index):
            loss = self.loss_of(piece, first) * (len(piece) / images)
            self.manual_backward(loss)
            total += loss.detach()
            first += len(piece)
        self.update()
        return total

    def settle(self) -> None:
        """Nothing is left to do: the weights are all there is."""


class Checkpoint:
    """A training's state on disk: one file, replaced in one step."""

    def __init__(self, path: Path, *, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Raises `InputError` where the disk is full or the folder not ours to write into."""
        # Cloned, for safetensors takes no two names of one piece of memory.
        on_cpu = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
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


def _trainer(device: torch.device, epochs: int, folder: Path | None) -> pl.Trainer:
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
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
def _loggers_at_error() -> Iterator[None]:
    """Lightning's loggers report errors alone."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_lightning_at_error = WhileInside(_loggers_at_error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's greetings and its advice on data loaders to itself."""
    with _lightning_at_error(), warning_filters_restored():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield
