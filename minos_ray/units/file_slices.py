"""Slices of a file on Ray Data actors, for commands that read a file and write one (`minos grade`, `minos rank`)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import pyarrow as pa

from minos_ray.cluster.connect import can_grow, join, require
from minos_ray.config.resources import Actors, Resources
from minos_ray.errors import WorkStopped
from minos_ray.files.slices import Slice

# A slice whose actor dies is given to a new one; after so many deaths the slice itself must be the cause.
RETRIES = 3


class SliceActor:
    """The Ray Data actor: a numbered slice in, its number and its results out."""

    def __init__(self, worker: Callable[[Slice], pa.Table]) -> None:
        self.worker = worker

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Results as bytes of Arrow, so that their types stay what they are."""
        row = unit.to_pylist()[0]
        number = row.pop("number")
        results = self.worker(Slice(**row))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, results.schema) as writer:
            writer.write_table(results)
        return pa.table({"number": [number], "results": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def on_actors(
    label: str,
    slices: Mapping[int, Slice],
    worker: Callable[[Slice], pa.Table],
    pool: Actors,
    bounds: Callable[[int, int, bool], tuple[int, int]],
    wait_s: float,
) -> Iterator[tuple[int, pa.Table]]:
    """Number and results of each slice, as they come. `worker` is sent to each actor before it has loaded anything.

    `bounds` gives the least and the most actors from the number of slices, the cluster's CPUs and whether it grows.
    WorkStopped when a slice kills one actor after the other.
    """
    import ray
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayActorError

    join(Resources())
    require(label, pool, wait_s)
    least, most = bounds(len(slices), int(ray.cluster_resources()["CPU"]), can_grow())
    units = [pa.Table.from_pylist([asdict(part) | {"number": number}]) for number, part in slices.items()]
    done = ray.data.from_arrow(units).map_batches(
        SliceActor,
        fn_constructor_args=(worker,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    try:
        for row in done.iter_rows():
            yield row["number"], pa.ipc.open_stream(row["results"]).read_all()
    except RayActorError as error:
        raise WorkStopped(f"{label}: a slice killed {RETRIES + 1} actors in a row (memory?)") from error
