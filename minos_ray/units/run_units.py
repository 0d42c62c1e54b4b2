"""Work in units, on Ray Data: an actor pool takes tasks of several units and stores each unit when it is finished.

A part is named after its units and written in one move, so a unit that was done twice is stored once, and stored rows
are never torn. A rerun plans only the units whose rows are missing. Each actor reports what it stored, and the driver
shows it while it waits for tasks.
"""

import gc
import json
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.cluster.connect import join, on_this_node, placed, require
from minos_ray.config.resources import Actors, Resources
from minos_ray.errors import WorkStopped
from minos_ray.observe.failure import cause, too_many_failed
from minos_ray.observe.progress import Progress, duration
from minos_ray.store.run import Artefact, Run
from minos_ray.units.actor import (
    MAX_CRASHES,
    MAX_RESTARTS,
    PartWriter,
    Stats,
    Worker,
    part_name,
    split_by_artefact,
    sum_stats,
    unit_ids,
)

__all__ = ["Work", "Worker", "compacted_before_pieces", "mark_stored", "part_name", "run_units", "stored_units"]

# At most about this many tasks and parts: with more units a task is longer, and a part waits for several units
# (`actor.PART_S` at most). Every task costs the driver a millisecond, and every later stage opens each part.
MAX_PARTS = 10_000
# A task is this many times as long as what a worker is given at once: finished units are stored, so a long task loses
# nothing, and engines run empty less often.
BATCHES_PER_TASK = 16
# With so many tasks for each actor they are as long as they need to be: more are only more for the driver to hand out.
# `Outcome` judges poisoned units when a task ends. A thousandth is soon enough: a hundredth of all has to be poisoned
# before the work stops for it, and the task of an actor that gives up ends at once.
TASKS_PER_ACTOR = 1000
POLL_S = 2.0
ANSWER_S = 30.0
# Work that stores nothing for this long hangs. How long a task takes says nothing, since it has many units.
STALL_S = 4 * 3600.0
# Numbers of workers that count failures; so do all that begin with `refused_`.
FAILURES = {
    *("engine_died", "actor_died", "prompt_too_long", "timeout", "candidate of an unknown problem"),
    *("no_steps", "empty", "no_verdict", "wrong_step_count", "unclear_step"),
}


@dataclass(frozen=True)
class Work:
    """What `run_units` has its actors do, and how progress names it.

    `worker(**kwargs)` is called once in each actor of the pool `resources.<pool>`, and given `batch_units` units at
    once; a worker that has `stream` is given a whole task. The last tasks are shorter, down to `least_units` (None: an
    eighth of `batch_units`). `most_units` bounds a task: with 1 every unit is a part of its own, also after a kill.
    `rows` is the number of rows expected in all, `rows_before` how many of them are stored.
    """

    label: str
    pool: str
    worker: Callable[..., Worker]
    kwargs: dict[str, Any]
    batch_units: int
    rows: int
    rows_before: int = 0
    least_units: int | None = None
    most_units: int | None = None
    row_name: str = "rows"


def compacted_before_pieces(names: Iterable[str]) -> list[str]:
    """Parts of whole tasks before pieces of tasks (`TASK-UNITS`).

    A kill may leave some of the pieces beside the part that they were compacted to. That part has to be read first, so
    that the pieces are what repeats a unit and is deleted: the rows of pieces that are gone are only in it.
    """
    return sorted(names, key=lambda name: "-" in name)


def mark_stored(artefact: Artefact, parts: Iterable[tuple[str, np.ndarray]], size: int) -> np.ndarray:
    """Which of `size` places are stored, given the places that each part claims.

    A part that claims nothing, a place twice or one of another part (two runs at once), or one that is not of the plan
    (negative), is deleted, so that its rows are made again.
    """
    stored = np.zeros(size, dtype=bool)
    for name, places in parts:
        ordered = np.sort(places)  # `np.unique` takes ten times as long and more
        if len(places) and ordered[0] >= 0 and np.diff(ordered).all() and not stored[places].any():
            stored[places] = True
        else:
            artefact.run.delete(f"{artefact.name}/part-{name}.parquet")
    return stored


