"""Work in units, on Ray Data: an actor pool takes tasks of several units and stores every unit when it is finished.

A part is named after the units in it and written in one move, so a unit that was done twice is stored once,
and what is stored is whole. A rerun plans only the units whose rows are missing.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.cluster.connect import require
from minos_ray.config.resources import Actors
from minos_ray.errors import WorkStopped
from minos_ray.observe.cause import cause
from minos_ray.observe.progress import Progress
from minos_ray.store.prefetch import ahead
from minos_ray.store.run import Artefact, Run
from minos_ray.work.actor import PartWriter, Worker, added, by_artefact, part_name
from minos_ray.work.poison import BARREN, DEATHS
from minos_ray.work.tally import ended, failures, followed

__all__ = ["Worker", "joined_first", "part_name", "run_units", "stored_ids", "whole_units"]

# So many tasks and parts, or a few more: with more units than that a task is longer, and a part waits for several
# units (`parts.PART_S` at most). Every task costs the driver a millisecond, and every later stage opens each part.
PARTS = 10_000
# Tasks are so many times longer than what a worker is given at once: what is finished is stored, so nothing is lost by
# it, and engines empty less often.
LONGER = 16
# Units that may kill their engines before the engine itself is taken to be broken: so many, or this share of all.
FAILED, FAILED_SHARE = 3, 0.01


def joined_first(names: Iterable[str]) -> list[str]:
    """Parts of whole tasks before pieces of tasks (`TASK-UNITS`).

    When a kill left some of the pieces beside the part that they were joined to, it is they that repeat it and go; the
    other way round the rows of the pieces that are gone already would go with it.
    """
    return sorted(names, key=lambda name: "-" in name)


def stored_ids(artefact: Artefact, key: str) -> set[str]:
    """Ids of the rows that are stored. A part that repeats one (two runs at once) goes, to be done again."""
    stored: set[str] = set()
    names = joined_first(artefact.part_names())
    for name, rows in ahead(lambda name: artefact.read_part(name, [key]), names):
        ids = rows[key].to_pylist()
        if len(set(ids)) < len(ids) or not stored.isdisjoint(ids):
            artefact.run.delete(f"{artefact.name}/part-{name}.parquet")
        else:
            stored.update(ids)
    return stored


def whole_units(artefact: Artefact, ids: pa.Array, rows: np.ndarray | None = None) -> np.ndarray:
    """Which of the units with these ids are stored, from what parts say of themselves: no row is read.

    A part goes, to be done again, if it repeats a unit (two runs at once), has one of another plan, or if the number
    of its rows is not that of its units in `rows`.
    """
    done = np.zeros(len(ids), dtype=bool)
    found = dict(artefact.noted())
    notes = [(name, found[name].units, found[name].rows) for name in joined_first(found)]
    noted = pa.array([unit for _, units, _ in notes for unit in units], ids.type)
    places = pc.fill_null(pc.index_in(noted, value_set=ids), -1).to_numpy()
    ends = np.cumsum([len(units) for _, units, _ in notes], dtype=np.int64)
    for (name, _, held), its in zip(notes, np.split(places, ends[:-1]), strict=False):
        once = len(its) and its.min() >= 0 and not done[its].any() and len(np.unique(its)) == len(its)
        if once and (rows is None or rows[its].sum() == held):
            done[its] = True
        else:
            artefact.run.delete(f"{artefact.name}/part-{name}.parquet")
    return done


def task_sizes(units: int, actors: int, most: int, least: int = 1) -> list[int]:
    """How many units the tasks have, in order: at first `most`, then ever fewer, so that all actors end together.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987): a task takes its share of what is left. A quarter of it,
    since every actor has one task in work and one waiting, and whoever began late must not hold all of its share.
    `least` is what an actor works on at once: less is no faster. With less than that for each actor, all get the same.
    """
    least = min(least, most, -(-units // actors))
    sizes = []
    while units:
        sizes.append(min(units, max(least, min(most, units // (4 * actors)))))
        units -= sizes[-1]
    return sizes


def forget(run: Run, artefact: str) -> None:
    """Removes what actors noted of their attempts, for a run that was stopped too."""
    run.delete(f"{artefact}/attempts")


def run_units(
    run: Run,
    artefact: str,
    units: pa.Table,
    worker: Callable[..., Worker],
    kwargs: dict[str, Any],
    resources: Actors,
    *,
    batch_units: int,
    least_units: int | None = None,
    label: str,
    rows: int,
    rows_before: int = 0,
    unit: str = "rows",
    wait_s: float = 600,
    env: dict[str, str] | None = None,
) -> dict[str, float]:
    """Does all `units` (column `unit_id`, unique), `batch_units` at once; returns summed stats.

    `worker(**kwargs)` is called once in each actor (see `parts.Worker`); what it is given at once is of one artefact:
    `artefact`, or the one that the units name in a column `artefact` (one pool of actors then serves several). `rows`
    is the number of rows expected in all (for progress), `rows_before` how many of them are stored already.

    The first tasks are `LONGER` times as long and more when there are many units; the last ones are shorter, down to
    `least_units` (an eighth of `batch_units`). A worker that has `stream` is given a whole task.

    A unit that kills `DEATHS` engines gets the rows of `worker.failed`. WorkStopped where the worker has no such
    method, and when so many units fail that the engine must be the cause.
    """
    import ray

    forget(run, artefact)
    if units.num_rows == 0:
        return {}
    require(label, resources, wait_s)
    stored = ray.put(units)
    units = ray.get(stored)  # in shared memory: no second table for the hours to come, if the caller kept none
    pa.default_memory_pool().release_unused()
    constructor = {
        "worker": worker,
        "kwargs": kwargs,
        "run": run.path,
        "artefact": artefact,
        "units": stored,
        "attempts": f"{artefact}/attempts/{uuid.uuid4().hex}",
        "part_units": -(-units.num_rows // PARTS),
        "at_once": batch_units,
    }
    most = max(batch_units * LONGER, constructor["part_units"])
    sizes = task_sizes(units.num_rows, resources.actors, most, least_units or -(-batch_units // 8))
    outcome = Outcome(label, units.num_rows, started_before=rows_before > 0, can_fail=hasattr(worker, "failed"))
    try:
        with Progress(label, rows, unit, rows_before, run) as progress:
            with (
                followed(progress) as tally,
                ended(tasks(sizes, {**constructor, "tally": tally}, resources, env)) as results,
            ):
                for done in results:
                    outcome.add(done)
            if outcome.failed:
                failed = units.filter(pc.is_in(units["unit_id"], pa.array(outcome.failed, units["unit_id"].type)))
                for count, stats in write_failed(run, artefact, failed, worker, kwargs):
                    outcome.rows += count
                    outcome.stats = added([outcome.stats, stats])
            tokens = {"tokens": outcome.stats["tokens"]} if "tokens" in outcome.stats else {}
            progress.note(failures(outcome.stats), queue=0, **tokens)
            progress.advance(rows_before + outcome.rows - progress.done)
    except ray.exceptions.RayActorError as error:
        raise WorkStopped(f"{label}: {cause(error)}; what is finished is kept, a rerun does the rest") from error
    forget(run, artefact)  # not after a failure: actors that are being ended may still write there; a rerun begins so
    return outcome.stats


def write_failed(
    run: Run, artefact: str, units: pa.Table, worker: Any, kwargs: dict[str, Any]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Stores the rows that the worker has for units that killed every engine; their number and stats."""
    for name, some in by_artefact(units, artefact):
        rows, stats = worker.failed(some, **kwargs)
        run.artefact(name).write_part(part_name(some), rows, stats)
        yield rows.num_rows, stats


