"""The actor of `run_units`: makes its worker once, then stores the units of each task as they are finished; and the log
of what was in flight when an actor crashed.

Crash logs are small files in the run directory, written before each attempt; they survive `kill -9`. They belong to one
call of `run_units` and are deleted with it, so interrupting the driver does not count as a crash. A unit that was in
flight when an actor crashed is a suspect, and is tried alone from then on.
"""

import atexit
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.cluster.room import draining
from minos_ray.store.filesystem import PartFooter
from minos_ray.store.run import Artefact, Run, Stats, sum_stats

# A unit is poisoned after it crashed this many actors: the first perhaps in company, the others alone.
MAX_CRASHES = 3
# An actor gives up after this many restarts with nothing stored in between. Two poisoned units in a row take six.
MAX_RESTARTS = 8
# Finished units wait at most this long for others to share a part with.
PART_S = 60.0
# How often an actor asks whether its node is to go, at most.
ASK_S = 1.0
OUTCOME = pa.schema(
    [
        ("units", pa.int64()),
        ("rows", pa.int64()),
        ("stats", pa.string()),
        ("poisoned", pa.list_(pa.string())),
        ("gave_up", pa.bool_()),
    ]
)


class CrashLog:
    """The crashes of one task: the units in flight, and how many crashes each unit was in flight at."""

    def __init__(self, run: Run, name: str, node: str) -> None:
        self.run, self.name, self.node = run, f"{name}.json", node
        self.is_retry = run.exists(self.name)
        state = json.loads(run.read_bytes(self.name)) if self.is_retry else {}
        self.in_flight: set[str] = set(state.get("running", ()))
        self.crashes: dict[str, int] = state.get("deaths", {})
        self.last_node: str = state.get("node", "")
        self.handed_back: bool = state.get("handed_back", False)

    def count_crash(self, unfinished: Iterable[str]) -> None:
        """The last attempt crashed: of its units in flight, those that are not stored are suspects."""
        for unit in self.in_flight & set(unfinished):
            self.crashes[unit] = self.crashes.get(unit, 0) + 1
        self.clear_in_flight()

    def clear_in_flight(self) -> None:
        """No unit is in flight. Without `count_crash` before it, the end of the last attempt is no unit's fault."""
        self.in_flight = set()
        self.write()

    def hand_back(self) -> None:
        """The task is given back, for its node is to go: no actor crashed."""
        self.in_flight, self.handed_back = set(), True
        self.write()

    def start(self, units: Iterable[str]) -> None:
        """Must be called before units are tried."""
        self.in_flight.update(units)
        self.handed_back = False
        self.write()

    def finish(self, units: Iterable[str]) -> None:
        """A later crash is not the fault of these units. Written with the next start, to save requests."""
        self.in_flight.difference_update(units)

    def is_poisoned(self, unit: str) -> bool:
        """Whether the unit has crashed as many actors as it may."""
        return self.crashes.get(unit, 0) >= MAX_CRASHES

    def write(self) -> None:
        """Stores the state."""
        crashes, running = self.crashes, sorted(self.in_flight)
        state = {"node": self.node, "running": running, "deaths": crashes, "handed_back": self.handed_back}
        self.run.write_bytes(self.name, json.dumps(state).encode())


class RestartBudget:
    """How many times one actor was started since it last stored something; more than `limit` times it must not try."""

    def __init__(self, run: Run, name: str, limit: int = MAX_RESTARTS) -> None:
        self.run, self.name, self.limit = run, f"{name}.json", limit
        self.starts = 1 + (json.loads(run.read_bytes(self.name)) if run.exists(self.name) else 0)
        self.run.write_bytes(self.name, json.dumps(self.starts).encode())

    @property
    def exhausted(self) -> bool:
        """Whether the actor must not try again."""
        return self.starts > self.limit

    def reset(self) -> None:
        """Something was stored."""
        if self.starts:
            self.starts = 0
            self.run.write_bytes(self.name, b"0")


class Finished(NamedTuple):
    """Units with all of their rows, and numbers to be summed (tokens, refusals by reason)."""

    units: list[str]
    rows: pa.Table
    stats: Stats


class Worker(Protocol):
    """Turns units into rows of the artefact.

    A worker may also have `stream(units, starting) -> Iterator[Finished]`: it calls `starting` with the ids of units
    before it tries them and yields each as soon as it is finished. When `starting` returns False, the node is to go:
    it begins neither these nor others, and ends with what is in work.

    And a static method `failed(units, **kwargs)` that gives the rows of poisoned units; `kwargs` are those of the
    constructor.
    """

    def __call__(self, units: pa.Table, /) -> tuple[pa.Table, Stats]:
        """Rows and numbers of all the units."""


