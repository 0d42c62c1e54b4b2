"""The outcome of every method on every problem, kept beside evaluation.json for whoever compares runs by problem."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.evaluation.headline import SINGLE
from minos_ray.store.run import Run

if TYPE_CHECKING:
    from minos_ray.evaluation.comparison import Method

NAME = "outcomes.parquet"
SCHEMA = pa.schema(
    {
        "problem_id": pa.string(),
        "method": pa.string(),
        "verifier": pa.string(),
        "n": pa.int32(),
        "outcome": pa.float64(),
    }
)


def write(run: Run, found: "Mapping[Method, np.ndarray]", headline: int, problem_ids: pa.Array) -> None:
    """Writes the methods at the headline n, and pass@1; an outcome is null where a problem has too few candidates."""
    plain = {method: values for method, values in found.items() if not method.aggregation}
    kept = {method: values for method, values in plain.items() if method.n == headline or method.name == SINGLE}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(rows(*each, problem_ids) for each in kept.items()), sink, compression="zstd")
    run.write_bytes(NAME, sink.getvalue().to_pybytes())


def rows(method: "Method", values: np.ndarray, problem_ids: pa.Array) -> pa.Table:
    """One row per problem."""
    count = len(problem_ids)
    columns = [
        problem_ids,
        pa.repeat(method.name, count),
        pa.repeat(method.verifier, count),
        pa.repeat(pa.scalar(method.n, pa.int32()), count),
        pa.array(values, pa.float64(), from_pandas=True),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read(run: Run) -> pa.Table:
    """All rows; UserError when the run was evaluated without writing them."""
    if not run.exists(NAME):
        manifest = run.at("evaluation.json.manifest.json")
        raise UserError(f"{run.at(NAME)} is not there; delete {manifest} and run the stage 'evaluate' again")
    with run.fs.open_input_file(f"{run.root}/{NAME}") as source:
        return pq.read_table(source)


def values(table: pa.Table, method: str, verifier: str) -> np.ndarray:
    """The outcomes of one method in the order of problem ids; NaN where a problem has too few candidates."""
    mine = pc.and_(pc.equal(table["method"], method), pc.equal(table["verifier"], verifier))
    return table.filter(mine).sort_by("problem_id")["outcome"].to_numpy()