def tasks(
    sizes: list[int], constructor: dict[str, Any], resources: Actors, env: dict[str, str] | None
) -> Iterator[dict[str, Any]]:
    """The Ray Data pipeline: one row is one task, one block is one row, and one more task waits at every actor."""
    from ray.data import ActorPoolStrategy, from_blocks

    blocks, first = [], 0
    for size in sizes:
        blocks.append(pa.table({"first": [first], "count": [size]}))
        first += size
    done = from_blocks(blocks).map_batches(
        PartWriter,
        fn_constructor_kwargs=constructor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=resources.cpus if not resources.gpus else None,
        num_gpus=resources.gpus or None,
        runtime_env={"env_vars": env} if env else None,
        max_restarts=-1,
        max_task_retries=-1,
    )
    return iter(done.iter_rows())


class Outcome:
    """What came of the tasks so far, and whether the work is worth going on with."""

    def __init__(self, label: str, units: int, started_before: bool, can_fail: bool) -> None:
        self.label, self.units, self.started_before, self.can_fail = label, units, started_before, can_fail
        self.stats: dict[str, float] = {}
        self.done, self.rows, self.failed = 0, 0, []

    def add(self, task: dict[str, Any]) -> None:
        """Takes in the result of a task; WorkStopped when there is no sense in going on."""
        self.stats = added([self.stats, json.loads(task["stats"])])
        self.done += task["units"]
        self.rows += task["rows"]
        self.failed += list(task["failed"])
        if task["barren"]:
            self.stop(f"an actor died {BARREN} times in a row before it finished a unit")
        if self.failed and not self.can_fail:
            self.stop(f"unit {self.failed[0]} killed {DEATHS} actors")
        nothing = self.done + len(self.failed) == self.units and not self.done and not self.started_before
        if len(self.failed) > max(FAILED, FAILED_SHARE * self.units) or (self.failed and nothing):
            self.stop(f"{len(self.failed)} of {self.done + len(self.failed)} units killed {DEATHS} actors each")

    def stop(self, why: str) -> None:
        """Ends the work."""
        hint = "memory, or a setting of the engine? Ray's logs say more"
        raise WorkStopped(f"{self.label}: {why} ({hint}); what is finished is kept, a rerun does the rest")