@contextmanager
def long_lived_imports(module: str) -> Generator[None]:
    """Keeps what is imported inside out of garbage collection, while it is imported and later.

    vLLM, DeepSpeed and transformers bring a million objects that live as long as the process. Looking through them
    again and again took three of ten CPU seconds until an engine was up. For the first import of `module` only, and
    for good in workers of Ray only: elsewhere the process and its objects are a user's.
    """
    if module in sys.modules:
        yield
        return
    enabled, ray = gc.isenabled(), sys.modules.get("ray")
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        if ray and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
            gc.freeze()


class PartWriter:
    """Does tasks: ranges of the table of units. The task of an actor that died is given to a new one and resumed."""

    def __init__(
        self,
        worker: Callable[..., Worker],
        kwargs: dict[str, Any],
        run: str,
        artefact: str,
        units: Any,
        crash_logs: str,
        max_restarts: int,
        part_units: int,
        batch_units: int,
        tally: Any,
    ) -> None:
        import ray

        context = ray.get_runtime_context()
        self.run, self.artefact, self.crash_logs = Run(run), artefact, crash_logs
        self.node, self.part_units, self.batch_units = context.get_node_id(), part_units, batch_units
        self.tally = tally
        self.leaving, self.asked = False, 0.0
        tally.join.remote(context.current_actor)
        self.units: pa.Table = ray.get(units)
        self.restarts = RestartBudget(self.run, f"{crash_logs}/{context.get_actor_id()}", max_restarts)
        # An exhausted actor must not make its worker, which may be what crashes: it lives on to say that it gave up.
        if not self.restarts.exhausted:
            self.worker = worker(**kwargs)
        if not context.get_accelerator_ids().get("GPU"):
            # On a GPU vLLM ends processes of its own.
            atexit.register(exit_at_once)

    def __call__(self, task: pa.Table) -> pa.Table:
        """Does the task's units, `count` from `first` on. Returns a row of `OUTCOME` for each artefact among them."""
        units = self.units.slice(task["first"][0].as_py(), task["count"][0].as_py())
        groups = split_by_artefact(units, self.artefact)
        return pa.Table.from_pylist([self.do(*group) for group in groups], schema=OUTCOME)

    def do(self, artefact: str, units: pa.Table) -> dict[str, Any]:
        """Does units of one artefact, except those that an earlier attempt stored."""
        import ray

        name, target = part_name(units), self.run.artefact(artefact)
        log = CrashLog(self.run, f"{self.crash_logs}/{artefact}/{name}", self.node)
        parts: list[PartFooter] = []
        if log.is_retry:
            delete_compacted_pieces(target, name)
            parts = [target.part_footer(part) for part in target.part_names(name)]
        missing = without(units, [unit for part in parts for unit in part.units])
        if log.is_retry and not log.handed_back:
            self.tally.add.remote(0, {"actor_died": 1})
            # A lost node is not the units' fault.
            if any(entry["NodeID"] == log.last_node and not entry["Alive"] for entry in ray.nodes()):
                log.clear_in_flight()
            else:
                log.count_crash(unit_ids(missing))
        if not self.restarts.exhausted:
            parts += self.store_finished(target, name, units, missing, log)
        poisoned = [unit for unit in unit_ids(missing) if log.is_poisoned(unit)]
        stored = sum(len(part.units) for part in parts)
        if self.leaving and stored + len(poisoned) < units.num_rows:
            log.hand_back()
            self.restarts.reset()
            os._exit(1)  # Ray starts the actor again on another node, and gives it its tasks again
        if len(parts) > 1 and not self.restarts.exhausted:
            compact(target, name)
        return {
            "units": stored,
            "rows": sum(part.rows for part in parts),
            "stats": json.dumps(sum_stats(part.stats for part in parts)),
            "poisoned": poisoned,
            "gave_up": self.restarts.exhausted,
        }

    def store_finished(
        self, target: Artefact, name: str, units: pa.Table, missing: pa.Table, log: CrashLog
    ) -> Iterator[PartFooter]:
        """Tries each suspect alone, then all other missing units together, and stores what is finished."""
        suspects = [unit for unit in unit_ids(missing) if unit in log.crashes]
        alone = [missing.filter(pc.equal(missing["unit_id"], unit)) for unit in suspects if not log.is_poisoned(unit)]
        for group in [*alone, without(missing, suspects)]:
            for part in self.parts(group, log) if group.num_rows else ():
                is_whole_task = len(part.units) == units.num_rows
                part_of = name if is_whole_task else f"{name}-{hash_ids(part.units)}"
                target.write_part(part_of, part.rows, part.stats, part.units)
                self.restarts.reset()
                self.tally.add.remote(part.rows.num_rows, part.stats)
                yield PartFooter(part.units, part.rows.num_rows, part.stats)

    def parts(self, units: pa.Table, log: CrashLog) -> Iterator[Finished]:
        """Finished units, grouped into as many as a part should hold."""
        ready: list[Finished] = []
        since = time.monotonic()
        for finished in self.stream(units, log):
            log.finish(finished.units)
            ready.append(finished)
            full = sum(len(f.units) for f in ready) >= self.part_units
            if full or time.monotonic() - since > PART_S or self.node_leaves():
                yield merge(ready)
                ready, since = [], time.monotonic()
        if ready:
            yield merge(ready)

    def stream(self, units: pa.Table, log: CrashLog) -> Iterator[Finished]:
        """Units as the worker finishes them: one by one if it can, else `batch_units` together.

        Once the node is to go, those in work are the last.
        """

        def starting(ids: list[str]) -> bool:
            if self.node_leaves():
                return False
            log.start(ids)
            return True

        if stream := getattr(self.worker, "stream", None):
            yield from stream(units, starting)
            return
        for first in range(0, units.num_rows, self.batch_units):
            batch = units.slice(first, self.batch_units)
            if not starting(unit_ids(batch)):
                return
            yield Finished(unit_ids(batch), *self.worker(batch))

    def node_leaves(self) -> bool:
        """Whether the node of this actor is to go. Ray starts nothing more there; what is there already runs on."""
        if not self.leaving and time.monotonic() - self.asked > ASK_S:
            self.asked = time.monotonic()
            self.leaving = self.node in draining()
        return self.leaving


