"""What is still to be sampled: every (problem, index) that is not there, as units of work. Pure.

A unit is one request: `count` candidates of one problem with indices `first`, `first + 1`, ... Everything is done in
whole columns, since a million problems are four million units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Units(NamedTuple):
    """Columns of units: the number of the problem, the first index, and how many candidates."""

    problem: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.problem)

    def shuffled(self, seed: int) -> "Units":
        """Large and small units mixed, so that every task is about equally much work."""
        order = np.random.default_rng(seed).permutation(len(self))
        return Units(*(column[order] for column in self))


def nothing(wanted: Sequence[int]) -> np.ndarray:
    """The table of what is stored, [problems, candidates], while nothing is."""
    return np.zeros((len(wanted), max(wanted, default=0)), dtype=bool)


def plan(wanted: Sequence[int], stored: np.ndarray, size: int) -> Units:
    """Units of at most `size` candidates for all that is missing of the first `wanted[p]` candidates of problem p.

    `stored` is a table [problems, candidates]; a gap in it is cut into units from its beginning on.
    """
    width = stored.shape[1]
    missing = ~stored & (np.arange(width) < np.asarray(wanted, dtype=np.int64).reshape(-1, 1))
    framed = np.zeros((len(wanted), width + 2), dtype=np.int8)
    framed[:, 1:-1] = missing
    edges = np.diff(framed, axis=1)
    problem, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    return chunks(problem, start, stop, size)


def chunks(problem: np.ndarray, start: np.ndarray, stop: np.ndarray, size: int) -> Units:
    """Each range in pieces of `size`, its last one smaller."""
    pieces = -(-(stop - start) // size)
    of = np.repeat(np.arange(len(problem)), pieces)
    number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = start[of] + number * size
    return Units(problem[of], first, np.minimum(stop[of] - first, size))


def task_units(units: Units, rows: int) -> int:
    """How many units hold about `rows` candidates."""
    return max(1, round(rows * len(units) / units.count.sum())) if len(units) else 1
