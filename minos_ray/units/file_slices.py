"""A file of rows as slices, for commands that read a file and write one (`minos grade`, `minos rank`): any file becomes
Parquet, slices are read anywhere, on Ray Data actors too, and results return beside the rows.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.cluster.connect import can_grow, join, require
from minos_ray.config.resources import Actors, Resources
from minos_ray.errors import UserError, WorkStopped
from minos_ray.files import (
    BadRow,
    check_no_lfs_pointer,
    files,
    is_nothing,
    kind,
    readable,
    records,
    require_unique,
)
from minos_ray.store.run import open_path

SLICE_ROWS = 4096
# A slice whose actor dies is given to a new one; after so many deaths the slice itself must be the cause.
RETRIES = 3
# What can be graded, and is written in one way.
TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
    pa.types.is_null,
)


@dataclass(frozen=True)
class Slice:
    """`rows` rows of a Parquet file, from row `offset` of its row group `group` on."""

    file: str
    group: int
    offset: int
    rows: int


class Rows:
    """The rows of a file or folder, a block in memory at a time; `aside` takes what is not Parquet yet.

    UserError when one of the columns `texts` holds something else, such as lists, or one of `alike` texts in some rows
    and lists in others.
    """

    def __init__(self, path: str, aside: str, texts: Sequence[str], alike: Sequence[str] = ()) -> None:
        paths = [os.path.abspath(file) if os.path.exists(file) else file for file in files(path)]
        if any(kind(file) != ".parquet" for file in paths):
            stage(path, aside, texts, alike)
            paths = [os.path.abspath(aside)]
        self.files = paths
        schemas = [parquet(file).schema_arrow for file in paths]
        try:
            self.schema = pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"the files of '{path}' do not fit together: {error}") from error
        require_unique(path, self.schema.names)
        for name in texts:
            require_texts(path, name, self.schema)

    def slices(self) -> list[Slice]:
        """All rows in order, none in two slices and none across two row groups."""
        slices = []
        for file in self.files:
            meta = parquet(file).metadata
            for group in range(meta.num_row_groups):
                rows = meta.row_group(group).num_rows
                slices += [
                    Slice(file, group, first, min(SLICE_ROWS, rows - first)) for first in range(0, rows, SLICE_ROWS)
                ]
        return slices

    def blocks(self) -> Iterator[pa.Table]:
        """All rows in order, in the common schema."""
        for file in self.files:
            with readable(file):
                for batch in parquet(file).iter_batches(SLICE_ROWS):
                    # What a file lacks is null.
                    rows, schema = pa.Table.from_batches([batch]), self.schema
                    lacking = {name: pa.nulls(rows.num_rows) for name in {*schema.names} - {*rows.column_names}}
                    columns = [(lacking[f.name] if f.name in lacking else rows[f.name]).cast(f.type) for f in schema]
                    yield pa.table(columns, schema=schema)


class Reader:
    """Reads slices; the row group read last is kept, since its slices follow one another."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.last: tuple[str, int] | None = None

    def __call__(self, part: Slice) -> pa.Table:
        """The rows of a slice, of the wanted columns."""
        if self.last != (part.file, part.group):
            source = parquet(part.file)
            present = [name for name in self.columns if name in source.schema_arrow.names]
            with readable(part.file):
                self.group = source.read_row_group(part.group, present)
            self.last = (part.file, part.group)
        return self.group.slice(part.offset, part.rows)


def parquet(file: str) -> pq.ParquetFile:
    """An open Parquet file; UserError when it is none."""
    with readable(file):
        check_no_lfs_pointer(file)
        fs, root = open_path(file)
        return pq.ParquetFile(fs.open_input_file(root))


def require_texts(path: str, name: str, schema: pa.Schema) -> None:
    """UserError when a column is there and holds neither texts nor numbers; what it holds would be graded as Python
    writes it."""
    if name in schema.names:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(fits(kind) for fits in TEXTS):
            raise UserError(f"file '{path}': column '{name}' holds {kind}, not texts; write one text into each cell")


def stage(path: str, aside: str, texts: Sequence[str], alike: Sequence[str] = ()) -> None:
    """Writes the rows of jsonl, json or csv files as Parquet. They are read twice: types first, so that a late row can
    widen a column. A row that cannot be read is an error, since no row may be left out."""
    kinds: dict[str, pa.DataType] = {}
    for block in checked(path, texts, alike):
        for name in dict.fromkeys(name for row in block for name in row):
            kinds[name] = widened(kinds.get(name), [row.get(name) for row in block])
    schema = pa.schema(list(kinds.items()))
    with pq.ParquetWriter(aside, schema) as writer:
        for block in checked(path, ()):
            columns = []
            for name, kind in kinds.items():
                values = [row.get(name) for row in block]
                if pa.types.is_string(kind):
                    values = [
                        None if is_nothing(v) else v if isinstance(v, str) else json.dumps(v, default=str)
                        for v in values
                    ]
                columns.append(pa.array(values, kind))
            writer.write_table(pa.table(columns, schema=schema))


def checked(path: str, texts: Sequence[str], alike: Sequence[str] = ()) -> Iterator[list[dict[str, Any]]]:
    """Blocks of rows; UserError for the first that cannot be read, or has a list where there should be a text, or, in
    a column of `alike`, where there were texts before."""
    rows, listed = records(path), dict[str, bool]()
    offset = 0
    while block := list(islice(rows, SLICE_ROWS)):
        readable: list[dict[str, Any]] = []
        for number, row in enumerate(block, offset + 1):
            if isinstance(row, BadRow):
                raise UserError(f"file '{path}', row {number}: {row}")
            if wrong := [name for name in texts if isinstance(row.get(name), list | dict | bytes)]:
                held = type(row[wrong[0]]).__name__
                raise UserError(
                    f"file '{path}', row {number}: '{wrong[0]}' is no text but a {held}; write one text into each cell"
                )
            for name in alike:
                is_list = isinstance(row.get(name), list | dict)
                if not is_nothing(row.get(name)) and listed.setdefault(name, is_list) != is_list:
                    raise UserError(
                        f"file '{path}', row {number}: '{name}' is {'a list' if is_list else 'no list'}, unlike in the "
                        "rows before; write one kind into all cells"
                    )
            readable.append(row)
        offset += len(block)
        yield readable


def widened(known: pa.DataType | None, values: list[Any]) -> pa.DataType:
    """The type that holds what was seen before and these values; text, with JSON in it, where there is none."""
    try:
        inferred = pa.array(values).type
        fields = [pa.schema([("value", kind)]) for kind in (known, inferred) if kind is not None]
        kind = pa.unify_schemas(fields, promote_options="permissive").field("value").type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.string()
    return pa.string() if has_empty_struct(kind) else kind


def has_empty_struct(kind: pa.DataType) -> bool:
    """Whether a type holds `{}` somewhere, which Parquet cannot."""
    inside = [kind.field(index).type for index in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not inside) or any(map(has_empty_struct, inside))


def beside(blocks: Iterator[pa.Table], results: Iterator[pa.Table], names: tuple[str, ...]) -> Iterator[pa.Table]:
    """Rows with their results: both come in row order, in pieces of any size. Columns `names` are replaced."""
    ready = next(results, None)
    for block in blocks:
        while ready is None or ready.num_rows < block.num_rows:
            ready = pa.concat_tables([table for table in (ready, next(results)) if table is not None])
        columns = block.select([name for name in block.column_names if name not in names])
        for name in names:
            columns = columns.append_column(name, ready[name].slice(0, block.num_rows))
        ready = ready.slice(block.num_rows)
        yield columns


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
