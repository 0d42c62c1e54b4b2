"""The actor of `run_units`: makes its worker once, then stores the units of each task as they are finished."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.store.run import Artefact, Run
from minos_ray.work.poison import Attempts, Lives, lost

# Finished units wait at most so long for others to share a part with.
PART_S = 60.0
Stats = dict[str, float]
OUTCOME = pa.schema(
    [
        ("units", pa.int64()),
        ("rows", pa.int64()),
        ("stats", pa.string()),
        ("failed", pa.list_(pa.string())),
        ("barren", pa.bool_()),
    ]
)


class Finished(NamedTuple):
    """Units whose rows are all there, and numbers to be summed (tokens, refusals by reason)."""

    units: list[str]
    rows: pa.Table
    stats: Stats


class Stored(NamedTuple):
    """What is in a part: its units, the number of its rows, and its numbers."""

    units: list[str]
    rows: int
    stats: Stats


class Worker(Protocol):
    """Turns units into rows of the artefact.

    A worker may also have `stream(units, starting) -> Iterator[Finished]`: it calls `starting` with the ids of units
    before it tries them and yields each as soon as it is finished. And a static method `failed(units, **kwargs)` that
    gives the rows of units that killed every engine they met; `kwargs` are those of the constructor.
    """

    def __call__(self, units: pa.Table) -> tuple[pa.Table, Stats]:
        """Rows and numbers of all the units."""


class PartWriter:
    """Does tasks: ranges of the table of units. A task whose actor died is given to a new one and goes on there."""

    def __init__(
        self,
        worker: Callable[..., Worker],
        kwargs: dict[str, Any],
        run: str,
        artefact: str,
        units: Any,
        attempts: str,
        part_units: int,
        at_once: int,
        tally: Any,
    ) -> None:
        import ray

        context = ray.get_runtime_context()
        self.run, self.artefact, self.attempts = Run(run), artefact, attempts
        self.node, self.part_units, self.at_once = context.get_node_id(), part_units, at_once
        self.tally = tally
        tally.join.remote(context.current_actor)
        self.units: pa.Table = ray.get(units)
        self.lives = Lives(self.run, f"{attempts}/{context.get_actor_id()}")
        if self.lives.left:
            self.worker = worker(**kwargs)

    def __call__(self, task: pa.Table) -> pa.Table:
        """What became of the units from `first` on, `count` of them: one row for each artefact among them."""
        units = self.units.slice(task["first"][0].as_py(), task["count"][0].as_py())
        return pa.Table.from_pylist([self.do(*some) for some in by_artefact(units, self.artefact)], schema=OUTCOME)

    def do(self, artefact: str, units: pa.Table) -> dict[str, Any]:
        """Does units of one artefact, without those that an earlier attempt stored."""
        name, target = part_name(units), self.run.artefact(artefact)
        attempts = Attempts(self.run, f"{self.attempts}/{artefact}/{name}", self.node)
        if attempts.again:
            clear_joined(target, name)
        done = stored(target, name) if attempts.again else []
        left = without(units, [unit for part in done for unit in part.units])
        if attempts.again:
            self.tally.add.remote(0, {"actor_died": 1})
            look_back(attempts, left)
        if self.lives.left:
            done += self.go_on(target, name, units, left, attempts)
        failed = [unit for unit in ids(left) if attempts.guilty(unit)]
        if self.lives.left and len(done) > 1:
            join(target, name)
        return {
            "units": sum(len(part.units) for part in done),
            "rows": sum(part.rows for part in done),
            "stats": json.dumps(added(part.stats for part in done)),
            "failed": failed,
            "barren": not self.lives.left,
        }

    def go_on(
        self, target: Artefact, name: str, units: pa.Table, left: pa.Table, attempts: Attempts
    ) -> Iterator[Stored]:
        """Tries each suspect alone, then all the others together, and stores what is finished."""
        suspects = [unit for unit in ids(left) if unit in attempts.deaths]
        alone = [left.filter(pc.equal(left["unit_id"], unit)) for unit in suspects if not attempts.guilty(unit)]
        for some in [*alone, without(left, suspects)]:
            for part in self.parts(some, attempts) if some.num_rows else ():
                whole = len(part.units) == units.num_rows
                target.write_part(name if whole else f"{name}-{hashed(part.units)}", part.rows, part.stats, part.units)
                self.lives.renew()
                self.tally.add.remote(part.rows.num_rows, part.stats)
                yield Stored(part.units, part.rows.num_rows, part.stats)

    def parts(self, units: pa.Table, attempts: Attempts) -> Iterator[Finished]:
        """Finished units, as many together as a part should hold."""
        ready: list[Finished] = []
        since = time.monotonic()
        for finished in self.stream(units, attempts):
            attempts.finish(finished.units)
            ready.append(finished)
            if sum(len(f.units) for f in ready) >= self.part_units or time.monotonic() - since > PART_S:
                yield together(ready)
                ready, since = [], time.monotonic()
        if ready:
            yield together(ready)

    def stream(self, units: pa.Table, attempts: Attempts) -> Iterator[Finished]:
        """What the worker finishes, one by one if it can, else `at_once` together."""
        if hasattr(self.worker, "stream"):
            yield from self.worker.stream(units, attempts.start)
            return
        for first in range(0, units.num_rows, self.at_once):
            some = units.slice(first, self.at_once)
            attempts.start(ids(some))
            yield Finished(ids(some), *self.worker(some))


def look_back(attempts: Attempts, left: pa.Table) -> None:
    """The attempt before this one died; a lost node is not the units' fault."""
    if lost(attempts.last_node):
        attempts.forgive()
    else:
        attempts.blame(ids(left))


