"""Work that is done in threads before its result is needed, as decoding while a network is asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

P = TypeVar("P")
T = TypeVar("T")


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[P], T], parts: Iterable[P], count: int
) -> Iterator[tuple[P, T]]:
    """Each part and what ``work`` makes of it, in order, while ``count`` further ones are in the pool."""
    rest = iter(parts)
    waiting = deque((part, pool.submit(work, part)) for part in islice(rest, count))
    while waiting:
        part, result = waiting.popleft()
        waiting.extend((more, pool.submit(work, more)) for more in islice(rest, 1))
        yield part, result.result()
