"""Which candidates are still to be sampled: every missing (problem, index), as units of work. Pure.

A unit is one request: `count` candidates of one problem with indices `first`, `first + 1`, ... All functions work on
columns, since a million problems are four million units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Problems that are planned at once, to bound memory.
BLOCK = 1 << 15


@dataclass(frozen=True)
class Units:
    """Columns (int32) of units: the number of the problem, the first index, and how many candidates."""

    problem: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.problem)

    def shuffled(self, seed: int) -> "Units":
        """Problems in a seeded order, so that all tasks are about equally long. Units of a problem stay together.

        Most problems are then in one task and in one part, and their prompt is computed once.
        """
        if not len(self):
            return self
        rank = np.random.default_rng(seed).permutation(int(self.problem.max()) + 1)
        order = np.argsort(rank[self.problem], kind="stable")
        return Units(self.problem[order], self.first[order], self.count[order])


def plan(counts: Sequence[int] | np.ndarray, stored: np.ndarray, size: int) -> Units:
    """Units of at most `size` candidates for all that are missing of the first `counts[p]` candidates of problem p.

    `stored` says which are stored, [problems, candidates]; a gap in it is cut into units from its first index on.
    """
    amounts = np.asarray(counts, dtype=np.int64)
    blocks = range(0, len(amounts), BLOCK)
    planned = [plan_block(i, amounts[i : i + BLOCK], stored[i : i + BLOCK], size) for i in blocks]
    empty = np.zeros(0, np.int32)
    return Units(*map(np.concatenate, zip(*planned, strict=True))) if planned else Units(empty, empty, empty)


def plan_block(first_problem: int, counts: np.ndarray, stored: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """The units of a block of problems, `counts` [problems] and `stored` [problems, candidates]."""
    width = stored.shape[1]
    # 1 where a candidate is missing, with a column of zeros on both sides: gaps lie between steps up and steps down.
    is_missing = np.zeros((len(counts), width + 2), dtype=np.int8)
    np.greater(np.arange(width) < counts.reshape(-1, 1), stored, out=is_missing[:, 1:-1].view(bool))
    edges = np.diff(is_missing, axis=1)
    problem, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    return chunks(problem + first_problem, start, stop, size)


def chunks(problem: np.ndarray, start: np.ndarray, stop: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Each range [start, stop) in chunks of `size`, its last one smaller."""
    counts = -(-(stop - start) // size)
    gap = np.repeat(np.arange(len(problem)), counts)
    number = np.arange(len(gap)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = start[gap] + number * size
    columns = (problem[gap], first, np.minimum(stop[gap] - first, size))
    return tuple(column.astype(np.int32) for column in columns)


def task_units(units: Units, rows: int) -> int:
    """How many units hold about `rows` candidates."""
    return max(1, round(rows * len(units) / units.count.sum())) if len(units) else 1
