"""Thousands of part files read one after the other: the next ones are on their way while one is looked at."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
# Reading a small file is waiting, on a disk a little and on an object store long.
READERS = 16


def ahead(read: Callable[[str], T], names: Iterable[str]) -> Iterator[tuple[str, T]]:
    """Every name and what `read` gives for it, in order; no more than twice `READERS` are in memory."""
    pool = ThreadPoolExecutor(READERS)
    coming: deque[tuple[str, Future[T]]] = deque()
    try:
        for name in names:
            coming.append((name, pool.submit(read, name)))
            if len(coming) > 2 * READERS:
                first, made = coming.popleft()
                yield first, made.result()
        for first, made in coming:
            yield first, made.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure nobody waits for those that have not begun
