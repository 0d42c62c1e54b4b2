"""Progress of work that actors do: each reports what it has stored, the driver shows it while it waits for tasks."""

import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from minos_ray.cluster.connect import on_this_node
from minos_ray.errors import WorkStopped
from minos_ray.observe.progress import Progress, duration

POLL_S = 2.0
ANSWER_S = 30.0
# Work of which nothing has been stored for so long hangs. How long a task takes says nothing: it has many units.
STALL_S = 4 * 3600.0
# Numbers of workers that count what came to nothing; so do all that begin with `refused_`.
FAILED = {
    *("engine_died", "actor_died", "prompt_too_long", "timeout", "candidate of an unknown problem"),
    *("no_steps", "empty", "no_verdict", "wrong_step_count", "unclear_step"),
}


class Tally:
    """The actor that counts rows, and adds up what workers count besides."""

    def __init__(self) -> None:
        self.rows = 0
        self.numbers: dict[str, float] = {}
        self.actors: list[Any] = []

    def join(self, actor: Any) -> None:
        """An actor begins to work."""
        self.actors.append(actor)

    def joined(self) -> list[Any]:
        """All that did."""
        return self.actors

    def add(self, rows: int, numbers: Mapping[str, float]) -> None:
        """So many more rows are stored; their numbers."""
        self.rows += rows
        for key, value in numbers.items():
            self.numbers[key] = self.numbers.get(key, 0) + value

    def total(self) -> tuple[int, dict[str, float]]:
        """All of them."""
        return self.rows, self.numbers


def failures(numbers: Mapping[str, float]) -> dict[str, int]:
    """What came to nothing, by reason, among the numbers of workers."""
    return {key: int(value) for key, value in numbers.items() if key in FAILED or key.startswith("refused_")}


@contextmanager
def followed(progress: Progress) -> Iterator[Any]:
    """A tally whose numbers the progress shows until the block ends; when it fails, the actors that joined are ended.

    Ray Data ends its actors when nothing refers to them any more, which may be long after. They are ended too when
    nothing was stored for `STALL_S`, which is a WorkStopped.
    """
    import ray

    tally = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
    first = progress.done
    stalled = threading.Event()

    def end_actors() -> None:
        for actor in ray.get(tally.joined.remote(), timeout=ANSWER_S):
            ray.kill(actor)

    def look() -> None:
        rows, numbers = ray.get(tally.total.remote(), timeout=ANSWER_S)
        tokens = {"tokens": numbers["tokens"]} if "tokens" in numbers else {}
        progress.note(failures(numbers), queue=progress.total - first - rows, **tokens)
        progress.advance(first + rows - progress.done)
        if time.monotonic() - progress.moved > STALL_S:
            stalled.set()
            end_actors()

    try:
        with polled(look):
            yield tally
    except BaseException as error:
        with suppress(ray.exceptions.RayError):  # then they are gone with their node, this one
            end_actors()
        if stalled.is_set():
            raise WorkStopped(
                f"{progress.label}: nothing was stored for {duration(STALL_S)}, the actors hang; what is finished is "
                "kept, a rerun does the rest"
            ) from error
        raise
    finally:
        ray.kill(tally)


@contextmanager
def ended(results: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Ends the actors of a Ray Data pipeline with the block.

    Left to the garbage collector they would go on with work that has failed; and an exception keeps the frames, and
    these the actors, for as long as somebody looks at it.
    """
    try:
        with closing(results):
            yield results
    except BaseException as error:
        forget_frames(error)
        gc.collect()
        raise


def forget_frames(error: BaseException) -> None:
    """Empties the frames that an exception and those it was raised for came through; the lines stay."""
    seen: set[int] = set()
    below: list[BaseException | None] = [error]
    while below:
        one = below.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            below += [one.__cause__, one.__context__]


@contextmanager
def polled(look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` every two seconds until the block ends; an actor that does not answer is asked again."""
    import ray

    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            try:
                look()
            except ray.exceptions.RayError:
                continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
