"""The problems of a split, and the rows of other artefacts that belong to them."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
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
    parts = parts_of_problems(artefact, columns, problem_ids)
    return pa.concat_tables([artefact.empty_table(columns), *parts])


def parts_of_problems(artefact: Artefact, columns: list[str], problem_ids: Set[str]) -> Iterator[pa.Table]:
    """The rows of `rows_of_problems` of each part that has any."""
    for part in artefact.parts(columns):
        names = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
        if names:
            yield part.filter(pc.is_in(part["problem_id"], value_set=pa.array(names, pa.string())))


def count_rows(artefact: Artefact, problem_ids: Set[str], right: bool = False) -> Counter[str]:
    """How many rows, or `right` ones, each of these problems has, by its id; those without any are left out."""
    rows: Counter[str] = Counter()
    for part in artefact.parts(["problem_id", *(["correct"] if right else [])]):
        counts = pc.value_counts(part.filter(part["correct"])["problem_id"] if right else part["problem_id"])
        names, numbers = (counts.field(name).to_pylist() for name in ("values", "counts"))
        rows.update({name: number for name, number in zip(names, numbers, strict=True) if name in problem_ids})
    return rows


def drawn(rows: Mapping[str, int], most: int, paid: Set[str] = frozenset()) -> tuple[Set[str], int]:
    """The problems to take rows from: all, but where they have more than `most` rows a half, a quarter, ... of them,
    which their ids decide; and how many rows the others have. So memory does not grow with the run.

    One problem stays, however many rows it has. A draw of a smaller `most`, or beside more problems, is a subset.
    Problems that are `paid` for have half of `most` to themselves and are drawn apart.
    """
    total = sum(rows.values())
    if total <= most:
        return rows.keys(), 0
    first = halved({name: number for name, number in rows.items() if name in paid}, most // 2)
    others = {name: number for name, number in rows.items() if name not in paid}
    names = first | halved(others, most - sum(rows[name] for name in first))
    return names, total - sum(rows[name] for name in names)


def halved(rows: Mapping[str, int], most: int) -> Set[str]:
    """The problems after as many halvings as leave at most `most` rows, or one problem."""
    digests = {name: int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") for name in rows}
    names, divisor = set(rows), 1
    while len(names) > 1 and sum(rows[name] for name in names) > most:
        divisor *= 2
        names = {name for name in names if digests[name] % divisor == 0} or {min(names, key=digests.__getitem__)}
    return names


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
