"""Work on many files with threads, results in the order of the input, few of them waiting at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

__all__ = ["map_chunks"]

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 16


def map_chunks(function: Callable[[T], R], items: Iterable[T], *, chunk: int = 32) -> Iterator[list[R]]:
    """Apply ``function`` to every item in a pool of threads; a single chunk needs none.

    Args:
        function: Called once an item; what it raises ends the whole and cancels what has not begun.
        items: The inputs; taken as they are needed, never many at a time.
        chunk: Items a task; at most two tasks a thread are under way or waiting to be taken.

    Yields:
        The results of one chunk after another, in the order of ``items``.
    """

    def run(part: Sequence[T]) -> list[R]:
        return [function(item) for item in part]

    source = iter(items)
    parts = iter(lambda: list(islice(source, chunk)), [])
    ahead = list(islice(parts, 2))
    if len(ahead) < 2:
        yield from map(run, ahead)
        return
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="antibackdoor-read")
    waiting: deque[Future[list[R]]] = deque()
    try:
        for part in chain(ahead, parts):
            waiting.append(pool.submit(run, part))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
