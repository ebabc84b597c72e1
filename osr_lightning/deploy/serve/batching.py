"""Images of many requests are classified together, in one thread, as soon as it is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from osr_lightning.recogniser.rows import Row

if TYPE_CHECKING:
    from osr_lightning.deploy.serve.backend import Pixels

T = TypeVar("T")


class Full(Exception):
    """More images are waiting than there is room for."""


class Batcher:
    """A line of images before one thread.

    While the thread works, images gather; one that finds it idle waits ``patience`` seconds where others are
    on their way.

    Args:
        classify: ``(B, C, H, W)`` -> ``B`` rows.
        most: images that are classified at once.
        patience: seconds.
        room: images that may be on their way at a time, from `admit` to the end of its block.
        seen: is told the size of every batch.
    """

    def __init__(
        self,
        classify: Callable[[Pixels], list[Row]],
        *,
        most: int,
        patience: float,
        room: int,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._classify = classify
        self._most, self._patience, self._room = most, patience, room
        self._seen = seen
        self._line: asyncio.Queue[tuple[Pixels, asyncio.Future[Row]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")
        self.held = 0

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Take so many images in for the length of the block.

        Raises:
            Full: where there is no room for them.
        """
        if self.held + images > self._room:
            raise Full
        self.held += images
        try:
            yield
        finally:
            self.held -= images

    async def row(self, pixels: Pixels) -> Row:
        """Wait in line with one image ``(C, H, W)``; its row."""
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._line.put_nowait((pixels, answer))
        return await answer

    async def call(self, work: Callable[..., T], *arguments: object) -> T:
        """Run something else in the thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def run(self) -> None:
        """Work through the line, until cancelled."""
        while True:
            batch = [await self._line.get()]
            if self._line.qsize() + 1 < min(self._most, self.held):
                await asyncio.sleep(self._patience)
            while not self._line.empty() and len(batch) < self._most:
                batch.append(self._line.get_nowait())
            self._seen(len(batch))
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Pixels, asyncio.Future[Row]]]) -> None:
        try:
            rows = await self.call(self._classify, np.stack([pixels for pixels, _ in batch]))
        except Exception as error:  # each request tells it to its own client, and the line goes on
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), row in zip(batch, rows, strict=True):
            if not answer.done():  # its request may have been given up
                answer.set_result(row)

    def close(self) -> None:
        """End the thread after what it is at, without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