def stored_units(artefact: Artefact, ids: pa.Array, rows: np.ndarray | None = None) -> np.ndarray:
    """Which of the units with these ids are stored, [units]. Reads the parts' footers, no rows.

    With `rows` ([units]), a part whose number of rows is not that of its units is deleted as well.
    """
    footers = dict(artefact.part_footers())
    names = compacted_before_pieces(footers)
    claimed = pa.array([unit for name in names for unit in footers[name].units], ids.type)
    places = pc.fill_null(pc.index_in(claimed, value_set=ids), -1).to_numpy()
    ends = np.cumsum([len(footers[name].units) for name in names], dtype=np.int64)

    def claims() -> Iterator[tuple[str, np.ndarray]]:
        for name, units in zip(names, np.split(places, ends[:-1]), strict=False):
            as_planned = rows is None or rows[units].sum() == footers[name].rows
            yield name, units if as_planned else units[:0]

    return mark_stored(artefact, claims(), len(ids))


def rows_of_units(units: pa.Table) -> int:
    """Rows of all units: the sum of their column `rows`."""
    return pc.sum(units["rows"]).as_py() or 0


def task_sizes(units: int, actors: int, most: int, least: int = 1) -> list[int]:
    """How many units the tasks have, in order: at first `most`, then ever fewer, so that all actors end together.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987): a task takes its fraction of the remaining units. A
    quarter of it, since every actor has one task in work and one waiting, and an actor that starts late must not hold
    all of its share. `least` is what an actor works on at once: less is no faster. With fewer units than that for each
    actor, all get the same.
    """
    least = min(least, most, -(-units // actors))
    sizes = []
    while units:
        sizes.append(min(units, max(least, min(most, units // (4 * actors)))))
        units -= sizes[-1]
    return sizes


def run_units(run: Run, artefact: str, units: pa.Table, work: Work, resources: Resources) -> Stats:
    """Does all `units` (column `unit_id`, unique) on the cluster, which it joins; returns the sum of their numbers.

    Units are of `artefact`, or of the one that a column `artefact` names (one pool of actors then serves several).

    A unit that crashes `MAX_CRASHES` actors gets the rows of `worker.failed`. Raises WorkStopped where the worker has
    no such method, and when so many units fail that the engine must be the cause.
    """
    crash_logs = f"{artefact}/attempts"
    run.delete(crash_logs)  # a stopped run may have left some
    if units.num_rows == 0:
        return {}
    join(resources)
    # Not before `join`, which sets what Ray reads when it is imported.
    import ray
    from ray.exceptions import RayActorError

    pool: Actors = getattr(resources, work.pool)
    require(work.label, pool, resources.wait_s)
    reference = ray.put(units)
    units = ray.get(reference)  # in shared memory: no second table for the hours to come, if the caller kept none
    pa.default_memory_pool().release_unused()
    constructor = {
        "worker": work.worker,
        "kwargs": work.kwargs,
        "run": run.path,
        "artefact": artefact,
        "units": reference,
        "crash_logs": f"{crash_logs}/{uuid.uuid4().hex}",
        "max_restarts": MAX_RESTARTS,
        "part_units": -(-units.num_rows // MAX_PARTS),
        "batch_units": work.batch_units,
    }
    longest = max(work.batch_units * BATCHES_PER_TASK, units.num_rows // (pool.actors * TASKS_PER_ACTOR))
    most = work.most_units or max(longest, constructor["part_units"])
    sizes = task_sizes(units.num_rows, pool.actors, most, work.least_units or -(-work.batch_units // 8))
    outcome = Outcome(work, units.num_rows)
    try:
        with Progress(work.label, work.rows, work.row_name, work.rows_before, run) as progress:
            with (
                placed(pool) as where,
                progress_tally(progress) as tally,
                stop_actors_on_exit(task_results(sizes, {**constructor, "tally": tally}, pool, where)) as results,
            ):
                for result in results:
                    outcome.add(result)
            if outcome.poisoned:
                ids = pa.array(outcome.poisoned, units["unit_id"].type)
                write_poisoned(run, artefact, units.filter(pc.is_in(units["unit_id"], ids)), work, outcome)
            show_numbers(progress, outcome.stats, queue=0)
            progress.advance(work.rows_before + outcome.rows - progress.done)
    except RayActorError as error:
        raise WorkStopped(f"{work.label}: {cause(error)}; what is finished is kept, a rerun does the rest") from error
    # Not after a failure: actors that are being killed may still write there. The next run deletes what they left.
    run.delete(crash_logs)
    return outcome.stats


def write_poisoned(run: Run, artefact: str, units: pa.Table, work: Work, outcome: "Outcome") -> None:
    """Stores the rows that the worker has for poisoned units, and adds them to the outcome."""
    worker: Any = work.worker  # one with `failed`: without it the first poisoned unit has ended the work
    for name, group in split_by_artefact(units, artefact):
        rows, stats = worker.failed(group, **work.kwargs)
        run.artefact(name).write_part(part_name(group), rows, stats, unit_ids(group))
        outcome.rows += rows.num_rows
        outcome.stats = sum_stats([outcome.stats, stats])


def task_results(
    sizes: list[int], constructor: dict[str, Any], pool: Actors, where: dict[str, Any]
) -> Generator[dict[str, Any]]:
    """The Ray Data pipeline: one row is one task, one block is one row, and one more task waits at every actor."""
    from ray.data import ActorPoolStrategy, from_blocks

    blocks, first = [], 0
    for size in sizes:
        blocks.append(pa.table({"first": [first], "count": [size]}))
        first += size
    results = from_blocks(blocks).map_batches(
        PartWriter,
        fn_constructor_kwargs=constructor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=2),
        **where,
        max_restarts=-1,
        max_task_retries=-1,
    )
    return cast(Generator[dict[str, Any]], iter(results.iter_rows()))


class Outcome:
    """The sum of the tasks' results so far, and whether the work is worth continuing."""

    def __init__(self, work: Work, units: int) -> None:
        self.work, self.units = work, units
        self.stats: Stats = {}
        self.finished, self.rows = 0, 0
        self.poisoned: list[str] = []

    def add(self, result: dict[str, Any]) -> None:
        """Adds the result of a task. Raises WorkStopped when it makes no sense to go on."""
        self.stats = sum_stats([self.stats, json.loads(result["stats"])])
        self.finished += result["units"]
        self.rows += result["rows"]
        self.poisoned += list(result["poisoned"])
        if result["gave_up"]:
            self.stop(f"an actor died {MAX_RESTARTS} times in a row before it finished a unit")
        if self.poisoned and not hasattr(self.work.worker, "failed"):
            self.stop(f"unit {self.poisoned[0]} killed {MAX_CRASHES} actors")
        done = self.finished + len(self.poisoned)
        # Where not one unit ever finished, the engine is to blame and not the units.
        all_failed = bool(self.poisoned) and done == self.units and not self.finished and not self.work.rows_before
        if too_many_failed(len(self.poisoned), self.units) or all_failed:
            self.stop(f"{len(self.poisoned)} of {done} units killed {MAX_CRASHES} actors each")

    def stop(self, reason: str) -> None:
        """Raises WorkStopped."""
        hint = "memory, or a setting of the engine? Ray's logs say more"
        raise WorkStopped(f"{self.work.label}: {reason} ({hint}); what is finished is kept, a rerun does the rest")


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
        self.numbers = sum_stats([self.numbers, numbers])

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
        seen: set[int] = set()
        pending: list[BaseException | None] = [error]
        while pending:  # of its causes too; their line numbers stay
            exception = pending.pop()
            if exception is not None and id(exception) not in seen:
                seen.add(id(exception))
                traceback.clear_frames(exception.__traceback__)
                pending += [exception.__cause__, exception.__context__]
        gc.collect()
        raise


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
