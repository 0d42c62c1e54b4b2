"""Rows of an artefact that belong to some problems: a train split is small beside 256 candidates a test problem."""

import random
from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.store.run import Artefact

Row = dict[str, Any]


def rows_of_problems(artefact: Artefact, columns: list[str], problem_ids: Set[str]) -> pa.Table:
    """The rows of these problems, `columns` of them with `problem_id`; other rows are in memory a few parts at a time.

    UserError unless the artefact is complete.
    """
    tables = [artefact.nothing(columns)]
    for part in artefact.parts(columns):
        ids = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
        if ids:
            tables.append(part.filter(pc.is_in(part["problem_id"], value_set=pa.array(ids, pa.string()))))
    return pa.concat_tables(tables)


def by_turns(rows: Sequence[Row], seed: str) -> list[Row]:
    """Shuffled rows such that each problem gives its first before any gives its second, and so on."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    turn: Counter[str] = Counter()
    turns = []
    for row in shuffled:
        turns.append(turn[row["problem_id"]])
        turn[row["problem_id"]] += 1
    order = sorted(range(len(rows)), key=turns.__getitem__)
    return [shuffled[i] for i in order]


def quota(length: int, share: float) -> int:
    """How many of the first `length` rows are wrong ones."""
    return int(length * share + 0.5)
