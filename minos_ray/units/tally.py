"""Progress of work that actors do: each reports what it stored, and the driver shows it while it waits for tasks."""

import gc
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from minos_ray.cluster.connect import on_this_node
from minos_ray.errors import WorkStopped
from minos_ray.observe.progress import Progress, duration

POLL_S = 2.0
ANSWER_S = 30.0
# Work that stores nothing for this long hangs. How long a task takes says nothing, since it has many units.
STALL_S = 4 * 3600.0
# Numbers of workers that count failures; so do all that begin with `refused_`.
FAILURES = {
    *("engine_died", "actor_died", "prompt_too_long", "timeout", "candidate of an unknown problem"),
    *("no_steps", "empty", "no_verdict", "wrong_step_count", "unclear_step"),
}


class Tally:
    """The actor that sums the rows and the numbers that workers report."""

    def __init__(self) -> None:
        self.rows = 0
        self.numbers: dict[str, float] = {}
        self.actors: list[Any] = []

    def join(self, actor: Any) -> None:
        """Called by each actor as it starts."""
        self.actors.append(actor)

    def joined(self) -> list[Any]:
        """All actors that have started."""
        return self.actors

    def add(self, rows: int, numbers: Mapping[str, float]) -> None:
        """Adds stored rows and their numbers."""
        self.rows += rows
        for key, value in numbers.items():
            self.numbers[key] = self.numbers.get(key, 0) + value

    def total(self) -> tuple[int, dict[str, float]]:
        """All rows and numbers so far."""
        return self.rows, self.numbers


def show_numbers(progress: Progress, numbers: Mapping[str, float], queue: int) -> None:
    """Shows the tokens and the failures among the numbers of workers, and how many rows are missing."""
    failures = {k: int(v) for k, v in numbers.items() if k in FAILURES or k.startswith("refused_")}
    tokens = {"tokens": numbers["tokens"]} if "tokens" in numbers else {}
    progress.note(failures, queue=queue, **tokens)


@contextmanager
def progress_tally(progress: Progress) -> Generator[Any]:
    """A tally whose numbers the progress shows until the block ends. When the block fails, the actors are killed.

    Ray Data ends its actors when nothing refers to them any more, which may be long after. They are killed too when
    nothing was stored for `STALL_S`, which raises WorkStopped.
    """
    import ray
    from ray.exceptions import RayError

    tally: Any = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
    first = progress.done
    stalled = threading.Event()

    def kill_actors() -> None:
        for actor in ray.get(tally.joined.remote(), timeout=ANSWER_S):
            ray.kill(actor)

    def show_total() -> None:
        rows, numbers = ray.get(tally.total.remote(), timeout=ANSWER_S)
        show_numbers(progress, numbers, queue=progress.total - first - rows)
        progress.advance(first + rows - progress.done)
        if time.monotonic() - progress.moved > STALL_S:
            stalled.set()
            kill_actors()

    try:
        with polling(show_total):
            yield tally
    except BaseException as error:
        with suppress(RayError):  # the tally died with this node, and so did the actors
            kill_actors()
        if stalled.is_set():
            raise WorkStopped(
                f"{progress.label}: nothing was stored for {duration(STALL_S)}, the actors hang; what is finished is "
                "kept, a rerun does the rest"
            ) from error
        raise
    finally:
        ray.kill(tally)


@contextmanager
def stop_actors_on_exit(results: Generator[Any]) -> Generator[Iterator[Any]]:
    """Ends the actors of a Ray Data pipeline with the block.

    Without this, actors of failed work keep running until garbage collection: the traceback holds frames, and the
    frames hold the actor handles.
    """
    try:
        with closing(results):
            yield results
    except BaseException as error:
        clear_traceback_frames(error)
        gc.collect()
        raise


def clear_traceback_frames(error: BaseException) -> None:
    """Empties the frames of an exception and of its causes. Their line numbers stay."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        exception = pending.pop()
        if exception is not None and id(exception) not in seen:
            seen.add(id(exception))
            traceback.clear_frames(exception.__traceback__)
            pending += [exception.__cause__, exception.__context__]


@contextmanager
def polling(poll: Callable[[], None]) -> Generator[None]:
    """Calls `poll` every two seconds until the block ends, whether or not its actor answers."""
    from ray.exceptions import RayError

    over = threading.Event()

    def repeat() -> None:
        while not over.wait(POLL_S):
            with suppress(RayError):
                poll()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
