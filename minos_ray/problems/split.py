"""The problems of a split, and the rows of other artefacts that belong to them."""

import random
from collections.abc import Sequence, Set
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.store.columns import Row
from minos_ray.store.run import Artefact, Run

NOT_DRAWN = "problem_not_drawn"
# Candidates among which is chosen by what takes some 120 bytes of each, without their texts.
MOST_OUTLINED = 1 << 26


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


def drawn(artefact: Artefact, problem_ids: Set[str], most: int) -> tuple[Set[str], int]:
    """The problems to choose rows from: all of these, but where they have more than `most` rows a half, a quarter, ...
    of them, which their ids decide; and how many rows the others have.

    So memory does not grow with the run, and problems keep all of their rows.
    """
    rows = np.zeros(64, dtype=np.int64)  # by the halvings that a problem outlasts
    for part in artefact.parts(["problem_id"]):
        for entry in pc.value_counts(part["problem_id"]).to_pylist():
            if entry["values"] in problem_ids:
                rows[halvings(entry["values"])] += entry["counts"]
    least = int(np.argmax(np.append(rows[::-1].cumsum()[::-1], 0) <= most))
    left_out = int(rows[:least].sum())
    return {name for name in problem_ids if halvings(name) >= least} if least else problem_ids, left_out


def halvings(problem_id: str) -> int:
    """How often a set of problems is halved before this one is left out: the zeros that a digest of its id ends in."""
    digest = int.from_bytes(blake2b(problem_id.encode(), digest_size=8).digest(), "big")
    return min(63, (digest & -digest).bit_length() - 1) if digest else 63


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
