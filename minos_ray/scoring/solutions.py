"""What is to be scored, planned without reading a solution, and the actors' way to the solutions.

A unit is one verifier on the candidates of one problem in one part of the labels. The driver reads only which problem
each label is of; an actor reads a part once, since units of the same part follow one another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import resolve
from minos_ray.errors import UserError
from minos_ray.problems.split import read_problems
from minos_ray.store.run import Artefact, Run
from minos_ray.work.run_units import stored_units

# What a scorer is given: a unit with its solutions.
UNITS = pa.schema(
    [
        ("unit_id", pa.string()),
        ("artefact", pa.string()),
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("candidate_ids", pa.list_(pa.string())),
        ("steps", pa.list_(pa.list_(pa.string()))),
    ]
)


def read_pieces(run: Run, split: str) -> pa.Table:
    """The candidates to be scored, by part and problem: `piece` (its id), `part`, `problem_id`, `question`, `rows`.

    UserError when no labelled candidate belongs to a problem of the split.
    """
    problems = read_problems(run, split, ["problem_id", "question"]).combine_chunks()
    parts, seen = [], []
    for name, rows in run.artefact("labels").named_parts(["problem_id"]):
        parts.append(name)
        seen.append(rows["problem_id"].value_counts())
    if seen:
        part = np.repeat(np.arange(len(parts)), [len(counts) for counts in seen])
        of = pa.chunked_array([counts.field("values") for counts in seen])  # one array holds no more than 2 GiB of ids
        rows = pa.concat_arrays([counts.field("counts") for counts in seen])
        problem = pc.index_in(of, value_set=problems["problem_id"].combine_chunks()).combine_chunks()
        wanted = problem.is_valid()
        if wanted.true_count:
            kept = part[wanted.to_numpy(zero_copy_only=False)]
            return pieces(pa.array(parts), kept, problems, problem.drop_null(), rows.filter(wanted))
    raise UserError(f"score: no labelled candidate belongs to a problem of split '{split}'")


def pieces(parts: pa.Array, part: np.ndarray, problems: pa.Table, problem: pa.Array, rows: pa.Array) -> pa.Table:
    """The table of `read_pieces`; names of parts and texts of problems are there once, whoever names them."""
    number = pa.array(part, pa.int32())
    columns = {name: problems[name].combine_chunks() for name in ("problem_id", "question")}
    named = {name: pa.DictionaryArray.from_arrays(problem, column) for name, column in columns.items()}
    piece = pc.binary_join_element_wise(parts.take(number), columns["problem_id"].take(problem), " ")
    return pa.table(
        {"piece": piece, "part": pa.DictionaryArray.from_arrays(number, parts), **named, "rows": rows.cast(pa.int32())}
    )


def unit_ids(artefact: Artefact, made: pa.Table) -> pa.Array:
    """The ids of the units that are the pieces in this artefact."""
    return pc.binary_join_element_wise(artefact.name, made["piece"].combine_chunks(), " ")


def missing(artefacts: Sequence[Artefact], made: pa.Table) -> pa.Table:
    """The pieces that each artefact lacks, as units for `Reader`."""
    rows, chosen, names = made["rows"].to_numpy(), [], []
    for artefact in artefacts:
        ids = unit_ids(artefact, made)
        left = np.flatnonzero(~stored_units(artefact, ids, rows))
        chosen.append(left)
        names.append(ids.take(left))
    units = made.drop_columns("piece").take(np.concatenate(chosen))
    number = pa.array(np.repeat(np.arange(len(chosen)), [len(left) for left in chosen]), pa.int32())
    artefact = pa.DictionaryArray.from_arrays(number, pa.array([artefact.name for artefact in artefacts]))
    return units.append_column("unit_id", pa.chunked_array(names)).append_column("artefact", artefact)


class Reader:
    """The worker of `run_units`: reads the solutions of units and has the worker of that name score them."""

    def __init__(self, worker: str, labelled: str, **kwargs: Any) -> None:
        self.worker, self.labels = resolve(worker)(**kwargs), Run(labelled).artefact("labels")
        self.part: tuple[str, pa.Table] | None = None

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """What the worker makes of the units with their solutions (`UNITS`)."""
        return self.worker(pa.Table.from_pylist([self.filled(unit) for unit in units.to_pylist()], schema=UNITS))

    def filled(self, unit: dict[str, Any]) -> dict[str, Any]:
        """A unit with its solutions, in order of their ids."""
        if self.part is None or self.part[0] != unit["part"]:
            rows = self.labels.read_part(unit["part"], ["candidate_id", "problem_id", "steps"])
            self.part = unit["part"], rows
        rows = self.part[1].filter(pc.equal(self.part[1]["problem_id"], unit["problem_id"])).sort_by("candidate_id")
        return {**unit, "candidate_ids": rows["candidate_id"].to_pylist(), "steps": rows["steps"].to_pylist()}
