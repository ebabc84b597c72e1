"""Work that is done in threads before its result is needed, as decoding while a network is asked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

P = TypeVar("P")
T = TypeVar("T")


def processors(most: int) -> int:
    """How many processors this process may use; ``most`` where they are more."""
    # a job of a cluster or container may have some of the machine's alone; not every system tells
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(most, len(own))


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