def exit_at_once() -> None:
    """Leaves Ray and ends the process.

    Python would clear away vLLM and torch object by object, for four seconds of CPU that the next stage waits for.
    """
    import ray

    # Ray's own hook, which was registered earlier, would come too late.
    ray.shutdown(_exiting_interpreter=True)
    os._exit(0)


def split_by_artefact(units: pa.Table, default: str) -> list[tuple[str, pa.Table]]:
    """The units of each artefact that a column `artefact` names; without such a column all are of `default`."""
    if "artefact" not in units.column_names:
        return [(default, units)]
    names = units["artefact"].unique().to_pylist()
    return [(name, units.filter(pc.equal(units["artefact"], name))) for name in names]


def compact(target: Artefact, task: str) -> None:
    """Makes one part of those that a finished task stored, since every later stage opens each file."""
    footers = dict(target.part_footers(task))
    if len(footers) < 2:
        return
    rows = pa.concat_tables([target.read_part(name) for name in footers])
    units = [unit for footer in footers.values() for unit in footer.units]
    target.write_part(task, rows, sum_stats(footer.stats for footer in footers.values()), units)
    delete_compacted_pieces(target, task)


def delete_compacted_pieces(target: Artefact, task: str) -> None:
    """Deletes the pieces of a task that has one part for all of its units; a kill may have left some."""
    names = target.part_names(task)
    for name in names if task in names else ():
        if name != task:
            target.run.delete(f"{target.name}/part-{name}.parquet")


def merge(ready: list[Finished]) -> Finished:
    """Several as one."""
    units = [unit for finished in ready for unit in finished.units]
    return Finished(units, pa.concat_tables([f.rows for f in ready]), sum_stats(f.stats for f in ready))


def unit_ids(units: pa.Table) -> list[str]:
    """The ids of units."""
    return units["unit_id"].to_pylist()


def without(units: pa.Table, ids: list[str]) -> pa.Table:
    """The units except those with these ids."""
    return units.filter(pc.invert(pc.is_in(units["unit_id"], pa.array(ids, units["unit_id"].type))))


def part_name(units: pa.Table) -> str:
    """The name of a task and of its part: the same for the same units (column `unit_id`)."""
    return hash_ids(unit_ids(units))


def hash_ids(ids: Iterable[str]) -> str:
    """24 hex digits that name a set of units."""
    return blake2b("\n".join(sorted(ids)).encode(), digest_size=12).hexdigest()