def by_artefact(units: pa.Table, default: str) -> list[tuple[str, pa.Table]]:
    """The units of each artefact: those that have a column `artefact` name their own."""
    if "artefact" not in units.column_names:
        return [(default, units)]
    names = units["artefact"].unique().to_pylist()
    return [(name, units.filter(pc.equal(units["artefact"], name))) for name in names]


def stored(target: Artefact, task: str) -> list[Stored]:
    """The parts that earlier attempts at a task stored."""
    return [Stored(*target.part_notes(name)) for name in target.part_names(task)]


def join(target: Artefact, task: str) -> None:
    """Makes one part of those that a finished task stored, since every later stage opens each file."""
    names = target.part_names(task)
    if len(names) < 2:
        return
    parts = stored(target, task)
    rows = pa.concat_tables([target.read_part(name) for name in names])
    units = [unit for part in parts for unit in part.units]
    target.write_part(task, rows, added(part.stats for part in parts), units)
    clear_joined(target, task)


def clear_joined(target: Artefact, task: str) -> None:
    """Removes the parts that are in the task's one part, if it is there."""
    names = target.part_names(task)
    for name in names if task in names else ():
        if name != task:
            target.run.delete(f"{target.name}/part-{name}.parquet")


def together(ready: list[Finished]) -> Finished:
    """Several as one."""
    units = [unit for finished in ready for unit in finished.units]
    return Finished(units, pa.concat_tables([f.rows for f in ready]), added(f.stats for f in ready))


def added(numbers: Iterable[Stats]) -> Stats:
    """The sum of numbers by name."""
    total: Stats = {}
    for some in numbers:
        for key, value in some.items():
            total[key] = total.get(key, 0) + value
    return total


def ids(units: pa.Table) -> list[str]:
    """The ids of units."""
    return units["unit_id"].to_pylist()


def without(units: pa.Table, done: list[str]) -> pa.Table:
    """The units that are not `done`."""
    return units.filter(pc.invert(pc.is_in(units["unit_id"], pa.array(done, units["unit_id"].type))))


def part_name(units: pa.Table) -> str:
    """The name of a task and of its part: the same for the same units (column `unit_id`)."""
    return hashed(ids(units))


def hashed(units: Iterable[str]) -> str:
    """24 hex digits that name a set of units."""
    return blake2b("\n".join(sorted(units)).encode(), digest_size=12).hexdigest()
