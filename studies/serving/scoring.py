"""One thread that scores the images of all requests: those that wait are scored together, none waits for more to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.runtime.verdicts import Verdict, judge
from studies.serving.models import LoadedModel


class BusyError(RuntimeError):
    """Too many images wait already."""


@dataclass
class _Item:
    """An image that waits."""

    model: LoadedModel
    """The model that was served when the request came; a swap does not affect requests that are being answered."""
    rgb: NDArray[np.uint8]
    done: asyncio.Future[Verdict]


class Scorer:
    """Scores the images of all requests in the order in which they came, in batches. Belongs to one event loop."""

    def __init__(self, *, max_waiting: int, max_batch: int, batched: Callable[[int], None] = lambda size: None) -> None:
        """Args:
        max_waiting: number of images that `room` admits at the same time.
        max_batch: number of images that are scored together at most.
        batched: called with the size of each batch.
        """
        self._max_waiting, self._max_batch, self._batched = max_waiting, max_batch, batched
        self._items: deque[_Item] = deque()
        self._admitted = 0
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of images whose scoring has not begun."""
        return len(self._items)

    @contextmanager
    def room(self, images: int) -> Iterator[None]:
        """Reserve room for a number of images, from before they are decoded until they are answered.

        A request that is turned away is therefore never decoded.

        Raises:
            BusyError: there is no room for so many.
        """
        if self._admitted + images > self._max_waiting:
            raise BusyError(f"{self._admitted} images wait already; try again")
        self._admitted += images
        try:
            yield
        finally:
            self._admitted -= images

    def start(self) -> None:
        """Start to score, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Stop; call it after the last request."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def score(self, model: LoadedModel, images: list[NDArray[np.uint8]]) -> list[Verdict]:
        """Verdicts of RGB images, each uint8 [H, W, 3], in their order.

        Raises:
            NumericalError: a score is not finite.
        """
        loop = asyncio.get_running_loop()
        items = [_Item(model, rgb, loop.create_future()) for rgb in images]
        self._items.extend(items)
        self._news.set()
        try:
            return await asyncio.gather(*(item.done for item in items))
        finally:
            # If the request was given up, images whose scoring has not begun are skipped.
            for item in items:
                item.done.cancel()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            batch = self._next_batch()
            if not batch:
                self._news.clear()
                continue
            self._batched(len(batch))
            for item, outcome in zip(batch, await loop.run_in_executor(self._thread, _judge, batch), strict=True):
                if item.done.done():
                    continue
                if isinstance(outcome, Verdict):
                    item.done.set_result(outcome)
                else:
                    item.done.set_exception(outcome)

    def _next_batch(self) -> list[_Item]:
        """The first images that are for the same model, at most `max_batch`."""
        batch: list[_Item] = []
        while self._items and len(batch) < self._max_batch:
            if self._items[0].done.done():
                self._items.popleft()
            elif not batch or self._items[0].model is batch[0].model:
                batch.append(self._items.popleft())
            else:
                break
        return batch


def _judge(batch: list[_Item]) -> list[Verdict | Exception]:
    """The verdict of each image, or the error of one that has none; it does not affect the others."""
    try:
        return list(judge(batch[0].model.artifact, [item.rgb for item in batch]))
    except Exception as error:
        return [error] if len(batch) == 1 else [outcome for item in batch for outcome in _judge([item])]
