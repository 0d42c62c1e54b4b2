"""Work in units, on Ray Data: an actor pool takes batches of units and writes each finished batch as one part.

A part is named after the units in it and written in one move, so a unit that was done twice is stored once,
and what is stored is whole. A rerun plans only the units whose rows are missing.
"""

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.cluster import require
from minos_ray.errors import WorkStopped
from minos_ray.progress import Progress
from minos_ray.sections import Actors
from minos_ray.store import Artefact, Run

# A batch whose actor dies is given to a new one; after so many deaths the batch itself must be the cause.
RETRIES = 3
# A worker turns a batch of units into rows of the artefact and numbers to be summed (tokens, refusals by reason).
Worker = Callable[[pa.Table], tuple[pa.Table, dict[str, float]]]


class PartWriter:
    """The actor: makes its worker once, then writes one part per batch of units."""

    def __init__(self, worker: Callable[..., Worker], kwargs: dict[str, Any], run: str, artefact: str) -> None:
        self.worker = worker(**kwargs)
        self.run, self.artefact = Run(run), artefact

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Returns a row per part: how many units were done, how many rows they gave, and the stats as JSON."""
        done = [self.write(name, units) for name, units in by_artefact(batch, self.artefact)]
        return pa.Table.from_pylist(done)

    def write(self, artefact: str, units: pa.Table) -> dict[str, Any]:
        """Does units of one artefact and writes their part."""
        rows, stats = self.worker(units)
        self.run.artefact(artefact).write_part(part_name(units), rows, stats)
        return {"units": units.num_rows, "rows": rows.num_rows, "stats": json.dumps(stats)}


def by_artefact(batch: pa.Table, default: str) -> list[tuple[str, pa.Table]]:
    """The units of each artefact: those that have a column `artefact` name their own."""
    if "artefact" not in batch.column_names:
        return [(default, batch)]
    names = batch["artefact"].unique().to_pylist()
    return [(name, batch.filter(pc.equal(batch["artefact"], name))) for name in names]


def part_name(batch: pa.Table) -> str:
    """A name that is the same for the same units (column `unit_id`)."""
    return blake2b("\n".join(sorted(batch["unit_id"].to_pylist())).encode(), digest_size=12).hexdigest()


def stored_ids(artefact: Artefact, key: str) -> set[str]:
    """Ids of the rows that are stored. A part that repeats one (two runs at once) goes, to be done again."""
    stored: set[str] = set()
    for name in artefact.part_names():
        ids = artefact.read_part(name, [key])[key].to_pylist()
        if len(set(ids)) < len(ids) or not stored.isdisjoint(ids):
            artefact.run.delete(f"{artefact.name}/part-{name}.parquet")
        else:
            stored.update(ids)
    return stored


def run_units(
    run: Run,
    artefact: str,
    units: pa.Table,
    worker: Callable[..., Worker],
    kwargs: dict[str, Any],
    resources: Actors,
    *,
    batch_units: int,
    label: str,
    rows: int,
    rows_before: int = 0,
    unit: str = "rows",
    wait_s: float = 600,
    env: dict[str, str] | None = None,
) -> dict[str, float]:
    """Does all `units` (column `unit_id`, unique) in batches of `batch_units`; returns the summed stats.

    `worker(**kwargs)` is called once in each actor; its batches are of one artefact: `artefact`, or the one that the
    units name in a column `artefact` (one pool of actors then serves several). `rows` is the number of rows expected
    in all (for progress), `rows_before` how many of them are stored already.
    """
    import ray
    from ray.data import ActorPoolStrategy

    if units.num_rows == 0:
        return {}
    require(label, resources, wait_s)
    batch_units = max(1, min(batch_units, -(-units.num_rows // resources.actors)))
    # One block per batch, made here: a repartition would need CPUs that the actors may hold.
    blocks = [units.slice(i, batch_units) for i in range(0, units.num_rows, batch_units)]
    done = ray.data.from_arrow(blocks).map_batches(
        PartWriter,
        fn_constructor_kwargs={"worker": worker, "kwargs": kwargs, "run": run.path, "artefact": artefact},
        batch_size=batch_units,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=resources.cpus if not resources.gpus else None,
        num_gpus=resources.gpus or None,
        runtime_env={"env_vars": env} if env else None,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    total: dict[str, float] = {}
    try:
        with Progress(label, rows, unit, rows_before) as progress:
            for row in done.iter_rows():
                for key, value in json.loads(row["stats"]).items():
                    total[key] = total.get(key, 0) + value
                progress.advance(row["rows"])
    except ray.exceptions.RayActorError as error:
        died = f"{label}: a batch killed {RETRIES + 1} actors in a row (memory? see the log above)"
        raise WorkStopped(f"{died}; what is finished is kept, a rerun does the rest") from error
    return total
