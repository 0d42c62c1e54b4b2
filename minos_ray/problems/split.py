"""The problems of a split, and the rows of other artefacts that belong to them."""

import random
from collections.abc import Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.store.columns import Row
from minos_ray.store.run import Artefact, Run


def read_problems(run: Run, split: str | None, columns: list[str]) -> pa.Table:
    """These columns of the problems of a split (None: of all). UserError unless the artefact is complete."""
    if split is None:
        return run.artefact("problems").read(columns)
    problems = run.artefact("problems").read(list(dict.fromkeys([*columns, "split"])))
    return problems.filter(pc.equal(problems["split"], split)).select(columns)


def problems_by_id(run: Run, split: str | None, columns: list[str]) -> dict[str, Row]:
    """These columns of the problems of a split (None: of all), by `problem_id`, which is one of them."""
    return {row["problem_id"]: row for row in read_problems(run, split, columns).to_pylist()}


def rows_of_problems(artefact: Artefact, columns: list[str], problem_ids: Set[str]) -> pa.Table:
    """The rows of these problems, `columns` of them with `problem_id`. UserError unless the artefact is complete.

    Parts are read one after the other, since a train split is small beside 256 candidates of every test problem.
    """
    tables = [artefact.empty_table(columns)]
    for part in artefact.parts(columns):
        names = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
        if names:
            tables.append(part.filter(pc.is_in(part["problem_id"], value_set=pa.array(names, pa.string()))))
    return pa.concat_tables(tables)


def round_robin(rows: Sequence[Row], seed: str) -> list[Row]:
    """Shuffled rows such that each problem gives its first before any gives its second, and so on."""
    numbers: dict[str, int] = {}
    problems = [numbers.setdefault(row["problem_id"], len(numbers)) for row in rows]
    return [rows[i] for i in turns(np.array(problems, dtype=np.int64), seed)]


def turns(problems: np.ndarray, seed: str) -> np.ndarray:
    """[rows]: the numbers of the rows in the order of `round_robin`; `problems` [rows] are numbers from 0."""
    size = len(problems)
    shuffled = np.array(random.Random(seed).sample(range(size), size), dtype=np.int64)
    by_problem = np.argsort(problems[shuffled], kind="stable")
    starts = np.flatnonzero(np.diff(problems[shuffled][by_problem], prepend=-1))
    rounds = np.empty(size, dtype=np.int64)
    rounds[by_problem] = np.arange(size) - np.repeat(starts, np.diff(np.append(starts, size)))
    return shuffled[np.argsort(rounds, kind="stable")]


def quota(length: int, fraction: float) -> int:
    """How many of the first `length` rows are wrong ones."""
    return int(length * fraction + 0.5)
