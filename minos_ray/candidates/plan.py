"""What is still to be sampled: every (problem, index) that is not there, as units of work. Pure.

A unit is one request: `count` candidates of one problem with indices `first`, `first + 1`, ... Everything is done in
whole columns, since a million problems are four million units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Problems that are planned at once.
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
        """Problems in a seeded order, so that every task is about equally much work; units of a problem stay together.

        So a problem lies, as a rule, in one task and in one part, and its prompt is computed once.
        """
        if not len(self):
            return self
        rank = np.random.default_rng(seed).permutation(int(self.problem.max()) + 1)
        order = np.argsort(rank[self.problem], kind="stable")
        return Units(self.problem[order], self.first[order], self.count[order])


def nothing(wanted: Sequence[int] | np.ndarray) -> np.ndarray:
    """The table of what is stored, [problems, candidates], while nothing is."""
    return np.zeros((len(wanted), max(wanted, default=0)), dtype=bool)


def plan(wanted: Sequence[int] | np.ndarray, stored: np.ndarray, size: int) -> Units:
    """Units of at most `size` candidates for all that is missing of the first `wanted[p]` candidates of problem p.

    `stored` is a table [problems, candidates]; a gap in it is cut into units from its beginning on.
    """
    amounts = np.asarray(wanted, dtype=np.int64)
    blocks = range(0, len(amounts), BLOCK)
    planned = [plan_block(at, amounts[at : at + BLOCK], stored[at : at + BLOCK], size) for at in blocks]
    nobody = np.zeros(0, np.int32)
    return Units(*map(np.concatenate, zip(*planned, strict=True))) if planned else Units(nobody, nobody, nobody)


def plan_block(at: int, wanted: np.ndarray, stored: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """The units of the problems from number `at` on; what is needed on the way is as large as the table of a block."""
    width = stored.shape[1]
    framed = np.zeros((len(wanted), width + 2), dtype=np.int8)
    np.greater(np.arange(width) < wanted.reshape(-1, 1), stored, out=framed[:, 1:-1].view(bool))
    edges = np.diff(framed, axis=1)
    problem, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    return chunks(problem + at, start, stop, size)


def chunks(problem: np.ndarray, start: np.ndarray, stop: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Each range in pieces of `size`, its last one smaller."""
    pieces = -(-(stop - start) // size)
    of = np.repeat(np.arange(len(problem)), pieces)
    number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = start[of] + number * size
    columns = (problem[of], first, np.minimum(stop[of] - first, size))
    return tuple(column.astype(np.int32) for column in columns)


def task_units(units: Units, rows: int) -> int:
    """How many units hold about `rows` candidates."""
    return max(1, round(rows * len(units) / units.count.sum())) if len(units) else 1
