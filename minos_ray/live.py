"""Progress of work that actors do: each reports what it has stored, the driver shows it while it waits for tasks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minos_ray.cluster import on_this_node
from minos_ray.progress import Progress

POLL_S = 2.0


class Tally:
    """The actor that counts rows."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, rows: int) -> None:
        """So many more are stored."""
        self.rows += rows

    def total(self) -> int:
        """All of them."""
        return self.rows


@contextmanager
def followed(progress: Progress) -> Iterator[Any]:
    """A tally whose count the progress shows until the block ends."""
    import ray

    tally = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
    first, over = progress.done, threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            progress.advance(first + ray.get(tally.total.remote()) - progress.done)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield tally
    finally:
        over.set()
        watcher.join()
        ray.kill(tally)
